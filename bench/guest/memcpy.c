// Copies between two buffers of 4 MB in pieces of 64 B to 64 KB. AMOUNT passes over the buffer.
#include "bench.h"
#include <string.h>

enum { N = 4 << 20 };
static unsigned char from[N], to[N];

int main(int argc, char **argv) {
    uint64_t seed = 5, sum = 0;
    for (int i = 0; i < N; i++)
        from[i] = i * 131 >> 3;
    for (long r = amount(argc, argv); r > 0; r--) {
        size_t at = 0;
        while (at < N) {
            size_t len = (size_t)64 << next_random(&seed) % 11;
            if (len > N - at)
                len = N - at;
            memcpy(to + at, from + at, len);
            at += len;
        }
        __asm__ volatile("" ::: "memory");
        from[r % N] ^= to[(r * 4099) % N];
    }
    for (int i = 0; i < N; i += 61)
        sum = sum * 31 + to[i];
    return result(sum);
}
