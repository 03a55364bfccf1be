# Virtual-8086 mode: what asks IOPL, what goes by the I/O map, what is undefined there, and the frames
# on the way out and back. A name that begins with ! is of something that QEMU's translator does not
# check.

#define LOW_NOTES
#include "common.inc"
#include "interrupts.inc"
#include "results.inc"

multiboot 0

name v0_cli, "IOPL 0: CLI"
name v0_sti, "STI"
name v0_pushf, "PUSHF"
name v0_popf, "POPF"
name v0_int, "INT 0x31"
name v0_iret, "IRET"
name v0_int3, "INT3"
name v0_in, "IN from a port that the map allows"
name v0_in_denied, "IN from one that it denies"
name v0_out_wide, "OUT to an allowed and a denied one"
name v0_hlt, "HLT"
name v0_cr0, "MOV from CR0"
name v0_smsw, "SMSW"
name v0_lgdt, "LGDT"
name v0_lar, "LAR"
name v0_sldt, "SLDT"
name v0_arpl, "ARPL"
name v0_vex, "VEX"
name v0_divide, "divide by zero"
name v0_limit, "!a word at offset 0xffff"
name v0_page, "segment 0x1234, offset 0x10 reads"
name v0_far, "far call, CS there"
name v3_flags, "IOPL 3: flags pushed by PUSHF"
name v3_cli, "after CLI"
name v3_popf, "after POPF of all ones"
name v3_int, "INT 0x31, CS in the frame"
name v3_ip, "IP in the frame, from the instruction"
name v3_vm, "VM, IOPL and IF in the frame"
name v3_ss, "SS in the frame"
name v3_sp, "ESP in the frame"
name v3_segments, "DS and GS in the frame"
name v3_size, "size of the frame"
name v3_null, "DS and GS inside"
name v3_denied, "INT through a gate of DPL 0"
name v3_out, "OUT that the map denies"
name v3_iret, "IRET within, CS"
name v3_conforming, "a handler at CPL 3"
end_of_names

# A far pointer frame for IRET into virtual-8086 mode.
.macro into_vm86 flags, entry
    pushl $0x40         # GS
    pushl $0            # FS
    pushl $0            # DS
    pushl $0            # ES
    pushl $0            # SS
    pushl $0x6000       # ESP
    pushl $\flags
    pushl $0            # CS
    pushl $\entry
    iretl
.endm

.macro gate number, target, type
    movl $\target, %eax
    movw %ax, idt + 8 * \number
    movw $CODE32, idt + 8 * \number + 2
    movw $\type, idt + 8 * \number + 4
    shrl $16, %eax
    movw %ax, idt + 8 * \number + 6
.endm

    .globl start
start:
    flat
    call load_idt
    call low_memory
    movw $0xee00, idt + 8 * 3 + 4           # INT3 is everyone's
    gate 4, leave_vm86, 0xee00              # INTO leads back
    gate 0x31, frame, 0xee00
    gate 0x32, frame, 0x8e00
    gate 0x33, frame, 0xee00
    movw $USER_CODE, idt + 8 * 0x33 + 2
    movl $task, %eax
    movw %ax, gdt + TASK + 2
    shrl $16, %eax
    movb %al, gdt + TASK + 4
    movb %ah, gdt + TASK + 7
    movw $task_end - task - 1, gdt + TASK
    movl $ring0_stack, task + 4
    movw $DATA32, task + 8
    movw $0x68, task + 0x66
    movb $0xfd, task + 0x68 + 0x60 / 8      # only port 0x61
    movw $TASK, %ax
    ltr %ax
    movl $0xcafe1234, 0x12350
    movl $after_first, back
    movl %esp, kernel_esp
    into_vm86 0x20002, iopl0
after_first:
    movl $after_second, back
    into_vm86 0x23202, iopl3
after_second:
    call print_results
    finish 0x10

leave_vm86:
    movw $DATA32, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %fs
    movw %ax, %gs
    movl kernel_esp, %esp
    jmp *back

# INT 0x31: notes its frame.
frame:
    movl %esp, %ebp
    movw %ds, %ax
    shll $16, %eax
    movw %gs, %ax
    movl %eax, %ss:v3_null
    movl (%ebp), %eax
    subl %ss:begun, %eax
    movl %eax, %ss:v3_ip
    movl 4(%ebp), %eax
    movl %eax, %ss:v3_int
    movl 8(%ebp), %eax
    andl $0x23200, %eax
    movl %eax, %ss:v3_vm
    movl 12(%ebp), %eax
    movl %eax, %ss:v3_sp
    movl 16(%ebp), %eax
    movl %eax, %ss:v3_ss
    movl 24(%ebp), %eax
    shll $16, %eax
    movw 32(%ebp), %ax
    movl %eax, %ss:v3_segments
    movl $ring0_stack, %eax
    subl %esp, %eax
    movl %eax, %ss:v3_size
    iretl

    .data
back: .long 0
kernel_esp: .long 0
    .bss
    .align 16
task: .skip 0x68 + 0x20
task_end:
    .skip 2048
ring0_stack:

# ---- 16-bit code ----
    .section .low, "awx"
    .code16
.macro try16 place, instruction:vararg
    movl $0, fault
    movl $8888f, resume
    movl $9999f, begun
9999: \instruction
8888:
    movl fault, %eax
    movl %eax, \place
.endm

iopl0:
    try16 v0_cli, cli
    try16 v0_sti, sti
    try16 v0_pushf, pushfw
    try16 v0_popf, popfw
    try16 v0_int, int $0x31
    try16 v0_iret, iretw
    try16 v0_int3, int3
    movw $0x61, %dx
    try16 v0_in, inb %dx, %al
    movw $0x62, %dx
    try16 v0_in_denied, inb %dx, %al
    movw $0x61, %dx
    try16 v0_out_wide, outw %ax, %dx
    try16 v0_hlt, hlt
    try16 v0_cr0, movl %cr0, %eax
    try16 v0_smsw, smsww %ax
    try16 v0_lgdt, lgdtl some_pointer
    try16 v0_lar, lar %ax, %bx
    try16 v0_sldt, sldtw %ax
    try16 v0_arpl, .byte 0x63, 0xc0
    try16 v0_vex, .byte 0xc5, 0xf8, 0x57, 0xc0
    xorb %cl, %cl
    try16 v0_divide, divb %cl
    movw $0xffff, %bx
    try16 v0_limit, movw (%bx), %ax
    movw $0x1234, %ax
    movw %ax, %es
    movl %es:0x10, %eax
    movl %eax, v0_page
    lcallw $0x10, $far_routine - 0x100
    movb $0x7f, %al
    addb $1, %al
    into

far_routine:
    xorl %eax, %eax
    movw %cs, %ax
    movl %eax, v0_far
    lretw

iopl3:
    pushfw
    popw %ax
    andl $0x3200, %eax
    movl %eax, v3_flags
    cli
    pushfw
    popw %ax
    andl $0x3200, %eax
    movl %eax, v3_cli
    pushl $0xffffbeff                       # all but TF
    popfl
    pushfl
    popl %eax
    andl $0x3f200, %eax
    movl %eax, v3_popf
    pushw $0x0002
    popfw
    cld
    movl $9999f, begun
9999: int $0x31
    try16 v3_denied, int $0x32
    movw $0x60, %dx
    try16 v3_out, outb %al, %dx
    pushfw
    pushw $0x20
    pushw $1f - 0x200
    iretw
1:  xorl %eax, %eax
    movw %cs, %ax
    movl %eax, v3_iret
    ljmpw $0, $1f
1:  try16 v3_conforming, int $0x33
    movb $0x7f, %al
    addb $1, %al
    into

some_pointer: .long 0, 0
