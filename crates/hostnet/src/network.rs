//! The network as the machine's host side sees it.

use crate::counters::{Counts, count};
use crate::link::Link;
use crate::passt::{self, Passt};
use crate::pump::{self, Shared};
use crate::queue::Sent;
use crate::{FRAME_BYTES, Forward, Net, NetError, stream, tap};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// An open network. Dropping it ends its thread and, with `user`, passt; it then leaves nothing
/// behind on the host.
///
/// All functions may be called from any thread.
#[derive(Debug)]
pub struct Network {
    shared: Arc<Shared>,
    pump: Option<JoinHandle<()>>,
    /// After the thread's end: passt ends when the link closes, and is waited for.
    passt: Option<Passt>,
}

impl Network {
    /// Opens what `net` says; nothing for [`Net::None`].
    ///
    /// `forwards` counts for [`Net::User`] alone, and so does `spare_passt`: a copy of passt to use
    /// when none is installed. `wake` is called by the network's thread after frames came, and once
    /// when the network fails; it must only tell the machine's thread, and never wait for it.
    pub fn open(
        net: &Net,
        forwards: &[Forward],
        spare_passt: Option<&Path>,
        wake: impl Fn() + Send + 'static,
    ) -> Result<Option<Self>, NetError> {
        match net {
            Net::None => Ok(None),
            Net::User => Self::user(&passt::find(spare_passt)?, forwards, wake).map(Some),
            Net::Tap(name) => {
                let link = Link::Tap(tap::open(name)?);
                Self::start(link, format!("tap {name}"), None, Box::new(wake)).map(Some)
            }
            Net::Unix(path) => {
                let link = Link::Stream(stream::connect(path)?);
                Self::start(link, path.display().to_string(), None, Box::new(wake)).map(Some)
            }
        }
    }

    /// Starts the passt at `program`; returns once it serves.
    pub fn user(
        program: &Path,
        forwards: &[Forward],
        wake: impl Fn() + Send + 'static,
    ) -> Result<Self, NetError> {
        let (passt, stream) = Passt::start(program, forwards)?;
        Self::start(Link::Stream(stream), "passt".to_owned(), Some(passt), Box::new(wake))
    }

    fn start(
        link: Link,
        peer: String,
        passt: Option<Passt>,
        wake: Box<dyn Fn() + Send>,
    ) -> Result<Self, NetError> {
        let failed = |source| NetError::Io { peer: peer.clone(), source };
        let complaints = passt.as_ref().map(Passt::complaints);
        let shared = Arc::new(Shared::new(link, peer.clone(), complaints).map_err(failed)?);
        let of_pump = Arc::clone(&shared);
        let pump = thread::Builder::new().name("network".to_owned());
        let pump = pump.spawn(move || pump::run(&of_pump, &*wake)).map_err(failed)?;
        Ok(Self { shared, pump: Some(pump), passt })
    }

    /// Sends a frame of the guest (Ethernet header first, no FCS). Never waits: what the peer
    /// does not take is kept up to a bound, then dropped and counted, and so are frames that are
    /// not of [`FRAME_BYTES`] or that come after a failure.
    pub fn send(&self, frame: &[u8]) {
        let counters = &self.shared.counters;
        if !FRAME_BYTES.contains(&frame.len()) {
            return count(&counters.odd);
        }
        let (sent, first) = {
            let mut outbox = self.shared.outbox();
            let first = !outbox.is_waiting();
            (outbox.send(&self.shared.link, frame), first)
        };
        match sent {
            Sent::Dropped => return count(&counters.dropped),
            Sent::Waiting if first => self.shared.ring(),
            Sent::Waiting | Sent::Gone => (),
        }
        count(&counters.sent);
    }

    /// The oldest frame for the guest that waits, if one does.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let (frame, resume) = self.shared.inbox().pop()?;
        if resume {
            self.shared.ring();
        }
        Some(frame)
    }

    /// Why the network ended, once it has. What came before can still be received.
    pub fn failure(&self) -> Option<&NetError> {
        self.shared.failure.get()
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.shared.counters.read()
    }

    /// The process that serves [`Net::User`].
    pub fn passt_pid(&self) -> Option<u32> {
        self.passt.as_ref().map(Passt::pid)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(pump) = self.pump.take() {
            // A panic in `wake` was reported by its thread.
            let _ = pump.join();
        }
    }
}
