// The cheapest system call. AMOUNT thousand calls.
#include "bench.h"
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv) {
    long n = amount(argc, argv) * 1000;
    long same = 0, parent = syscall(SYS_getppid);
    for (long i = 0; i < n; i++)
        same += syscall(SYS_getppid) == parent;
    return result(same);
}
