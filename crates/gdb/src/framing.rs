//! From bytes to whole packets, and back.
//!
//! A packet is `$`, the body, `#` and two hexadecimal digits of checksum (the sum of the body's
//! bytes modulo 256). Between packets stand `+` and `-` (acknowledgements) and 0x03 (interrupt).
//! Everything behind this file sees only whole packets with a right checksum and a bounded length.

/// The longest packet, frame included; gdb is told so (`PacketSize`).
pub(crate) const PACKET_BYTES_MAX: usize = 0x8000;

/// What a stream of bytes contains.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A packet's body, checksum verified.
    Packet(Vec<u8>),
    /// Something that began as a packet and is none: too long, or with a wrong checksum.
    Damaged,
    /// The client did not understand our last packet.
    Nack,
    /// The client wants the machine to stop.
    Interrupt,
}

#[derive(Default)]
enum State {
    #[default]
    Between,
    Body,
    Checksum(Option<u8>),
}

/// Cuts a stream into frames.
#[derive(Default)]
pub(crate) struct Framer {
    state: State,
    body: Vec<u8>,
    too_long: bool,
}

impl Framer {
    /// Whether no packet has begun that has not ended.
    pub fn is_between(&self) -> bool {
        matches!(self.state, State::Between)
    }

    /// Takes the next byte; a frame when it ends one.
    pub fn push(&mut self, byte: u8) -> Option<Frame> {
        match (&self.state, byte) {
            // A new start inside a packet: the old one was cut off.
            (_, b'$') => {
                self.body.clear();
                self.too_long = false;
                self.state = State::Body;
                None
            }
            (State::Between, b'-') => Some(Frame::Nack),
            (State::Between, 0x03) => Some(Frame::Interrupt),
            (State::Between, _) => None,
            (State::Body, b'#') => {
                self.state = State::Checksum(None);
                None
            }
            (State::Body, _) => {
                if self.body.len() + 4 < PACKET_BYTES_MAX {
                    self.body.push(byte);
                } else {
                    self.too_long = true;
                }
                None
            }
            (State::Checksum(None), _) => {
                self.state = State::Checksum(Some(byte));
                None
            }
            (State::Checksum(Some(high)), low) => {
                let given = digit(*high).zip(digit(low)).map(|(high, low)| high << 4 | low);
                self.state = State::Between;
                let body = std::mem::take(&mut self.body);
                let right = !self.too_long && given == Some(checksum(&body));
                Some(if right { Frame::Packet(body) } else { Frame::Damaged })
            }
        }
    }
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

fn checksum(body: &[u8]) -> u8 {
    body.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

/// Frames a body, which must not contain `$`, `#` or `}` unescaped.
pub(crate) fn encode(body: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(body.len() + 4);
    packet.push(b'$');
    packet.extend_from_slice(body);
    packet.extend_from_slice(format!("#{:02x}", checksum(body)).as_bytes());
    packet
}

/// A packet that makes gdb print `text` (only while it waits for a stop, or for a monitor command).
pub(crate) fn console(text: &str) -> Vec<u8> {
    let mut body = String::from("O");
    for byte in text.bytes() {
        body.push_str(&format!("{byte:02x}"));
    }
    encode(body.as_bytes())
}

/// A packet that says what went wrong in words, for requests where gdb shows them.
pub(crate) fn error(text: &str) -> Vec<u8> {
    let plain: String = text
        .chars()
        .map(|c| if " .,:-_/()".contains(c) || c.is_ascii_alphanumeric() { c } else { ' ' })
        .collect();
    encode(format!("E.{plain}").as_bytes())
}

/// A packet that says only that a request was not understood (EINVAL).
pub(crate) fn invalid() -> Vec<u8> {
    encode(b"E16")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(bytes: &[u8]) -> Vec<Frame> {
        let mut framer = Framer::default();
        bytes.iter().filter_map(|byte| framer.push(*byte)).collect()
    }

    #[test]
    fn packets_are_found_among_acknowledgements_noise_and_interrupts() {
        let mut bytes = b"+noise".to_vec();
        bytes.extend(encode(b"qC"));
        bytes.extend(b"+-\x03");
        bytes.extend(encode(b"\x03g"));
        let expected =
            [Frame::Packet(b"qC".into()), Frame::Nack, Frame::Interrupt, Frame::Packet(b"\x03g".into())];
        assert_eq!(frames(&bytes), expected);
    }

    #[test]
    fn damaged_packets_are_told_apart_and_do_not_swallow_the_next() {
        assert_eq!(frames(b"$g#00$g#67"), [Frame::Damaged, Frame::Packet(b"g".into())]);
        assert_eq!(frames(b"$g#zz"), [Frame::Damaged]);
        assert_eq!(frames(b"$qSupp$g#67"), [Frame::Packet(b"g".into())]);
        let long = vec![b'a'; PACKET_BYTES_MAX];
        assert_eq!(frames(&encode(&long)), [Frame::Damaged]);
    }
}
