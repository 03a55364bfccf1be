//! What the machine needs of a processor.

use base::Position;
use cpu::{Bus, Core, CpuState, Flush, Vcpu, deliver};

pub use cpu::Exit;
use devices::ProcessorSignal;

/// One processor, exact to the instruction.
pub trait Processor {
    /// The architectural state.
    fn state(&self) -> &CpuState;
    /// The architectural state, to change while it does not run.
    fn state_mut(&mut self) -> &mut CpuState;
    /// Where it is.
    fn position(&self) -> Position {
        Position::from_count(self.state().retired)
    }
    /// Runs until the position is `limit` or `bus.horizon()` (re-read after each access), or
    /// until it halts or shuts down. Interrupts are taken inside.
    fn run(&mut self, bus: &mut dyn Bus, limit: Position) -> Exit;
    /// An NMI, INIT or start-up IPI arrives at this boundary. NMIs come only while not blocked.
    fn signal(&mut self, bus: &mut dyn Bus, signal: ProcessorSignal);
    /// The state was replaced from outside (restore): whatever was derived from it is stale.
    fn state_replaced(&mut self) {}
}

impl Processor for Vcpu {
    fn state(&self) -> &CpuState {
        Vcpu::state(self)
    }
    fn state_mut(&mut self) -> &mut CpuState {
        Vcpu::state_mut(self)
    }
    fn run(&mut self, bus: &mut dyn Bus, limit: Position) -> Exit {
        Vcpu::run(self, bus, limit)
    }
    fn signal(&mut self, bus: &mut dyn Bus, signal: ProcessorSignal) {
        match signal {
            ProcessorSignal::Nmi => {
                let model = self.model().clone();
                // Changing the state from outside drops everything derived from it, so what the
                // delivery itself would drop need not be passed on.
                let mut flush = Flush::default();
                deliver::nmi(&mut Core::new(Vcpu::state_mut(self), &model, bus, &mut flush));
            }
            ProcessorSignal::Init => {
                let bootstrap = self.state().apic_id == 0;
                Vcpu::state_mut(self).init(bootstrap);
            }
            ProcessorSignal::StartUp { vector } => Vcpu::state_mut(self).start_up(vector),
        }
    }
}
