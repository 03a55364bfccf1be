//! Breakpoints and watchpoints set from outside of the guest.
//!
//! Blocks never contain a breakpoint's address but as their first instruction, and the loop never
//! follows a branch to one: so at every breakpoint the loop looks, and blocks that start at one are
//! entered from the loop only. Code translated without regard to a new breakpoint is dropped.
//!
//! Nothing here is visible to the guest: positions and states are those of a run without.

use super::vcpu::Vcpu;
use crate::Bus;
use crate::watch::{Watch, WatchHit, WatchList};
use base::{PAGE_SIZE, Position};
use memory::Marks;
use std::collections::BTreeSet;

/// What a debugger has set.
#[derive(Default)]
pub(super) struct Debugging {
    pub breakpoints: BTreeSet<u64>,
    pub watch: Option<Box<WatchList>>,
    /// The boundary, by count and linear address, at which a breakpoint has been reported or is
    /// not wanted.
    passed: Option<(u64, u64)>,
    /// The count at the last delivery of an event.
    event_at: Option<u64>,
    /// Changes of address space stop runs; one has just come.
    pub follow_spaces: bool,
    pub space_changed: bool,
}

impl Debugging {
    pub fn is_on(&self) -> bool {
        !self.breakpoints.is_empty() || self.watch.is_some() || self.follow_spaces
    }
    pub fn has_hit(&self) -> bool {
        self.watch.as_ref().is_some_and(|watch| watch.has_hit())
    }
}

impl Vcpu {
    /// Stops runs with [`super::Exit::Debugger`] where the linear address of the next instruction
    /// is one of these. Standing at one and running on does not stop there again.
    pub fn set_breakpoints(&mut self, breakpoints: &BTreeSet<u64>) {
        if *breakpoints == self.debugging.breakpoints {
            return;
        }
        // Code that was translated with regard to a breakpoint that has gone only ends early there.
        let added = breakpoints.difference(&self.debugging.breakpoints).copied().collect();
        self.blocks.forget_at(&mut self.arena, &added);
        self.debugging.breakpoints.clone_from(breakpoints);
    }

    /// Does (not) stop at a breakpoint exactly here and now.
    pub fn pass_breakpoint(&mut self, pass: bool) {
        if !pass {
            self.debugging.event_at = None;
        }
        self.debugging.passed = pass.then(|| (self.state().retired, self.linear_rip()));
    }

    /// Stops runs with [`super::Exit::Debugger`] after an instruction (or the delivery of an event)
    /// that accesses one of these ranges of RAM. A repeated string instruction may do more
    /// iterations before that.
    pub fn set_watches(&mut self, bus: &mut dyn Bus, watches: Vec<Watch>) {
        let before = self.debugging.watch.as_ref().map_or(&[][..], |list| list.watches());
        if before == watches {
            if let Some(list) = &mut self.debugging.watch {
                list.take_hits();
            }
            return;
        }
        for page in pages(bus, before) {
            bus.ram().remove_marks(page, Marks::WATCHED.with(Marks::READ_WATCHED));
        }
        for page in pages(bus, &watches) {
            bus.ram().add_marks(page, Marks::WATCHED);
        }
        let read: Vec<_> = watches.iter().copied().filter(|watch| watch.reads).collect();
        for page in pages(bus, &read) {
            bus.ram().add_marks(page, Marks::READ_WATCHED);
        }
        self.flush.mode = true;
        self.debugging.watch = (!watches.is_empty()).then(|| Box::new(WatchList::new(watches)));
    }

    /// Stops runs with [`super::Exit::Debugger`] at each change of address space: behind a load of CR3
    /// or a change of paging.
    pub fn follow_spaces(&mut self, follow: bool) {
        self.debugging.follow_spaces = follow;
        self.debugging.space_changed = false;
    }

    /// Whether the last run stopped for a change of address space.
    pub fn take_space_change(&mut self) -> bool {
        std::mem::take(&mut self.debugging.space_changed)
    }

    /// Notes what devices have written to watched memory: in the step to this position, or later.
    pub fn note_device_writes(&mut self, bus: &mut dyn Bus) {
        if bus.ram().watched_count() == 0 {
            return;
        }
        let here = self.state().retired;
        for write in bus.ram().take_watched() {
            let at = Position::from_count(if write.late { here } else { here.saturating_sub(1) });
            if let Some(watch) = &mut self.debugging.watch {
                watch.note(at, write.at, write.len.into(), true);
            }
        }
    }

    /// Whether anything watched was accessed since the last [`Vcpu::take_watch_hits`].
    pub fn has_watch_hits(&self) -> bool {
        self.debugging.has_hit()
    }

    /// The first and the last of the accesses that stopped the last run.
    pub fn take_watch_hits(&mut self) -> Option<(WatchHit, WatchHit)> {
        self.debugging.watch.as_mut()?.take_hits()
    }

    /// Whether an exception or interrupt was delivered at this very position, so that the machine
    /// stands behind where a run to this position stops.
    pub fn event_delivered_here(&self) -> bool {
        self.debugging.event_at == Some(self.state().retired)
    }

    /// An exception or interrupt is about to be delivered.
    pub(super) fn note_event(&mut self) {
        let state = &mut self.hot().state;
        if state.event_at == state.retired {
            state.retired += 1;
        }
        state.event_at = state.retired;
        self.debugging.event_at = Some(state.retired);
    }

    /// The linear address of the next instruction.
    pub fn linear_rip(&self) -> u64 {
        self.state().linear_rip()
    }

    /// Whether there is a breakpoint here.
    pub(super) fn has_breakpoint_here(&self) -> bool {
        !self.debugging.breakpoints.is_empty() && self.debugging.breakpoints.contains(&self.linear_rip())
    }

    /// Whether there is a breakpoint here that was not passed yet: the loop has to look before
    /// going on.
    pub(super) fn at_breakpoint(&self) -> bool {
        self.has_breakpoint_here() && self.debugging.passed != Some((self.state().retired, self.linear_rip()))
    }

    /// Whether the run ends here.
    pub(super) fn debugger_stops(&mut self) -> bool {
        if self.debugging.has_hit() || self.debugging.space_changed {
            return true;
        }
        let here = (self.state().retired, self.linear_rip());
        let stops = self.at_breakpoint();
        if stops {
            self.debugging.passed = Some(here);
        }
        stops
    }
}

fn pages(bus: &mut dyn Bus, watches: &[Watch]) -> BTreeSet<usize> {
    let mut pages = BTreeSet::new();
    for watch in watches {
        let last = watch.start.0.saturating_add(watch.bytes.max(1) - 1);
        let mut at = watch.start.0 & !(PAGE_SIZE as u64 - 1);
        while at <= last {
            pages.extend(bus.ram().page_index(base::GuestPhys(at)));
            at += PAGE_SIZE as u64;
        }
    }
    pages
}
