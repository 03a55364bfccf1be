// A child that becomes this program anew and ends. AMOUNT children.
#include "bench.h"
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "child") == 0)
        return 7;
    uint64_t sum = 0;
    for (long i = amount(argc, argv); i > 0; i--) {
        pid_t child = fork();
        if (child < 0)
            die("fork");
        if (child == 0) {
            execl(argv[0], argv[0], "child", (char *)0);
            _exit(1);
        }
        int status;
        if (waitpid(child, &status, 0) != child)
            die("waitpid");
        sum += WEXITSTATUS(status);
    }
    return result(sum);
}
