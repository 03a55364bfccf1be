/* Two threads add to one counter without a lock; exits with 1 if additions were lost. Without a C
 * library: nothing but the race runs. */
#define ROUNDS 30000

static volatile long done;
__asm__(".data\n.balign 8\n.globl counter\ncounter: .quad 0\n.text\n");
extern volatile long counter;
static char stacks[2][4096] __attribute__((aligned(16)));

static long call(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}

__attribute__((used)) void work(void) {
    for (long i = 0; i < ROUNDS; i++)
        __asm__ volatile(
            ".globl racing_load, racing_store\n"
            "racing_load:  mov counter(%%rip), %%rdx\n"
            "              inc %%rdx\n"
            "racing_store: mov %%rdx, counter(%%rip)\n"
            : : : "rdx", "memory");
    __atomic_add_fetch(&done, 1, __ATOMIC_SEQ_CST);
    call(60, 0, 0, 0); /* exit */
}

static void thread(int number) {
    long *top = (long *)(stacks[number] + sizeof stacks[number]) - 1;
    *top = (long)work; /* where the new thread's RET leads */
    long result = 56; /* clone: CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM */
    __asm__ volatile("syscall\n test %%rax, %%rax\n jnz 1f\n ret\n 1:"
                     : "+a"(result) : "D"(0x50f00L), "S"(top), "d"(0L) : "rcx", "r11", "memory");
}

__attribute__((used)) void start(void) {
    thread(0);
    thread(1);
    while (done < 2)
        call(24, 0, 0, 0); /* sched_yield */
    call(231, counter != 2 * ROUNDS, 0, 0); /* exit_group */
}

__asm__(".globl _start\n_start: and $-16, %rsp\n call start\n");
