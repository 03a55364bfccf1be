//! Several processors on one engine: one runs, the others' registers are parked.
//!
//! The code cache, the translator and the tables are shared. Translated code addresses the running
//! processor's registers absolutely, so changing processors is an exchange of registers. The count
//! of retired instructions is the machine's, and goes on from one processor to the next.
//!
//! A parked processor keeps what an interrupt shadow means: one that stopped behind STI still takes
//! no interrupt before its next instruction, however far the count has gone meanwhile.

use super::asm::{Reg, Width};
use super::emit::Emitter;
use super::hot::Field;
use super::vcpu::Vcpu;
use crate::CpuState;
use x86::control::{cr0, cr4, efer};

/// The most processors an engine takes.
pub const PROCESSORS_MAX: u32 = 256;

/// Whose registers are where.
pub(super) struct Contexts {
    current: usize,
    /// By processor; that of the running one is stale.
    parked: Vec<CpuState>,
    /// PAUSE was executed and another processor could run: the loop returns.
    pub paused: bool,
}

impl Contexts {
    /// All at power-on, the first one running.
    pub fn new(processors: u32) -> Self {
        let parked = (0..processors.max(1)).map(power_on).collect();
        Self { current: 0, parked, paused: false }
    }
}

/// Processor 0 is the bootstrap processor; the others wait for their start-up message.
fn power_on(cpu: u32) -> CpuState {
    if cpu == 0 { CpuState::power_on() } else { CpuState::power_on_waiting(cpu) }
}

impl Vcpu {
    /// How many processors there are.
    pub fn cpus(&self) -> u32 {
        self.contexts.parked.len() as u32
    }

    /// Which one runs.
    pub fn current_cpu(&self) -> u32 {
        self.contexts.current as u32
    }

    /// The architectural state of processor `cpu`, which must exist. That of one that does not run
    /// has the count of retired instructions at which it last did.
    pub fn context(&self, cpu: u32) -> &CpuState {
        if cpu == self.current_cpu() { self.state() } else { &self.contexts.parked[cpu as usize] }
    }

    /// The same, to be changed while nothing runs.
    pub fn context_mut(&mut self, cpu: u32) -> &mut CpuState {
        if cpu == self.current_cpu() { self.state_mut() } else { &mut self.contexts.parked[cpu as usize] }
    }

    /// Lets processor `cpu`, which must exist, run from here on, at the same position.
    pub fn select(&mut self, cpu: u32) {
        let (from, to) = (self.contexts.current, cpu as usize);
        if from == to {
            return;
        }
        debug_assert!(!self.x87_in_host && !self.contexts.paused);
        // SAFETY: as for `Vcpu::hot`, whose borrow this is, apart from `contexts`.
        let state = unsafe { &mut (*self.arena.hot()).state };
        let parked = &mut self.contexts.parked;
        let position = state.retired;
        let same_paging = same_paging(state, &parked[to]);
        parked[from].clone_from(state);
        state.clone_from(&parked[to]);
        if state.in_interrupt_shadow() {
            state.shadow_at = position;
        } else {
            state.shadow_at = u64::MAX;
        }
        state.retired = position;
        self.contexts.current = to;
        if !same_paging {
            self.flush.mode = true;
        }
        // What was reported at this position was another processor's.
        self.pass_breakpoint(false);
    }
}

/// Whether page tables are read the same way by both. Which tables they use does not matter: what is
/// cached of them is kept by address space.
fn same_paging(a: &CpuState, b: &CpuState) -> bool {
    const CR0: u64 = cr0::PE | cr0::PG | cr0::WP;
    const EFER: u64 = efer::LMA | efer::LME | efer::NXE;
    const CR4: u64 = cr4::PAE | cr4::PGE | cr4::PCIDE | cr4::SMEP | cr4::SMAP;
    // With PAE, PSE means nothing, and an operating system may have set it for some only.
    let cr4 = |state: &CpuState| {
        let pse = if state.cr4 & cr4::PAE == 0 { cr4::PSE } else { 0 };
        state.cr4 & (CR4 | pse)
    };
    a.cr0 & CR0 == b.cr0 & CR0 && cr4(a) == cr4(b) && a.efer & EFER == b.efer & EFER
}

/// PAUSE: leaves translated code if another processor could run.
pub(super) fn emit_pause(e: &mut Emitter) {
    let yields = e.field(Field::YIELDS);
    e.asm.load(Width::W32, Reg::RCX, yields);
    let stays = e.asm.jrcxz();
    e.interpret();
    e.asm.bind8(stays);
}
