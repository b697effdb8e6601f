/* What a fake worker reads of a request. */
#ifndef BENCH_TURN_H
#define BENCH_TURN_H

#include <stddef.h>

/* One turn, as far as its answer depends on it. */
struct turn {
    int is_generate, is_stream, is_paired, wants_usage;
    int tells; /* asked to tell the ids of its stream (core/continuation.py) */
    size_t body_len; /* in bytes; a token is taken for four of them */
    long num_chunks; /* output tokens of a stream */
    char mark[17];   /* the 16 characters behind "mark:" in the prompt, or "" */
};

struct turn turn_read(const char *path, const char *body, size_t len);
/* Whether a request line's path is one of the names, of which the last is 0. */
int path_is_one_of(const char *path, const char *const *names);

#endif
