//! Continuing and stepping, in both directions.
//!
//! gdb says what each thread is to do and then waits; the session runs the machine and reports
//! where it stopped. All processors run together, in the order that history gives them: "step this
//! thread, hold the others" means to run until this processor has executed one instruction.

use crate::stub::{Stub, cpu_of, thread_of};
use crate::{CpuId, Direction, Stop, Stopped, TargetError, WatchKind};
use base::GuestVirt;
use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::multithread::{
    MultiThreadRangeStepping, MultiThreadRangeSteppingOps, MultiThreadResume, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::base::reverse_exec::{
    ReplayLogPosition, ReverseCont, ReverseContOps, ReverseStep, ReverseStepOps,
};
use gdbstub::target::ext::breakpoints as ext;
use std::convert::Infallible;
use std::ops::Range;

/// What gdb asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resume {
    Continue,
    Step(CpuId),
    /// Step until out of this range of addresses.
    Range(CpuId, Range<u64>),
    Back,
    StepBack(CpuId),
}

impl Stub<'_> {
    /// Does what gdb asked for last.
    pub fn run(&mut self, interrupt: &dyn Fn() -> bool) -> Result<Stop, TargetError> {
        let stop = match self.resume.clone() {
            Resume::Continue => self.run_to(None, Direction::Forward, interrupt),
            Resume::Back => self.run_to(None, Direction::Back, interrupt),
            Resume::Step(cpu) => self.step(cpu, Direction::Forward, interrupt),
            Resume::StepBack(cpu) => self.step(cpu, Direction::Back, interrupt),
            Resume::Range(cpu, range) => self.run_range(cpu, &range, interrupt),
        };
        self.lifted.clear();
        stop
    }

    fn run_to(
        &mut self,
        step: Option<CpuId>,
        direction: Direction,
        interrupt: &dyn Fn() -> bool,
    ) -> Result<Stop, TargetError> {
        if let Some(cpu) = step.filter(|cpu| *cpu >= self.target.cpus()) {
            return Err(TargetError::NoCpu(cpu));
        }
        self.until.step = step.map(|cpu| (cpu, 1));
        let stop = self.target.run(&self.until, direction, interrupt);
        self.until.step = None;
        stop
    }

    /// One step.
    ///
    /// To continue from a breakpoint, gdb takes it out, steps, puts it in again and then continues. When
    /// that step is answered with an end of history, gdb 13 stops (`TARGET_WAITKIND_NO_HISTORY` in
    /// `handle_inferior_event` of gdb/infrun.c) without the `finish_step_over` that every other stop
    /// has, and whatever it is asked to run next waits for that step for ever. So this step is
    /// reported as one, and gdb hears of the end from the run that follows.
    fn step(
        &mut self,
        cpu: CpuId,
        direction: Direction,
        interrupt: &dyn Fn() -> bool,
    ) -> Result<Stop, TargetError> {
        let (from, rip) = (self.target.position(), self.target.registers(cpu)?.rip);
        let off_a_breakpoint = self.lifted.contains(&GuestVirt(rip));
        let mut stop = self.run_to(Some(cpu), direction, interrupt)?;
        let nowhere = matches!(stop.why, Stopped::Start | Stopped::End) && self.target.position() == from;
        if nowhere && off_a_breakpoint {
            stop.why = Stopped::Step;
        }
        Ok(stop)
    }

    fn run_range(
        &mut self,
        cpu: CpuId,
        range: &Range<u64>,
        interrupt: &dyn Fn() -> bool,
    ) -> Result<Stop, TargetError> {
        loop {
            let stop = self.run_to(Some(cpu), Direction::Forward, interrupt)?;
            let inside = stop.why == Stopped::Step && range.contains(&self.target.registers(cpu)?.rip);
            if !inside {
                return Ok(stop);
            }
            if interrupt() {
                return Ok(Stop { cpu, why: Stopped::Interrupted });
            }
        }
    }

    /// A stop in gdbstub's words.
    pub fn reason(&self, stop: Stop) -> MultiThreadStopReason<u64> {
        let tid = thread_of(stop.cpu);
        match stop.why {
            Stopped::Breakpoint(at) if self.is_hardware(at) => MultiThreadStopReason::HwBreak(tid),
            Stopped::Breakpoint(_) => MultiThreadStopReason::SwBreak(tid),
            Stopped::Watchpoint { kind, address } => {
                let kind = match kind {
                    WatchKind::Write => ext::WatchKind::Write,
                    WatchKind::Read => ext::WatchKind::Read,
                    WatchKind::Access => ext::WatchKind::ReadWrite,
                };
                MultiThreadStopReason::Watch { tid, kind, addr: address.0 }
            }
            Stopped::Step => MultiThreadStopReason::SignalWithThread { tid, signal: Signal::SIGTRAP },
            Stopped::Start => {
                MultiThreadStopReason::ReplayLog { tid: Some(tid), pos: ReplayLogPosition::Begin }
            }
            Stopped::End => MultiThreadStopReason::ReplayLog { tid: Some(tid), pos: ReplayLogPosition::End },
            Stopped::Interrupted => MultiThreadStopReason::SignalWithThread { tid, signal: Signal::SIGINT },
            Stopped::Exited(status) => MultiThreadStopReason::Exited(status),
        }
    }

    /// What is reported when a run failed: the machine stands somewhere, nothing was hit.
    pub fn failure(&self) -> MultiThreadStopReason<u64> {
        MultiThreadStopReason::SignalWithThread { tid: thread_of(0), signal: Signal::SIGABRT }
    }
}

impl MultiThreadResume for Stub<'_> {
    fn resume(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
    fn clear_resume_actions(&mut self) -> Result<(), Infallible> {
        self.resume = Resume::Continue;
        Ok(())
    }
    fn set_resume_action_continue(&mut self, _: Tid, _: Option<Signal>) -> Result<(), Infallible> {
        Ok(())
    }
    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }
    fn support_range_step(&mut self) -> Option<MultiThreadRangeSteppingOps<'_, Self>> {
        Some(self)
    }
    fn support_reverse_step(&mut self) -> Option<ReverseStepOps<'_, Tid, Self>> {
        Some(self)
    }
    fn support_reverse_cont(&mut self) -> Option<ReverseContOps<'_, Tid, Self>> {
        Some(self)
    }
    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Stub<'_> {
    fn set_resume_action_step(&mut self, thread: Tid, _: Option<Signal>) -> Result<(), Infallible> {
        self.resume = Resume::Step(cpu_of(thread));
        Ok(())
    }
}

impl MultiThreadRangeStepping for Stub<'_> {
    fn set_resume_action_range_step(&mut self, thread: Tid, start: u64, end: u64) -> Result<(), Infallible> {
        self.resume = Resume::Range(cpu_of(thread), start..end);
        Ok(())
    }
}

/// In a replay the others cannot be held: the order of execution is history.
impl MultiThreadSchedulerLocking for Stub<'_> {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

impl ReverseCont<Tid> for Stub<'_> {
    fn reverse_cont(&mut self) -> Result<(), Infallible> {
        self.resume = Resume::Back;
        Ok(())
    }
}

impl ReverseStep<Tid> for Stub<'_> {
    fn reverse_step(&mut self, thread: Tid) -> Result<(), Infallible> {
        self.resume = Resume::StepBack(cpu_of(thread));
        Ok(())
    }
}
