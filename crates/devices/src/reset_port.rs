//! Ports through which a guest resets the machine: 0x92 (system control A) and 0xcf9 (the
//! chipset's reset control, which is also the ACPI reset register).

use crate::data;
use crate::{Cx, Device, DeviceState, Request, StateError};

/// Port 0x92: bit 0 resets, bit 1 is the A20 gate (kept, always open).
#[derive(Default)]
pub struct FastReset {
    value: u8,
}

/// Port 0xcf9: bit 1 chooses a hard reset, a rising bit 2 resets.
#[derive(Default)]
pub struct ResetControl {
    value: u8,
}

macro_rules! port {
    ($name:ident, $kind:literal, $write:expr, $reset:expr) => {
        impl Device for $name {
            fn kind(&self) -> &'static str {
                $kind
            }
            fn reset(&mut self) {
                self.value = $reset;
            }
            fn save(&self) -> DeviceState {
                DeviceState::encode($kind, 1, &self.value)
            }
            fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
                self.value = state.decode($kind, 1)?;
                Ok(())
            }
            /// Block 0: the port.
            fn read(&mut self, _cx: &mut Cx, _block: u32, _offset: u64, data: &mut [u8]) {
                data::answer(data, u64::from(self.value));
            }
            fn write(&mut self, cx: &mut Cx, _block: u32, _offset: u64, data: &[u8]) {
                let write: fn(&mut Self, u8) -> bool = $write;
                if let Some(&value) = data.first()
                    && write(self, value)
                {
                    cx.irq.requests.push(Request::Reset);
                }
            }
        }
    };
}

port!(
    FastReset,
    "port-92",
    |port, value| {
        let rises = value & 1 != 0 && port.value & 1 == 0;
        port.value = value & 3;
        rises
    },
    2
);

port!(
    ResetControl,
    "port-cf9",
    |port, value| {
        let rises = value & 4 != 0 && port.value & 4 == 0;
        port.value = value & 0xe;
        rises
    },
    0
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;

    #[test]
    fn the_acpi_reset_value_resets() {
        let (mut bench, mut port) = (Bench::new(), ResetControl::default());
        bench.write8(&mut port, 0, 0, 2);
        assert!(bench.requests().is_empty());
        bench.write8(&mut port, 0, 0, 6);
        assert_eq!(bench.requests(), vec![Request::Reset]);
    }

    #[test]
    fn the_fast_reset_bit_resets_and_a20_alone_does_not() {
        let (mut bench, mut port) = (Bench::new(), FastReset::default());
        bench.write8(&mut port, 0, 0, 2);
        assert!(bench.requests().is_empty());
        assert_eq!(bench.read8(&mut port, 0, 0), 2);
        bench.write8(&mut port, 0, 0, 3);
        assert_eq!(bench.requests(), vec![Request::Reset]);
    }
}
