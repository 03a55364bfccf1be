# A kernel that is no ELF file: its Multiboot header says where it goes.

    .code32
    .text
    .globl start
start:
begin:
    .long 0x1badb002, 0x10003, -(0x1badb002 + 0x10003)
    .long begin, begin, end, bss_end, entry
entry:
    movl $message, %esi
1:  lodsb
    testb %al, %al
    jz 2f
    outb %al, $0xe9
    jmp 1b
2:  movl bss_end - 4, %eax
    orl $3, %eax
    outl %eax, $0xf4
    hlt
message: .asciz "loaded by its header\n"
end:
    .set bss_end, end + 0x2000
