//! What leaves the machine, gathered until the session's user takes it.

use devices::Outside;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What left the machine, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Bytes by port: 0 is the console, 1 the second serial port.
    pub console: Vec<(u32, Vec<u8>)>,
    /// Ethernet frames by card.
    pub frames: Vec<(u32, Vec<u8>)>,
}

impl Output {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.console.is_empty() && self.frames.is_empty()
    }
}

/// The tray between the machine, which only ever puts things on it, and the session.
#[derive(Clone, Default)]
pub(crate) struct Tray(Arc<Mutex<Output>>);

impl Tray {
    fn lock(&self) -> MutexGuard<'_, Output> {
        // Whatever panicked elsewhere, what was put here is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything since the last call.
    pub fn take(&self) -> Output {
        std::mem::take(&mut *self.lock())
    }
}

impl Outside for Tray {
    fn console(&mut self, port: u32, bytes: &[u8]) {
        let mut output = self.lock();
        match output.console.last_mut() {
            Some((last, gathered)) if *last == port => gathered.extend_from_slice(bytes),
            _ => output.console.push((port, bytes.to_vec())),
        }
    }

    fn frame(&mut self, card: u32, frame: &[u8]) {
        self.lock().frames.push((card, frame.to_vec()));
    }
}
