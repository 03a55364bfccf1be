//! What the running processor's instructions do to those that do not run.
//!
//! A processor that waits for an interrupt can be woken at any access the running one makes: by an
//! interprocessor interrupt, or by a device. The board notices, so that PAUSE can give way and the
//! machine hears of it at once.

use super::Board;

/// Sets of processors, bit n standing for processor n; never the running one.
#[derive(Debug, Default)]
pub(super) struct Others {
    /// They could run.
    running: u32,
    /// They wait for an interrupt, and would take one.
    waiting: u32,
    /// Of those, the ones that have got one.
    reached: u32,
    /// PAUSE gives way if there is anyone to give way to.
    pause_heard: bool,
    /// Someone was woken and the machine has not heard of it yet.
    pub woken: bool,
}

impl Board {
    /// Tells the board what the processors that do not run are doing.
    pub(crate) fn set_others(&mut self, running: u32, waiting: u32, pause_heard: bool) {
        self.others.running = running;
        self.others.waiting = waiting;
        self.others.pause_heard = pause_heard;
        self.others.reached = self.reached();
    }

    /// Whether processor `cpu` has an interrupt to take.
    pub fn interrupt_pending_at(&self, cpu: u32) -> bool {
        let external = cpu == 0 && self.external && self.chipset.lapics[0].accepts_external();
        external || self.chipset.lapics[cpu as usize].interrupt_pending()
    }

    fn reached(&self) -> u32 {
        let mut left = self.others.waiting;
        let mut reached = 0;
        while left != 0 {
            let cpu = left.trailing_zeros();
            left &= left - 1;
            reached |= u32::from(self.interrupt_pending_at(cpu)) << cpu;
        }
        reached
    }

    /// After anything that may have sent an interrupt.
    pub(super) fn follow_others(&mut self) {
        if self.others.waiting == 0 {
            return;
        }
        let reached = self.reached();
        if reached & !self.others.reached != 0 {
            self.others.woken = true;
            self.refresh_horizon();
        }
        self.others.reached = reached;
    }

    /// Whether a processor was woken since the last call.
    pub(crate) fn take_woken(&mut self) -> bool {
        let woken = std::mem::take(&mut self.others.woken);
        if woken {
            self.refresh_horizon();
        }
        woken
    }

    /// Whether PAUSE gives way now.
    pub(super) fn gives_way(&self) -> bool {
        self.others.pause_heard && self.others.running | self.others.reached != 0
    }
}
