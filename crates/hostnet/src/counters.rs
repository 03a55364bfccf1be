//! Figures about the frames of a run.

use std::sync::atomic::{AtomicU64, Ordering};

/// How many frames went where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames from the guest that were taken, whether the peer has read them yet or not.
    pub sent_frames: u64,
    /// Frames from the guest that were dropped, for lack of room or because the peer is gone.
    pub dropped_frames: u64,
    /// Frames for the guest.
    pub received_frames: u64,
    /// Frames, of the guest or of the peer, too short or too long to be any: dropped.
    pub odd_frames: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub sent: AtomicU64,
    pub dropped: AtomicU64,
    pub received: AtomicU64,
    pub odd: AtomicU64,
}

impl Counters {
    pub fn read(&self) -> Counts {
        Counts {
            sent_frames: self.sent.load(Ordering::Relaxed),
            dropped_frames: self.dropped.load(Ordering::Relaxed),
            received_frames: self.received.load(Ordering::Relaxed),
            odd_frames: self.odd.load(Ordering::Relaxed),
        }
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
