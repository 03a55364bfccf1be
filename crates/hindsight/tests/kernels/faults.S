# Exceptions of 32-bit protected mode: segment loads, descriptor checks, gates, privileges, control
# registers. Each line is vector << 16 | error code, or 0. A name that begins with ! is of something
# that QEMU's translator does not check; with STRICT undefined, what it would not survive is left out.

#include "common.inc"
#include "interrupts.inc"

# Descriptors of this kernel's own, behind the common ones.
.set READ_ONLY, 0x48
.set ABSENT_DATA, 0x50
.set ABSENT_CODE, 0x58
.set SMALL, 0x60
.set EXPAND_DOWN, 0x68
.set EXECUTE_ONLY, 0x70
.set CONFORMING, 0x78
.set CALL_GATE, 0x80
.set INNER_GATE, 0x88
.set ABSENT_GATE, 0x90
.set GATE16, 0x98
.set LOCAL, 0xa0
.set PARAMETERS, 0xa8
.set HIGH_CODE, 0xb0
.set TALL, 0xb8

multiboot 0

    .globl start
start:
    flat
    call load_idt
    movl $more, %esi
    movl $gdt_more, %edi
    movl $more_end - more, %ecx
    rep movsb
.macro gate_to selector, target
    movl $\target, %eax
    movw %ax, gdt + \selector
    shrl $16, %eax
    movw %ax, gdt + \selector + 6
.endm
    gate_to CALL_GATE, same_level
    gate_to INNER_GATE, inner_level
    gate_to PARAMETERS, with_parameters
    movl $same_level - 0x100000, %eax
    movw %ax, gdt + GATE16
    movl $task, %eax
    movw %ax, gdt + TASK + 2
    shrl $16, %eax
    movb %al, gdt + TASK + 4
    movl $local, %eax
    movw %ax, gdt + LOCAL + 2
    shrl $16, %eax
    movb %al, gdt + LOCAL + 4
    movl $ring0_stack, task + 4
    movw $DATA32, task + 8
    movw $0x68, task + 0x66
    call arithmetic
    call loads
    call data
    call tables
    call gates
    call control
    call user_mode
    say "done\n"
    finish 0x10

far_return:
    lretl

arithmetic:
    xorl %ecx, %ecx
    try "divide by zero", divl %ecx
    movl $0x80000000, %eax
    movl $-1, %edx
    movl $-1, %ecx
    try "divide overflow", idivl %ecx
    try "breakpoint", int3
    movb $0x7f, %al
    addb $1, %al
    try "overflow", into
    movl $11, %eax
    try "bound", boundl %eax, bounds
    try "undefined", ud2
    try "LOCK without memory", .byte 0xf0, 0x40
    try "INT 31", int $31
    try "a vector without gate", int $0x60
    try "!a vector beyond the table", int $0xf0
    ret

loads:
    lldt zero
    movl $READ_ONLY, %eax
    try "SS read-only", movw %ax, %ss
    try "DS read-only", movw %ax, %ds
    movw $DATA32, %ax
    movw %ax, %ds
    xorl %eax, %eax
    try "SS null", movw %ax, %ss
    movl $ABSENT_DATA, %eax
    try "SS absent", movw %ax, %ss
    try "ES absent", movw %ax, %es
    movl $EXECUTE_ONLY, %eax
    try "ES execute-only", movw %ax, %es
    movl $CODE32, %eax
    try "ES readable code", movw %ax, %es
    try "SS code", movw %ax, %ss
    movl $0x7f8, %eax
    try "FS beyond the table", movw %ax, %fs
    movl $LOCAL | 4, %eax
    try "GS from no local table", movw %ax, %gs
    movl $USER_DATA, %eax
    try "SS of another level", movw %ax, %ss
    try "GS of another level", movw %ax, %gs
    movl $DATA32 | 1, %eax
    try "SS with another RPL", movw %ax, %ss
    try "FS with another RPL", movw %ax, %fs
    movl $TASK, %eax
    try "ES a system segment", movw %ax, %es
    movw $DATA32, %ax
    movw %ax, %es
    try "jump to data", ljmp $DATA32, $0
    try "jump to absent code", ljmp $ABSENT_CODE, $0
    try "jump to null", ljmp $0, $0
    try "jump to user code", ljmp $USER_CODE & ~3, $0
    try "jump beyond the limit", ljmp $CODE16, $0x20000
    try "far call to data", lcall $DATA32, $0
    try "far call to conforming code", lcall $CONFORMING, $far_return
    pushl $DATA32
    pushl $0
    try "far return to data", lretl
    addl $8, %esp
    pushl $0
    pushl $0
    try "far return to null", lretl
    addl $8, %esp
    pushfl
    pushl $ABSENT_CODE
    pushl $0
    try "IRET to absent code", iretl
    addl $12, %esp
    ret

data:
    xorl %eax, %eax
    movw %ax, %fs
    try "!through null", movl %fs:0, %ebx
    movw $READ_ONLY, %ax
    movw %ax, %fs
    try "read through read-only", movl %fs:scratch, %ebx
    try "!write through read-only", movl %ebx, %fs:scratch
    try "!write through code", movl %ebx, %cs:scratch
    movw $SMALL, %ax
    movw %ax, %fs
    try "last bytes inside the limit", movl %fs:0xffc, %ebx
    try "!one byte outside", movl %fs:0xffd, %ebx
    try "!far outside", movb %fs:0x1000, %bl
    movw $EXPAND_DOWN, %ax
    movw %ax, %fs
    try "above an expand-down limit", movl %fs:0x1000, %ebx
    try "!at an expand-down limit", movl %fs:0xfff, %ebx
    movw $DATA32, %ax
    movw %ax, %fs
    movw $TALL, %ax
    movw %ax, %ss
    try "!beyond the stack's limit", movl %ss:0xffffff, %ebx
    movw $DATA32, %ax
    movw %ax, %ss
    ret

tables:
    movw $LOCAL, %ax
    try "LLDT", lldt %ax
    try "LLDT of data", lldt data_selector
    try "LLDT from the local table", lldt local_selector
    xorl %ebx, %ebx
    sldt %bx
    movl %ebx, %eax
    report "SLDT"
    movw $4, %ax
    try "a local descriptor", movw %ax, %gs
    movl %gs:scratch, %eax
    report "reads"
    movw $0x14, %ax
    try "beyond the local table", movw %ax, %gs
    try "!LTR null", ltr zero
    try "LTR of data", ltr data_selector
    try "LTR", ltr task_selector
    try "LTR of a busy one", ltr task_selector
    movl gdt + TASK + 4, %eax
    andl $0xff00, %eax
    report "its descriptor"
    movl $READ_ONLY, %ecx
    xorl %eax, %eax
    larl %ecx, %eax
    andl $0x00f0ff00, %eax                  # the others are undefined
    report "LAR"
    movl $SMALL, %ecx
    xorl %eax, %eax
    lsll %ecx, %eax
    report "LSL"
    movl $CALL_GATE, %ecx
    movl $0x77, %eax
    lsll %ecx, %eax
    setz %al
    report "LSL of a gate"
    movl $READ_ONLY, %ecx
    xorl %eax, %eax
    verw %cx
    setz %al
    verr %cx
    setz %ah
    report "VERW and VERR of read-only data"
    movl $EXECUTE_ONLY, %ecx
    xorl %eax, %eax
    verr %cx
    setz %al
    report "VERR of execute-only code"
    movl $0x10, %eax
    movl $3, %ecx
    arpl %cx, %ax
    report "ARPL"
    smsw %ax
    andl $1, %eax
    report "SMSW"
    ret

# A gate's target goes on at `resume` with what it found in `noted`.
gates:
    movl $0, noted
    movl %esp, begun_esp
    try "call gate", lcall $CALL_GATE, $0
    movl noted, %eax
    report "pushes"
    movl %esp, begun_esp
    try "16-bit call gate", lcall $GATE16, $0
    movl noted, %eax
    report "pushes"
    movl %esp, begun_esp
    try "jump through a call gate", ljmp $CALL_GATE, $0
    movl noted, %eax
    report "pushes"
    try "absent call gate", lcall $ABSENT_GATE, $0
    try "call gate through an RPL too large", lcall $CALL_GATE | 3, $0
    try "call of a local table", lcall $LOCAL, $0
    ret

same_level:
    movl begun_esp, %eax
    subl %esp, %eax
    movl %eax, noted
    movl begun_esp, %esp
    movl resume, %eax
    movl %eax, far_resume
    ljmp *far_resume

control:
#ifdef STRICT
    movl %cr0, %ecx
    movl %ecx, %eax
    orl $0x20000000, %eax
    andl $~0x40000000, %eax
    try "!CR0.NW without CD", movl %eax, %cr0
    movl %ecx, %eax
    orl $0x80000000, %eax
    andl $~1, %eax
    try "!CR0.PG without PE", movl %eax, %cr0
    movl $0x80000000, %eax
    try "!a reserved bit of CR4", movl %eax, %cr4
    movl $0x20000, %eax
    try "!CR4.PCIDE outside of long mode", movl %eax, %cr4
#endif
    try "CR1", .byte 0x0f, 0x20, 0xc8
    movl $0xc0000080, %ecx
    rdmsr
    movl %eax, %esi
    orl $0x200, %eax
    try "!a reserved bit of EFER", wrmsr
#ifdef STRICT
    movl %esi, %eax
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80000000, %eax
    try "!long mode without PAE", movl %eax, %cr0
    movl $0xc0000080, %ecx
    movl %esi, %eax
    xorl %edx, %edx
    wrmsr
#endif
    movl $0x12345678, %ecx
    try "!RDMSR of no register", rdmsr
    movl %cr0, %eax
    orl $8, %eax
    movl %eax, %cr0
    try "x87 with CR0.TS", fnop
    clts
    try "x87 without", fnop
    movl %cr4, %eax
    andl $~0x200, %eax
    movl %eax, %cr4
    try "SSE without CR4.OSFXSR", xorps %xmm0, %xmm0
    try "LFENCE without", lfence
    try "MFENCE without", mfence
    try "SFENCE without", sfence
    try "MOVNTI without", movnti %ebx, scratch
    try "CRC32 without", crc32b %al, %ebx
    try "POPCNT without", popcntl %ebx, %eax
    try "FISTTP without", fisttpl scratch
    movl %cr4, %eax
    orl $0x200, %eax
    movl %eax, %cr4
    try "SSE with it", xorps %xmm0, %xmm0
    try "AVX without OSXSAVE", .byte 0xc5, 0xf8, 0x57, 0xc0
    try "SYSENTER without a selector", sysenter
    ret

# At CPL 3 and back through an interrupt gate. What happens there is noted by `caught`, which returns
# there too; printing needs IOPL 3.
user_mode:
    movw $0xee00, idt + 3 * 8 + 4
    movw $0xee00, idt + 0x40 * 8 + 4
    movl $leave_user, %eax
    movw %ax, idt + 0x40 * 8
    movw $CODE32, idt + 0x40 * 8 + 2
    shrl $16, %eax
    movw %ax, idt + 0x40 * 8 + 6
    movl %esp, kernel_esp
    pushl $USER_DATA
    pushl $user_stack
    pushl $0x3002
    pushl $USER_CODE
    pushl $in_user
    iretl

in_user:
    xorl %ebx, %ebx
    movw %ds, %bx
    movw $USER_DATA, %ax
    movw %ax, %ds
    movw %ax, %es
    movl %ebx, %eax
    report "DS at CPL 3"
    try "HLT at CPL 3", hlt
    movl fault_cs, %eax
    report "from CS"
    try "MOV from CR0", movl %cr0, %eax
    try "LGDT", lgdt gdt_pointer
    try "CLTS", clts
    try "RDMSR", rdmsr
    try "INVLPG", invlpg 0
    try "MOV to DR7", movl %eax, %dr7
    movw $DATA32, %ax
    try "DS of the kernel", movw %ax, %ds
    try "SS of the kernel", movw %ax, %ss
    movw $CONFORMING, %ax
    try "DS conforming code", movw %ax, %ds
    movw $USER_DATA, %ax
    movw %ax, %ds
    try "jump to the kernel", ljmp $CODE32, $0
    try "call of a kernel's gate", lcall $CALL_GATE | 3, $0
    try "an interrupt gate of the kernel", int $13
    try "a gate for everyone", int3
    movl %esp, begun_esp
    pushl $0x2222
    pushl $0x1111
    lcall $INNER_GATE | 3, $0
    movl noted, %eax
    report "inner call gate: CS inside"
    movl noted + 4, %eax
    report "SS inside"
    movl noted + 8, %eax
    report "bytes pushed"
    lcall $PARAMETERS | 3, $0
    movl noted + 8, %eax
    report "with two parameters, bytes pushed"
    movl noted + 12, %eax
    report "the first"
    movl noted + 16, %eax
    report "the second"
    movl begun_esp, %eax
    subl %esp, %eax
    report "left on the stack"
    movl begun_esp, %esp
    lcall $CONFORMING | 3, $in_conforming
    pushfl
    popl %eax
    andl $0x3000, %eax
    report "IOPL"
    pushl $0x0002
    popfl
    pushfl
    popl %eax
    andl $0x3000, %eax
    report "which POPF leaves alone"
    int $0x40

in_conforming:
    xorl %eax, %eax
    movw %cs, %ax
    report "CS in conforming code"
    lretl

inner_level:
    call note_inner
    lretl

with_parameters:
    call note_inner
    movl 8(%esp), %eax
    movl %eax, noted + 12
    movl 12(%esp), %eax
    movl %eax, noted + 16
    lretl $8

note_inner:
    xorl %eax, %eax
    movw %cs, %ax
    movl %eax, noted
    movw %ss, %ax
    movl %eax, noted + 4
    movl $ring0_stack + 4, %eax
    subl %esp, %eax
    subl $8, %eax
    movl %eax, noted + 8
    ret

# Back at CPL 0: the frame, and what became of the data segments.
leave_user:
    movw $DATA32, %ax
    movw %ax, %ds
    movw %ax, %es
    movl $ring0_stack, %eax
    subl %esp, %eax
    report "frame at CPL 0"
    movl 4(%esp), %eax
    report "CS in it"
    movl 16(%esp), %eax
    report "SS in it"
    pushl $DATA32
    popl %fs
    # A return to CPL 3 makes segments null that it may not have.
    pushl $USER_DATA
    pushl $user_stack
    pushl $USER_CODE
    pushl $1f
    lretl
1:  xorl %eax, %eax
    movw %fs, %ax
    pushl $USER_DATA
    popl %ds
    report "FS of the kernel after a far return to CPL 3"
    movl $leave_again, %eax
    movw %ax, idt + 0x40 * 8
    int $0x40

leave_again:
    movl kernel_esp, %esp
    movw $DATA32, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %fs
    ret

    .data
    .align 8
more:
    .quad 0x00cf91000000ffff    # read-only data
    .quad 0x00cf13000000ffff    # absent data
    .quad 0x00cf1b000000ffff    # absent code
    .quad 0x0040930000000fff    # 4 KiB of data at 0
    .quad 0x00c0970000000000    # expand-down data above the first 4 KiB
    .quad 0x00cf99000000ffff    # execute-only code
    .quad 0x00cf9f000000ffff    # conforming code
    .quad 0x00008c0000080000    # call gate
    .quad 0x0000ec0000080000    # call gate for everyone
    .quad 0x00000c0000080000    # absent call gate
    .quad 0x0000840000b00000    # 16-bit call gate
    .quad 0x000082000000000f    # local table; its base is filled in
    .quad 0x0000ec0200080000    # call gate with two parameters
    .quad 0x00cf9b100000ffff    # code at 1 MiB
    .quad 0x00c0930000000fff    # 16 MiB of data
more_end:
bounds: .long 0, 10
scratch: .long 0x600d
zero: .word 0
data_selector: .word DATA32
local_selector: .word 4
task_selector: .word TASK
local: .quad 0x00cf93000000ffff
       .quad 0
noted: .skip 32
far_resume: .long 0
    .word CODE32
begun_esp: .long 0
kernel_esp: .long 0

    .bss
    .align 16
task: .skip 0x68
    .skip 2048
ring0_stack:
    .skip 2048
user_stack:
