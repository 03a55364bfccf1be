// Direct reads and writes of a block device, past the page cache.
//   disk AMOUNT DEVICE seq-read|seq-write|rand-read|rand-write
// Sequential: AMOUNT MB in pieces of 1 MB. Random: AMOUNT thousand pieces of 4 KB within 128 MB.
#define _GNU_SOURCE
#include "bench.h"
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

enum { MB = 1 << 20, SPAN = 128 };

int main(int argc, char **argv) {
    long n = amount(argc, argv);
    if (argc < 4)
        die("arguments");
    int is_random = strncmp(argv[3], "rand", 4) == 0;
    int is_write = strstr(argv[3], "write") != 0;
    int fd = open(argv[2], (is_write ? O_WRONLY : O_RDONLY) | O_DIRECT);
    if (fd < 0)
        die(argv[2]);
    unsigned char *buffer;
    if (posix_memalign((void **)&buffer, 4096, MB))
        die("memory");
    memset(buffer, 0x5a, MB);
    uint64_t seed = 11, sum = 0;
    size_t piece = is_random ? 4096 : MB;
    long count = is_random ? n * 1000 : n;
    for (long i = 0; i < count; i++) {
        off_t at = is_random ? (off_t)(next_random(&seed) % (SPAN * 256)) * 4096 : (off_t)(i % SPAN) * MB;
        buffer[0] = i;
        long done = is_write ? pwrite(fd, buffer, piece, at) : pread(fd, buffer, piece, at);
        if (done != (long)piece)
            die("transfer");
        sum = sum * 31 + buffer[piece / 2];
    }
    if (is_write && fsync(fd))
        die("fsync");
    return result(sum);
}
