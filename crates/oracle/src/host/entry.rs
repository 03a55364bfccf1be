//! Into a case and out of it again.
//!
//! A case starts by `rt_sigreturn` from a signal frame made by hand and ends with a signal: the
//! kernel loads and saves *everything* (general registers, flags, x87, SSE and AVX state, the
//! code segment, hence also 32-bit mode), and a fault, a trap and the end marker look alike.
//!
//! ```text
//!   enter(frame) ── saves our registers, FS and GS bases; RSP := frame; rt_sigreturn ──▶ case
//!        ▲                                                                               │ any
//!        └── back on our stack, our bases and flags; RAX := frame of the signal ◀── handler
//! ```
//!
//! The handler leaves by jumping back into `enter`'s caller and not by returning. The frame it
//! hands back may itself be entered again (that is how stepping goes on): the kernel has read it
//! before it builds the next one in the same place.

use std::arch::global_asm;
use std::ffi::c_void;

global_asm!(
    ".pushsection .text.hindsight_oracle, \"ax\"",
    ".balign 16",
    // fn enter(rdi: *mut UserContext, rsi: FS base, rdx: GS base) -> *mut UserContext
    ".globl hindsight_oracle_enter",
    "hindsight_oracle_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "sub rsp, 8",
    "stmxcsr [rsp]",
    "fnstcw [rsp + 4]",
    "rdfsbase rax",
    "mov [rip + hindsight_oracle_fs], rax",
    "rdgsbase rax",
    "mov [rip + hindsight_oracle_gs], rax",
    "mov [rip + hindsight_oracle_rsp], rsp",
    "wrfsbase rsi",
    "wrgsbase rdx",
    "mov rsp, rdi",
    "mov eax, 15", // rt_sigreturn
    "syscall",
    "ud2",
    // The handler: rdi signal, rsi siginfo, rdx ucontext. Alignment checking may be on until the
    // flags are ours, so every access up to there is aligned.
    ".globl hindsight_oracle_handler",
    "hindsight_oracle_handler:",
    "mov rsp, [rip + hindsight_oracle_rsp]",
    "test rsp, rsp",
    "jz 2f",
    "mov qword ptr [rip + hindsight_oracle_rsp], 0",
    "push 2",
    "popfq",
    "mov rax, [rip + hindsight_oracle_fs]",
    "wrfsbase rax",
    "mov rax, [rip + hindsight_oracle_gs]",
    "wrgsbase rax",
    "ldmxcsr [rsp]",
    "fninit",
    "fldcw [rsp + 4]",
    "add rsp, 8",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "mov rax, rdx",
    "ret",
    "2:", // a signal outside of a case: a bug of the harness
    "mov edi, 97",
    "mov eax, 231", // exit_group
    "syscall",
    "ud2",
    // Where the harness fetches a first frame from.
    ".globl hindsight_oracle_breakpoint",
    "hindsight_oracle_breakpoint:",
    "int3",
    "ud2",
    ".popsection",
    ".pushsection .bss.hindsight_oracle, \"aw\", @nobits",
    ".balign 8",
    "hindsight_oracle_rsp: .skip 8",
    "hindsight_oracle_fs: .skip 8",
    "hindsight_oracle_gs: .skip 8",
    ".popsection",
);

unsafe extern "C" {
    /// Enters the context at `frame` with these FS and GS bases; comes back with the context of the
    /// signal that ended it.
    ///
    /// # Safety
    /// The handler must be installed for every signal the code can raise, on an alternate stack;
    /// `frame` must be a complete context whose code does not touch anything of this process.
    #[link_name = "hindsight_oracle_enter"]
    pub fn enter(frame: *mut UserContext, fs_base: u64, gs_base: u64) -> *mut UserContext;
    #[link_name = "hindsight_oracle_handler"]
    fn handler(signal: i32, info: *mut c_void, context: *mut c_void);
    #[link_name = "hindsight_oracle_breakpoint"]
    fn breakpoint();
}

/// Address of the signal handler.
pub fn handler_address() -> usize {
    handler as *const () as usize
}

/// Address of an INT3 instruction.
pub fn breakpoint_address() -> u64 {
    breakpoint as *const () as u64
}

/// `struct ucontext` of the x86-64 kernel interface (Linux `asm-generic/ucontext.h`).
#[repr(C)]
pub struct UserContext {
    /// `UC_FP_XSTATE`, `UC_SIGCONTEXT_SS`, `UC_STRICT_RESTORE_SS`.
    pub flags: u64,
    /// Not used by the kernel.
    pub link: u64,
    /// The alternate stack to restore.
    pub stack: libc::stack_t,
    /// R8 to R15, then RDI, RSI, RBP, RBX, RDX, RAX, RCX, RSP.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// Code segment, GS, FS (both not used), stack segment.
    pub selectors: [u16; 4],
    /// Error code of the exception.
    pub error_code: u64,
    /// Its vector.
    pub vector: u64,
    /// The old signal mask, historical.
    pub old_mask: u64,
    /// Page-fault address.
    pub cr2: u64,
    /// Extended state: an XSAVE image in standard form.
    pub extended: *mut u8,
    /// Reserved.
    pub reserved: [u64; 8],
    /// The signal mask to restore.
    pub mask: u64,
}

/// `UserContext::gpr` index of each general register in encoding order.
pub const GPR_SLOT: [usize; 16] = [13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7];
/// `UserContext::flags` of a 64-bit kernel's frame.
pub const CONTEXT_FLAGS: u64 = 7;
/// User code segments of Linux: 64-bit and compatibility mode.
pub const CS_LONG: u16 = 0x33;
/// See [`CS_LONG`].
pub const CS_COMPATIBILITY: u16 = 0x23;
/// User data segment of Linux.
pub const DATA_SEGMENT: u16 = 0x2b;

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{offset_of, size_of};

    #[test]
    fn the_context_has_the_kernels_layout() {
        assert_eq!(offset_of!(UserContext, gpr), 40);
        assert_eq!(offset_of!(UserContext, rip), 168);
        assert_eq!(offset_of!(UserContext, cr2), 216);
        assert_eq!(offset_of!(UserContext, extended), 224);
        assert_eq!(offset_of!(UserContext, mask), 296);
        assert_eq!(size_of::<UserContext>(), 304);
    }
}
