//! Power-on, INIT and start-up (Intel SDM vol. 3A, 9.1 and table 9-1; 8.4.3).

use crate::{Activity, CpuState, Fpu, SystemMsrs};
use x86::control::{cr0, dr, xcr0};
use x86::{CpuModel, DescriptorTable, Segment, SegmentIndex, cpuid, flags, gpr};

/// IA32_PAT after reset (SDM vol. 3A, table 11-12).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// MXCSR after reset: every exception masked.
pub(crate) const MXCSR_RESET: u32 = 0x1f80;
/// HWCR: the TSC counts at the nominal frequency (bit 24).
const HWCR_RESET: u64 = 1 << 24;
/// DE_CFG: LFENCE serializes (bit 1).
const DE_CFG_RESET: u64 = 1 << 1;

fn real_mode_segment(selector: u16, base: u64, kind: u16) -> Segment {
    let attributes = Segment::PRESENT | kind;
    Segment { base, limit: 0xffff, attributes, selector }
}

impl CpuState {
    /// The state of a bootstrap processor at power-on.
    pub fn power_on() -> Self {
        let data = real_mode_segment(0, 0, Segment::CODE_OR_DATA | 3);
        let mut seg = [data; 6];
        seg[SegmentIndex::Cs as usize] = real_mode_segment(0xf000, 0xffff_0000, Segment::CODE_OR_DATA | 0xb);
        let table = DescriptorTable { base: 0, limit: 0xffff };
        let mut state = Self {
            gpr: [0; 16],
            rip: 0xfff0,
            rflags: flags::FIXED,
            seg,
            ldtr: real_mode_segment(0, 0, 2),
            tr: real_mode_segment(0, 0, 0xb),
            gdtr: table,
            idtr: table,
            cr0: cr0::CD | cr0::NW | cr0::ET,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: xcr0::X87,
            dr: [0, 0, 0, 0, 0, 0, dr::DR6_FIXED, dr::DR7_FIXED],
            cpl: 0,
            activity: Activity::Running,
            nmi_blocked: false,
            retired: 0,
            shadow_at: u64::MAX,
            event_at: u64::MAX,
            msr: SystemMsrs {
                pat: PAT_RESET,
                // Fast strings.
                misc_enable: 1,
                hwcr: HWCR_RESET,
                de_cfg: DE_CFG_RESET,
                ..SystemMsrs::default()
            },
            fpu: Fpu::power_on(),
            apic_id: 0,
        };
        // The processor's signature.
        let signature = CpuModel::plain(x86::Level::V3).cpuid(1, 0, &cpuid::CpuidContext::default()).eax;
        state.gpr[gpr::RDX] = signature as u64;
        state
    }

    /// The state of an application processor at power-on: waiting for its start-up message.
    pub fn power_on_waiting(apic_id: u32) -> Self {
        Self { activity: Activity::WaitForSipi, apic_id, ..Self::power_on() }
    }

    /// INIT: as power-on, but model-specific registers, the x87, SSE and AVX state and the cache
    /// bits of CR0 stay. The bootstrap processor runs on from the reset vector, others wait.
    pub fn init(&mut self, bootstrap: bool) {
        let fresh = Self::power_on();
        let cache_bits = self.cr0 & (cr0::CD | cr0::NW);
        *self = Self {
            cr0: cache_bits | cr0::ET,
            xcr0: self.xcr0,
            msr: self.msr.clone(),
            fpu: self.fpu.clone(),
            retired: self.retired,
            apic_id: self.apic_id,
            activity: if bootstrap { Activity::Running } else { Activity::WaitForSipi },
            ..fresh
        };
    }

    /// A start-up message with `vector`: begin in real mode at `vector` × 4096. Ignored unless the
    /// processor waits for one.
    pub fn start_up(&mut self, vector: u8) {
        if self.activity != Activity::WaitForSipi {
            return;
        }
        self.activity = Activity::Running;
        let cs = &mut self.seg[SegmentIndex::Cs as usize];
        cs.selector = (vector as u16) << 8;
        cs.base = (vector as u64) << 12;
        self.rip = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_instruction_lies_sixteen_bytes_below_four_gibibytes() {
        let state = CpuState::power_on();
        let cs = state.seg[SegmentIndex::Cs as usize];
        assert_eq!(cs.base + state.rip, 0xffff_fff0);
        assert_eq!((state.cr0, state.rflags, state.code_bits()), (0x6000_0010, 2, 16));
    }

    #[test]
    fn an_application_processor_starts_where_the_message_says() {
        let mut state = CpuState::power_on_waiting(2);
        state.start_up(0x9a);
        let cs = state.seg[SegmentIndex::Cs as usize];
        assert_eq!((cs.selector, cs.base, state.rip), (0x9a00, 0x9a000, 0));
        state.start_up(0x10);
        assert_eq!(state.seg[SegmentIndex::Cs as usize].base, 0x9a000, "a second message is ignored");
    }

    #[test]
    fn init_keeps_vector_registers_and_the_count() {
        let mut state = CpuState::power_on();
        state.retired = 77;
        state.fpu.ymm[3][5] = 9;
        state.cr0 = 0x8000_0031;
        state.init(false);
        assert_eq!((state.retired, state.fpu.ymm[3][5], state.cr0), (77, 9, 0x10));
        assert_eq!(state.activity, Activity::WaitForSipi);
    }
}
