/* The faults that a request can commit. */
#ifndef FAULTS_H
#define FAULTS_H

#ifdef __cplusplus
extern "C" {
#endif

struct fault {
    const char *name;
    void (*commit)(void);
};

/* Each ends with an entry without a name. */
extern const struct fault memory_faults[];
extern const struct fault instruction_faults[];
extern const struct fault signal_faults[];
extern const struct fault library_faults[];
extern const struct fault limit_faults[];
extern const struct fault cxx_faults[];

/* Commits the named fault; returns if there is none of that name or it had no effect. */
void commit_fault(const char *name);
void list_faults(void);

/* Gives wild pointers to system calls and prints what they answer. */
void wild_pointers(void);

/* Writes what a fault must leave as it was, as text. */
void describe_state(char *text, unsigned long size);
/* Changes much of it. */
void make_a_mess(void);
/* Sets up what the two above look at. */
void prepare_state(void);

#ifdef __cplusplus
}
#endif

#endif
