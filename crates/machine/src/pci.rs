//! What is plugged into the PCI bus: virtio disks, network cards, consoles and the entropy source.
//!
//! Slots are filled in the order of the calls, so the calls are part of the machine's definition.

use devices::pci::PciHost;
use devices::virtio::VirtioPci;
use devices::virtio::block::Block;
use devices::virtio::console::Console;
use devices::virtio::net::Net;
use devices::virtio::rng::Rng;
use devices::{Cx, Device};
use disk::Overlay;

/// The most functions that can be added: the host bridge has the first of 32 slots.
pub const FUNCTIONS_MAX: usize = 31;

/// All slots of the PCI bus are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the PCI bus takes {FUNCTIONS_MAX} disks, cards and consoles; pass fewer")]
pub struct PciFull;

/// The PCI bus of a machine.
#[derive(Default)]
pub struct PciBus {
    host: PciHost,
    disks: Vec<u8>,
    cards: Vec<u8>,
    consoles: Vec<u8>,
    functions: usize,
}

impl PciBus {
    /// A bus with only the host bridge.
    pub fn new() -> Self {
        Self::default()
    }

    fn plug<D: devices::virtio::VirtioDevice>(&mut self, device: D) -> Result<u8, PciFull> {
        if self.functions == FUNCTIONS_MAX {
            return Err(PciFull);
        }
        self.functions += 1;
        Ok(self.host.add(Box::new(VirtioPci::new(device))))
    }

    /// Adds a disk with serial number `id`.
    pub fn add_disk(&mut self, contents: Overlay, id: &str, read_only: bool) -> Result<(), PciFull> {
        let slot = self.plug(Block::new(contents, id, read_only))?;
        self.disks.push(slot);
        Ok(())
    }

    /// Adds a network card; its number, by which frames are told apart, counts from 0.
    pub fn add_card(&mut self, mac: [u8; 6], mtu: u16) -> Result<(), PciFull> {
        let slot = self.plug(Net::new(self.cards.len() as u32, mac, mtu))?;
        self.cards.push(slot);
        Ok(())
    }

    /// Adds a console whose output leaves as console `port`'s.
    pub fn add_console(&mut self, port: u32, columns: u16, rows: u16) -> Result<(), PciFull> {
        let slot = self.plug(Console::new(port, columns, rows))?;
        self.consoles.push(slot);
        Ok(())
    }

    /// Adds the entropy source.
    pub fn add_entropy(&mut self, seed: [u8; 32]) -> Result<(), PciFull> {
        self.plug(Rng::new(seed)).map(|_| ())
    }

    /// How many disks there are.
    pub fn disks(&self) -> usize {
        self.disks.len()
    }

    /// Contents of disk `n`.
    pub fn disk(&self, n: usize) -> Option<&Overlay> {
        let slot = *self.disks.get(n)?;
        self.host.function::<VirtioPci<Block>>(slot).map(|function| function.device().disk())
    }

    /// Contents of disk `n`, to go to a snapshot.
    pub fn disk_mut(&mut self, n: usize) -> Option<&mut Overlay> {
        let slot = *self.disks.get(n)?;
        self.host.function_mut::<VirtioPci<Block>>(slot).map(|function| function.device_mut().disk_mut())
    }

    /// Why the machine cannot go on, when the host's storage failed it.
    pub fn failure(&self) -> Option<String> {
        if self.disks.is_empty() { None } else { self.host.failure() }
    }

    pub(crate) fn device(&self) -> &dyn Device {
        &self.host
    }

    pub(crate) fn device_mut(&mut self) -> &mut dyn Device {
        &mut self.host
    }

    /// Bytes for the console numbered `n` in order of addition; how many it took.
    pub(crate) fn console_input(&mut self, cx: &mut Cx, n: u32, bytes: &[u8]) -> usize {
        let Some(slot) = self.consoles.get(n as usize) else { return 0 };
        self.host
            .act(*slot, cx, |console: &mut VirtioPci<Console>, cx| console.receive(cx, bytes))
            .unwrap_or(0)
    }

    /// A frame for card `n`; whether it took it.
    pub(crate) fn frame_input(&mut self, cx: &mut Cx, n: u32, frame: &[u8]) -> bool {
        let Some(slot) = self.cards.get(n as usize) else { return false };
        self.host.act(*slot, cx, |card: &mut VirtioPci<Net>, cx| card.receive(cx, frame)).unwrap_or(false)
    }

    /// Whether card `n` is there and its driver keeps up with what comes.
    pub(crate) fn card_has_room(&self, n: u32) -> bool {
        let slot = self.cards.get(n as usize);
        let card = slot.and_then(|slot| self.host.function::<VirtioPci<Net>>(*slot));
        card.is_some_and(|card| card.device().has_room())
    }

    /// How many bytes console `n` would take now.
    pub(crate) fn console_room(&self, n: u32) -> usize {
        let slot = self.consoles.get(n as usize);
        let console = slot.and_then(|slot| self.host.function::<VirtioPci<Console>>(*slot));
        console.map_or(0, |console| console.device().room())
    }
}
