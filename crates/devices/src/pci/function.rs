//! What a device on the bus is to its host.

use super::ConfigSpace;
use crate::{Cx, DeviceState, StateError};
use base::GuestTime;
use std::any::Any;

/// A PCI function. The host decodes addresses and drives interrupt lines; the function sees
/// offsets within its BARs and says what level its pin has.
///
/// The contract of [`Device`](crate::Device) holds here as well.
pub trait PciFunction: Any + Send {
    /// Kind, as in [`DeviceState::kind`].
    fn kind(&self) -> &'static str;
    /// The configuration space.
    fn config(&self) -> &ConfigSpace;
    /// The configuration space, to change.
    fn config_mut(&mut self) -> &mut ConfigSpace;
    /// A read of the configuration space by software (at most 8 bytes, `offset` below 256).
    fn config_read(&mut self, _cx: &mut Cx, offset: usize, data: &mut [u8]) {
        self.config().read(offset, data);
    }
    /// A write, likewise.
    fn config_write(&mut self, _cx: &mut Cx, offset: usize, data: &[u8]) {
        self.config_mut().write(offset, data);
    }
    /// A read of 1, 2, 4 or 8 bytes at `offset` of BAR number `bar`, wholly inside of it.
    fn bar_read(&mut self, cx: &mut Cx, bar: u8, offset: u64, data: &mut [u8]);
    /// A write, likewise.
    fn bar_write(&mut self, cx: &mut Cx, bar: u8, offset: u64, data: &[u8]);
    /// Whether the function asserts its interrupt pin (before the command register's disable bit).
    fn intx(&self) -> bool {
        false
    }
    /// Back to power-on state. The host has already reset the configuration space.
    fn reset(&mut self);
    /// The whole state but for the configuration space, which the host saves.
    fn save(&self) -> DeviceState;
    /// The saved state for people who compare two of them: one field a line.
    fn show(&self) -> String {
        self.save().hex()
    }
    /// Takes on a saved state. The host has already restored the configuration space.
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError>;
    /// The guest time at which the function next acts by itself.
    fn deadline(&self) -> Option<GuestTime> {
        None
    }
    /// Called once guest time has reached the deadline.
    fn expire(&mut self, _cx: &mut Cx) {}
    /// Why the function cannot go on, when the host's storage failed it. The guest must not see a
    /// host's failure, so whoever runs the machine has to stop it.
    fn failure(&self) -> Option<String> {
        None
    }
}
