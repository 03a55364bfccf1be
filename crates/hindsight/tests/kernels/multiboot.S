# What a Multiboot loader tells a kernel. The last lines say how much RAM there is, whatever the
# loader's map reserves.

#include "common.inc"

multiboot 3

    .globl start
start:
    movl %eax, %ebp
    flat
    movl %ebp, %eax
    report "magic"
    movl (%ebx), %eax
    andl $0x4d, %eax
    report "flags"
    movl 4(%ebx), %eax
    report "lower memory, KiB"
    movl 16(%ebx), %esi
    # The first word is the kernel's own name.
1:  lodsb
    cmpb $32, %al
    ja 1b
    say "command line: "
    call puts
    say "\n"
    movl 20(%ebx), %eax
    report "modules"
    testl %eax, %eax
    jz 2f
    movl 24(%ebx), %edi
    movl 4(%edi), %eax
    subl (%edi), %eax
    report "bytes of the first"
    movl (%edi), %esi
    movl (%esi), %eax
    report "which begins with"
    movl (%edi), %eax
    andl $0xfff, %eax
    report "at a page's offset"
2:  # Usable memory from 1 MiB on, its end rounded up to 16 MiB: firmware keeps a little for itself.
    movl 44(%ebx), %ecx
    movl 48(%ebx), %esi
    addl %esi, %ecx
    xorl %edi, %edi
3:  cmpl $1, 20(%esi)
    jne 4f
    cmpl $0x100000, 4(%esi)
    jne 4f
    movl 4(%esi), %edi
    addl 12(%esi), %edi
4:  addl (%esi), %esi
    addl $4, %esi
    cmpl %ecx, %esi
    jb 3b
    leal 0xffffff(%edi), %eax
    andl $0xff000000, %eax
    report "RAM from 1 MiB ends at"
    movl 8(%ebx), %eax
    addl $0x3fff + 1024, %eax
    andl $~0x3fff, %eax
    report "upper memory ends at, KiB"
    finish 0x21
