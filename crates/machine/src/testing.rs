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

/// One "instruction" per position. Interrupts push nothing: their vectors are noted in R8 (a
/// count) and R9 (a digest), so that they are part of the state.
pub(crate) struct Fake {
    pub state: Box<CpuState>,
    pub program: Program,
    pub signals: Vec<ProcessorSignal>,
}

impl Fake {
    pub fn new(program: Program) -> Self {
        let mut state = Box::new(blank_state());
        state.rflags |= x86::flags::IF;
        Self { state, program, signals: Vec::new() }
    }
}

impl Processor for Fake {
    fn state(&self) -> &CpuState {
        &self.state
    }
    fn state_mut(&mut self) -> &mut CpuState {
        &mut self.state
    }
    fn model(&self) -> &x86::CpuModel {
        static MODEL: std::sync::LazyLock<x86::CpuModel> =
            std::sync::LazyLock::new(|| x86::CpuModel::plain(x86::Level::V3));
        &MODEL
    }
    fn run(&mut self, bus: &mut dyn Bus, limit: Position) -> Exit {
        loop {
            let at = Position::from_count(self.state.retired);
            if self.state.rflags & x86::flags::IF != 0
                && bus.interrupt_pending()
                && let Some(vector) = bus.acknowledge_interrupt(at)
            {
                self.state.activity = Activity::Running;
                self.state.gpr[8] += 1;
                self.state.gpr[9] =
                    self.state.gpr[9].wrapping_mul(31).wrapping_add(u64::from(vector) + at.count());
                self.state.gpr[10] = u64::from(vector);
            }
            if at >= limit.min(bus.horizon()) {
                return Exit::Limit;
            }
            if self.state.activity == Activity::Halted {
                return Exit::Halted;
            }
            let rip = self.state.rip;
            self.state.rip += 1;
            let program = Arc::clone(&self.program);
            program(rip, &mut self.state, bus);
            self.state.retired += 1;
            if self.state.activity == Activity::Shutdown {
                return Exit::Shutdown;
            }
        }
    }
    fn signal(&mut self, _bus: &mut dyn Bus, signal: ProcessorSignal) {
        self.signals.push(signal);
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
