// Chasing pointers round one random cycle through SIZE KB, one pointer in each line of 64 bytes: the
// latency of loads. AMOUNT million steps.
#include "bench.h"

struct line {
    struct line *next;
    char rest[56];
};

int main(int argc, char **argv) {
    long steps = amount(argc, argv) * 1000000;
    size_t n = (argc > 2 ? atol(argv[2]) : 16) * 1024 / sizeof(struct line);
    uint32_t *order = malloc(n * sizeof *order);
    struct line *lines = aligned_alloc(sizeof(struct line), n * sizeof *lines);
    if (!order || !lines)
        die("memory");
    for (size_t i = 0; i < n; i++)
        order[i] = i;
    // Sattolo's shuffle makes a single cycle.
    uint64_t seed = 3;
    for (size_t i = n - 1; i > 0; i--) {
        size_t j = next_random(&seed) % i;
        uint32_t t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
    for (size_t i = 0; i < n; i++)
        lines[i].next = &lines[order[i]];
    struct line *at = lines;
    for (long i = 0; i < steps; i++)
        at = at->next;
    return result(at - lines);
}
