/* Two threads take two locks in opposite orders. */
#define ROUNDS 4000

static volatile int first, second;
static volatile long done;
static char stacks[2][4096] __attribute__((aligned(16)));

static long call(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}

static void lock(volatile int *it) {
    while (__atomic_exchange_n(it, 1, __ATOMIC_ACQUIRE))
        while (*it)
            __builtin_ia32_pause();
}

static void work(volatile int *outer, volatile int *inner) {
    for (long i = 0; i < ROUNDS; i++) {
        lock(outer);
        lock(inner);
        __atomic_store_n(inner, 0, __ATOMIC_RELEASE);
        __atomic_store_n(outer, 0, __ATOMIC_RELEASE);
        for (volatile int between = 0; between < 300; between++)
            ;
    }
    __atomic_add_fetch(&done, 1, __ATOMIC_SEQ_CST);
    call(60, 0, 0, 0); /* exit */
}

__attribute__((used)) void one(void) { work(&first, &second); }
__attribute__((used)) void other(void) { work(&second, &first); }

static void thread(int number, void (*body)(void)) {
    long *top = (long *)(stacks[number] + sizeof stacks[number]) - 1;
    *top = (long)body;
    long result = 56; /* clone: CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM */
    __asm__ volatile("syscall\n test %%rax, %%rax\n jnz 1f\n ret\n 1:"
                     : "+a"(result) : "D"(0x50f00L), "S"(top), "d"(0L) : "rcx", "r11", "memory");
}

__attribute__((used)) void start(void) {
    thread(0, one);
    thread(1, other);
    while (done < 2)
        call(24, 0, 0, 0); /* sched_yield */
    call(231, 0, 0, 0); /* exit_group */
}

__asm__(".globl _start\n_start: and $-16, %rsp\n call start\n");
