// Maps 1 MB, touches each of its 256 pages, unmaps it. AMOUNT times.
#include "bench.h"
#include <sys/mman.h>

int main(int argc, char **argv) {
    uint64_t sum = 0;
    for (long i = amount(argc, argv); i > 0; i--) {
        unsigned char *at = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED)
            die("mmap");
        for (long page = 0; page < 256; page++)
            at[page << 12] = i;
        sum += at[(i & 255) << 12];
        if (munmap(at, 1 << 20))
            die("munmap");
    }
    return result(sum);
}
