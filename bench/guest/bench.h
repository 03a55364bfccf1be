// What every workload shares: one argument says how much to do, one number on standard output says
// what came of it, so that a run in a guest can be compared with the same run outside.
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static inline long amount(int argc, char **argv) {
    long n = argc > 1 ? atol(argv[1]) : 0;
    if (n <= 0) {
        fprintf(stderr, "%s: the argument is how much to do\n", argv[0]);
        exit(2);
    }
    return n;
}

static inline int result(uint64_t value) {
    printf("%016llx\n", (unsigned long long)value);
    return 0;
}

static inline void die(const char *what) {
    perror(what);
    exit(1);
}

// splitmix64 (Steele, Lea, Flood 2014).
static inline uint64_t next_random(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}
