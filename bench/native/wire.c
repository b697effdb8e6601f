#define _GNU_SOURCE
#include "wire.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>

void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(2);
}

uint64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

const char *find(const char *at, size_t len, const char *what) {
    return memmem(at, len, what, strlen(what));
}

static void make_room(struct bytes *of, size_t more) {
    if (of->len + more <= of->room)
        return;
    of->room = (of->len + more) * 2;
    of->at = realloc(of->at, of->room);
    if (!of->at)
        fail("memory");
}

void bytes_add(struct bytes *to, const void *from, size_t len) {
    make_room(to, len);
    memcpy(to->at + to->len, from, len);
    to->len += len;
}

void bytes_drop(struct bytes *of, size_t len) {
    of->len -= len;
    if (of->len)
        memmove(of->at, of->at + len, of->len);
}

void bytes_free(struct bytes *of) {
    free(of->at);
    *of = (struct bytes){0};
}

int bytes_read(struct bytes *to, int fd, size_t most) {
    make_room(to, most);
    ssize_t got = recv(fd, to->at + to->len, most, MSG_DONTWAIT);
    if (got > 0) {
        to->len += (size_t)got;
        return 1;
    }
    return got < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

long bytes_write(int fd, const char *from, size_t len, size_t done) {
    while (done < len) {
        ssize_t sent = send(fd, from + done, len - done, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0)
            return errno == EAGAIN ? (long)done : -1;
        done += (size_t)sent;
    }
    return (long)done;
}

static int is_field(const char *line, size_t len, const char *name) {
    size_t name_len = strlen(name);
    return len > name_len && line[name_len] == ':' && !strncasecmp(line, name, name_len);
}

static void read_field(struct head *head, const char *line, size_t len) {
    if (is_field(line, len, "content-length"))
        head->body_len = strtol(line + 15, NULL, 10);
    else if (is_field(line, len, "transfer-encoding"))
        head->body_len = LENGTH_CHUNKED;
    else if (is_field(line, len, "connection"))
        head->asks_to_close = find(line, len, "close") != NULL;
}

struct head head_read(const char *at, size_t len) {
    struct head head = {.body_len = LENGTH_UNKNOWN};
    const char *end = find(at, len, "\r\n\r\n");
    if (!end)
        return head;
    head.len = (size_t)(end - at) + 4;
    if (head.len > 12 && !memcmp(at, "HTTP/", 5))
        head.status = atoi(at + 9);
    const char *line = memchr(at, '\n', head.len);
    for (line++; line < end; line++) {
        const char *stop = memchr(line, '\n', (size_t)(end + 2 - line));
        read_field(&head, line, (size_t)(stop - line));
        line = stop;
    }
    return head;
}

/* The size line of the next chunk. 0: not whole yet. */
static int open_chunk(struct chunks *state, struct bytes *from) {
    const char *end = find(from->at, from->len, "\r\n");
    if (!end)
        return 0;
    char *stop;
    state->left = strtoul(from->at, &stop, 16);
    if (stop == from->at)
        state->is_bad = 1;
    size_t skip = (size_t)(end - from->at) + 2;
    if (state->left == 0) { /* the last one; trailers are not expected */
        if (from->len < skip + 2)
            return 0;
        skip += 2;
        state->is_over = 1;
    }
    state->is_inside = !state->is_over;
    bytes_drop(from, skip);
    return 1;
}

void chunks_read(struct chunks *state, struct bytes *from, struct bytes *to) {
    while (!state->is_over && !state->is_bad && from->len) {
        if (!state->is_inside) {
            if (!open_chunk(state, from))
                return;
            continue;
        }
        size_t take = from->len < state->left ? from->len : state->left;
        bytes_add(to, from->at, take);
        bytes_drop(from, take);
        state->left -= take;
        if (state->left || from->len < 2)
            return;
        bytes_drop(from, 2);
        state->is_inside = 0;
    }
}
