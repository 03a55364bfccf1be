//! Instructions that cannot run natively as user code: one file per family.
//!
//! [`execute`] does exactly one instruction. On entry RIP is that instruction's; on success it is
//! the next one's, or the target's. On failure nothing has changed except what the manual says a
//! faulting instruction changes (Accessed bits, DR6), and the caller delivers the exception with
//! [`crate::deliver::exception`]. Counting is the caller's: `retired` is not touched.
//!
//! An instruction that does not exist in the guest's processor model (RDRAND, VMX, TSX, …), or
//! whose prefixes or mode are wrong, is #UD; iced's `Code::INVALID` means the latter.

mod control;
mod far;
mod fast_call;
mod flags;
mod gate;
mod identify;
mod interrupt;
mod legacy;
mod msr;
pub(crate) mod operand;
mod port;
mod segment;
mod table;
pub(crate) mod task;
mod virtual_8086;
mod x87;
pub(crate) mod xstate;

pub(crate) use far::DROPPED;
pub(crate) use fast_call::{SYSRET_FLAGS, syscall_segments, sysret_segments};
pub(crate) use operand::{address, address_bits, effective_offset, operand_segment};
pub(crate) use port::check_io;

use crate::core::{Core, mask};
use crate::{gather, string};
use iced_x86::{Code, Instruction, Mnemonic};
use x86::{Exception, Segment, SegmentIndex};

/// How execution goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// With the next instruction, in the same mode.
    Next,
    /// At the new RIP, perhaps in another mode or at another privilege.
    Branch,
    /// With the same instruction again: a string instruction that has iterations left.
    Repeat,
    /// Not until an interrupt: HLT.
    Halted,
}

/// What an instruction did, besides changing the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How execution goes on.
    pub control: Control,
    /// Instructions to count as retired: 1, or the iterations of a string instruction.
    pub retired: u64,
    /// Interrupts may have become deliverable, or the bus's horizon nearer: look again.
    pub recheck: bool,
}

impl Outcome {
    pub(crate) const NEXT: Self = Self { control: Control::Next, retired: 1, recheck: false };
    pub(crate) const BRANCH: Self = Self { control: Control::Branch, retired: 1, recheck: false };
    /// As [`Self::NEXT`], and the caller looks for interrupts again.
    pub(crate) const RECHECK: Self = Self { recheck: true, ..Self::NEXT };
    /// As [`Self::BRANCH`], and the caller looks for interrupts again.
    pub(crate) const BRANCH_RECHECK: Self = Self { recheck: true, ..Self::BRANCH };
}

/// What every family's handler returns.
pub(crate) type Done = Result<Outcome, Exception>;

/// The instruction pointer after `instr`. In 16-bit code it may leave the first 64 KiB, where the
/// limit usually stops it.
pub(crate) fn next_rip(core: &Core, instr: &Instruction) -> u64 {
    let width = if core.state.code64() { 64 } else { 32 };
    core.state.rip.wrapping_add(instr.len() as u64) & mask(width)
}

/// #GP(0) unless at CPL 0.
pub(crate) fn require_cpl0(core: &Core) -> Result<(), Exception> {
    if core.state.cpl == 0 { Ok(()) } else { Err(Exception::gp(0)) }
}

/// #UD unless in protected mode proper.
pub(crate) fn require_protected(core: &Core) -> Result<(), Exception> {
    if core.state.real_segments() { Err(Exception::ud()) } else { Ok(()) }
}

/// #UD unless the code segment is a 64-bit one.
pub(crate) fn require_code64(core: &Core) -> Result<(), Exception> {
    if core.state.code64() { Ok(()) } else { Err(Exception::ud()) }
}

/// Executes one instruction, decoded with the code segment's bitness and RIP.
///
/// A string instruction does one iteration; use [`string::string`] for more. Fails with the
/// exception to deliver; instructions no family knows are #UD.
pub fn execute(core: &mut Core, instr: &Instruction) -> Result<Outcome, Exception> {
    // None of these can be locked. (LOCK MOV CR0 as another name of CR8 is not in the model.)
    if instr.has_lock_prefix() {
        return Err(Exception::ud());
    }
    let next = next_rip(core, instr);
    let outcome = dispatch(core, instr)?;
    if matches!(outcome.control, Control::Next | Control::Halted) {
        core.state.rip = next;
    }
    Ok(outcome)
}

fn dispatch(core: &mut Core, instr: &Instruction) -> Done {
    use Mnemonic as M;
    if string::is_string(instr.code()) {
        return string::one(core, instr);
    }
    match instr.mnemonic() {
        M::Cli | M::Sti | M::Pushf | M::Pushfd | M::Pushfq | M::Popf | M::Popfd | M::Popfq => {
            flags::execute(core, instr)
        }
        M::Clac | M::Stac | M::Cld | M::Std => flags::execute(core, instr),
        M::Hlt => {
            require_cpl0(core)?;
            core.state.activity = crate::Activity::Halted;
            Ok(Outcome { control: Control::Halted, ..Outcome::RECHECK })
        }
        M::In | M::Out => port::execute(core, instr),
        M::Int | M::Int1 | M::Int3 | M::Into | M::Iret | M::Iretd | M::Iretq => {
            interrupt::execute(core, instr)
        }
        M::Call | M::Jmp | M::Retf => far::execute(core, instr),
        M::Syscall | M::Sysret | M::Sysretq | M::Sysenter | M::Sysexit | M::Sysexitq => {
            fast_call::execute(core, instr)
        }
        M::Mov => match instr.code() {
            Code::Mov_r32_cr | Code::Mov_r64_cr | Code::Mov_cr_r32 | Code::Mov_cr_r64 => {
                control::execute(core, instr)
            }
            Code::Mov_r32_dr | Code::Mov_r64_dr | Code::Mov_dr_r32 | Code::Mov_dr_r64 => {
                control::execute(core, instr)
            }
            _ => segment::execute(core, instr),
        },
        M::Clts | M::Lmsw | M::Smsw | M::Invlpg | M::Invpcid | M::Xgetbv | M::Xsetbv => {
            control::execute(core, instr)
        }
        M::Lgdt | M::Lidt | M::Sgdt | M::Sidt | M::Lldt | M::Ltr | M::Sldt | M::Str => {
            table::execute(core, instr)
        }
        M::Lar | M::Lsl | M::Verr | M::Verw | M::Arpl => table::execute(core, instr),
        M::Push | M::Pop | M::Lds | M::Les | M::Lss | M::Lfs | M::Lgs | M::Swapgs => {
            segment::execute(core, instr)
        }
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => segment::execute(core, instr),
        M::Rdmsr | M::Wrmsr => msr::execute(core, instr),
        M::Cpuid | M::Rdtsc | M::Rdtscp | M::Rdpid | M::Rdpmc => identify::execute(core, instr),
        _ => dispatch_rest(core, instr),
    }
}

fn dispatch_rest(core: &mut Core, instr: &Instruction) -> Done {
    use Mnemonic as M;
    match instr.mnemonic() {
        M::Invd | M::Wbinvd => {
            require_cpl0(core)?;
            Ok(Outcome::NEXT)
        }
        M::Clflush | M::Clflushopt | M::Clwb => {
            // Ordered and checked as a load of one byte (SDM vol. 2A, CLFLUSH).
            let at = address(core, instr, 1, false)?;
            core.translate(at, crate::walk::Access::data(core.state, false))?;
            Ok(Outcome::NEXT)
        }
        M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchw
        | M::Prefetch
        | M::Prefetchwt1
        | M::Pause
        | M::Nop
        | M::Endbr64
        | M::Endbr32
        | M::Wbnoinvd
        | M::Cldemote => {
            if matches!(instr.mnemonic(), M::Wbnoinvd) {
                require_cpl0(core)?;
            }
            Ok(Outcome::NEXT)
        }
        M::Fxsave
        | M::Fxsave64
        | M::Fxrstor
        | M::Fxrstor64
        | M::Xsave
        | M::Xsave64
        | M::Xsaveopt
        | M::Xsaveopt64
        | M::Xsavec
        | M::Xsavec64
        | M::Xrstor
        | M::Xrstor64 => xstate::execute(core, instr),
        M::Fnstenv
        | M::Fldenv
        | M::Fnsave
        | M::Frstor
        | M::Ldmxcsr
        | M::Stmxcsr
        | M::Vldmxcsr
        | M::Vstmxcsr => x87::execute(core, instr),
        M::Enter
        | M::Leave
        | M::Bound
        | M::Pusha
        | M::Pushad
        | M::Popa
        | M::Popad
        | M::Aaa
        | M::Aas
        | M::Aam
        | M::Aad
        | M::Daa
        | M::Das
        | M::Xlatb
        | M::Salc => legacy::execute(core, instr),
        M::Vpgatherdd
        | M::Vpgatherdq
        | M::Vpgatherqd
        | M::Vpgatherqq
        | M::Vgatherdps
        | M::Vgatherdpd
        | M::Vgatherqps
        | M::Vgatherqpd
        | M::Vmaskmovps
        | M::Vmaskmovpd
        | M::Vpmaskmovd
        | M::Vpmaskmovq
        | M::Maskmovdqu
        | M::Vmaskmovdqu
        | M::Maskmovq => gather::execute(core, instr),
        _ => Err(Exception::ud()),
    }
}

/// Holds interrupts and debug traps back until after the instruction that follows.
pub(crate) fn inhibit_next(core: &mut Core) {
    core.state.shadow_at = core.state.retired.wrapping_add(1);
}

/// Loads a segment register in real or virtual-8086 mode: selector and base. Limit and attributes stay what the
/// last protected-mode load made them ("unreal mode"; SDM vol. 3A, 9.9.2), but for a register that
/// was null there, which becomes what it is after reset.
pub(crate) fn load_real_segment(core: &mut Core, index: SegmentIndex, selector: u16) {
    let seg = &mut core.state.seg[index as usize];
    if seg.attributes & Segment::PRESENT == 0 {
        *seg = Segment {
            limit: 0xffff,
            attributes: Segment::PRESENT | Segment::CODE_OR_DATA | 3,
            ..Segment::default()
        };
    }
    seg.selector = selector;
    seg.base = (selector as u64) << 4;
}
