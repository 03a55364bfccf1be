//! Ending a run from the host: signals, the timeout, Ctrl-A x.
//!
//! A run ends because the machine sees [`Stop::reason`] at its next look, so that a recording
//! closes cleanly. Should it not look in time, or should the user insist with a second signal,
//! the process ends at once, still with the terminal restored: `--timeout` holds in any case.

use crate::failure::Failure;
use crate::terminal;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How long a machine may take to see that it has to stop.
const GRACE: Duration = Duration::from_secs(10);

/// Why the host ends a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The time is over.
    Timeout,
    /// The user left with Ctrl-A x.
    Left,
    /// Nobody reads the console any more.
    ConsoleClosed,
    /// This signal came.
    Signal(u8),
}

/// The request to stop, shared by all who can make it. The first reason stays.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    own: Arc<AtomicUsize>,
    /// Whose request to stop is one to this too.
    parent: Option<Arc<AtomicUsize>>,
}

impl Stop {
    const SIGNALS: usize = 256;

    /// Nothing asked for.
    pub fn new() -> Self {
        Self::default()
    }

    /// A request for one run of several: it is made by itself, or along with this one.
    pub fn child(&self) -> Self {
        Self { own: Arc::default(), parent: Some(self.own.clone()) }
    }

    /// Asks the run to end. Returns whether this was the first request.
    pub fn request(&self, reason: Reason) -> bool {
        let code = match reason {
            Reason::Timeout => 1,
            Reason::Left => 2,
            Reason::ConsoleClosed => 3,
            Reason::Signal(number) => Self::SIGNALS + usize::from(number),
        };
        self.own.compare_exchange(0, code, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Why the run has to end, if it has to. Cheap; for the machine to look at between slices.
    pub fn reason(&self) -> Option<Reason> {
        let own = self.own.load(Ordering::Relaxed);
        let code = if own == 0 { self.parent.as_ref().map_or(0, |p| p.load(Ordering::Relaxed)) } else { own };
        match code {
            0 => None,
            1 => Some(Reason::Timeout),
            2 => Some(Reason::Left),
            3 => Some(Reason::ConsoleClosed),
            code => Some(Reason::Signal((code - Self::SIGNALS) as u8)),
        }
    }

    /// Makes SIGINT, SIGTERM and SIGHUP requests to stop, from now on.
    pub fn on_signals(&self) -> Result<(), Failure> {
        let cannot = |error| Failure::host(format!("cannot watch signals: {error}"));
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGCONT]).map_err(cannot)?;
        let stop = self.clone();
        spawn("signals", move || {
            for signal in &mut signals {
                if signal == SIGCONT {
                    terminal::reapply();
                } else if stop.request(Reason::Signal(signal as u8)) {
                    stop.insist_later(128 + signal as u8);
                } else {
                    leave(128 + signal as u8, "stopped at once by a second signal");
                }
            }
        })
    }

    /// Asks the run to end after this time.
    pub fn after(&self, time: Duration) -> Result<(), Failure> {
        let stop = self.clone();
        spawn("timeout", move || {
            std::thread::sleep(time);
            if stop.request(Reason::Timeout) {
                stop.insist_later(Failure::TIMEOUT);
            }
        })
    }

    /// The same for a run among others, whose process goes on.
    pub fn after_quietly(&self, time: Duration) -> Result<(), Failure> {
        let stop = Arc::downgrade(&self.own);
        spawn("timeout", move || {
            std::thread::sleep(time);
            if let Some(own) = stop.upgrade() {
                Self { own, parent: None }.request(Reason::Timeout);
            }
        })
    }

    /// Ends the process if it still lives when the grace is over.
    fn insist_later(&self, status: u8) {
        let insist = move || {
            std::thread::sleep(GRACE);
            leave(status, "the machine did not stop in time");
        };
        // Without a thread there is no grace.
        if spawn("grace", insist).is_err() {
            leave(status, "stopped at once");
        }
    }
}

fn leave(status: u8, line: &str) -> ! {
    terminal::restore();
    Failure::with_status(status, line).say();
    std::process::exit(status.into())
}

/// Starts a helper thread that ends with the process.
pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let cannot = |error| Failure::host(format!("cannot start a thread: {error}"));
    std::thread::Builder::new().name(name.to_owned()).spawn(body).map(drop).map_err(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stays() {
        let stop = Stop::new();
        assert_eq!(stop.reason(), None);
        assert!(stop.request(Reason::Signal(15)));
        assert!(!stop.clone().request(Reason::Timeout));
        assert_eq!(stop.reason(), Some(Reason::Signal(15)));
    }

    #[test]
    fn one_run_ends_alone_or_along_with_all() {
        let all = Stop::new();
        let (one, other) = (all.child(), all.child());
        one.request(Reason::Timeout);
        assert_eq!((one.reason(), other.reason(), all.reason()), (Some(Reason::Timeout), None, None));
        all.request(Reason::Signal(2));
        assert_eq!((one.reason(), other.reason()), (Some(Reason::Timeout), Some(Reason::Signal(2))));
    }

    #[test]
    fn time_runs_out() {
        let stop = Stop::new();
        stop.after(Duration::from_millis(1)).unwrap();
        for _ in 0..1000 {
            if stop.reason() == Some(Reason::Timeout) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("no timeout");
    }
}
