// The C library's qsort with a comparison function, 100,000 integers. AMOUNT sorts.
#include "bench.h"

enum { N = 100000 };
static int values[N];

static int compare(const void *a, const void *b) {
    int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    uint64_t seed = 7, sum = 0;
    for (long r = amount(argc, argv); r > 0; r--) {
        for (int i = 0; i < N; i++)
            values[i] = (int)next_random(&seed);
        qsort(values, N, sizeof values[0], compare);
        for (int i = 0; i < N; i += 1000)
            sum = sum * 31 + (uint32_t)values[i];
    }
    return result(sum);
}
