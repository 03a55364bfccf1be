//! A processor for tests: it runs closures instead of instructions.

use crate::processor::{Exit, Processor};
use base::Position;
use cpu::{Activity, Bus, CpuState};
use devices::{Outside, ProcessorSignal};
use std::sync::{Arc, Mutex};

/// As after power-on, but at address zero.
pub(crate) fn blank_state() -> CpuState {
    CpuState { rip: 0, ..CpuState::power_on() }
}

/// What the fake does at an instruction: by RIP, which counts up.
pub(crate) type Program = Arc<dyn Fn(u64, &mut CpuState, &mut dyn Bus) + Send + Sync>;

/// Processors as instances of one program, which tells them apart by [`CpuState::apic_id`]. One
/// "instruction" per position. Interrupts push nothing: their vectors are noted in R8 (a
/// count) and R9 (a digest), so that they are part of the state.
pub(crate) struct Fake {
    pub states: Vec<CpuState>,
    pub current: usize,
    pub program: Program,
    pub signals: Vec<(u32, ProcessorSignal)>,
}

impl Fake {
    pub fn new(program: Program) -> Self {
        Self::several(1, program)
    }

    /// All running, with interrupts on, from address zero.
    pub fn several(cpus: u32, program: Program) -> Self {
        let state = |apic_id| {
            let blank = blank_state();
            CpuState { apic_id, rflags: blank.rflags | x86::flags::IF, ..blank }
        };
        Self { states: (0..cpus).map(state).collect(), current: 0, program, signals: Vec::new() }
    }
}

impl Processor for Fake {
    fn cpus(&self) -> u32 {
        self.states.len() as u32
    }
    fn current(&self) -> u32 {
        self.current as u32
    }
    fn select(&mut self, cpu: u32) {
        let retired = self.states[self.current].retired;
        self.current = cpu as usize;
        self.states[self.current].retired = retired;
    }
    fn context(&self, cpu: u32) -> &CpuState {
        &self.states[cpu as usize]
    }
    fn context_mut(&mut self, cpu: u32) -> &mut CpuState {
        &mut self.states[cpu as usize]
    }
    fn state(&self) -> &CpuState {
        &self.states[self.current]
    }
    fn state_mut(&mut self) -> &mut CpuState {
        &mut self.states[self.current]
    }
    fn model(&self) -> &x86::CpuModel {
        static MODEL: std::sync::LazyLock<x86::CpuModel> =
            std::sync::LazyLock::new(|| x86::CpuModel::plain(x86::Level::V3));
        &MODEL
    }
    fn run(&mut self, bus: &mut dyn Bus, limit: Position) -> Exit {
        let state = &mut self.states[self.current];
        loop {
            let at = Position::from_count(state.retired);
            if state.rflags & x86::flags::IF != 0
                && bus.interrupt_pending()
                && let Some(vector) = bus.acknowledge_interrupt(at)
            {
                state.activity = Activity::Running;
                state.gpr[8] += 1;
                state.gpr[9] = state.gpr[9].wrapping_mul(31).wrapping_add(u64::from(vector) + at.count());
                state.gpr[10] = u64::from(vector);
            }
            if at >= limit.min(bus.horizon()) {
                return Exit::Limit;
            }
            if state.activity == Activity::Halted {
                return Exit::Halted;
            }
            let rip = state.rip;
            state.rip += 1;
            let program = Arc::clone(&self.program);
            program(rip, state, bus);
            state.retired += 1;
            // What stands for PAUSE.
            if std::mem::take(&mut state.gpr[15]) != 0 && bus.yields_at_pause() {
                return Exit::Pause;
            }
            if state.activity == Activity::Shutdown {
                return Exit::Shutdown;
            }
        }
    }
    fn signal(&mut self, _bus: &mut dyn Bus, cpu: u32, signal: ProcessorSignal) {
        self.signals.push((cpu, signal));
        let state = &mut self.states[cpu as usize];
        match signal {
            ProcessorSignal::Init => state.activity = Activity::WaitForSipi,
            ProcessorSignal::StartUp { vector } if state.activity == Activity::WaitForSipi => {
                state.activity = Activity::Running;
                state.rip = u64::from(vector) << 12;
            }
            _ => {}
        }
    }
}

/// Collects what leaves the machine.
#[derive(Clone, Default)]
pub(crate) struct Tray(pub Arc<Mutex<Vec<u8>>>);

impl Outside for Tray {
    fn console(&mut self, _port: u32, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
    fn frame(&mut self, _card: u32, _frame: &[u8]) {}
}
