// A child that exits at once, and its parent waiting for it. AMOUNT children.
#include "bench.h"
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    uint64_t sum = 0;
    for (long i = amount(argc, argv); i > 0; i--) {
        pid_t child = fork();
        if (child < 0)
            die("fork");
        if (child == 0)
            _exit(i & 63);
        int status;
        if (waitpid(child, &status, 0) != child)
            die("waitpid");
        sum += WEXITSTATUS(status);
    }
    return result(sum);
}
