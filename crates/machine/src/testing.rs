//! A processor for tests: it runs closures instead of instructions.

use crate::processor::{Exit, Processor};
use base::Position;
use cpu::{Activity, Bus, CpuState, Fpu, SystemMsrs};
use devices::{Outside, ProcessorSignal};
use std::sync::{Arc, Mutex};
use x86::{DescriptorTable, Segment};

/// All registers zero.
pub(crate) fn blank_state() -> CpuState {
    CpuState {
        gpr: [0; 16],
        rip: 0,
        rflags: x86::flags::FIXED,
        seg: [Segment::default(); 6],
        ldtr: Segment::default(),
        tr: Segment::default(),
        gdtr: DescriptorTable::default(),
        idtr: DescriptorTable::default(),
        cr0: 0,
        cr2: 0,
        cr3: 0,
        cr4: 0,
        efer: 0,
        xcr0: 1,
        dr: [0; 8],
        cpl: 0,
        activity: Activity::Running,
        nmi_blocked: false,
        retired: 0,
        shadow_at: u64::MAX,
        msr: SystemMsrs::default(),
        fpu: Fpu { ymm: [[0; 32]; 16], x87: [0; 512], mxcsr: 0x1f80 },
        apic_id: 0,
    }
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
