//! A processor's registers in gdb's terms, and back.

use cpu::CpuState;
use gdb::Registers;
use x86::flags;

/// RFLAGS bits that may be set: the status flags, TF, IF, DF, NT, AC and ID.
const FLAGS: u64 = flags::STATUS | flags::TF | flags::IF | flags::DF | flags::NT | flags::AC | flags::ID;
/// Bits of MXCSR that are not reserved.
const MXCSR: u32 = 0xffff;

/// Changes a processor from `now`, which [`of`] gave for it, to `to`.
///
/// # Errors
/// What cannot be set, in words: whatever would need more of the processor than its value, such as a
/// selector (the descriptor would have to be loaded) or a control register.
pub fn set(state: &mut CpuState, now: &Registers, to: &Registers) -> Result<(), String> {
    let fixed = |name: &str| Err(format!("{name} cannot be set from outside"));
    let selectors = |of: &Registers| [of.cs, of.ss, of.ds, of.es, of.fs, of.gs];
    let control = |of: &Registers| [of.cr0, of.cr2, of.cr3, of.cr4, of.cr8, of.efer];
    if selectors(now) != selectors(to) {
        return fixed("a segment selector");
    }
    if control(now) != control(to) {
        return fixed("a control register");
    }
    if (now.fctrl, now.fstat, now.ftag) != (to.fctrl, to.fstat, to.ftag) {
        return fixed("the x87 control, status or tag word");
    }
    if (now.rflags ^ to.rflags) & !FLAGS != 0 {
        return fixed("a reserved or system flag");
    }
    if to.mxcsr & !MXCSR != 0 {
        return fixed("a reserved bit of MXCSR");
    }
    let canonical = |address: u64| (address as i64) << 16 >> 16 == address as i64;
    if ![to.rip, to.fs_base, to.gs_base, to.kernel_gs_base].into_iter().all(canonical) {
        return Err("the address is not canonical".into());
    }
    state.gpr = to.gpr;
    if now.rip != to.rip {
        // In 64-bit mode CS has no base.
        let base = if state.code64() { 0 } else { state.seg[1].base };
        state.rip = to.rip.wrapping_sub(base);
    }
    state.rflags = to.rflags;
    state.seg[4].base = to.fs_base;
    state.seg[5].base = to.gs_base;
    state.msr.kernel_gs_base = to.kernel_gs_base;
    for (n, register) in to.st.iter().enumerate() {
        state.fpu.x87[32 + 16 * n..][..10].copy_from_slice(register);
    }
    state.fpu.ymm = to.ymm;
    state.fpu.mxcsr = to.mxcsr;
    Ok(())
}

/// The registers of a processor at linear address `rip`, with this task priority.
pub fn of(state: &CpuState, rip: u64, cr8: u64) -> Registers {
    let [es, cs, ss, ds, fs, gs] = [0, 1, 2, 3, 4, 5].map(|n| state.seg[n].selector);
    let image = &state.fpu.x87;
    let word = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
    let mut st = [[0; 10]; 8];
    for (n, register) in st.iter_mut().enumerate() {
        register.copy_from_slice(&image[32 + 16 * n..][..10]);
    }
    let (status, abridged) = (word(2), image[4]);
    Registers {
        gpr: state.gpr,
        rip,
        rflags: state.rflags,
        cs,
        ss,
        ds,
        es,
        fs,
        gs,
        fs_base: state.seg[4].base,
        gs_base: state.seg[5].base,
        kernel_gs_base: state.msr.kernel_gs_base,
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        cr8,
        efer: state.efer,
        st,
        fctrl: word(0),
        fstat: status,
        ftag: full_tag(&st, status, abridged),
        ymm: state.fpu.ymm,
        mxcsr: state.fpu.mxcsr,
    }
}

/// The full tag word of an FXSAVE image (SDM vol. 1, 10.5.1.1): two bits for each physical register.
fn full_tag(st: &[[u8; 10]; 8], status: u16, abridged: u8) -> u16 {
    let top = usize::from(status >> 11 & 7);
    (0..8).fold(0, |tags, physical| {
        let value = &st[(physical + 8 - top) % 8];
        let exponent = u16::from_le_bytes([value[8], value[9]]) & 0x7fff;
        let integer = value[7] & 0x80 != 0;
        let tag = match () {
            () if abridged >> physical & 1 == 0 => 3,
            () if exponent == 0 && value[..8].iter().all(|byte| *byte == 0) => 1,
            () if exponent == 0 || exponent == 0x7fff || !integer => 2,
            () => 0,
        };
        tags | tag << (2 * physical)
    })
}
