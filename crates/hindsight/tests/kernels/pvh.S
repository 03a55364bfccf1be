# What a PVH loader tells a kernel (Xen's start_info.h), and how it enters it.

#include "common.inc"

    .section .note.Xen, "a"
    .align 4
    .long 4, 4, 18                          # the 32-bit entry point
    .asciz "Xen"
    .long start

    .text
    .code32
    .globl start
start:
    movl %cr0, %ebp
    movl %cr4, %edi
    movl $stack, %esp
    pushfl
    popl %edx
    flat
    movl %ebp, %eax
    andl $0x80000001, %eax
    report "CR0.PE and PG"
    movl %edi, %eax
    report "CR4"
    movl %edx, %eax
    andl $0x20300, %eax
    report "EFLAGS.VM, IF and TF"
    movl (%ebx), %eax
    report "magic"
    movl 4(%ebx), %eax
    report "version"
    movl 24(%ebx), %esi
    say "command line: "
    call puts
    say "\n"
    movl 12(%ebx), %eax
    report "modules"
    movl 16(%ebx), %edi
    testl %eax, %eax
    jz 1f
    movl 8(%edi), %eax
    report "bytes of the first"
    movl (%edi), %esi
    movl (%esi), %eax
    report "which begins with"
1:  movl 32(%ebx), %esi
    movl (%esi), %eax
    report "the RSDP begins with"
    movl 48(%ebx), %ecx
    movl 40(%ebx), %esi
    xorl %edi, %edi
2:  cmpl $1, 16(%esi)
    jne 3f
    cmpl $0x100000, (%esi)
    jne 3f
    movl (%esi), %edi
    addl 8(%esi), %edi
3:  addl $24, %esi
    loop 2b
    leal 0xffffff(%edi), %eax
    andl $0xff000000, %eax
    report "RAM from 1 MiB ends at"
    finish 0
