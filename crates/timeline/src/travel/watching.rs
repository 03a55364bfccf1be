//! Watchpoints: from virtual addresses to the physical ones that the processor watches, and on.
//!
//! A range is watched in the address space that is current when a run begins, wherever that maps it
//! in the course of the run. So the entries of page tables that lead there are watched as well, down
//! to the first that leads nowhere; when one is written, or after going to another place in history,
//! everything is placed anew. So it is, too, at changes of address space as long as a range leads
//! nowhere for want of one: in a run that begins before the kernel has made its tables.

use super::{Hit, Travel, Until};
use base::{GuestPhys, GuestVirt, PAGE_SIZE, Position};
use cpu::{Watch, WatchHit, walk};
use machine::Turn;
use std::collections::BTreeSet;
use x86::paging;

/// Guest memory under watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchRange {
    /// The first byte, in the address space that is current when the run starts.
    pub start: GuestVirt,
    /// How many bytes.
    pub bytes: u64,
    /// Reads count.
    pub reads: bool,
    /// Writes count.
    pub writes: bool,
}

/// A watch as the processor has it, with the virtual address it was asked for by.
struct Placed {
    watch: Watch,
    number: usize,
    virt: GuestVirt,
}

/// What is watched.
#[derive(Default)]
pub(super) struct Watching {
    ranges: Vec<WatchRange>,
    /// The top tables of user addresses: those of CR3 when the run began.
    roots: [u64; 2],
    /// The processor's first watches; behind them come entries of page tables.
    placed: Vec<Placed>,
}

/// Where the top tables may be: Linux keeps the user's copy in the page behind the kernel's.
fn roots_of(cr3: u64) -> [u64; 2] {
    [cr3, cr3 & !(PAGE_SIZE as u64)]
}

impl Travel {
    /// Sets breakpoints and watchpoints, and what turns are looked for, for a run this way.
    pub(super) fn set(&mut self, until: &Until, backwards: bool) {
        self.backwards = backwards;
        let turn = until.turn.map(if backwards { Turn::EndsOf } else { Turn::BeginsOf });
        self.session.machine_mut().watch_turns(turn);
        self.session.machine_mut().processor_mut().set_breakpoints(&until.breakpoints);
        let cr3 = self.session.machine().processor().state().cr3;
        self.watching.roots = roots_of(cr3);
        self.watching.ranges.clone_from(&until.watches);
        self.place();
    }

    /// Looks up where what is watched is now.
    pub(super) fn place(&mut self) {
        let mut placed = Vec::new();
        let mut tables = BTreeSet::new();
        let long = self.session.machine().processor().state().long_mode();
        let mut nowhere = !long && !self.watching.ranges.is_empty();
        for (number, range) in self.watching.ranges.iter().enumerate() {
            let mut done = 0;
            while done < range.bytes {
                let virt = range.start.offset(done);
                let bytes = (PAGE_SIZE as u64 - virt.page_offset() as u64).min(range.bytes - done);
                if let Some(start) = self.lookup(virt, &mut tables) {
                    let watch = Watch { start, bytes, reads: range.reads, writes: range.writes };
                    placed.push(Placed { watch, number, virt });
                } else if virt.0 >> 63 != 0 {
                    nowhere = true;
                }
                done += bytes;
            }
        }
        let entry = |start| Watch { start, bytes: 8, reads: false, writes: true };
        let watches = placed.iter().map(|placed| placed.watch).chain(tables.into_iter().map(entry)).collect();
        self.watching.placed = placed;
        let (processor, board) = self.session.machine_mut().processor_and_board();
        board.memory_mut().forget_watched(0);
        processor.set_watches(board, watches);
        processor.follow_spaces(nowhere);
    }

    /// Where a virtual address leads in the watched address space; entries on the way go to `tables`.
    fn lookup(&self, virt: GuestVirt, tables: &mut BTreeSet<GuestPhys>) -> Option<GuestPhys> {
        let machine = self.session.machine();
        let (state, ram) = (machine.processor().state(), machine.board().memory());
        if !state.long_mode() {
            return walk::probe(state, ram, virt).map(|found| found.phys);
        }
        // The kernel's half is the same in all address spaces, some of which are not there any more or
        // not yet.
        let roots = if virt.0 >> 63 == 0 { self.watching.roots } else { roots_of(state.cr3) };
        roots.into_iter().find_map(|root| {
            let mut table = root & paging::ADDRESS;
            for shift in [39, 30, 21, 12] {
                let at = GuestPhys(table + (virt.0 >> shift & 511) * 8);
                let entry = ram.read_u64(at)?;
                tables.insert(at);
                if entry & paging::PRESENT == 0 || entry & paging::ADDRESS_RESERVED != 0 {
                    return None;
                }
                let inside = (1 << shift) - 1;
                if shift == 12 || shift < 39 && entry & paging::LARGE != 0 {
                    return Some(GuestPhys(entry & paging::ADDRESS & !inside | virt.0 & inside));
                }
                table = entry & paging::ADDRESS;
            }
            None
        })
    }

    /// What the processor stopped for: the first and the last of it. `None` when it was nothing that
    /// was asked for.
    pub(super) fn met(&mut self) -> Option<((Position, Hit), (Position, Hit))> {
        let here = self.position();
        let turned = self.session.machine_mut().take_turn_met();
        let processor = self.session.machine_mut().processor_mut();
        let (moved, hits) = (processor.take_space_change(), processor.take_watch_hits());
        if moved && hits.is_none() {
            self.place();
            if !turned {
                return None;
            }
        }
        let processor = self.session.machine_mut().processor_mut();
        let Some((first, last)) = hits else {
            let hit = match self.backwards {
                true if turned => (Position::from_count(here.count().saturating_sub(1)), Hit::Turn),
                false if turned => (here, Hit::Turn),
                _ => (here, Hit::Breakpoint(processor.linear_rip())),
            };
            return Some((hit, hit));
        };
        let asked = |hit: &WatchHit| hit.watch < self.watching.placed.len();
        let told = |hit: WatchHit| {
            let placed = &self.watching.placed[hit.watch];
            let virt = placed.virt.offset(hit.phys.0 - placed.watch.start.0);
            (hit.at, Hit::Watch(placed.number, virt))
        };
        let hits = match (asked(&first), asked(&last)) {
            (true, true) => Some((told(first), told(last))),
            (true, false) => Some((told(first), told(first))),
            (false, true) => Some((told(last), told(last))),
            (false, false) => None,
        };
        if moved || !asked(&first) || !asked(&last) {
            self.place();
        }
        hits
    }

    /// Notes what devices have written to watched memory; whether it was anything.
    pub(super) fn devices_have_written(&mut self) -> bool {
        let (processor, board) = self.session.machine_mut().processor_and_board();
        let any = board.memory().watched_count() > 0;
        processor.note_device_writes(board);
        any && processor.has_watch_hits()
    }
}
