// An integer hash with a table of 8 KB: multiplications, shifts, loads that hit. AMOUNT million steps.
#include "bench.h"

int main(int argc, char **argv) {
    static uint64_t table[1024];
    uint64_t seed = 1, h = 0xcbf29ce484222325ull;
    for (int i = 0; i < 1024; i++)
        table[i] = next_random(&seed);
    for (long i = amount(argc, argv) * 1000000; i > 0; i--) {
        h ^= table[h >> 54];
        h *= 0x100000001b3ull;
        h ^= h >> 29;
    }
    return result(h);
}
