/* A growable byte buffer. */
#include "buffer.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void out_of_memory(void)
{
    fputs("demo-server: out of memory\n", stderr);
    exit(1);
}

void *xmalloc(size_t size)
{
    void *p = malloc(size);
    if (p == NULL)
        out_of_memory();
    return p;
}

void *xrealloc(void *old, size_t size)
{
    void *p = realloc(old, size);
    if (p == NULL)
        out_of_memory();
    return p;
}

char *buffer_reserve(struct buffer *b, size_t len)
{
    if (b->start > 0 && b->end + len > b->capacity) {
        memmove(b->data, b->data + b->start, buffer_pending(b));
        b->end -= b->start;
        b->start = 0;
    }
    if (b->end + len > b->capacity) {
        size_t capacity = b->capacity ? b->capacity : 256;
        while (capacity < b->end + len)
            capacity *= 2;
        b->data = xrealloc(b->data, capacity);
        b->capacity = capacity;
    }
    return b->data + b->end;
}

void buffer_append(struct buffer *b, const void *bytes, size_t len)
{
    if (len == 0)
        return;
    memcpy(buffer_reserve(b, len), bytes, len);
    b->end += len;
}

void buffer_printf(struct buffer *b, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    int len = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (len > 0)
        buffer_append(b, text, (size_t)len < sizeof text ? (size_t)len : sizeof text - 1);
}

void buffer_consume(struct buffer *b, size_t len)
{
    b->start += len;
    if (b->start == b->end)
        b->start = b->end = 0;
}

void buffer_free(struct buffer *b)
{
    free(b->data);
    *b = (struct buffer){0};
}
