# 32-bit paging with 4-KiB and 4-MiB pages, then PAE: faults, error codes, Accessed and Dirty bits,
# moved and removed pages. A name that begins with ! is of something that QEMU's translator does
# not check, or not as the manual has it.

#include "common.inc"
#include "interrupts.inc"

.set WINDOW, 0x40000000
.set NOT_THERE, 0x50000000

multiboot 0

    .globl start
start:
    flat
    call load_idt
    call two_levels
    call pae
    finish 0x10

# Prints the page fault's address and code after an access.
.macro touch text, instruction:vararg
    movl $0, %eax
    movl %eax, %cr2
    try "\text", \instruction
    movl %cr2, %eax
    report "  at"
.endm

two_levels:
    movl $0x83, directory                   # the first 4 MiB, one to one
    movl $table + 3, directory + 4 * (WINDOW >> 22)
    movl $0x83, directory + 4 * 0x200       # 4 MiB at 2 GiB, the same memory
    movl $frame_a + 3, table
    movl $frame_b + 3, table + 4
    movl $frame_c + 1, table + 8            # read-only
    movl $0x11111111, frame_a
    movl $0x22222222, frame_b
    movl $0x33333333, frame_c
    movl %cr4, %eax
    orl $0x10, %eax                         # PSE
    movl %eax, %cr4
    movl $directory, %eax
    movl %eax, %cr3
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    say "two levels\n"

    movl WINDOW, %eax
    report "first page"
    movl table, %eax
    andl $0xfff, %eax
    report "its entry"
    movl $0x44444444, WINDOW
    movl table, %eax
    andl $0xfff, %eax
    report "its entry when written"
    movl directory + 4 * (WINDOW >> 22), %eax
    andl $0xfff, %eax
    report "the directory's entry"
    movl WINDOW + 0xffe, %eax
    report "over the page's end"
    movl $frame_a + 0x80000000, %ebx
    movl (%ebx), %eax
    report "through the 4-MiB page"
    movl directory + 4 * 0x200, %eax
    report "its entry"
    touch "not mapped, read", movl NOT_THERE, %eax
    touch "not mapped, write", movl %eax, NOT_THERE + 0x123
    touch "read-only, write, WP clear", movl %eax, WINDOW + 0x2000
    movl %cr0, %eax
    orl $0x10000, %eax
    movl %eax, %cr0
    touch "read-only, write, WP set", movl %eax, WINDOW + 0x2004
    touch "write over into the read-only page", movl %eax, WINDOW + 0x1ffe
    movl frame_b + 0xffc, %eax
    report "which left the first page"

    # The page moves: with INVLPG nothing of the old place is left.
    movl $frame_b + 3, table
    invlpg WINDOW
    movl WINDOW, %eax
    report "moved"
    movl $0, table
    invlpg WINDOW
    touch "removed", movl WINDOW, %eax
    movl $frame_a + 3, table
    movl WINDOW, %eax
    report "back"
    # Code that runs through one address and is changed through another.
    movb $0xb8, frame_b                     # movl $imm, %eax
    movl $0x1234, frame_b + 1
    movb $0xc3, frame_b + 5
    movl $WINDOW + 0x1000, %ebx
    call *%ebx
    report "code in a page"
    movl $0x5678, frame_b + 1
    call *%ebx
    report "changed"

    movl $0x200083, directory + 4 * 0x201
    touch "!reserved bit in a 4-MiB entry", movl 0x80400000, %eax
    movl %cr0, %eax
    andl $0x7ffeffff, %eax
    movl %eax, %cr0
    ret

pae:
    movl $page_directory + 1, pointers
    movl $window_directory + 1, pointers + 8
    movl $0x83, page_directory              # the first 2 MiB
    movl $0x200083, page_directory + 8
    movl $wide_table + 3, window_directory
    movl $frame_a + 3, wide_table
    movl $0, wide_table + 4
    movl $frame_c + 3, wide_table + 8
    movl $0x80000000, wide_table + 12       # execute-disable
    movl $0x200083, window_directory + 8    # a 2-MiB page at WINDOW + 2 MiB
    movl %cr4, %eax
    andl $~0x10, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $pointers, %eax
    movl %eax, %cr3
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    say "pae\n"
    movl $0x66666666, frame_a
    movl WINDOW, %eax
    report "first page"
    movl wide_table, %eax
    andl $0xfff, %eax
    report "its entry"
    movl pointers + 8, %eax
    andl $0xfff, %eax
    report "!the pointer's entry"
    movl window_directory + 8, %eax
    andl $0xfff, %eax
    report "a 2-MiB page's entry before"
    movl WINDOW + 0x200000, %eax
    movl window_directory + 8, %eax
    andl $0xfff, %eax
    report "and after a read"
    touch "!execute-disable is reserved", movl WINDOW + 0x1000, %eax
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x800, %eax
    wrmsr
    touch "until EFER.NXE", movl WINDOW + 0x1000, %eax
    movb $0xc3, frame_c
    movl $WINDOW + 0x1000, %ebx
    touch "a call into it", call *%ebx
    addl $4, %esp                           # the return address that the call pushed
    touch "no pointer", movl 0x80000000, %eax
    # Another four pointers in the same page are another address space.
    movl $page_directory + 1, pointers + 32
    movl $other_directory + 1, pointers + 32 + 8
    movl $other_table + 3, other_directory
    movl $frame_b + 3, other_table
    movl $0x77777777, frame_b
    movl WINDOW, %eax
    report "one address space"
    movl $pointers + 32, %eax
    movl %eax, %cr3
    movl WINDOW, %eax
    report "another"
    movl $pointers, %eax
    movl %eax, %cr3
    movl WINDOW, %eax
    report "the first again"
    movl $0x1e7, pointers + 16
    movl $pointers, %edx
    try "!loading CR3 with reserved bits in a pointer", movl %edx, %cr3
    movl $0, pointers + 16
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    ret

    .bss
    .align 4096
directory: .skip 4096
table: .skip 4096
pointers: .skip 4096
page_directory: .skip 4096
window_directory: .skip 4096
wide_table: .skip 4096
other_directory: .skip 4096
other_table: .skip 4096
frame_a: .skip 4096
frame_b: .skip 4096
frame_c: .skip 4096
