//! A processor's state in a checkpoint.
//!
//! [`SavedCpu`] names every field of [`CpuState`], so a field added there and forgotten here is a
//! compile error, not a divergence. Restoring trusts nothing: whatever a processor of the model
//! could not be in is refused, since other code relies on it (and on the host's own instructions
//! not faulting on a value it loads for the guest).

use crate::{Activity, CpuState, Fpu, MXCSR_MASK, SystemMsrs};
use serde::{Deserialize, Serialize};
use x86::control::{cr0, cr4, dr, efer, xcr0};
use x86::{CpuModel, DescriptorTable, Segment, SegmentIndex, flags, paging};

/// RFLAGS bits that can be set in a guest: virtual-8086 mode and its helpers do not exist.
const FLAGS_DEFINED: u64 = flags::STATUS
    | flags::FIXED
    | flags::TF
    | flags::IF
    | flags::DF
    | flags::IOPL
    | flags::NT
    | flags::RF
    | flags::AC
    | flags::ID;
/// Bytes of the x87 image that carry state.
const X87_LEN: usize = 160;
/// Bits of a segment's attributes that exist.
const ATTRIBUTES: u16 = 0xf0ff;

/// The state of one processor, ready to be encoded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedCpu {
    /// Layout version, [`SavedCpu::VERSION`].
    pub version: u32,
    gpr: [u64; 16],
    rip: u64,
    rflags: u64,
    seg: [Segment; 6],
    ldtr: Segment,
    tr: Segment,
    gdtr: DescriptorTable,
    idtr: DescriptorTable,
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    xcr0: u64,
    dr: [u64; 8],
    cpl: u8,
    activity: u8,
    nmi_blocked: bool,
    retired: u64,
    shadow_at: u64,
    event_at: u64,
    msr: SavedMsrs,
    ymm: Vec<[u8; 32]>,
    x87: Vec<u8>,
    mxcsr: u32,
    apic_id: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedMsrs {
    star: u64,
    lstar: u64,
    cstar: u64,
    sfmask: u64,
    kernel_gs_base: u64,
    tsc_aux: u64,
    sysenter_cs: u64,
    sysenter_esp: u64,
    sysenter_eip: u64,
    pat: u64,
    tsc_adjust: u64,
    misc_enable: u64,
    mtrr_def_type: u64,
    mtrr_fixed: [u64; 11],
    mtrr_variable: [u64; 16],
    spec_ctrl: u64,
    hwcr: u64,
    de_cfg: u64,
}

/// A saved processor state that cannot be restored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Saved by another version.
    #[error("processor state has layout version {found}, this build reads version {}", SavedCpu::VERSION)]
    Version {
        /// What the state says.
        found: u32,
    },
    /// No processor of the model can be in this state.
    #[error("processor state is damaged: {what} cannot be {value:#x}")]
    Impossible {
        /// The register or field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
}

fn require(ok: bool, what: &'static str, value: u64) -> Result<(), RestoreError> {
    if ok { Ok(()) } else { Err(RestoreError::Impossible { what, value }) }
}

impl SavedMsrs {
    fn of(m: &SystemMsrs) -> Self {
        let SystemMsrs {
            star,
            lstar,
            cstar,
            sfmask,
            kernel_gs_base,
            tsc_aux,
            sysenter_cs,
            sysenter_esp,
            sysenter_eip,
            pat,
            tsc_adjust,
            misc_enable,
            mtrr_def_type,
            mtrr_fixed,
            mtrr_variable,
            spec_ctrl,
            hwcr,
            de_cfg,
        } = *m;
        Self {
            star,
            lstar,
            cstar,
            sfmask,
            kernel_gs_base,
            tsc_aux,
            sysenter_cs,
            sysenter_esp,
            sysenter_eip,
            pat,
            tsc_adjust,
            misc_enable,
            mtrr_def_type,
            mtrr_fixed,
            mtrr_variable,
            spec_ctrl,
            hwcr,
            de_cfg,
        }
    }

    fn restore(&self) -> SystemMsrs {
        SystemMsrs {
            star: self.star,
            lstar: self.lstar,
            cstar: self.cstar,
            sfmask: self.sfmask,
            kernel_gs_base: self.kernel_gs_base,
            tsc_aux: self.tsc_aux,
            sysenter_cs: self.sysenter_cs,
            sysenter_esp: self.sysenter_esp,
            sysenter_eip: self.sysenter_eip,
            pat: self.pat,
            tsc_adjust: self.tsc_adjust,
            misc_enable: self.misc_enable,
            mtrr_def_type: self.mtrr_def_type,
            mtrr_fixed: self.mtrr_fixed,
            mtrr_variable: self.mtrr_variable,
            spec_ctrl: self.spec_ctrl,
            hwcr: self.hwcr,
            de_cfg: self.de_cfg,
        }
    }

    fn check(&self) -> Result<(), RestoreError> {
        let canonical = [
            (self.lstar, "IA32_LSTAR"),
            (self.cstar, "IA32_CSTAR"),
            (self.kernel_gs_base, "IA32_KERNEL_GS_BASE"),
            (self.sysenter_esp, "IA32_SYSENTER_ESP"),
            (self.sysenter_eip, "IA32_SYSENTER_EIP"),
        ];
        for (value, what) in canonical {
            require(paging::is_canonical(value), what, value)?;
        }
        require(self.sfmask >> 32 == 0, "IA32_FMASK", self.sfmask)?;
        require(self.tsc_aux >> 32 == 0, "IA32_TSC_AUX", self.tsc_aux)?;
        require(self.sysenter_cs >> 32 == 0, "IA32_SYSENTER_CS", self.sysenter_cs)
    }
}

impl CpuState {
    /// Everything, for a checkpoint.
    pub fn save(&self) -> SavedCpu {
        let CpuState {
            gpr,
            rip,
            rflags,
            seg,
            ldtr,
            tr,
            gdtr,
            idtr,
            cr0,
            cr2,
            cr3,
            cr4,
            efer,
            xcr0,
            dr,
            cpl,
            activity,
            nmi_blocked,
            retired,
            shadow_at,
            event_at,
            msr,
            fpu,
            apic_id,
        } = self;
        let mut x87 = fpu.clone();
        x87.normalize();
        SavedCpu {
            version: SavedCpu::VERSION,
            gpr: *gpr,
            rip: *rip,
            rflags: *rflags,
            seg: *seg,
            ldtr: *ldtr,
            tr: *tr,
            gdtr: *gdtr,
            idtr: *idtr,
            cr0: *cr0,
            cr2: *cr2,
            cr3: *cr3,
            cr4: *cr4,
            efer: *efer,
            xcr0: *xcr0,
            dr: *dr,
            cpl: *cpl,
            activity: *activity as u8,
            nmi_blocked: *nmi_blocked,
            retired: *retired,
            // A shadow that is over reads like none, whatever is left of it.
            shadow_at: if *shadow_at == *retired { *shadow_at } else { u64::MAX },
            event_at: if *event_at == *retired { *event_at } else { u64::MAX },
            msr: SavedMsrs::of(msr),
            ymm: fpu.ymm.to_vec(),
            x87: x87.x87[..X87_LEN].to_vec(),
            mxcsr: fpu.mxcsr,
            apic_id: *apic_id,
        }
    }
}

impl SavedCpu {
    /// The layout's version; raised with every change.
    pub const VERSION: u32 = 2;

    /// The state again, for a processor of `model`. Fails on a state no such processor can be in.
    pub fn restore(&self, model: &CpuModel) -> Result<CpuState, RestoreError> {
        if self.version != Self::VERSION {
            return Err(RestoreError::Version { found: self.version });
        }
        self.check_control(model)?;
        self.check_segments()?;
        self.check_program()?;
        self.msr.check()?;
        let activity = match self.activity {
            0 => Activity::Running,
            1 => Activity::Halted,
            2 => Activity::Shutdown,
            3 => Activity::WaitForSipi,
            other => return Err(RestoreError::Impossible { what: "activity", value: other as u64 }),
        };
        Ok(CpuState {
            gpr: self.gpr,
            rip: self.rip,
            rflags: self.rflags,
            seg: self.seg,
            ldtr: self.ldtr,
            tr: self.tr,
            gdtr: self.gdtr,
            idtr: self.idtr,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            efer: self.efer,
            xcr0: self.xcr0,
            dr: self.dr,
            cpl: self.cpl,
            activity,
            nmi_blocked: self.nmi_blocked,
            retired: self.retired,
            shadow_at: self.shadow_at,
            event_at: self.event_at,
            msr: self.msr.restore(),
            fpu: self.restore_fpu()?,
            apic_id: self.apic_id,
        })
    }

    fn restore_fpu(&self) -> Result<Fpu, RestoreError> {
        require(self.mxcsr & !MXCSR_MASK == 0, "MXCSR", self.mxcsr as u64)?;
        require(self.ymm.len() == 16, "number of YMM registers", self.ymm.len() as u64)?;
        require(self.x87.len() == X87_LEN, "size of the x87 image", self.x87.len() as u64)?;
        let mut fpu = Fpu { ymm: [[0; 32]; 16], x87: [0; 512], mxcsr: self.mxcsr };
        fpu.ymm.copy_from_slice(&self.ymm);
        fpu.x87[..X87_LEN].copy_from_slice(&self.x87);
        fpu.normalize();
        require(fpu.x87[..X87_LEN] == self.x87[..], "x87 pointers or padding", 1)?;
        let status = fpu.status();
        fpu.update_summary();
        require(fpu.status() == status, "x87 status word", status as u64)?;
        Ok(fpu)
    }

    fn check_control(&self, model: &CpuModel) -> Result<(), RestoreError> {
        let long = self.efer & efer::LMA != 0;
        let paging_on = self.cr0 & cr0::PG != 0;
        let cr0_valid = self.cr0 & !cr0::DEFINED == 0
            && self.cr0 & cr0::ET != 0
            && (!paging_on || self.cr0 & cr0::PE != 0)
            && (self.cr0 & cr0::NW == 0 || self.cr0 & cr0::CD != 0);
        require(cr0_valid, "CR0", self.cr0)?;
        let cr4_valid = self.cr4 & !model.cr4_supported() == 0
            && (!long || self.cr4 & cr4::PAE != 0)
            && (long || self.cr4 & cr4::PCIDE == 0);
        require(cr4_valid, "CR4", self.cr4)?;
        require(self.cr3 >> paging::PHYSICAL_BITS == 0, "CR3", self.cr3)?;
        let lma_expected = self.efer & efer::LME != 0 && paging_on;
        require(self.efer & !efer::DEFINED == 0 && long == lma_expected, "IA32_EFER", self.efer)?;
        let xcr0_valid = self.xcr0 & xcr0::X87 != 0
            && self.xcr0 & !(model.xcr0_supported() | xcr0::X87) == 0
            && (self.xcr0 & xcr0::AVX == 0 || self.xcr0 & xcr0::SSE != 0);
        require(xcr0_valid, "XCR0", self.xcr0)?;
        let dr6_valid = self.dr[6] & !dr::DR6_WRITABLE == dr::DR6_FIXED;
        require(dr6_valid, "DR6", self.dr[6])?;
        require(self.dr[7] & !dr::DR7_WRITABLE == dr::DR7_FIXED, "DR7", self.dr[7])?;
        require(self.dr[4] == 0 && self.dr[5] == 0, "DR4", self.dr[4] | self.dr[5])
    }

    fn check_segments(&self) -> Result<(), RestoreError> {
        for segment in self.seg.iter().chain([&self.ldtr, &self.tr]) {
            require(segment.attributes & !ATTRIBUTES == 0, "segment attributes", segment.attributes as u64)?;
            require(paging::is_canonical(segment.base), "segment base", segment.base)?;
        }
        for index in [SegmentIndex::Es, SegmentIndex::Cs, SegmentIndex::Ss, SegmentIndex::Ds] {
            let base = self.seg[index as usize].base;
            require(base >> 32 == 0, "base of ES, CS, SS or DS", base)?;
        }
        let cs = self.seg[SegmentIndex::Cs as usize].attributes;
        let long = self.efer & efer::LMA != 0;
        let both = Segment::LONG | Segment::DEFAULT_BIG;
        require(!long || cs & both != both, "code segment attributes", cs as u64)?;
        require(paging::is_canonical(self.gdtr.base), "GDTR base", self.gdtr.base)?;
        require(paging::is_canonical(self.idtr.base), "IDTR base", self.idtr.base)
    }

    fn check_program(&self) -> Result<(), RestoreError> {
        let flags_valid = self.rflags & !FLAGS_DEFINED == 0 && self.rflags & flags::FIXED != 0;
        require(flags_valid, "RFLAGS", self.rflags)?;
        let cpl_valid = self.cpl <= 3 && (self.cpl == 0 || self.cr0 & cr0::PE != 0);
        require(cpl_valid, "privilege level", self.cpl as u64)?;
        let cs = &self.seg[SegmentIndex::Cs as usize];
        let code64 = self.efer & efer::LMA != 0 && cs.attributes & Segment::LONG != 0;
        // The last instruction below the canonical limit may have run off its end; the fetch faults.
        let past_the_end = self.rip >> 4 == 1 << (paging::LINEAR_BITS - 5);
        let rip_valid =
            if code64 { paging::is_canonical(self.rip) || past_the_end } else { self.rip >> 32 == 0 };
        require(rip_valid, "RIP", self.rip)?;
        let shadow_valid = self.shadow_at == u64::MAX || self.shadow_at == self.retired;
        require(shadow_valid, "interrupt shadow", self.shadow_at)?;
        let event_valid = self.event_at == u64::MAX || self.event_at == self.retired;
        require(event_valid, "last exception", self.event_at)
    }
}
