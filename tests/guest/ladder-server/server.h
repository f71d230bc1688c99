#ifndef SERVER_H
#define SERVER_H

// Makes the state that a restart has to give back.
void make_state(void);
// Changes all of it.
void change_state(void);
// "ok", or what is not as it was made.
const char *check_state(void);

#endif
