//! A target as gdbstub wants it: registers, memory, breakpoints.
//!
//! Nothing here is fatal: whatever a target refuses becomes an error code for that one request,
//! and what people should know about it is kept as a note for the session to show.

use crate::arch::{Number, X86_64};
use crate::monitor;
use crate::registers::Registers;
use crate::resume::Resume;
use crate::{Conditions, CpuId, Target, TargetError, WatchKind, Watchpoint, target_description};
use base::{GuestPhys, GuestVirt};
use gdbstub::common::Tid;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{MultiThreadBase, MultiThreadResumeOps};
use gdbstub::target::ext::base::single_register_access::{SingleRegisterAccess, SingleRegisterAccessOps};
use gdbstub::target::ext::breakpoints as ext;
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::target_description_xml_override as xml;
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{self as gdb, TargetResult};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt::Write;

/// Breakpoints and watchpoints that one client may have.
const POINTS_MAX: usize = 1 << 20;

/// A target, and what gdb has asked of it.
pub(crate) struct Stub<'t> {
    pub target: &'t mut dyn Target,
    /// Breakpoints by kind; [`Conditions::breakpoints`] is the union.
    software: BTreeSet<GuestVirt>,
    hardware: BTreeSet<GuestVirt>,
    /// Breakpoints that gdb took out since the last run.
    pub lifted: BTreeSet<GuestVirt>,
    /// What ends the next run, but for steps.
    pub until: Conditions,
    /// What gdb asked for last.
    pub resume: Resume,
    /// Addresses are physical ones.
    pub physical: bool,
    /// Why the request at hand was refused, for the answer.
    pub refusal: Option<String>,
}

impl<'t> Stub<'t> {
    pub fn new(target: &'t mut dyn Target) -> Self {
        Self {
            target,
            software: BTreeSet::new(),
            hardware: BTreeSet::new(),
            lifted: BTreeSet::new(),
            until: Conditions::default(),
            resume: Resume::Continue,
            physical: false,
            refusal: None,
        }
    }

    /// Forgets all breakpoints: the client is gone.
    pub fn reset(&mut self) {
        self.software.clear();
        self.hardware.clear();
        self.lifted.clear();
        self.until = Conditions::default();
        self.physical = false;
    }

    /// Whether a breakpoint was set as a hardware one only.
    pub fn is_hardware(&self, at: GuestVirt) -> bool {
        self.hardware.contains(&at) && !self.software.contains(&at)
    }

    fn refuse(&mut self, error: TargetError) -> gdb::TargetError<Infallible> {
        let errno = match error {
            TargetError::Unmapped(_) => 14, // EFAULT
            TargetError::ReadOnly(_) => 30, // EROFS
            TargetError::NoCpu(_) => 3,     // ESRCH
            TargetError::Failed(_) => 5,    // EIO
        };
        if !matches!(error, TargetError::Unmapped(_)) {
            self.refusal = Some(error.to_string());
        }
        gdb::TargetError::Errno(errno)
    }

    fn point(&mut self, at: GuestVirt, hardware: bool, add: bool) -> bool {
        if add && self.until.breakpoints.len() + self.until.watchpoints.len() >= POINTS_MAX {
            return false;
        }
        let set = if hardware { &mut self.hardware } else { &mut self.software };
        if add {
            set.insert(at);
        } else {
            set.remove(&at);
        }
        if self.software.contains(&at) || self.hardware.contains(&at) {
            self.until.breakpoints.insert(at);
            self.lifted.remove(&at);
        } else if self.until.breakpoints.remove(&at) {
            self.lifted.insert(at);
        }
        true
    }
}

/// gdb's thread numbers start at 1.
pub(crate) fn thread_of(cpu: CpuId) -> Tid {
    Tid::MIN.saturating_add(cpu)
}

pub(crate) fn cpu_of(thread: Tid) -> CpuId {
    thread.get() - 1
}

impl gdb::Target for Stub<'_> {
    type Arch = X86_64;
    type Error = Infallible;

    fn base_ops(&mut self) -> BaseOps<'_, X86_64, Infallible> {
        BaseOps::MultiThread(self)
    }
    fn support_breakpoints(&mut self) -> Option<ext::BreakpointsOps<'_, Self>> {
        Some(self)
    }
    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
    fn support_target_description_xml_override(
        &mut self,
    ) -> Option<xml::TargetDescriptionXmlOverrideOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Stub<'_> {
    fn read_registers(&mut self, registers: &mut Registers, thread: Tid) -> TargetResult<(), Self> {
        *registers = self.target.registers(cpu_of(thread)).map_err(|error| self.refuse(error))?;
        Ok(())
    }

    fn write_registers(&mut self, registers: &Registers, thread: Tid) -> TargetResult<(), Self> {
        self.target.write_registers(cpu_of(thread), registers).map_err(|error| self.refuse(error))
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, at: u64, into: &mut [u8], thread: Tid) -> TargetResult<usize, Self> {
        let read = if self.physical {
            self.target.read_physical(GuestPhys(at), into)
        } else {
            self.target.read_virtual(cpu_of(thread), GuestVirt(at), into)
        };
        read.map(|count| count.min(into.len())).map_err(|error| self.refuse(error))
    }

    fn write_addrs(&mut self, at: u64, bytes: &[u8], thread: Tid) -> TargetResult<(), Self> {
        if bytes.is_empty() {
            return Ok(()); // gdb asks whether it may use `X`
        }
        let written = if self.physical {
            self.target.write_physical(GuestPhys(at), bytes)
        } else {
            self.target.write_virtual(cpu_of(thread), GuestVirt(at), bytes)
        };
        written.map_err(|error| self.refuse(error))
    }

    fn list_active_threads(&mut self, each: &mut dyn FnMut(Tid)) -> Result<(), Infallible> {
        (0..self.target.cpus()).for_each(|cpu| each(thread_of(cpu)));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for Stub<'_> {
    fn thread_extra_info(&self, thread: Tid, buffer: &mut [u8]) -> Result<usize, Infallible> {
        let cpu = cpu_of(thread);
        let mut text = format!("CPU#{cpu}");
        if cpu < self.target.cpus() {
            let _ = write!(text, " {}", self.target.activity(cpu));
        }
        let text = text.trim_end().as_bytes();
        let count = text.len().min(buffer.len());
        buffer[..count].copy_from_slice(&text[..count]);
        Ok(count)
    }
}

impl SingleRegisterAccess<Tid> for Stub<'_> {
    fn read_register(&mut self, thread: Tid, number: Number, buffer: &mut [u8]) -> TargetResult<usize, Self> {
        let registers = self.target.registers(cpu_of(thread)).map_err(|error| self.refuse(error))?;
        let value = number.slot().map(|slot| registers.get(slot)).unwrap_or_default();
        let Some(place) = buffer.get_mut(..value.len()) else { return Err(gdb::TargetError::NonFatal) };
        place.copy_from_slice(&value);
        Ok(value.len())
    }

    fn write_register(&mut self, thread: Tid, number: Number, value: &[u8]) -> TargetResult<(), Self> {
        let cpu = cpu_of(thread);
        let mut registers = self.target.registers(cpu).map_err(|error| self.refuse(error))?;
        if !number.slot().is_some_and(|slot| registers.set(slot, value)) {
            return Err(gdb::TargetError::Errno(22)); // EINVAL
        }
        self.target.write_registers(cpu, &registers).map_err(|error| self.refuse(error))
    }
}

impl ext::Breakpoints for Stub<'_> {
    fn support_sw_breakpoint(&mut self) -> Option<ext::SwBreakpointOps<'_, Self>> {
        Some(self)
    }
    fn support_hw_breakpoint(&mut self) -> Option<ext::HwBreakpointOps<'_, Self>> {
        Some(self)
    }
    fn support_hw_watchpoint(&mut self) -> Option<ext::HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl ext::SwBreakpoint for Stub<'_> {
    fn add_sw_breakpoint(&mut self, at: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.point(GuestVirt(at), false, true))
    }
    fn remove_sw_breakpoint(&mut self, at: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.point(GuestVirt(at), false, false))
    }
}

impl ext::HwBreakpoint for Stub<'_> {
    fn add_hw_breakpoint(&mut self, at: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.point(GuestVirt(at), true, true))
    }
    fn remove_hw_breakpoint(&mut self, at: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.point(GuestVirt(at), true, false))
    }
}

impl ext::HwWatchpoint for Stub<'_> {
    fn add_hw_watchpoint(&mut self, at: u64, bytes: u64, kind: ext::WatchKind) -> TargetResult<bool, Self> {
        let full = self.until.breakpoints.len() + self.until.watchpoints.len() >= POINTS_MAX;
        if full || bytes == 0 || at.checked_add(bytes - 1).is_none() {
            return Ok(false);
        }
        self.until.watchpoints.insert(watchpoint(at, bytes, kind));
        Ok(true)
    }
    fn remove_hw_watchpoint(
        &mut self,
        at: u64,
        bytes: u64,
        kind: ext::WatchKind,
    ) -> TargetResult<bool, Self> {
        self.until.watchpoints.remove(&watchpoint(at, bytes, kind));
        Ok(true)
    }
}

fn watchpoint(at: u64, bytes: u64, kind: ext::WatchKind) -> Watchpoint {
    let kind = match kind {
        ext::WatchKind::Write => WatchKind::Write,
        ext::WatchKind::Read => WatchKind::Read,
        ext::WatchKind::ReadWrite => WatchKind::Access,
    };
    Watchpoint { start: GuestVirt(at), bytes, kind }
}

impl MonitorCmd for Stub<'_> {
    fn handle_monitor_cmd(&mut self, command: &[u8], mut out: ConsoleOutput<'_>) -> Result<(), Infallible> {
        let text = monitor::execute(self, &String::from_utf8_lossy(command));
        let _ = out.write_str(&text);
        Ok(())
    }
}

impl xml::TargetDescriptionXmlOverride for Stub<'_> {
    fn target_description_xml(
        &self,
        annex: &[u8],
        offset: u64,
        length: usize,
        buffer: &mut [u8],
    ) -> TargetResult<usize, Self> {
        if annex != b"target.xml" {
            return Err(gdb::TargetError::Errno(2)); // ENOENT
        }
        let xml = target_description().as_bytes();
        let rest = usize::try_from(offset).ok().and_then(|offset| xml.get(offset..)).unwrap_or_default();
        let count = rest.len().min(length).min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}
