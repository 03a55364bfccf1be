//! What the machine needs of a processor.

use base::Position;
use cpu::{Bus, CpuState};
use devices::ProcessorSignal;

/// Why a processor came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Its position reached the limit or the bus's horizon.
    Limit,
    /// It is halted and no interrupt it would take is pending.
    Halted,
    /// It shut down after a triple fault.
    Shutdown,
    /// A debugger set on the processor stops it.
    Debugger,
}

/// One processor, exact to the instruction.
pub trait Processor {
    /// The architectural state.
    fn state(&self) -> &CpuState;
    /// The architectural state, to change while it does not run.
    fn state_mut(&mut self) -> &mut CpuState;
    /// What the processor is, against which restored states are checked.
    fn model(&self) -> &x86::CpuModel;
    /// Where it is.
    fn position(&self) -> Position {
        Position::from_count(self.state().retired)
    }
    /// Runs until the position is `limit` or `bus.horizon()` (re-read after each access), or
    /// until it halts or shuts down. Interrupts are taken inside.
    fn run(&mut self, bus: &mut dyn Bus, limit: Position) -> Exit;
    /// An NMI, INIT or start-up IPI arrives at this boundary.
    fn signal(&mut self, bus: &mut dyn Bus, signal: ProcessorSignal);
    /// The state was replaced from outside (restore): whatever was derived from it is stale.
    fn state_replaced(&mut self) {}
}

impl Processor for cpu::Vcpu {
    fn state(&self) -> &CpuState {
        self.state()
    }
    fn state_mut(&mut self) -> &mut CpuState {
        self.state_mut()
    }
    fn model(&self) -> &x86::CpuModel {
        self.model()
    }
    fn run(&mut self, bus: &mut dyn Bus, limit: Position) -> Exit {
        match self.run(bus, limit) {
            cpu::Exit::Limit => Exit::Limit,
            cpu::Exit::Halted => Exit::Halted,
            cpu::Exit::Shutdown => Exit::Shutdown,
            cpu::Exit::Debugger => Exit::Debugger,
        }
    }
    fn signal(&mut self, bus: &mut dyn Bus, signal: ProcessorSignal) {
        match signal {
            ProcessorSignal::Nmi => self.nmi(bus),
            ProcessorSignal::Init => {
                let bootstrap = self.state().apic_id == 0;
                self.state_mut().init(bootstrap);
            }
            ProcessorSignal::StartUp { vector } => self.state_mut().start_up(vector),
        }
    }
}
