#define _GNU_SOURCE
#include "turn.h"

#include <stdlib.h>
#include <string.h>

#include "wire.h"

enum { WINDOW = 1024 };

/* Router-made fields stand before or behind the prompt, so the two ends of a body tell all. */
static const char *seek(const char *body, size_t len, const char *what) {
    const char *at = find(body, len < WINDOW ? len : WINDOW, what);
    return at || len <= WINDOW ? at : find(body + len - WINDOW, WINDOW, what);
}

static int is_set(const char *body, size_t len, const char *key) {
    const char *at = seek(body, len, key);
    return at && (!memcmp(at + strlen(key), "true", 4) || !memcmp(at + strlen(key), " true", 5));
}

static long most_chunks(const char *body, size_t len) {
    static const char *const keys[] = {"\"max_completion_tokens\":", "\"max_tokens\":",
                                       "\"max_new_tokens\":"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const char *at = seek(body, len, keys[i]);
        if (at)
            return strtol(at + strlen(keys[i]), NULL, 10);
    }
    return 16;
}

struct turn turn_read(const char *path, const char *body, size_t len) {
    struct turn turn = {.body_len = len, .num_chunks = 1};
    turn.is_generate = !strncmp(path, "/generate", 9);
    turn.is_stream = is_set(body, len, "\"stream\":");
    turn.is_paired = seek(body, len, "\"bootstrap_room\":") != NULL;
    turn.wants_usage = turn.is_stream && is_set(body, len, "\"include_usage\":");
    const char *mark = seek(body, len, "mark:");
    if (mark && mark + 5 + 16 <= body + len)
        memcpy(turn.mark, mark + 5, 16);
    if (turn.is_stream)
        turn.num_chunks = most_chunks(body, len);
    return turn;
}

int path_is_one_of(const char *path, const char *const *names) {
    size_t len = strcspn(path, " ?\r\n");
    for (; *names; names++)
        if (strlen(*names) == len && !memcmp(path, *names, len))
            return 1;
    return 0;
}
