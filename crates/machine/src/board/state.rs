//! Saving and restoring the board, all but its RAM.

use super::{Board, Ending};
use crate::clock::Clock;
use devices::{DeviceState, ProcessorSignal, StateError};
use serde::{Deserialize, Serialize};

const KIND: &str = "board";

/// Everything on the board but RAM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoardState {
    /// The clock.
    pub clock: Clock,
    /// The devices, in the board's order.
    pub devices: Vec<DeviceState>,
    current: u32,
    signals: Vec<(u32, SavedSignal)>,
    ending: Option<Ending>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum SavedSignal {
    Nmi,
    Init,
    StartUp(u8),
}

impl From<ProcessorSignal> for SavedSignal {
    fn from(signal: ProcessorSignal) -> Self {
        match signal {
            ProcessorSignal::Nmi => Self::Nmi,
            ProcessorSignal::Init => Self::Init,
            ProcessorSignal::StartUp { vector } => Self::StartUp(vector),
        }
    }
}

impl From<SavedSignal> for ProcessorSignal {
    fn from(signal: SavedSignal) -> Self {
        match signal {
            SavedSignal::Nmi => Self::Nmi,
            SavedSignal::Init => Self::Init,
            SavedSignal::StartUp(vector) => Self::StartUp { vector },
        }
    }
}

impl Board {
    /// The whole state but for RAM.
    pub fn save(&self) -> BoardState {
        let devices = self.slots.iter().filter_map(|slot| self.chipset.device(*slot));
        BoardState {
            clock: self.clock.clone(),
            devices: devices.map(|device| device.save()).collect(),
            current: self.current as u32,
            signals: self.signals.iter().map(|(cpu, signal)| (*cpu, (*signal).into())).collect(),
            ending: self.ending,
        }
    }

    /// The devices by kind, with their states for people who compare two of them.
    pub fn show_devices(&self) -> Vec<(String, String)> {
        let devices = self.slots.iter().filter_map(|slot| self.chipset.device(*slot));
        let shown = devices.map(|device| (device.kind().to_owned(), device.show()));
        let rest = format!("{:#?}\nsignals: {:?}\nending: {:?}", self.clock, self.signals, self.ending);
        std::iter::once(("board".to_owned(), rest)).chain(shown).collect()
    }

    /// Takes on a saved state. After an error the board must not be used any more, only restored.
    pub fn restore(&mut self, state: &BoardState) -> Result<(), StateError> {
        let damaged = |why: String| StateError::Damaged { kind: KIND, why };
        if state.devices.len() != self.slots.len() {
            let (found, have) = (state.devices.len(), self.slots.len());
            return Err(damaged(format!("{found} devices saved, this machine has {have}")));
        }
        if state.current >= self.cpus() || state.signals.iter().any(|(cpu, _)| *cpu >= self.cpus()) {
            return Err(damaged("a processor that this machine does not have".into()));
        }
        for (slot, device) in self.slots.iter().zip(&state.devices) {
            if let Some(own) = self.chipset.device_mut(*slot) {
                own.restore(device)?;
            }
        }
        self.clock = state.clock.clone();
        self.current = state.current as usize;
        self.signals = state.signals.iter().map(|(cpu, signal)| (*cpu, (*signal).into())).collect();
        self.ending = state.ending;
        self.others = super::others::Others::default();
        self.external = self.chipset.pic.output();
        self.ticked_at = None;
        self.refresh_all();
        Ok(())
    }
}
