//! Guest time: what every clock inside the machine derives from.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Nanoseconds of guest time since power-on.
///
/// A pure function of the position and of the clock's own recorded corrections; see the machine
/// crate's clock. Never the host's time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct GuestTime(u64);

impl GuestTime {
    /// Power-on.
    pub const ZERO: GuestTime = GuestTime(0);

    /// From nanoseconds since power-on.
    pub const fn from_ns(ns: u64) -> Self {
        Self(ns)
    }
    /// Nanoseconds since power-on.
    pub const fn ns(self) -> u64 {
        self.0
    }
    /// The time `ns` nanoseconds later, saturating.
    #[must_use]
    pub const fn after_ns(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }
    /// Nanoseconds since `earlier` (0 when it is not earlier).
    pub const fn ns_since(self, earlier: GuestTime) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
    /// Seconds since power-on, for people.
    pub fn seconds(self) -> f64 {
        self.0 as f64 / 1e9
    }
    /// How many ticks a counter of `hz` has made since power-on (exact, no overflow).
    pub const fn ticks(self, hz: u64) -> u64 {
        (self.0 as u128 * hz as u128 / 1_000_000_000) as u64
    }
    /// The first time at which a counter of `hz` shows at least `ticks`; the inverse of [`Self::ticks`].
    pub const fn at_tick(ticks: u64, hz: u64) -> Self {
        let ns = (ticks as u128 * 1_000_000_000).div_ceil(hz as u128);
        if ns > u64::MAX as u128 { Self(u64::MAX) } else { Self(ns as u64) }
    }
}

impl fmt::Debug for GuestTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestTime({} ns)", self.0)
    }
}

impl fmt::Display for GuestTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6} s", self.seconds())
    }
}
