# Task switches: by calls, jumps, task gates, interrupts and IRET, to 32- and 16-bit tasks.

#include "common.inc"
#include "interrupts.inc"
#include "results.inc"

.set TASK_A, 0x48
.set TASK_B, 0x50
.set TASK_16, 0x58
.set GATE_B, 0x60
.set TASK_SHORT, 0x68
.set TASK_BAD, 0x70
.set TASK_FAULT, 0x78

multiboot 0

end_of_names

# A task state segment: its entry and its stack.
.macro tss entry, top, data
    .long 0, 0, 0, 0, 0, 0, 0
    .long 0                                 # CR3
    .long \entry, 0x0002
    .long 0x1111, 0x2222, 0x3333, 0x4444, \top, 0x5555, 0x6666, 0x7777
    .long DATA32, CODE32, DATA32, \data, DATA32, DATA32
    .long 0
    .long 0x680000
.endm

.macro base selector, symbol
    movl $\symbol, %eax
    movw %ax, gdt + \selector + 2
    shrl $16, %eax
    movb %al, gdt + \selector + 4
.endm

    .globl start
start:
    flat
    call load_idt
    call low_memory
    movl $more, %esi
    movl $gdt_more, %edi
    movl $more_end - more, %ecx
    rep movsb
    base TASK_A, task_a
    base TASK_B, task_b
    base TASK_16, task_16
    base TASK_SHORT, task_b
    base TASK_BAD, task_bad
    base TASK_FAULT, task_fault
    movw $TASK_A, %ax
    ltr %ax

    # A call: the other task starts from its segment, and returns.
    movl $0xaaaa, %ebx
    stc
    lcall $TASK_B, $0
    pushfl
    popl %eax
    andl $0x4001, %eax
    report "NT and CF after the return"
    movl %ebx, %eax
    report "EBX kept"
    movl %cr0, %eax
    andl $8, %eax
    report "CR0.TS"
    xorl %eax, %eax
    str %ax
    report "TR"
    movl gdt + TASK_B + 4, %eax
    andl $0xff00, %eax
    report "the other's type"
    # Called again, it goes on behind its IRET, with the registers it had.
    lcall $GATE_B, $0
    # A jump there; it jumps back.
    movl $0xbbbb, %ebx
    ljmp $TASK_B, $0
    movl %ebx, %eax
    report "EBX kept over jumps"
    pushfl
    popl %eax
    andl $0x4000, %eax
    report "NT after jumps"
    movl gdt + TASK_A + 4, %eax
    andl $0xff00, %eax
    report "our own type"

    # Exceptions as tasks.
    movl $0x00780000, idt + 6 * 8
    movl $0x00008500, idt + 6 * 8 + 4
    movl $0x00780000, idt + 13 * 8
    movl $0x00008500, idt + 13 * 8 + 4
    movl $1f, fault_resume
0:  ud2
1:  movl fault_seen, %eax
    subl $0b, %eax
    report "#UD task: IP of the old task, from the instruction"
    movl fault_link, %eax
    report "its link"
    movl fault_flags, %eax
    andl $0x4000, %eax
    report "NT in it"
    movl $1f, fault_resume
    movl $0xf8, %eax
    movw %ax, %fs
1:  movl fault_code, %eax
    report "#GP task: error code"
    movl $1f, fault_resume
    movl $0, fault_code
    lcall $TASK_A, $0
1:  movl fault_code, %eax
    report "call of a busy task"
    movl $1f, fault_resume
    movl $0, fault_code
    lcall $TASK_B | 3, $0
1:  movl fault_code, %eax
    report "through an RPL too large"

    # What is wrong with a task is found before the switch or in the task.
    try "a segment too short", lcall $TASK_SHORT, $0
    movl $in_bad, resume
    movl $0, fault
    movl $bad_entry, begun
    lcall $TASK_BAD, $0
    say "back\n"
    xorl %eax, %eax
    str %ax
    report "TR"

    # A 16-bit task.
    movl $0x12345678, %ecx
    lcall $TASK_16, $0
    movl %ecx, %eax
    report "ECX kept"
    finish 0x10

b_entry:
    report "EAX of the new task"
    movl %ecx, %eax
    report "ECX"
    movl %edi, %eax
    report "EDI"
    xorl %eax, %eax
    str %ax
    report "TR"
    pushfl
    popl %eax
    andl $0x4001, %eax
    report "NT and CF"
    movl task_b, %eax
    andl $0xffff, %eax
    report "link"
    movl %cr0, %eax
    andl $8, %eax
    report "CR0.TS"
    clts
    movl $0x9999, %ebx
    iretl
    movl %ebx, %eax
    report "EBX when called again"
    iretl
    movl %ebx, %eax
    report "EBX when jumped to"
    pushfl
    popl %eax
    andl $0x4000, %eax
    report "NT when jumped to"
    ljmp $TASK_A, $0

fault_entry:
    cmpl $fault_stack, %esp
    je 1f
    popl fault_code
1:  movl task_fault, %eax
    andl $0xffff, %eax
    movl %eax, fault_link
    pushfl
    popl fault_flags
    movl task_a + 0x20, %eax
    movl %eax, fault_seen
    movl fault_resume, %eax
    movl %eax, task_a + 0x20
    iretl
    jmp fault_entry

bad_entry:
    say "never\n"
in_bad:
    # #TS or #NP came in this task, before its first instruction.
    movl %ss:fault, %eax
    movw $DATA32, %dx
    movw %dx, %ds
    report "a task with an absent DS"
    movl fault_at, %eax
    report "!at its"
    xorl %eax, %eax
    str %ax
    report "TR"
    iretl

    .data
    .align 8
more:
    .quad 0x0000890000000067
    .quad 0x0000890000000067
    .quad 0x000081000000002b
    .quad 0x0000850000500000                # a task gate
    .quad 0x0000890000000040
    .quad 0x0000890000000067
    .quad 0x0000890000000067
    .quad 0x00cf13000000ffff                # absent data
more_end:
    .align 16
task_a: .skip 0x68
task_b: tss b_entry, b_stack, DATA32
task_bad: tss bad_entry, bad_stack, 0x80
task_fault: tss fault_entry, fault_stack, DATA32
task_16:
    .word 0, 0, 0, 0, 0, 0, 0
    .word low_entry, 2
    .word 0x1111, 0x2222, 0x3333, 0x4444, 0x6000, 0x5555, 0x6666, 0x7777
    .word DATA32, CODE32, DATA32, DATA32
    .word 0
fault_resume: .long 0
fault_seen: .long 0
fault_link: .long 0
fault_flags: .long 0
fault_code: .long 0

    .bss
    .skip 1024
b_stack:
    .skip 1024
bad_stack:
    .skip 1024
fault_stack:

    .section .low, "awx"
    .code32
low_entry:
    movl $0x6000, %esp
    report "EAX of a 16-bit task"
    xorl %eax, %eax
    movw %fs, %ax
    report "FS"
    iretl
