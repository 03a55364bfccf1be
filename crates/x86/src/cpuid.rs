//! The processor models a guest can have, as CPUID shows them (Intel SDM vol. 2A, CPUID; AMD APM
//! vol. 3, appendix E).
//!
//! A model is fixed: nothing of the host's own CPUID reaches the guest, so a recording means the
//! same on every host that has the features the model executes natively. The vendor is
//! AuthenticAMD, for which kernels leave out page-table isolation and most other workarounds; the
//! rest are switched off by saying, truthfully for a machine that never speculates across
//! privilege levels on the guest's behalf, that the processor is not affected.
//!
//! What is absent is absent on purpose: RDRAND and RDSEED (nondeterminism), TSX, AVX-512, MPX,
//! protection keys, CET, MONITOR, performance counters, SVM.

use crate::control::{cr4, xcr0};
use crate::paging::{LINEAR_BITS, PHYSICAL_BITS};
use serde::{Deserialize, Serialize};

/// The guest's time-stamp counter, in ticks per second. Also the nominal clock of leaf 16H.
pub const TSC_HZ: u64 = 1_000_000_000;

/// An x86-64 micro-architecture level (x86-64 psABI, 3.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Level {
    /// SSE4.2, POPCNT, CMPXCHG16B, LAHF; no XSAVE, so no AVX.
    V2,
    /// AVX2, BMI1/2, FMA, F16C, MOVBE, LZCNT and XSAVE on top.
    V3,
}

/// A processor model: everything CPUID says that does not depend on which processor asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuModel {
    /// The level.
    pub level: Level,
    /// AES-NI.
    pub aes: bool,
    /// PCLMULQDQ.
    pub pclmulqdq: bool,
    /// SHA extensions.
    pub sha: bool,
    /// Logical processors in the machine, at least 1.
    pub processors: u32,
}

/// What the answer to CPUID depends on besides the model.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuidContext {
    /// The processor's initial (and x2APIC) identifier.
    pub apic_id: u32,
    /// Its CR4 (OSXSAVE is mirrored in leaf 1).
    pub cr4: u64,
    /// Its XCR0 (leaf DH).
    pub xcr0: u64,
}

/// EAX, EBX, ECX and EDX of one leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct CpuidResult {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// Which of the features that guests execute natively the host has.
#[allow(missing_docs)] // each field is the manual's own mnemonic
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostFeatures {
    pub cmpxchg16b: bool,
    pub sse3: bool,
    pub ssse3: bool,
    pub sse4_1: bool,
    pub sse4_2: bool,
    pub popcnt: bool,
    pub avx: bool,
    pub avx2: bool,
    pub bmi1: bool,
    pub bmi2: bool,
    pub lzcnt: bool,
    pub f16c: bool,
    pub fma: bool,
    pub movbe: bool,
    pub aes: bool,
    pub pclmulqdq: bool,
    pub sha: bool,
}

const fn bits(list: &[u32]) -> u32 {
    let mut value = 0;
    let mut i = 0;
    while i < list.len() {
        value |= 1 << list[i];
        i += 1;
    }
    value
}

const fn text4(text: &[u8], at: usize) -> u32 {
    let mut word = 0;
    let mut i = 0;
    while i < 4 {
        if at + i < text.len() {
            word |= (text[at + i] as u32) << (8 * i);
        }
        i += 1;
    }
    word
}

/// Family 19H, model 1, stepping 1: a family for which kernels need the fewest workarounds.
const SIGNATURE: u32 = 0x00a0_0f11;
const MAX_BASIC: u32 = 0x16;
const MAX_EXTENDED: u32 = 0x8000_0021;
const HYPERVISOR_BASE: u32 = 0x4000_0000;
/// TSC frequency in kHz, as several hypervisors define it.
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
/// Unique to us, so that no guest takes the machine for another hypervisor's.
const HYPERVISOR_NAME: &[u8; 12] = b"Hindsight\0\0\0";

impl CpuModel {
    /// The model of a level with everything optional that `host` has.
    pub fn for_host(level: Level, host: &HostFeatures, processors: u32) -> Self {
        Self { level, aes: host.aes, pclmulqdq: host.pclmulqdq, sha: host.sha, processors: processors.max(1) }
    }

    /// The bare model of a level, without the optional instruction sets.
    pub fn plain(level: Level) -> Self {
        Self { level, aes: false, pclmulqdq: false, sha: false, processors: 1 }
    }

    /// Whether the guest has XSAVE, and with it AVX.
    pub fn has_xsave(&self) -> bool {
        self.level >= Level::V3
    }

    /// The bits of XCR0 that exist; 0 without XSAVE.
    pub fn xcr0_supported(&self) -> u64 {
        if self.has_xsave() { xcr0::X87 | xcr0::SSE | xcr0::AVX } else { 0 }
    }

    /// The bits of CR4 that exist.
    pub fn cr4_supported(&self) -> u64 {
        let common = cr4::TSD
            | cr4::DE
            | cr4::PSE
            | cr4::PAE
            | cr4::PGE
            | cr4::PCE
            | cr4::OSFXSR
            | cr4::OSXMMEXCPT
            | cr4::UMIP
            | cr4::FSGSBASE
            | cr4::PCIDE
            | cr4::SMEP
            | cr4::SMAP;
        if self.has_xsave() { common | cr4::OSXSAVE } else { common }
    }

    /// The features this model executes natively that `host` lacks, by the manual's names.
    pub fn host_missing(&self, host: &HostFeatures) -> Vec<&'static str> {
        let v3 = self.level >= Level::V3;
        let needs = [
            (true, host.cmpxchg16b, "CMPXCHG16B"),
            (true, host.sse3, "SSE3"),
            (true, host.ssse3, "SSSE3"),
            (true, host.sse4_1, "SSE4.1"),
            (true, host.sse4_2, "SSE4.2"),
            (true, host.popcnt, "POPCNT"),
            (v3, host.avx, "AVX"),
            (v3, host.avx2, "AVX2"),
            (v3, host.bmi1, "BMI1"),
            (v3, host.bmi2, "BMI2"),
            (v3, host.lzcnt, "LZCNT"),
            (v3, host.f16c, "F16C"),
            (v3, host.fma, "FMA"),
            (v3, host.movbe, "MOVBE"),
            (self.aes, host.aes, "AES"),
            (self.pclmulqdq, host.pclmulqdq, "PCLMULQDQ"),
            (self.sha, host.sha, "SHA"),
        ];
        needs.iter().filter(|(needed, has, _)| *needed && !has).map(|(_, _, name)| *name).collect()
    }

    /// The answer to CPUID with EAX = `leaf` and ECX = `subleaf`.
    pub fn cpuid(&self, leaf: u32, subleaf: u32, cx: &CpuidContext) -> CpuidResult {
        match leaf {
            0..=MAX_BASIC => self.basic(leaf, subleaf, cx),
            0x8000_0000..=MAX_EXTENDED => self.extended(leaf),
            HYPERVISOR_BASE => CpuidResult {
                eax: HYPERVISOR_TIMING,
                ebx: text4(HYPERVISOR_NAME, 0),
                ecx: text4(HYPERVISOR_NAME, 4),
                edx: text4(HYPERVISOR_NAME, 8),
            },
            HYPERVISOR_TIMING => CpuidResult { eax: (TSC_HZ / 1000) as u32, ..Default::default() },
            // Leaves that do not exist read as zero on this vendor's processors.
            _ => CpuidResult::default(),
        }
    }

    fn basic(&self, leaf: u32, subleaf: u32, cx: &CpuidContext) -> CpuidResult {
        let zero = CpuidResult::default();
        match leaf {
            0 => CpuidResult {
                eax: MAX_BASIC,
                ebx: text4(b"AuthenticAMD", 0),
                edx: text4(b"AuthenticAMD", 4),
                ecx: text4(b"AuthenticAMD", 8),
            },
            1 => CpuidResult {
                eax: SIGNATURE,
                // CLFLUSH line of 64 bytes, logical processors, initial APIC identifier.
                ebx: 8 << 8 | self.processors.min(255) << 16 | cx.apic_id << 24,
                ecx: self.leaf1_ecx(cx),
                edx: self.leaf1_edx(),
            },
            7 if subleaf == 0 => CpuidResult { eax: 0, ..self.leaf7() },
            0xb => self.topology(subleaf, cx),
            0xd if self.has_xsave() => self.xsave_leaf(subleaf, cx),
            // TSC / core crystal clock ratio 1/1, crystal in Hz.
            0x15 => CpuidResult { eax: 1, ebx: 1, ecx: TSC_HZ as u32, edx: 0 },
            // Base, maximum and bus frequency in MHz.
            0x16 => CpuidResult {
                eax: (TSC_HZ / 1_000_000) as u32,
                ebx: (TSC_HZ / 1_000_000) as u32,
                ecx: 100,
                edx: 0,
            },
            _ => zero,
        }
    }

    fn leaf1_ecx(&self, cx: &CpuidContext) -> u32 {
        // SSE3, SSSE3, CX16, PCID, SSE4.1, SSE4.2, x2APIC, POPCNT, TSC deadline, hypervisor.
        let mut ecx = bits(&[0, 9, 13, 17, 19, 20, 21, 23, 24, 31]);
        if self.level >= Level::V3 {
            // FMA, MOVBE, XSAVE, AVX, F16C.
            ecx |= bits(&[12, 22, 26, 28, 29]);
            if cx.cr4 & cr4::OSXSAVE != 0 {
                ecx |= 1 << 27;
            }
        }
        ecx | (self.pclmulqdq as u32) << 1 | (self.aes as u32) << 25
    }

    fn leaf1_edx(&self) -> u32 {
        // FPU, DE, PSE, TSC, MSR, PAE, CX8, APIC, SEP, MTRR, PGE, CMOV, PAT, PSE36, CLFLUSH, MMX,
        // FXSR, SSE, SSE2; HTT with more than one processor.
        let edx = bits(&[0, 2, 3, 4, 5, 6, 8, 9, 11, 12, 13, 15, 16, 17, 19, 23, 24, 25, 26]);
        edx | ((self.processors > 1) as u32) << 28
    }

    fn leaf7(&self) -> CpuidResult {
        // FSGSBASE, TSC_ADJUST, SMEP, ERMS, INVPCID, FDP_EXCPTN_ONLY, zero FCS/FDS, SMAP,
        // CLFLUSHOPT, CLWB.
        let mut ebx = bits(&[0, 1, 6, 7, 9, 10, 13, 20, 23, 24]);
        if self.level >= Level::V3 {
            ebx |= bits(&[3, 5, 8]); // BMI1, AVX2, BMI2
        }
        CpuidResult {
            eax: 0,
            ebx: ebx | (self.sha as u32) << 29,
            ecx: bits(&[2, 22]),     // UMIP, RDPID
            edx: bits(&[4, 26, 29]), // FSRM, IBRS and IBPB, IA32_ARCH_CAPABILITIES
        }
    }

    /// Leaf BH: one thread per core, all cores in one package (SDM vol. 3A, 8.9.1).
    fn topology(&self, subleaf: u32, cx: &CpuidContext) -> CpuidResult {
        let package_shift = self.processors.next_power_of_two().trailing_zeros();
        match subleaf {
            0 => CpuidResult { eax: 0, ebx: 1, ecx: 1 << 8, edx: cx.apic_id },
            1 => CpuidResult { eax: package_shift, ebx: self.processors, ecx: 2 << 8 | 1, edx: cx.apic_id },
            _ => CpuidResult { eax: 0, ebx: 0, ecx: subleaf & 0xff, edx: cx.apic_id },
        }
    }

    fn xsave_leaf(&self, subleaf: u32, cx: &CpuidContext) -> CpuidResult {
        match subleaf {
            0 => CpuidResult {
                eax: self.xcr0_supported() as u32,
                ebx: xsave_size(cx.xcr0),
                ecx: xsave_size(self.xcr0_supported()),
                edx: 0,
            },
            // XSAVEOPT, XSAVEC, XGETBV with ECX = 1. With two extended parts at most, the
            // compacted layout is as large as the standard one.
            1 => CpuidResult { eax: bits(&[0, 1, 2]), ebx: xsave_size(cx.xcr0), ecx: 0, edx: 0 },
            2 => CpuidResult { eax: 256, ebx: 576, ecx: 0, edx: 0 },
            _ => CpuidResult::default(),
        }
    }

    fn extended(&self, leaf: u32) -> CpuidResult {
        match leaf {
            0x8000_0000 => CpuidResult {
                eax: MAX_EXTENDED,
                ebx: text4(b"AuthenticAMD", 0),
                edx: text4(b"AuthenticAMD", 4),
                ecx: text4(b"AuthenticAMD", 8),
            },
            0x8000_0001 => {
                // LAHF/SAHF, CMP_LEGACY with several cores, CR8 in legacy mode is absent.
                let mut ecx = bits(&[0, 8]) | ((self.processors > 1) as u32) << 1; // LAHF, PREFETCHW
                if self.level >= Level::V3 {
                    ecx |= 1 << 5; // LZCNT
                }
                // The leaf 1 bits AMD repeats, then SYSCALL, NX, 1-GByte pages, RDTSCP, long mode.
                let repeated = self.leaf1_edx() & 0x0183_f3ff & !(1 << 11);
                let edx = repeated | bits(&[11, 20, 26, 27, 29]);
                CpuidResult { eax: SIGNATURE, ebx: 0, ecx, edx }
            }
            0x8000_0002..=0x8000_0004 => {
                let brand: &[u8] = match self.level {
                    Level::V2 => b"Hindsight Virtual CPU v2",
                    Level::V3 => b"Hindsight Virtual CPU v3",
                };
                let at = (leaf - 0x8000_0002) as usize * 16;
                CpuidResult {
                    eax: text4(brand, at),
                    ebx: text4(brand, at + 4),
                    ecx: text4(brand, at + 8),
                    edx: text4(brand, at + 12),
                }
            }
            // L1: TLBs of 64 entries, fully associative; 32 KiB, 8 ways, 64-byte lines, each.
            0x8000_0005 => {
                CpuidResult { eax: 0xff40_ff40, ebx: 0xff40_ff40, ecx: 0x2008_0140, edx: 0x2008_0140 }
            }
            // L2: 512 KiB, 8 ways (code 6); L3: 16 MiB, 16 ways (code 8).
            0x8000_0006 => {
                CpuidResult { eax: 0x4800_6400, ebx: 0x6800_4400, ecx: 0x0200_6140, edx: 0x0080_8140 }
            }
            0x8000_0007 => CpuidResult { edx: 1 << 8, ..Default::default() }, // invariant TSC
            0x8000_0008 => CpuidResult {
                eax: PHYSICAL_BITS | LINEAR_BITS << 8,
                // XSAVE always stores the x87 pointers; IBPB and IBRS exist and IBRS may stay on;
                // not subject to speculative store bypass or branch type confusion.
                ebx: bits(&[2, 12, 14, 16, 19, 26, 29]),
                ecx: self.processors.saturating_sub(1).min(255)
                    | self.processors.next_power_of_two().trailing_zeros() << 12,
                edx: 0,
            },
            // LFENCE serializes, loading a null selector clears the base, no return overflow; not
            // subject to transient scheduler attacks, against which kernels would execute VERW on
            // every way back to user space.
            0x8000_0021 => CpuidResult { eax: bits(&[2, 6, 29]), ecx: bits(&[1, 2]), ..Default::default() },
            _ => CpuidResult::default(),
        }
    }
}

/// Bytes an XSAVE area takes for the components of `xcr0` (SDM vol. 1, 13.4).
pub const fn xsave_size(xcr0_value: u64) -> u32 {
    if xcr0_value & xcr0::AVX != 0 { 832 } else { 576 }
}

/// IA32_ARCH_CAPABILITIES: not affected by Meltdown, L1TF, store bypass, MDS, TAA, MMIO stale
/// data, branch history injection, gather sampling, register file sampling; IBRS may stay on.
pub const ARCH_CAPABILITIES_VALUE: u64 = 1
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27;

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> HostFeatures {
        HostFeatures {
            cmpxchg16b: true,
            sse3: true,
            ssse3: true,
            sse4_1: true,
            sse4_2: true,
            popcnt: true,
            avx: true,
            avx2: true,
            bmi1: true,
            bmi2: true,
            lzcnt: true,
            f16c: true,
            fma: true,
            movbe: true,
            aes: true,
            pclmulqdq: true,
            sha: true,
        }
    }

    #[test]
    fn nothing_random_and_nothing_transactional_is_offered() {
        let model = CpuModel::for_host(Level::V3, &all(), 1);
        let cx = CpuidContext::default();
        assert_eq!(model.cpuid(1, 0, &cx).ecx & (1 << 30 | 1 << 3), 0, "RDRAND, MONITOR");
        let leaf7 = model.cpuid(7, 0, &cx);
        assert_eq!(leaf7.ebx & (1 << 4 | 1 << 11 | 1 << 16 | 1 << 18 | 1 << 14), 0, "TSX, AVX-512, RDSEED");
    }

    #[test]
    fn a_v2_processor_has_neither_xsave_nor_avx() {
        let model = CpuModel::plain(Level::V2);
        let cx = CpuidContext { cr4: cr4::OSXSAVE, ..Default::default() };
        assert_eq!(model.cpuid(1, 0, &cx).ecx & (1 << 26 | 1 << 27 | 1 << 28), 0);
        assert_eq!(model.cpuid(0xd, 0, &cx), CpuidResult::default());
        assert_eq!(model.cr4_supported() & cr4::OSXSAVE, 0);
    }

    #[test]
    fn osxsave_in_leaf_1_mirrors_cr4() {
        let model = CpuModel::plain(Level::V3);
        let off = CpuidContext::default();
        let on = CpuidContext { cr4: cr4::OSXSAVE, ..off };
        assert_eq!(model.cpuid(1, 0, &off).ecx & 1 << 27, 0);
        assert_ne!(model.cpuid(1, 0, &on).ecx & 1 << 27, 0);
    }

    #[test]
    fn the_brand_string_reads_as_one_text() {
        let model = CpuModel::plain(Level::V3);
        let mut text = Vec::new();
        for leaf in 0x8000_0002..=0x8000_0004 {
            let r = model.cpuid(leaf, 0, &CpuidContext::default());
            for word in [r.eax, r.ebx, r.ecx, r.edx] {
                text.extend_from_slice(&word.to_le_bytes());
            }
        }
        assert_eq!(String::from_utf8(text).unwrap().trim_end_matches('\0'), "Hindsight Virtual CPU v3");
    }

    #[test]
    fn the_xsave_size_follows_xcr0() {
        let model = CpuModel::plain(Level::V3);
        let size = |xcr0| model.cpuid(0xd, 0, &CpuidContext { xcr0, ..Default::default() }).ebx;
        assert_eq!((size(1), size(3), size(7)), (576, 576, 832));
    }

    #[test]
    fn a_host_without_avx2_is_told_so_by_name() {
        let host = HostFeatures { avx2: false, sha: false, ..all() };
        let model = CpuModel::plain(Level::V3);
        assert_eq!(model.host_missing(&host), ["AVX2"]);
        assert_eq!(CpuModel { sha: true, ..model }.host_missing(&host), ["AVX2", "SHA"]);
        assert!(CpuModel::plain(Level::V2).host_missing(&host).is_empty());
    }

    #[test]
    fn each_processor_of_four_shows_its_own_identifier_in_the_topology() {
        let model = CpuModel { processors: 4, ..CpuModel::plain(Level::V3) };
        let cx = CpuidContext { apic_id: 3, ..Default::default() };
        let core = model.cpuid(0xb, 1, &cx);
        assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (2, 4, 0x201, 3));
        assert_eq!(model.cpuid(1, 0, &cx).ebx >> 24, 3);
    }
}
