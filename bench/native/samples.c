#include "samples.h"

#include <stdio.h>
#include <stdlib.h>

#include "wire.h"

void samples_add(struct samples *to, uint64_t ns) {
    if (to->len == to->room) {
        to->room = to->room ? to->room * 2 : 65536;
        to->at = realloc(to->at, to->room * sizeof *to->at);
        if (!to->at)
            fail("memory");
    }
    to->at[to->len++] = ns;
}

static int compare(const void *left, const void *right) {
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

/* Nearest rank. */
static double percentile_us(const struct samples *of, double share) {
    size_t rank = (size_t)(share * (double)of->len + 0.9999999);
    return (double)of->at[rank ? rank - 1 : 0] / 1000;
}

void samples_print(struct samples *of, const char *name) {
    if (!of->len) {
        printf("\"%s\":null", name);
        return;
    }
    qsort(of->at, of->len, sizeof *of->at, compare);
    printf("\"%s\":{\"p50\":%.1f,\"p95\":%.1f,\"p99\":%.1f,\"max\":%.1f}", name,
           percentile_us(of, 0.5), percentile_us(of, 0.95), percentile_us(of, 0.99),
           (double)of->at[of->len - 1] / 1000);
}
