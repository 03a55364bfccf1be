//! When each device next acts by itself, kept so that the earliest is found at once.

use base::GuestTime;

/// Deadlines by index of slot.
pub(super) struct Deadlines {
    due: Vec<Option<GuestTime>>,
    earliest: Option<GuestTime>,
}

impl Deadlines {
    pub fn new(slots: usize) -> Self {
        Self { due: vec![None; slots], earliest: None }
    }

    pub fn earliest(&self) -> Option<GuestTime> {
        self.earliest
    }

    pub fn get(&self, index: usize) -> Option<GuestTime> {
        self.due[index]
    }

    /// Whether the earliest deadline changed.
    pub fn set(&mut self, index: usize, due: Option<GuestTime>) -> bool {
        if self.due[index] == due {
            return false;
        }
        self.due[index] = due;
        let earliest = self.due.iter().flatten().min().copied();
        let changed = earliest != self.earliest;
        self.earliest = earliest;
        changed
    }
}
