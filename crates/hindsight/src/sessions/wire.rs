//! Where a live guest's network card leads.

use crate::failure::Failure;
use crate::progress::Progress;
use crate::values::{Forward, Net};
use guest::Cache;
use hostnet::{NetError, Network};
use std::cell::Cell;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// How long a wait may keep other inputs waiting.
const NAP: Duration = Duration::from_millis(2);

/// The host's network, and what wakes who waits for a frame.
pub struct Wire {
    network: Network,
    woken: Receiver<()>,
    /// The failure has been told.
    told: Cell<bool>,
}

impl Wire {
    /// What the plan wants, with passt fetched if it is needed and missing.
    pub fn of(net: &Net, forwards: &[Forward], progress: &Progress) -> Result<Option<Self>, Failure> {
        let (wake, woken) = channel();
        let open = |spare: Option<&std::path::Path>| {
            let wake = wake.clone();
            // Nobody listening any more is no failure.
            Network::open(net, forwards, spare, move || {
                let _ = wake.send(());
            })
        };
        let cache = Cache::of_user()?;
        let opened = match open(guest::cached_passt(&cache).as_deref()) {
            Err(NetError::NoPasst) => {
                let fetched = guest::passt(&cache, &mut |line| progress.line(line))?;
                open(Some(&fetched))
            }
            other => other,
        };
        let network = opened.map_err(Failure::usage)?;
        Ok(network.map(|network| Self { network, woken, told: Cell::new(false) }))
    }

    /// Sends a frame; one that finds no room is lost, as on a wire.
    pub fn send(&self, frame: &[u8]) {
        self.network.send(frame);
    }

    /// A frame that has arrived.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let frame = self.network.receive();
        if frame.is_none()
            && let Some(failure) = self.network.failure()
            && !self.told.replace(true)
        {
            eprintln!("hindsight: {failure}");
        }
        frame
    }

    /// Waits a moment, or until something arrives.
    pub fn wait(&self, at_most: Duration) {
        let _ = self.woken.recv_timeout(at_most.min(NAP));
    }
}
