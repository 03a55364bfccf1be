# From 32-bit protected mode down to real mode and up to long mode and back, by every door.
#
# A name that begins with ! is of something that QEMU's translator does not check; with
# STRICT undefined, what it would not survive is left out.

#include "common.inc"

multiboot 3

#include "results.inc"

name pm16_sp, "16-bit push in protected mode moves SP to"
name pm16_esp, "and ESP is"
name rm_msw, "machine status word in real mode"
name rm_int_flags, "flags pushed by INT"
name rm_int_cs, "CS pushed by INT"
name rm_int_ip, "IP pushed by INT, from its instruction"
name rm_in_flags, "flags inside"
name rm_divide, "#DE in real mode, IP from its instruction"
name rm_overflow, "INTO, IP from its instruction"
name rm_bound, "#BR, IP from its instruction"
name rm_undefined, "#UD, IP from its instruction"
name rm_lar, "LAR in real mode, vector"
name rm_steps, "single steps of REP MOVSB, 3 times, and 4 others"
name rm_limit, "!a word at offset 0xffff, vector"
name rm_fetch, "!falling off the end of the segment, vector"
name rm_wrap, "16-bit addresses wrap"
name rm_string, "REP STOSW around the segment's end, DI"
name rm_far, "far call and return, SP"
name rm_pushsp, "PUSH SP pushes"
name rm_around, "INT with SP 2: SP inside and CS above it"
name rm_around_back, "and SP after IRET"
name rm_frame, "ENTER 8,1 and LEAVE, BP inside"
name rm_enter_sp, "and SP inside"
name rm_upper, "16-bit moves keep the upper half"
name rm_irq, "timer interrupts in real mode"
name rm_shadow, "STI; HLT wakes, IP from HLT"
name big_limit, "32-bit address in real mode with a large limit"
name big_base, "and with a new base"
name pm32_back, "back in protected mode, CS"
name efer_before, "EFER.LMA before paging"
name efer_after, "EFER.LMA and LME with paging"
name lm_low, "64-bit product, low"
name lm_high, "and high"
name lm_frame, "INT3 in 64-bit code: RSP moves by"
name lm_align, "and is aligned to"
name lm_cs, "CS pushed"
name compat_cs, "compatibility mode, CS"
name compat_upper, "INC EAX at its largest"
name efer_left, "EFER.LMA and LME after paging"
name pm32_end, "still running"
end_of_names

    .text
    .code32
    .globl start
start:
    movl %eax, %ebp
    flat
    cmpl $0x2badb002, %ebp
    je 1f
    finish 0x7f
1:  call low_memory
    ljmp $CODE16, $pm16

back:
    movw $DATA32, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %fs
    movw %ax, %ss
    movl $stack, %esp
    xorl %eax, %eax
    movw %cs, %ax
    movl %eax, pm32_back
    call long_mode

    call print_results
    finish 0x10

# ---- long mode and back ----
long_mode:
    # PML4, PDPT and one directory of 2-MiB pages.
    movl $pml4, %edi
    movl $3 * 1024, %ecx
    xorl %eax, %eax
    rep stosl
    movl $pdpt + 3, pml4
    movl $directory + 3, pdpt
    movl $0x83, %eax
    movl $directory, %edi
    movl $512, %ecx
1:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 1b
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    rdmsr
    andl $0x400, %eax
    movl %eax, efer_before
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    rdmsr
    andl $0x500, %eax
    movl %eax, efer_after
    movl $breakpoint64, %eax
    movw %ax, idt64 + 3 * 16
    movw $CODE64, idt64 + 3 * 16 + 2
    movw $0x8e00, idt64 + 3 * 16 + 4
    shrl $16, %eax
    movw %ax, idt64 + 3 * 16 + 6
    lidt idt64_pointer
    ljmp $CODE64, $in64
after64:
    # In compatibility mode: leave long mode by turning paging off.
    xorl %eax, %eax
    movw %cs, %ax
    movl %eax, compat_cs
    movl $0xffffffff, %eax
    incl %eax
    movl %eax, compat_upper
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    movl $0xc0000080, %ecx
    rdmsr
    andl $0x500, %eax
    movl %eax, efer_left
    andl $~0x100, %eax
    wrmsr
    movl %cr4, %eax
    andl $~0x20, %eax
    movl %eax, %cr4
    movl $1, pm32_end
    ret

    .code64
in64:
    movabsq $0x123456789abcdef0, %rax
    movabsq $0x0fedcba987654321, %rcx
    mulq %rcx
    movl %eax, lm_low
    movl %edx, lm_high
    movq %rsp, %rbx
    subq $8, %rsp
    movq %rsp, %r12
    int3
    movq %rbx, %rsp
    pushq $CODE32
    movl $after64, %eax
    pushq %rax
    lretq

breakpoint64:
    movq %r12, %rax
    subq %rsp, %rax
    movl %eax, lm_frame
    movq %rsp, %rax
    andl $0xf, %eax
    movl %eax, lm_align
    movl 8(%rsp), %eax
    movl %eax, lm_cs
    iretq

    .data
    .align 16
idt64: .skip 16 * 16
idt64_pointer:
    .word idt64_pointer - idt64 - 1
    .long idt64, 0

    .bss
    .align 4096
pml4: .skip 4096
pdpt: .skip 4096
directory: .skip 4096

# ---- 16-bit code, at 0x8000 ----
    .section .low, "awx"
    .code16
pm16:
    movw $DATA16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $0x12346000, %esp
    pushw %ax
    xorl %eax, %eax
    movw %sp, %ax
    movl %eax, pm16_sp
    movl %esp, pm16_esp
    movl %cr0, %eax
    andb $0xfe, %al
    movl %eax, %cr0
    ljmp $0, $real

real:
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $0x6000, %esp
    lidtw ivt_pointer
    xorl %eax, %eax
    smsww %ax
    andl $1, %eax
    movl %eax, rm_msw

    # INT: what it pushes and what it clears.
    stc
    sti
1:  int $0x30
    subw $1b, seen_ip
    movl seen_ip, %eax
    movl %eax, rm_int_ip
    movl seen_cs, %eax
    movl %eax, rm_int_cs
    movl seen_flags, %eax
    andl $0x201, %eax
    movl %eax, rm_int_flags
    movl inside_flags, %eax
    andl $0x301, %eax
    movl %eax, rm_in_flags
    cli

    # Exceptions: the handler notes vector and IP and goes on where `resume` says.
    movw $1f, resume
    movw $7, %ax
    xorb %cl, %cl
0:  divb %cl
1:  movl seen_ip, %eax
    subw $0b, %ax
    movl %eax, rm_divide

    movw $1f, resume
    movb $0x7f, %al
    addb $1, %al
0:  into
1:  movl seen_ip, %eax
    subw $0b, %ax
    movl %eax, rm_overflow

    movw $1f, resume
    movw $9, %ax
0:  bound %ax, bounds
1:  movl seen_ip, %eax
    subw $0b, %ax
    movl %eax, rm_bound

    movw $1f, resume
0:  ud2
1:  movl seen_ip, %eax
    subw $0b, %ax
    movl %eax, rm_undefined

    movw $1f, resume
    movl $0, seen_vector
    lar %ax, %bx
1:  movl seen_vector, %eax
    movl %eax, rm_lar

    # Single steps: each iteration of a string instruction traps.
    movl $0, steps
    movw $step, ivt + 4
    movw $3, %cx
    movw $source, %si
    movw $target, %di
    pushfw
    movw %sp, %bp
    orw $0x100, (%bp)
    popfw
    rep movsb
    pushfw
    movw %sp, %bp
    andw $0xfeff, (%bp)
    popfw
    movl steps, %eax
    movl %eax, rm_steps

#ifdef STRICT
    # The segment's limit.
    movw $1f, resume
    movl $0, seen_vector
    movw $0xffff, %bx
    movw (%bx), %ax
1:  movl seen_vector, %eax
    movl %eax, rm_limit
    movw $1f, resume
    movl $0, seen_vector
    movw $0x1000, %ax
    movw %ax, %es
    movw $0x9090, %es:0xfffe
    ljmp $0x1000, $0xfffe
1:  xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movl seen_vector, %eax
    movl %eax, rm_fetch
#endif

    # Addresses of 16 bits.
    movb $0x5a, 0x6100
    movw $0xf000, %bx
    movw $0x7000, %si
    xorl %eax, %eax
    movb 0x100(%bx, %si), %al
    movl %eax, rm_wrap
    movw $0x2000, %ax
    movw %ax, %es
    movw $0xfffc, %di
    movw $4, %cx
    movw $0x1122, %ax
    cld
    rep stosw
    xorl %eax, %eax
    movw %di, %ax
    orl %ecx, %eax
    movl %eax, rm_string
    xorw %ax, %ax
    movw %ax, %es

    # Stack.
    lcallw $0, $far_routine
    xorl %eax, %eax
    movw %sp, %ax
    movl %eax, rm_far
    movl $0xabcd6000, %esp
    pushw %sp
    xorl %eax, %eax
    popw %ax
    movl %eax, rm_pushsp
    movl $2, %esp
    int $0x30
    xorl %eax, %eax
    movw %sp, %ax
    movl %eax, rm_around_back
    movl seen_cs, %eax
    shll $16, %eax
    movw inside_sp, %ax
    movl %eax, rm_around
    movl $0x6000, %esp
    movw $0x5f00, %bp
    enterw $8, $1
    xorl %eax, %eax
    movw %bp, %ax
    movl %eax, rm_frame
    movw %sp, %ax
    movl %eax, rm_enter_sp
    leavew
    movl $0x11112222, %eax
    movw $0x3333, %ax
    movl %eax, rm_upper

    # A hardware interrupt: the 8259 at vectors 0x40, the 8254's counter 0, once.
    movb $0x11, %al
    outb %al, $0x20
    movb $0x40, %al
    outb %al, $0x21
    movb $4, %al
    outb %al, $0x21
    movb $1, %al
    outb %al, $0x21
    movb $0xfe, %al
    outb %al, $0x21
    movb $0xff, %al
    outb %al, $0xa1
    movb $0x34, %al
    outb %al, $0x43
    movb $0x00, %al
    outb %al, $0x40
    movb $0x10, %al
    outb %al, $0x40
    movl $0, ticks
1:  sti
0:  hlt
    cli
    cmpl $3, ticks
    jb 1b
    movl ticks, %eax
    movl %eax, rm_irq
    movl seen_ip, %eax
    subw $0b, %ax
    movl %eax, rm_shadow
    movb $0xff, %al
    outb %al, $0x21

    # Limits that protected mode left behind.
    lgdtl low_gdt_pointer
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    movw $DATA32, %bx
    movw %bx, %fs
    andb $0xfe, %al
    movl %eax, %cr0
    xorw %bx, %bx
    movw %bx, %fs
    movl $pattern, %ebx
    movl %fs:(%ebx), %eax
    movl %eax, big_limit
    movw $0x10, %bx
    movw %bx, %fs
    movl $pattern - 0x100, %ebx
    movl %fs:(%ebx), %eax
    movl %eax, big_base

    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $CODE32, $back

far_routine:
    lretw

# Handlers. INT 0x30 and the timer return; exceptions go on at `resume`.
software:
    movw %sp, %bp
    movw %sp, inside_sp
    movw (%bp), %ax
    movw %ax, seen_ip
    movw 2(%bp), %ax
    movw %ax, seen_cs
    movw 4(%bp), %ax
    movw %ax, seen_flags
    pushfw
    popw %ax
    movw %ax, inside_flags
    iretw

.macro fault number
fault_\number:
    movl $\number, %cs:seen_vector
    jmp faulted
.endm
fault 0
fault 4
fault 5
fault 6
fault 13
faulted:
    pushw %bp
    movw %sp, %bp
    pushw %ax
    movw 2(%bp), %ax
    movw %ax, %cs:seen_ip
    movw %cs:resume, %ax
    movw %ax, 2(%bp)
    movw $0, 4(%bp)
    popw %ax
    popw %bp
    iretw

step:
    # Steps at the string instruction itself, and the one behind it.
    incl %cs:steps
    iretw

timer:
    pushw %ax
    pushw %bp
    movw %sp, %bp
    movw 4(%bp), %ax
    movw %ax, seen_ip
    incl ticks
    movb $0x20, %al
    outb %al, $0x20
    popw %bp
    popw %ax
    iretw

    .align 4
seen_ip: .long 0
seen_cs: .long 0
seen_flags: .long 0
inside_flags: .long 0
inside_sp: .long 0
seen_vector: .long 0
steps: .long 0
ticks: .long 0
resume: .word 0
bounds: .word 1, 8
source: .ascii "abc"
target: .skip 4
ivt_pointer:
    .word 0x3ff
    .long ivt
low_gdt_pointer:
    .word 0x47
    .long gdt
    .align 4
ivt:
    .word fault_0, 0
    .word step, 0
    .word 0, 0
    .word 0, 0
    .word fault_4, 0
    .word fault_5, 0
    .word fault_6, 0
    .skip 4 * 6
    .word fault_13, 0
    .skip 4 * (0x30 - 14)
    .word software, 0
    .skip 4 * 15
    .word timer, 0
    .skip 4 * (0xff - 0x40)

    .data
pattern: .long 0xfeedf00d
