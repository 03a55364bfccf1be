//! pvpanic: an ISA port through which a guest kernel says that it panicked (QEMU's
//! `docs/specs/pvpanic.rst`; ACPI name QEMU0001).

use crate::data;
use crate::{Cx, Device, DeviceState, Request, StateError};

const KIND: &str = "pvpanic";
/// Event bit: the guest panicked. The only event this device offers.
const PANICKED: u8 = 1;

/// The port.
#[derive(Default)]
pub struct Pvpanic;

impl Device for Pvpanic {
    fn kind(&self) -> &'static str {
        KIND
    }
    fn reset(&mut self) {}
    fn save(&self) -> DeviceState {
        DeviceState::encode(KIND, 1, &())
    }
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        state.decode(KIND, 1)
    }
    /// Block 0: reads tell which events there are.
    fn read(&mut self, _cx: &mut Cx, _block: u32, _offset: u64, data: &mut [u8]) {
        data::answer(data, u64::from(PANICKED));
    }
    fn write(&mut self, cx: &mut Cx, _block: u32, _offset: u64, data: &[u8]) {
        if data.first().is_some_and(|value| value & PANICKED != 0) {
            cx.irq.requests.push(Request::Panic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;

    #[test]
    fn a_guest_that_writes_the_panic_bit_has_panicked() {
        let (mut bench, mut port) = (Bench::new(), Pvpanic);
        assert_eq!(bench.read8(&mut port, 0, 0), 1);
        bench.write8(&mut port, 0, 0, 2);
        assert!(bench.requests().is_empty());
        bench.write8(&mut port, 0, 0, 1);
        assert_eq!(bench.requests(), vec![Request::Panic]);
    }
}
