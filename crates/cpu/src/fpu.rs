//! The x87 and MMX state, and which of the vector units an instruction may use.
//!
//! The state is kept as an FXSAVE image. Its instruction and data pointers and the last opcode are
//! always zero: the host's own would be addresses inside the code cache, and processors of
//! different vendors disagree on when they are stored. The model says so in CPUID (FDP only on
//! unmasked exceptions, FCS and FDS zero, pointers always stored by XSAVE), which is as near as the
//! architecture comes to permitting it.

use crate::reset::MXCSR_RESET;
use crate::{CpuState, Fpu};
use x86::control::{cr0, cr4, xcr0};
use x86::{Exception, vector};

/// Bytes of the FXSAVE image that hold x87 state.
pub(crate) const ST_AT: usize = 32;
/// Bits of MXCSR that exist; others fault when set. (The host's mask may be wider.)
pub const MXCSR_MASK: u32 = 0xffff;
/// FCW after FNINIT: every exception masked, extended precision.
pub(crate) const FCW_INIT: u16 = 0x37f;
/// FCW after power-on.
const FCW_POWER_ON: u16 = 0x40;

impl Fpu {
    /// The state after power-on (SDM vol. 3A, table 9-1): all registers zero and in use.
    pub fn power_on() -> Self {
        let mut fpu = Self { ymm: [[0; 32]; 16], x87: [0; 512], mxcsr: MXCSR_RESET };
        fpu.set_control(FCW_POWER_ON);
        fpu.set_tags(0xff);
        fpu
    }

    /// FNINIT; the physical registers' contents stay.
    pub fn finit(&mut self) {
        self.set_control(FCW_INIT);
        self.set_status_around(0);
        self.set_tags(0);
    }

    /// The initial state component 0 of XSAVE (SDM vol. 1, 13.6): FNINIT and zero registers.
    pub(crate) fn init_x87(&mut self) {
        self.x87 = [0; 512];
        self.set_control(FCW_INIT);
    }

    /// FCW.
    pub fn control(&self) -> u16 {
        u16::from_le_bytes([self.x87[0], self.x87[1]])
    }
    /// Sets FCW.
    pub fn set_control(&mut self, value: u16) {
        self.x87[..2].copy_from_slice(&value.to_le_bytes());
    }
    /// FSW.
    pub fn status(&self) -> u16 {
        u16::from_le_bytes([self.x87[2], self.x87[3]])
    }
    /// Sets FSW.
    pub fn set_status(&mut self, value: u16) {
        self.x87[2..4].copy_from_slice(&value.to_le_bytes());
    }
    /// Sets FSW, perhaps with another TOP: the physical registers keep their contents, so the image,
    /// which begins with ST0, is rotated.
    pub fn set_status_around(&mut self, value: u16) {
        let top = self.top();
        let physical: [[u8; 10]; 8] = std::array::from_fn(|i| self.st((i + 8 - top) & 7));
        self.set_status(value);
        let top = self.top();
        for (i, register) in physical.iter().enumerate() {
            self.set_st((i + 8 - top) & 7, register);
        }
    }
    /// The abridged tag word: bit i set when physical register i is in use.
    pub fn tags(&self) -> u8 {
        self.x87[4]
    }
    /// Sets it.
    pub fn set_tags(&mut self, value: u8) {
        self.x87[4] = value;
    }
    /// The physical number of ST0.
    pub fn top(&self) -> usize {
        (self.status() >> 11 & 7) as usize
    }

    /// The ten bytes of ST(`i`).
    pub fn st(&self, i: usize) -> [u8; 10] {
        let at = ST_AT + 16 * (i & 7);
        self.x87[at..at + 10].try_into().expect("ten bytes")
    }
    /// Sets ST(`i`); the padding stays zero.
    pub fn set_st(&mut self, i: usize, value: &[u8; 10]) {
        let at = ST_AT + 16 * (i & 7);
        self.x87[at..at + 10].copy_from_slice(value);
    }

    /// The full tag word, two bits for each physical register (SDM vol. 1, 8.1.7), worked out from
    /// the registers' contents as FXSAVE's description says (vol. 2A, table 3-48).
    pub fn full_tags(&self) -> u16 {
        (0..8).fold(0, |word, physical| {
            let tag = if self.tags() >> physical & 1 == 0 {
                3
            } else {
                classify(&self.st((physical + 8 - self.top()) & 7))
            };
            word | tag << (2 * physical)
        })
    }

    /// Sets the abridged tags from a full tag word.
    pub fn set_full_tags(&mut self, word: u16) {
        let tags = (0..8).fold(0, |tags, i| tags | ((word >> (2 * i) & 3 != 3) as u8) << i);
        self.set_tags(tags);
    }

    /// Recomputes the summary bits ES and B of FSW from its exception flags and FCW's masks.
    pub fn update_summary(&mut self) {
        let pending = self.status() & !self.control() & 0x3f != 0;
        let status = self.status() & !0x8080;
        self.set_status(if pending { status | 0x8080 } else { status });
    }

    /// Whether an unmasked exception waits for the next waiting instruction (ES).
    pub fn exception_pending(&self) -> bool {
        self.status() & 1 << 7 != 0
    }

    /// The value of MMX register `i`.
    pub fn mm(&self, i: usize) -> u64 {
        let st = self.st((i + 8 - self.top()) & 7);
        u64::from_le_bytes(st[..8].try_into().expect("eight bytes"))
    }

    /// The transition an MMX instruction makes: TOP becomes 0 and all registers are in use
    /// (SDM vol. 1, 9.5.1). Physical registers keep their contents, so the image is rotated.
    pub fn enter_mmx(&mut self) {
        self.set_status_around(self.status() & !(7 << 11));
        self.set_tags(0xff);
    }

    /// Clears what stands for nothing: opcode, pointers, reserved fields, reserved bits of FCW (of
    /// which bit 6 reads as one).
    pub fn normalize(&mut self) {
        self.set_control(self.control() & 0x1f3f | 0x40);
        self.x87[5..ST_AT].fill(0);
        for i in 0..8 {
            self.x87[ST_AT + 16 * i + 10..ST_AT + 16 * (i + 1)].fill(0);
        }
        self.x87[ST_AT + 128..].fill(0);
    }
}

/// The tag of a register in use: 0 valid, 1 zero, 2 special.
fn classify(st: &[u8; 10]) -> u16 {
    let exponent = u16::from_le_bytes([st[8], st[9]]) & 0x7fff;
    let significand = u64::from_le_bytes(st[..8].try_into().expect("eight bytes"));
    match (exponent, significand) {
        (0, 0) => 1,
        (0 | 0x7fff, _) => 2,
        (_, s) if s >> 63 == 0 => 2,
        _ => 0,
    }
}

/// What an instruction needs of the floating-point and vector units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FpuKind {
    /// x87 arithmetic, loads, stores and control.
    X87,
    /// WAIT/FWAIT.
    Wait,
    /// MMX.
    Mmx,
    /// Legacy-encoded SSE.
    Sse,
    /// VEX-encoded.
    Avx,
    /// FXSAVE and FXRSTOR.
    Fxsave,
    /// XSAVE, XRSTOR and their kin.
    Xsave,
}

/// Whether the control registers let an instruction of `kind` run: #UD or #NM otherwise
/// (SDM vol. 2A, 2.4 and 3.1.1.16; vol. 3A, 2.5 and tables 9-2 and 13-1).
pub fn fpu_available(state: &CpuState, kind: FpuKind) -> Result<(), Exception> {
    let em = state.cr0 & cr0::EM != 0;
    let ts = state.cr0 & cr0::TS != 0;
    let nm = Err(Exception::plain(vector::NM));
    let undefined = match kind {
        FpuKind::X87 | FpuKind::Fxsave => return if em || ts { nm } else { Ok(()) },
        FpuKind::Wait => return if state.cr0 & cr0::MP != 0 && ts { nm } else { Ok(()) },
        FpuKind::Mmx => em,
        FpuKind::Sse => em || state.cr4 & cr4::OSFXSR == 0,
        FpuKind::Avx => {
            let wanted = xcr0::SSE | xcr0::AVX;
            state.real_segments() || state.cr4 & cr4::OSXSAVE == 0 || state.xcr0 & wanted != wanted
        }
        FpuKind::Xsave => state.cr4 & cr4::OSXSAVE == 0,
    };
    if undefined {
        return Err(Exception::ud());
    }
    if ts { nm } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mmx_numbers_registers_physically_whatever_the_top_of_stack() {
        let mut fpu = Fpu::power_on();
        fpu.set_status(3 << 11);
        fpu.set_st(0, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]); // physical register 3
        assert_eq!(fpu.mm(3), 1);
        fpu.enter_mmx();
        assert_eq!((fpu.mm(3), fpu.top(), fpu.tags()), (1, 0, 0xff));
        assert_eq!(fpu.st(3)[0], 1);
    }

    #[test]
    fn full_tags_tell_zero_valid_special_and_empty() {
        let mut fpu = Fpu::power_on();
        fpu.finit();
        fpu.set_status(6 << 11); // TOP = 6: ST0 is R6, ST1 R7, ST2 R0
        fpu.set_tags(1 << 6 | 1 << 7 | 1);
        fpu.set_st(0, &[0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]); // 1.0
        fpu.set_st(1, &[0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x7f]); // infinity
        let tags = fpu.full_tags();
        assert_eq!(tags, 2 << 14 | 0x0ffc | 1);
        fpu.set_full_tags(tags);
        assert_eq!(fpu.tags(), 1 << 6 | 1 << 7 | 1);
    }

    #[test]
    fn a_set_ts_bit_makes_every_unit_unavailable() {
        let mut state = CpuState::power_on();
        state.cr0 = cr0::PE | cr0::MP | cr0::TS;
        state.cr4 = cr4::OSFXSR | cr4::OSXSAVE;
        state.xcr0 = 7;
        use FpuKind::*;
        for kind in [X87, Wait, Mmx, Sse, Avx, Fxsave, Xsave] {
            assert_eq!(fpu_available(&state, kind), Err(Exception::plain(vector::NM)), "{kind:?}");
            let clear = CpuState { cr0: cr0::PE | cr0::MP, ..state.clone() };
            assert_eq!(fpu_available(&clear, kind), Ok(()), "{kind:?}");
        }
    }
}
