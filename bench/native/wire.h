/* Byte buffers, HTTP/1.1 heads, chunked bodies and a clock: what both programs need. */
#ifndef BENCH_WIRE_H
#define BENCH_WIRE_H

#include <stddef.h>
#include <stdint.h>

struct bytes {
    char *at;
    size_t len, room;
};

void bytes_add(struct bytes *to, const void *from, size_t len);
void bytes_drop(struct bytes *of, size_t len); /* forget the first `len` */
void bytes_free(struct bytes *of);

/* Reads what a socket has, at most `most` bytes. 1: got some, 0: nothing now, -1: closed. */
int bytes_read(struct bytes *to, int fd, size_t most);
/* Writes from `done` on; returns the new `done`, or -1 when the connection is gone. */
long bytes_write(int fd, const char *from, size_t len, size_t done);

enum { LENGTH_UNKNOWN = -1, LENGTH_CHUNKED = -2 };

struct head {
    size_t len;         /* with the empty line; 0: the head is not whole yet */
    long body_len;      /* or one of LENGTH_... */
    int status;         /* of an answer */
    int asks_to_close;  /* "connection: close" */
};

struct head head_read(const char *at, size_t len);

/* A chunked body. `left`: bytes of the open chunk still due. */
struct chunks {
    size_t left;
    int is_inside, is_over, is_bad;
};

/* Takes whole pieces off `from`, appends their payload to `to`. */
void chunks_read(struct chunks *state, struct bytes *from, struct bytes *to);

uint64_t clock_ns(void);
const char *find(const char *at, size_t len, const char *what);
_Noreturn void fail(const char *what);

#endif
