//! A virtual processor as the machine sees it.

use super::arena::Arena;
use super::asm::Asm;
use super::blocks::{Blocks, Mode};
use super::contexts::{Contexts, PROCESSORS_MAX};
use super::debugging::Debugging;
use super::fast_calls::Family;
use super::hot::{Field, Hot};
use super::kept::Kept;
use super::mirrored::Mirroring;
use super::stack;
use super::thunks::{self, Thunks};
use super::tlb::{Drops, Tlb};
use super::translate::Translator;
use crate::core::{Core, Flush, alignment_checked};
use crate::fpu::{FpuKind, fpu_available};
use crate::{Activity, Bus, CpuState};
use base::Position;
use iced_x86::InstructionInfoFactory;
use x86::control::cr4;
use x86::cpuid::Level;
use x86::{CpuModel, HostFeatures, Segment, flags};

/// How to make a [`Vcpu`].
#[derive(Clone, Debug)]
pub struct VcpuConfig {
    /// What CPUID says.
    pub model: CpuModel,
    /// Bytes of code cache, at least 1 MiB.
    pub code_cache_bytes: usize,
    /// Drop translations and code at pseudo-random times derived from this number: results must
    /// not change. `None`: never without need.
    pub chaos: Option<u64>,
    /// Instructions after which a program's memory is mirrored, if it kept its processor meanwhile (see
    /// `mirror`): results must not change. `None`: never.
    pub mirror_after: Option<u64>,
}

/// Why a vCPU could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// No free address range below 2 GiB.
    #[error(
        "no {bytes} contiguous bytes are free below 2 GiB of this process for the code cache; use a smaller --code-cache"
    )]
    NoLowMemory {
        /// What was wanted.
        bytes: usize,
    },
    /// The code cache is too small to hold anything, or too large for its address range.
    #[error("a code cache of {bytes} bytes is outside of 1 MiB to 1 GiB")]
    CacheSize {
        /// What was asked for.
        bytes: usize,
    },
    /// Too many processors, or none.
    #[error("{0} processors are outside of 1 to {PROCESSORS_MAX}")]
    Processors(u32),
    /// The host lacks instructions the model promises or the engine needs.
    #[error("this host's processor lacks {}; choose another --cpu model or another host", .0.join(", "))]
    HostLacks(Vec<&'static str>),
}

/// Why [`Vcpu::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The limit or the bus's horizon is reached.
    Limit,
    /// The processor waits for an interrupt (HLT, or an AP for its start-up).
    Halted,
    /// Triple fault.
    Shutdown,
    /// PAUSE, while the bus [gives way](crate::Bus::yields_at_pause) at it.
    Pause,
    /// A debugger's breakpoint or watchpoint; see `Vcpu::set_breakpoints` and `Vcpu::set_watches`.
    Debugger,
}

/// Counters for profiles; no effect on the guest.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics {
    pub exits: u64,
    pub tlb_fills: u64,
    pub blocks_translated: u64,
    /// Blocks copied for another address.
    pub blocks_copied: u64,
    /// Blocks slid to another address.
    pub blocks_slid: u64,
    /// Blocks that an earlier run has kept.
    pub blocks_kept: u64,
    pub cache_flushes: u64,
    pub interpreted: u64,
}

/// A virtual processor, or several that take turns (see `contexts`).
pub struct Vcpu {
    pub(super) arena: Arena,
    pub(super) thunks: Thunks,
    pub(super) blocks: Blocks,
    pub(super) tlb: Tlb,
    pub(super) translator: Translator,
    pub(super) info: InstructionInfoFactory,
    pub(super) model: CpuModel,
    pub(super) flush: Flush,
    /// Where single instructions are put to be executed.
    pub(super) bounce_code: u32,
    /// The position at which the budget in hand ends.
    pub(super) horizon: u64,
    /// The host's x87 registers hold the guest's.
    pub(super) x87_in_host: bool,
    /// [`Tlb::drops`] when translated code was last entered.
    pub(super) drops_seen: Drops,
    /// The last TLB miss in translated code and how often it was filled for: see `run`.
    pub(super) last_miss: Miss,
    pub(super) chaos: Option<u64>,
    /// CR0, CR4, XCR0 and whether programs are mirrored, that `family` goes by.
    control: [u64; 4],
    family: Family,
    pub(super) contexts: Contexts,
    pub(super) debugging: Debugging,
    pub(super) mirroring: Mirroring,
    pub(super) interpret_all: bool,
    /// Translations on disk.
    pub(super) kept: Option<Kept>,
    pub statistics: Statistics,
}

/// One instruction's TLB misses.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Miss {
    /// Budget and horizon, which tell executions of the same instruction apart.
    pub budget: u64,
    pub horizon: u64,
    /// The instruction: block and number.
    pub site: (u32, u8),
    pub fills: u8,
}

/// Room for one re-encoded instruction and its register shuffles.
pub(super) const BOUNCE_CODE_BYTES: u32 = 512;

impl Vcpu {
    /// A processor in its power-on state.
    pub fn new(config: VcpuConfig) -> Result<Self, CpuError> {
        if !(1 << 20..=1 << 30).contains(&config.code_cache_bytes) {
            return Err(CpuError::CacheSize { bytes: config.code_cache_bytes });
        }
        if !(1..=PROCESSORS_MAX).contains(&config.model.processors) {
            return Err(CpuError::Processors(config.model.processors));
        }
        let host = crate::host_features();
        let missing = missing(&config.model, &host);
        if !missing.is_empty() {
            return Err(CpuError::HostLacks(missing));
        }
        let mut arena = Arena::new(config.code_cache_bytes)?;
        let mut asm = Asm::new(arena.code_start());
        let thunks = thunks::emit(&mut asm, arena.base(), host.avx);
        let bounce_code = (asm.here() + 63) & !63;
        arena.write_code(arena.code_start(), &asm.code);
        let tlb = Tlb::new(&arena);
        let blocks = Blocks::new(bounce_code + BOUNCE_CODE_BYTES, arena.code_end());
        // SAFETY: freshly mapped zeroes; the state is written before anything reads it.
        unsafe {
            std::ptr::write(&raw mut (*arena.hot()).state, CpuState::power_on());
            (*arena.hot()).stack_at = stack::NOWHERE;
            (*arena.hot()).initial_area.initialize();
        }
        let v3 = config.model.level >= Level::V3;
        Ok(Self {
            arena,
            thunks,
            blocks,
            tlb,
            translator: Translator::new(v3),
            info: InstructionInfoFactory::new(),
            flush: Flush::default(),
            contexts: Contexts::new(config.model.processors),
            model: config.model,
            bounce_code,
            horizon: 0,
            x87_in_host: false,
            drops_seen: Drops::default(),
            last_miss: Miss::default(),
            chaos: config.chaos,
            control: [0; 4],
            family: Family::default(),
            debugging: Debugging::default(),
            mirroring: Mirroring::new(config.mirror_after),
            interpret_all: false,
            kept: None,
            statistics: Statistics::default(),
        })
    }

    /// The architectural state.
    pub fn state(&self) -> &CpuState {
        // SAFETY: the arena lives as long as `self`; translated code runs only inside `run`.
        unsafe { &(*self.arena.hot()).state }
    }

    /// The architectural state, to be changed while the processor does not run. What was cached
    /// about it is dropped.
    pub fn state_mut(&mut self) -> &mut CpuState {
        self.flush.everything = true;
        self.flush.mode = true;
        &mut self.hot().state
    }

    /// Instructions retired.
    pub fn position(&self) -> Position {
        Position::from_count(self.state().retired)
    }

    /// The processor model.
    pub fn model(&self) -> &CpuModel {
        &self.model
    }

    /// Executes every instruction singly from Rust (slow): the cross-check of the translator.
    pub fn set_interpret_all(&mut self, on: bool) {
        self.interpret_all = on;
    }

    /// Drops all translated code and translations; nothing the guest can see changes.
    pub fn drop_caches(&mut self, bus: &mut dyn Bus) {
        self.drop_code(bus);
    }

    #[allow(clippy::mut_from_ref)]
    pub(super) fn hot(&self) -> &mut Hot {
        // SAFETY: the hot data belongs to this vCPU, whose methods that change it all take
        // `&mut self`; no two borrows of it are held across a call that makes another.
        unsafe { &mut *self.arena.hot() }
    }

    /// This processor with the machine around it, for code that executes single instructions.
    pub(super) fn core<'a>(&'a mut self, bus: &'a mut dyn Bus) -> Core<'a> {
        // SAFETY: as for `hot`; the borrow ends with the returned value, which holds `self` mutably.
        let state = unsafe { &mut (*self.arena.hot()).state };
        let mut core = Core::new(state, &self.model, bus, &mut self.flush);
        core.watch = self.debugging.watch.as_deref_mut();
        core
    }

    pub(super) fn mode(&self) -> Mode {
        let state = self.state();
        let mut mode = Mode::of_bits(state.code_bits());
        if state.cpl == 3 {
            mode = mode.with(Mode::USER);
            if alignment_checked(state) {
                mode = mode.with(Mode::PRECISE);
            }
            if state.cr4 & cr4::TSD == 0 {
                mode = mode.with(Mode::USER_TSC);
            }
            if mode.is64() && self.mirroring.on {
                mode = mode.with(Mode::MIRRORED);
            }
        } else {
            if state.cpl == 0 {
                mode = mode.with(Mode::RING0);
            }
            if state.cr4 & cr4::SMAP != 0 {
                mode = mode.with(Mode::SMAP);
                if state.rflags & flags::AC != 0 {
                    mode = mode.with(Mode::AC);
                }
            }
        }
        mode = mode.with(units(state));
        if !mode.is64() {
            mode = mode.with(segmentation(state));
        }
        mode
    }

    /// The modes of 64-bit code under these control registers.
    fn family(&self) -> Family {
        let state = self.state();
        let common = Mode::of_bits(64).with(units(state));
        let flag = |bit, mode| if state.cr4 & bit != 0 { mode } else { Mode::default() };
        let kernel = common.with(Mode::RING0).with(flag(cr4::SMAP, Mode::SMAP));
        let mirrored = if self.mirroring.on { Mode::MIRRORED } else { Mode::default() };
        let program = common.with(Mode::USER).with(mirrored);
        Family {
            kernel,
            lifted: kernel.with(Mode::AC),
            program: if state.cr4 & cr4::TSD == 0 { program.with(Mode::USER_TSC) } else { program },
        }
    }

    /// Makes the tables those of `mode`; to be called before translated code of that mode runs.
    pub(super) fn enter_mode(&mut self, mode: Mode) {
        let state = self.state();
        let control = [state.cr0, state.cr4, state.xcr0, self.mirroring.on as u64];
        if self.control != control {
            self.control = control;
            self.family = self.family();
        }
        let program_jump = Field::set(self.family.program.set()) + Field::JUMP;
        self.hot().program_jump = u64::from(self.arena.base() + program_jump);
        stack::look_at_sysret(self.hot(), self.family.program.has(Mode::MIRRORED));
        self.tlb.enter_mode(&self.arena, &self.family, mode);
    }
}

/// What the host lacks for the model or for the engine itself.
fn missing(model: &CpuModel, host: &HostFeatures) -> Vec<&'static str> {
    let mut missing = model.host_missing(host);
    if !host.bmi2 && !missing.contains(&"BMI2") {
        // The engine's flag-free sequences are made of RORX, SHRX and SARX.
        missing.push("BMI2");
    }
    missing
}

/// The units whose instructions do not fault.
fn units(state: &CpuState) -> Mode {
    let flag = |on, mode| if on { mode } else { Mode::default() };
    let fpu = fpu_available(state, FpuKind::Sse).is_ok();
    let avx = fpu && fpu_available(state, FpuKind::Avx).is_ok();
    let bases = state.cr4 & cr4::FSGSBASE != 0;
    flag(fpu, Mode::FPU).with(flag(avx, Mode::AVX)).with(flag(bases, Mode::FSGSBASE))
}

fn segmentation(state: &CpuState) -> Mode {
    let mut mode = Mode::default();
    for (n, segment) in state.seg.iter().enumerate() {
        // Writable data, or (for CS) anything that executes: bases and limits that do not matter.
        let based = n < 4 && segment.base != 0;
        let writable = n == 1 || segment.kind() & 0xa == 2;
        let expand_down = n != 1 && segment.kind() & 4 != 0;
        if segment.limit == u32::MAX && !based && writable && !expand_down && segment.present() {
            mode = mode.with(Mode::FLAT[n]);
        }
    }
    if state.seg[2].attributes & Segment::DEFAULT_BIG != 0 {
        mode = mode.with(Mode::STACK32);
    }
    mode
}

/// Messages from other processors and the outside.
impl Vcpu {
    /// A non-maskable interrupt at this boundary; lost while one is being handled.
    pub fn nmi(&mut self, bus: &mut dyn Bus) {
        if !self.state().nmi_blocked && !matches!(self.state().activity, Activity::WaitForSipi) {
            self.note_event();
            let mut core = self.core(bus);
            crate::deliver::nmi(&mut core);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_bmi2_is_refused_whatever_the_model() {
        let host = HostFeatures { bmi2: false, ..crate::host_features() };
        for level in [Level::V2, Level::V3] {
            let missing = missing(&CpuModel::plain(level), &host);
            assert_eq!(missing, ["BMI2"]);
            assert!(CpuError::HostLacks(missing).to_string().contains("BMI2"));
        }
    }
}
