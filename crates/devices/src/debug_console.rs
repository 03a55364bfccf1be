//! The debug console port of Bochs and QEMU (0xe9): every byte written leaves at once; an option.

use crate::data;
use crate::{Cx, Device, DeviceState, StateError};

const KIND: &str = "debug-console";
/// What a read answers, by which guests find the port.
const PRESENT: u8 = 0xe9;

/// The port; its output is that of console `port`.
pub struct DebugConsole {
    port: u32,
}

impl DebugConsole {
    /// A debug console whose bytes leave as console `port`'s.
    pub fn new(port: u32) -> Self {
        Self { port }
    }
}

impl Device for DebugConsole {
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
    /// Block 0: the port.
    fn read(&mut self, _cx: &mut Cx, _block: u32, _offset: u64, data: &mut [u8]) {
        data::answer(data, u64::from(PRESENT));
    }
    fn write(&mut self, cx: &mut Cx, _block: u32, _offset: u64, data: &[u8]) {
        cx.out.console(self.port, data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;

    #[test]
    fn bytes_written_leave_in_order() {
        let (mut bench, mut port) = (Bench::new(), DebugConsole::new(7));
        assert_eq!(bench.read8(&mut port, 0, 0), 0xe9);
        for byte in b"ok" {
            bench.write8(&mut port, 0, 0, *byte);
        }
        assert_eq!(bench.out.console, vec![(7, vec![b'o']), (7, vec![b'k'])]);
    }
}
