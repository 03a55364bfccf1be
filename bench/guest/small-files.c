// Writes, reads back and removes small files in 16 folders. AMOUNT files of 1 KB below FOLDER.
#include "bench.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int argc, char **argv) {
    long n = amount(argc, argv);
    if (argc < 3 || chdir(argv[2]))
        die("the second argument, a folder");
    char name[64];
    static char block[1024];
    uint64_t sum = 0;
    for (int folder = 0; folder < 16; folder++) {
        snprintf(name, sizeof name, "d%d", folder);
        if (mkdir(name, 0755))
            die(name);
    }
    for (int pass = 0; pass < 3; pass++)
        for (long i = 0; i < n; i++) {
            snprintf(name, sizeof name, "d%ld/file-%ld", i & 15, i);
            if (pass == 2) {
                if (unlink(name))
                    die(name);
                continue;
            }
            block[0] = i;
            int fd = open(name, pass == 0 ? O_CREAT | O_EXCL | O_WRONLY : O_RDONLY, 0644);
            if (fd < 0)
                die(name);
            long done = pass == 0 ? write(fd, block, sizeof block) : read(fd, block, sizeof block);
            if (done != sizeof block)
                die(name);
            sum = sum * 31 + (unsigned char)block[0];
            close(fd);
        }
    for (int folder = 0; folder < 16; folder++) {
        snprintf(name, sizeof name, "d%d", folder);
        if (rmdir(name))
            die(name);
    }
    return result(sum);
}
