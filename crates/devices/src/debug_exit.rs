//! The debug-exit port small test kernels end with (QEMU's `isa-debug-exit`); an option.

use crate::data;
use crate::{Cx, Device, DeviceState, Request, StateError};

const KIND: &str = "debug-exit";

/// The port. Writing `v` ends the run; by QEMU's convention the exit status is `2 v + 1`, which is
/// for the command line to apply.
#[derive(Default)]
pub struct DebugExit;

impl Device for DebugExit {
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
    /// Block 0: four ports; reads are zero.
    fn read(&mut self, _cx: &mut Cx, _block: u32, _offset: u64, data: &mut [u8]) {
        data::answer(data, 0);
    }
    fn write(&mut self, cx: &mut Cx, _block: u32, _offset: u64, data: &[u8]) {
        cx.irq.requests.push(Request::DebugExit(data::value(data) as u32));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;

    #[test]
    fn the_value_written_is_reported() {
        let (mut bench, mut port) = (Bench::new(), DebugExit);
        bench.write32(&mut port, 0, 0, 0x1234);
        assert_eq!(bench.requests(), vec![Request::DebugExit(0x1234)]);
    }
}
