//! Little helpers for register accesses of any width, and for showing bytes.

/// Bytes for people: lines of 16 with their offset.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let line = |(n, bytes): (usize, &[u8])| {
        let bytes: String = bytes.iter().map(|byte| format!(" {byte:02x}")).collect();
        format!("{:04x}:{bytes}\n", 16 * n)
    };
    bytes.chunks(16).enumerate().map(line).collect()
}

/// The value of a write of 1 to 8 bytes, little-endian.
pub(crate) fn value(data: &[u8]) -> u64 {
    let mut bytes = [0u8; 8];
    let n = data.len().min(8);
    bytes[..n].copy_from_slice(&data[..n]);
    u64::from_le_bytes(bytes)
}

/// Answers a read with the low bytes of `value`; bytes past the eighth are zero.
pub(crate) fn answer(data: &mut [u8], value: u64) {
    let bytes = value.to_le_bytes();
    for (i, byte) in data.iter_mut().enumerate() {
        *byte = bytes.get(i).copied().unwrap_or(0);
    }
}

/// Answers a read at `offset` within a register block made of bytes, asking `byte` for each.
/// Offsets wrap as the block's decoder would not; `byte` decides about those past its end.
pub(crate) fn answer_bytes(data: &mut [u8], offset: u64, mut byte: impl FnMut(u64) -> u8) {
    for (i, slot) in data.iter_mut().enumerate() {
        *slot = byte(offset.wrapping_add(i as u64));
    }
}

/// Replaces the bytes of `register` that a write of `data` at byte `offset` covers.
pub(crate) fn merge(register: u64, offset: u64, data: &[u8]) -> u64 {
    let mut bytes = register.to_le_bytes();
    for (i, byte) in data.iter().enumerate() {
        if let Some(slot) = bytes.get_mut(offset as usize + i) {
            *slot = *byte;
        }
    }
    u64::from_le_bytes(bytes)
}
