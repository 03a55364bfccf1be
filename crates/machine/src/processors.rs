//! The machine's processors: which of them can run, whose turn it is, and what reaches them from
//! outside.

use crate::machine::Machine;
use crate::processor::{Exit, Processor};
use crate::scheduler::Why;
use cpu::{Activity, CpuState};
use devices::ProcessorSignal;
use x86::flags;

/// A debugger's interest in the turns of one processor; invisible to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Stop where its turn begins.
    BeginsOf(u32),
    /// Stop where its turn ends, behind its last instruction.
    EndsOf(u32),
}

/// What a processor that does not run is doing, as far as the board has to know.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// It could run.
    Running,
    /// It waits for an interrupt and would take one.
    Waiting,
    /// Nothing the board knows of wakes it.
    Stopped,
}

impl<P: Processor> Machine<P> {
    /// Gives NMI, INIT and start-up messages to the processors they are for. An NMI waits until its
    /// processor runs and has returned from the one before; more than one do not add up.
    pub(crate) fn pass_signals(&mut self) {
        for (cpu, signal) in self.board.take_signals() {
            let waits = self.processor.context(cpu).activity == Activity::WaitForSipi;
            match signal {
                ProcessorSignal::Nmi if waits => {}
                ProcessorSignal::Nmi => self.nmi_held |= 1 << cpu,
                ProcessorSignal::Init => {
                    self.nmi_held &= !(1 << cpu);
                    self.processor.signal(&mut self.board, cpu, signal);
                }
                ProcessorSignal::StartUp { .. } => self.processor.signal(&mut self.board, cpu, signal),
            }
        }
    }

    /// Makes ready for the next instruction. False when no processor can execute one.
    pub(crate) fn schedule(&mut self) -> bool {
        let runnable = self.runnable();
        if runnable == 0 {
            return false;
        }
        self.end_turn(runnable);
        self.deliver_nmi();
        self.tell_board();
        true
    }

    /// At the position that a processor has reached, and before anything else there: whose turn it
    /// is next, for `exit` or because a slice is over. So the state at a position says who executes
    /// the instruction there, unless something that is due there changes it.
    pub(crate) fn after_run(&mut self, exit: Exit) {
        if self.processor.cpus() == 1 {
            return;
        }
        self.ran = self.processor.current();
        let halted = self.processor.state().activity == Activity::Halted;
        if exit != Exit::Pause && !halted && !self.scheduler.is_over(self.position()) {
            return;
        }
        let runnable = self.runnable();
        if exit == Exit::Pause {
            self.give_turn(runnable, Why::Pause);
        } else if runnable != 0 {
            self.end_turn(runnable);
        }
    }

    fn end_turn(&mut self, runnable: u32) {
        let (here, current) = (self.position(), self.processor.current());
        if runnable >> current & 1 == 0 {
            self.give_turn(runnable, Why::Halt);
        } else if self.processor.cpus() > 1 && self.scheduler.is_over(here) {
            self.give_turn(runnable, Why::Slice);
        }
    }

    /// Stops runs with [`crate::Stop::Debugger`] at turns of a processor.
    pub fn watch_turns(&mut self, watch: Option<Turn>) {
        self.turn_watch = watch;
        self.turn_met = false;
    }

    /// Whether a run stopped for the turn watched, once.
    pub fn take_turn_met(&mut self) -> bool {
        std::mem::take(&mut self.turn_met)
    }

    /// The processor that executed the last instruction, if the machine has run since it was made
    /// or restored.
    pub fn ran(&self) -> u32 {
        self.ran
    }

    fn give_turn(&mut self, runnable: u32, why: Why) {
        let (here, current) = (self.position(), self.processor.current());
        let next = self.scheduler.choose(here, current, runnable, why);
        self.turn_met |= next != current
            && match self.turn_watch {
                Some(Turn::BeginsOf(cpu)) => cpu == next,
                Some(Turn::EndsOf(cpu)) => cpu == current,
                None => false,
            };
        self.processor.select(next);
        self.board.set_current_cpu(next);
    }

    /// If a processor was woken, its turn may come sooner.
    pub(crate) fn note_woken(&mut self) {
        if self.board.take_woken() {
            self.scheduler.woken(self.processor.position());
        }
    }

    /// The processors that could execute an instruction now: bit n stands for number n.
    fn runnable(&self) -> u32 {
        (0..self.processor.cpus()).filter(|cpu| self.can_run(*cpu)).fold(0, |set, cpu| set | 1 << cpu)
    }

    fn can_run(&self, cpu: u32) -> bool {
        let state = self.processor.context(cpu);
        match state.activity {
            Activity::Running | Activity::Shutdown => true,
            Activity::WaitForSipi => false,
            Activity::Halted => {
                self.has_nmi(cpu, state) || takes_interrupts(state) && self.board.interrupt_pending_at(cpu)
            }
        }
    }

    fn has_nmi(&self, cpu: u32, state: &CpuState) -> bool {
        self.nmi_held >> cpu & 1 != 0 && !state.nmi_blocked
    }

    fn deliver_nmi(&mut self) {
        let cpu = self.processor.current();
        if self.has_nmi(cpu, self.processor.state()) {
            self.nmi_held &= !(1 << cpu);
            self.processor.signal(&mut self.board, cpu, ProcessorSignal::Nmi);
        }
    }

    /// Whether the running processor holds an NMI back, which an IRET lets in.
    pub(crate) fn awaits_iret(&self) -> bool {
        self.nmi_held >> self.processor.current() & 1 != 0
    }

    fn tell_board(&mut self) {
        let (mut running, mut waiting) = (0, 0);
        for cpu in 0..self.processor.cpus() {
            match self.doing(cpu) {
                _ if cpu == self.processor.current() => {}
                Doing::Running => running |= 1 << cpu,
                Doing::Waiting => waiting |= 1 << cpu,
                Doing::Stopped => {}
            }
        }
        let pause_heard = self.scheduler.hears_pause(self.position());
        self.board.set_others(running, waiting, pause_heard);
    }

    fn doing(&self, cpu: u32) -> Doing {
        let state = self.processor.context(cpu);
        match state.activity {
            Activity::Running | Activity::Shutdown => Doing::Running,
            Activity::Halted if self.has_nmi(cpu, state) => Doing::Running,
            Activity::Halted if takes_interrupts(state) => Doing::Waiting,
            Activity::Halted | Activity::WaitForSipi => Doing::Stopped,
        }
    }

    /// Whether any processor that waits would take an interrupt.
    pub(crate) fn anyone_takes_interrupts(&self) -> bool {
        (0..self.processor.cpus()).any(|cpu| self.doing(cpu) != Doing::Stopped)
    }
}

fn takes_interrupts(state: &CpuState) -> bool {
    state.rflags & flags::IF != 0
}

#[cfg(test)]
#[path = "processors_tests.rs"]
mod tests;
