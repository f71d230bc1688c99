/* A growable byte buffer: input waiting to be parsed, replies waiting to be sent. */
#ifndef DEMO_BUFFER_H
#define DEMO_BUFFER_H

#include <stddef.h>

struct buffer {
    char *data;
    size_t start; /* bytes before this offset are consumed */
    size_t end;   /* bytes [start, end) are pending */
    size_t capacity;
};

/* Makes room for `len` more bytes and returns where to put them; add them to `end` yourself. */
char *buffer_reserve(struct buffer *b, size_t len);
void buffer_append(struct buffer *b, const void *bytes, size_t len);
void buffer_printf(struct buffer *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
void buffer_consume(struct buffer *b, size_t len);
void buffer_free(struct buffer *b);

static inline size_t buffer_pending(const struct buffer *b)
{
    return b->end - b->start;
}

/* malloc and realloc that end the program when memory is exhausted, as this server cannot go on then. */
void *xmalloc(size_t size);
void *xrealloc(void *old, size_t size);

#endif
