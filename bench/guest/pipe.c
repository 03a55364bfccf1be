// One byte to and fro between two processes through two pipes. AMOUNT thousand round trips.
#include "bench.h"
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    long n = amount(argc, argv) * 1000;
    int there[2], back[2];
    if (pipe(there) || pipe(back))
        die("pipe");
    pid_t child = fork();
    if (child < 0)
        die("fork");
    unsigned char byte;
    if (child == 0) {
        close(there[1]);
        while (read(there[0], &byte, 1) == 1) {
            byte++;
            if (write(back[1], &byte, 1) != 1)
                _exit(1);
        }
        _exit(0);
    }
    uint64_t sum = 0;
    for (long i = 0; i < n; i++) {
        byte = i;
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
            die("pipe");
        sum += byte;
    }
    close(there[1]);
    int status;
    if (waitpid(child, &status, 0) != child || status != 0)
        die("child");
    return result(sum);
}
