//! The architectural state of one processor, exact at every instruction boundary.
//!
//! Translated code addresses this structure absolutely (it lives in the vCPU's arena below 2 GiB),
//! so it is `repr(C)`; emitted code takes field offsets from `offset_of!`. While translated code
//! runs, general registers, status flags and the vector and x87 registers are in the host's own
//! registers; whenever Rust code can see this structure they are here.

use x86::{DescriptorTable, Segment};

/// x87, MMX, SSE and AVX registers.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct Fpu {
    /// YMM0 to YMM15, low byte first.
    pub ymm: [[u8; 32]; 16],
    /// The x87/MMX part of an FXSAVE64 image (SDM vol. 1, 10.5.1.1): bytes 0–23 (control, status,
    /// abridged tag, opcode, pointers) and 32–159 (ST0 to ST7). Bytes of MXCSR and XMM in it are
    /// not used. FIP, FDP and FOP are always zero here: see the `fpu` module for why.
    pub x87: [u8; 512],
    /// MXCSR.
    pub mxcsr: u32,
}

/// Registers that only system instructions touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SystemMsrs {
    /// IA32_STAR, LSTAR, CSTAR, SFMASK.
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// IA32_TSC_AUX.
    pub tsc_aux: u64,
    /// IA32_SYSENTER_CS, ESP, EIP.
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    /// IA32_PAT.
    pub pat: u64,
    /// IA32_TSC_ADJUST; added to the machine's TSC.
    pub tsc_adjust: u64,
    /// IA32_MISC_ENABLE.
    pub misc_enable: u64,
    /// MTRR default type, fixed (11) and variable (8 pairs) ranges: stored, without effect.
    pub mtrr_def_type: u64,
    pub mtrr_fixed: [u64; 11],
    pub mtrr_variable: [u64; 16],
    /// IA32_SPEC_CTRL: stored, without effect (nothing is speculated on the guest's behalf).
    pub spec_ctrl: u64,
    /// AMD HWCR and DE_CFG: stored, without effect.
    pub hwcr: u64,
    pub de_cfg: u64,
}

/// What a processor is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Activity {
    /// Executing instructions.
    #[default]
    Running = 0,
    /// After HLT, until an interrupt.
    Halted = 1,
    /// After a triple fault (SDM vol. 3A, 6.15, "shutdown state").
    Shutdown = 2,
    /// An application processor waiting for a start-up IPI.
    WaitForSipi = 3,
}

/// The state.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct CpuState {
    /// General registers in encoding order (see [`x86::gpr`]).
    pub gpr: [u64; 16],
    /// Address of the next instruction (an offset in CS; in 64-bit mode linear).
    pub rip: u64,
    /// All of RFLAGS, bit 1 set.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub seg: [Segment; 6],
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table register.
    pub gdtr: DescriptorTable,
    /// Interrupt descriptor table register.
    pub idtr: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub xcr0: u64,
    /// DR0–DR3, (4 and 5 unused), DR6, DR7.
    pub dr: [u64; 8],
    /// Current privilege level.
    pub cpl: u8,
    pub activity: Activity,
    /// NMIs are blocked until the next IRET.
    pub nmi_blocked: bool,
    /// Instructions retired; the position in a machine of one processor.
    pub retired: u64,
    /// Maskable interrupts (and single-step and debug traps) are held back while `retired` equals
    /// this: set to the count after STI, or after a load of SS, to inhibit at just that boundary
    /// (SDM vol. 3A, 6.8.3). `u64::MAX` when nothing is held back.
    pub shadow_at: u64,
    /// The count at which an exception or interrupt was last delivered, `u64::MAX` for never. One
    /// that follows at the same count, no instruction having retired in between, counts as one:
    /// otherwise a handler that faults at once would keep the processor at one position for ever.
    pub event_at: u64,
    pub msr: SystemMsrs,
    pub fpu: Fpu,
    /// Initial APIC identifier, as CPUID shows it; 0 in the bootstrap processor.
    pub apic_id: u32,
}

impl CpuState {
    /// Whether the boundary after STI or a load of SS holds interrupts back right now.
    pub fn in_interrupt_shadow(&self) -> bool {
        self.shadow_at == self.retired
    }
    /// Whether the processor is in IA-32e mode (EFER.LMA).
    pub fn long_mode(&self) -> bool {
        self.efer & x86::control::efer::LMA != 0
    }
    /// Whether the processor is in virtual-8086 mode.
    pub fn virtual_8086(&self) -> bool {
        self.rflags & x86::flags::VM != 0
    }
    /// Whether segments are paragraphs of memory rather than descriptors: in real mode and in
    /// virtual-8086 mode.
    pub fn real_segments(&self) -> bool {
        self.cr0 & x86::control::cr0::PE == 0 || self.virtual_8086()
    }
    /// The linear address of the next instruction.
    pub fn linear_rip(&self) -> u64 {
        if self.code64() { self.rip } else { self.seg[1].base.wrapping_add(self.rip) & 0xffff_ffff }
    }
    /// Whether the current code segment is a 64-bit one.
    pub fn code64(&self) -> bool {
        self.long_mode() && self.seg[1].attributes & Segment::LONG != 0
    }
    /// Default operand and address size of the current code segment: 16, 32 or 64.
    pub fn code_bits(&self) -> u32 {
        if self.code64() {
            64
        } else if self.seg[1].attributes & Segment::DEFAULT_BIG != 0 {
            32
        } else {
            16
        }
    }
}
