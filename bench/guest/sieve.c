// Eratosthenes over 20 MB, one byte for each number: strided stores beyond the caches. AMOUNT sieves.
#include "bench.h"
#include <string.h>

enum { N = 20 << 20 };
static unsigned char composite[N];

int main(int argc, char **argv) {
    uint64_t sum = 0;
    for (long i = amount(argc, argv); i > 0; i--) {
        memset(composite, 0, N);
        for (long p = 2; p * p < N; p++)
            if (!composite[p])
                for (long m = p * p; m < N; m += p)
                    composite[m] = 1;
        for (long p = 2; p < N; p++)
            sum += !composite[p];
    }
    return result(sum);
}
