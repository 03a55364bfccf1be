//! Pages of code that is entered without looking whether they are still there.
//!
//! Wherever a block is come to from another page, most code compares what stands behind its page with what it
//! was translated from (see [`super::blocks`]): some twenty bytes before every block, which the host's
//! first cache then lacks for what runs. Two kinds of code have nothing of that, as they seldom lose a
//! page, and at one address there is only one of them: mirrored code, since there is one mirror, and the
//! kernel's, which all address spaces share. The pages that their blocks are found at are noted instead
//! ([`Entered::note`], whenever the tables are asked for a page of code). When one is dropped, or the
//! mirror goes to another program, the links and jump-cache entries that lead there from other pages are
//! undone before translated code runs again, and those that lead there still are back when it is noted again (see
//! [`super::links`]).
//!
//! So a block of a noted page may be linked to, and nothing leads to one of a page that is not noted any more.

use super::blocks::{BuildMix, Mode};
use base::{GuestPhys, GuestVirt};
use std::collections::HashMap;

/// Whether blocks of a mode that begin at a linear address are entered without looking: those of mirrored
/// code in the programs' half of the address space, and of the kernel's in its own.
pub fn is_open(mode: Mode, virt: u64) -> bool {
    let kernel = mode.is64() && !mode.has(Mode::USER);
    mode.has(Mode::MIRRORED) && virt >> 47 == 0 || kernel && (virt as i64) < 0
}

/// A virtual page, and the physical one behind it.
pub type CodeAt = (u64, u64);

/// See the module's head.
#[derive(Default)]
pub struct Entered {
    pages: HashMap<u64, u64, BuildMix>,
    /// Dropped, and perhaps still led to.
    left: Vec<CodeAt>,
    /// Noted, and perhaps not led to yet.
    come: Vec<CodeAt>,
}

impl Entered {
    /// Code has been found at a page.
    pub fn note(&mut self, virt: GuestVirt, phys: GuestPhys) {
        let (page, now) = (virt.page(), phys.page());
        let before = self.pages.insert(page, now);
        if before != Some(now) {
            self.come.push((page, now));
            self.left.extend(before.map(|before| (page, before)));
        }
    }

    /// The physical page whose code may be entered at a virtual one.
    pub fn behind(&self, virt_page: u64) -> Option<u64> {
        self.pages.get(&virt_page).copied()
    }

    /// So many virtual pages are dropped.
    pub fn leave(&mut self, first: u64, pages: u64) {
        if self.pages.is_empty() {
            return;
        }
        let range = first..first.saturating_add(pages);
        if pages as usize > self.pages.len() {
            self.left.extend(self.pages.extract_if(|page, _| range.contains(page)));
        } else {
            let dropped = range.filter_map(|page| Some((page, self.pages.remove(&page)?)));
            self.left.extend(dropped);
        }
    }

    /// All are.
    pub fn leave_all(&mut self) {
        self.left.extend(self.pages.drain());
    }

    /// One of those that have been noted anew and not been dropped since.
    pub fn next_come(&mut self) -> Option<CodeAt> {
        while let Some((virt_page, phys_page)) = self.come.pop() {
            if self.behind(virt_page) == Some(phys_page) {
                return Some((virt_page, phys_page));
            }
        }
        None
    }

    /// One of those that have been dropped, each once.
    pub fn next_left(&mut self) -> Option<CodeAt> {
        self.left.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_or_exchanged_is_left_once() {
        let mut entered = Entered::default();
        let note = |entered: &mut Entered, page: u64, phys: u64| {
            entered.note(GuestVirt(page << 12 | 7), GuestPhys(phys << 12));
        };
        (0..9).for_each(|n| note(&mut entered, 10 + n, 100 + n));
        note(&mut entered, 12, 102);
        let take_left =
            |entered: &mut Entered| std::iter::from_fn(|| entered.next_left()).collect::<Vec<_>>();
        assert!(take_left(&mut entered).is_empty());
        note(&mut entered, 12, 200);
        entered.leave(14, 2);
        let mut left = take_left(&mut entered);
        left.sort_unstable();
        assert_eq!(left, [(12, 102), (14, 104), (15, 105)]);
        entered.leave(16, u64::MAX);
        assert_eq!(take_left(&mut entered).len(), 3);
        entered.leave(14, 2);
        assert!(take_left(&mut entered).is_empty(), "they are gone already");
        entered.leave_all();
        assert_eq!(take_left(&mut entered).len(), 4);
    }

    #[test]
    fn programs_that_are_not_mirrored_are_looked_at_and_so_is_who_runs_in_the_others_half() {
        let kernel = Mode::of_bits(64).with(Mode::RING0);
        let program = Mode::of_bits(64).with(Mode::USER);
        let mirrored = program.with(Mode::MIRRORED);
        let upper = 0xffff_ffff_ff60_0000;
        let open = [(kernel, upper), (kernel.with(Mode::AC), upper), (mirrored, 0x5000)];
        assert!(open.iter().all(|(mode, virt)| is_open(*mode, *virt)));
        let closed = [
            (kernel, 0x5000),
            (program, 0x5000),
            (program, upper),
            (mirrored, upper),
            (Mode::of_bits(32), 0x5000),
        ];
        assert!(!closed.iter().any(|(mode, virt)| is_open(*mode, *virt)));
    }
}
