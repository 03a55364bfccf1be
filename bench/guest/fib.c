// Recursive Fibonacci: calls, returns and the stack. AMOUNT times fib(27).
#include "bench.h"

__attribute__((noinline)) static uint64_t fib(unsigned n) {
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

int main(int argc, char **argv) {
    uint64_t sum = 0;
    for (long i = amount(argc, argv); i > 0; i--) {
        unsigned n = 27;
        __asm__ volatile("" : "+r"(n));
        sum += fib(n);
    }
    return result(sum);
}
