/* Times in nanoseconds, kept one by one, and their percentiles. */
#ifndef BENCH_SAMPLES_H
#define BENCH_SAMPLES_H

#include <stddef.h>
#include <stdint.h>

struct samples {
    uint64_t *at;
    size_t len, room;
};

void samples_add(struct samples *to, uint64_t ns);
/* As "NAME":{...} in microseconds, or "NAME":null when there are none. Sorts them. */
void samples_print(struct samples *of, const char *name);

#endif
