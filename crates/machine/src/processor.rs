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
    /// It executed PAUSE, and the bus [gives way](Bus::yields_at_pause) at it.
    Pause,
    /// It shut down after a triple fault.
    Shutdown,
    /// A debugger set on the processor stops it.
    Debugger,
}

/// A machine's processors, exact to the instruction. One of them runs; the count of retired
/// instructions, which is the machine's position, goes on from one to the next.
pub trait Processor {
    /// How many there are.
    fn cpus(&self) -> u32;
    /// Which one runs.
    fn current(&self) -> u32;
    /// Lets another run from here on, at the same position.
    fn select(&mut self, cpu: u32);
    /// The architectural state of processor `cpu`, which must exist. The count in that of one that
    /// does not run is where it last did.
    fn context(&self, cpu: u32) -> &CpuState;
    /// The same, to change while nothing runs.
    fn context_mut(&mut self, cpu: u32) -> &mut CpuState;
    /// The architectural state of the one that runs.
    fn state(&self) -> &CpuState;
    /// The same, to change while it does not run.
    fn state_mut(&mut self) -> &mut CpuState;
    /// What the processors are, against which restored states are checked.
    fn model(&self) -> &x86::CpuModel;
    /// Where it is.
    fn position(&self) -> Position {
        Position::from_count(self.state().retired)
    }
    /// Runs until the position is `limit` or `bus.horizon()` (re-read after each access), or
    /// until it halts or shuts down. Interrupts are taken inside.
    fn run(&mut self, bus: &mut dyn Bus, limit: Position) -> Exit;
    /// An NMI (for the one that runs), INIT or start-up IPI arrives at this boundary.
    fn signal(&mut self, bus: &mut dyn Bus, cpu: u32, signal: ProcessorSignal);
    /// Whether a debugger's watchpoint was hit and nobody has asked for it yet.
    fn has_hit(&self) -> bool {
        false
    }
    /// The state was replaced from outside (restore): whatever was derived from it is stale.
    fn state_replaced(&mut self) {}
}

impl Processor for cpu::Vcpu {
    fn cpus(&self) -> u32 {
        self.cpus()
    }
    fn current(&self) -> u32 {
        self.current_cpu()
    }
    fn select(&mut self, cpu: u32) {
        self.select(cpu);
    }
    fn context(&self, cpu: u32) -> &CpuState {
        self.context(cpu)
    }
    fn context_mut(&mut self, cpu: u32) -> &mut CpuState {
        self.context_mut(cpu)
    }
    fn state(&self) -> &CpuState {
        self.state()
    }
    fn state_mut(&mut self) -> &mut CpuState {
        self.state_mut()
    }
    fn model(&self) -> &x86::CpuModel {
        self.model()
    }
    fn has_hit(&self) -> bool {
        self.has_watch_hits()
    }
    fn run(&mut self, bus: &mut dyn Bus, limit: Position) -> Exit {
        match self.run(bus, limit) {
            cpu::Exit::Limit => Exit::Limit,
            cpu::Exit::Halted => Exit::Halted,
            cpu::Exit::Pause => Exit::Pause,
            cpu::Exit::Shutdown => Exit::Shutdown,
            cpu::Exit::Debugger => Exit::Debugger,
        }
    }
    fn signal(&mut self, bus: &mut dyn Bus, cpu: u32, signal: ProcessorSignal) {
        match signal {
            ProcessorSignal::Nmi => self.nmi(bus),
            ProcessorSignal::Init => {
                let state = self.context_mut(cpu);
                state.init(state.apic_id == 0);
            }
            ProcessorSignal::StartUp { vector } => self.context_mut(cpu).start_up(vector),
        }
    }
}
