/* What a fake SGLang worker says, as JSON. */
#ifndef BENCH_ANSWERS_H
#define BENCH_ANSWERS_H

#include "turn.h"

enum role { PREFILL, DECODE };
enum { ANSWER_ROOM = 4096 };

struct worker {
    int port;
    enum role role;
    long num_turns, num_paired, num_local, num_marked, num_closed; /* what it was asked for */
};

int say_info(char *to, const struct worker *worker);
int say_models(char *to);
int say_counts(char *to, const struct worker *worker);
int say_whole(char *to, const struct worker *worker, const struct turn *turn);
/* One event of a stream; `left` counts down to 1. */
int say_event(char *to, const struct worker *worker, const struct turn *turn, long left);
/* What ends a stream: the usage if it was asked for, and the end mark. */
int say_end(char *to, const struct worker *worker, const struct turn *turn);

#endif
