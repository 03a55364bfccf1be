//! The packet handling as a function from arbitrary bytes, for fuzzing and for seeded tests.

use crate::framing::{self, Frame, Framer};
use crate::session::Session;
use crate::wire::{Event, Signals};
use crate::{Ended, Target};
use std::cell::RefCell;

/// Has a client say `bytes` to a session of `target`: each line is the body of a packet, framed with a
/// right checksum, and one that begins with a zero byte is sent as it stands behind that. Returns
/// how the client ended the session, `None` when it did not.
///
/// It must return, in time that `target` bounds, whatever the bytes.
///
/// # Panics
/// When an answer is not made of whole packets, or a sensible question at the end has no answer.
pub fn conversation(bytes: &[u8], target: &mut dyn Target) -> Option<Ended> {
    let signals = Signals::default();
    let said = RefCell::new(Vec::new());
    let send = |bytes: &[u8]| {
        said.borrow_mut().extend_from_slice(bytes);
        Ok(())
    };
    let mut unheard = |_: &str| {};
    let mut session = Session::new(target, &send, &signals, &mut unheard);
    let (mut framer, mut packets, mut last) = (Framer::default(), 0, Vec::new());
    let mut hear = |bytes: &[u8]| {
        for byte in bytes {
            let event = match framer.push(*byte) {
                // An interrupt while nothing runs is none.
                None | Some(Frame::Interrupt) => continue,
                Some(Frame::Packet(body)) => {
                    packets += 1;
                    Event::Packet(body, packets)
                }
                Some(Frame::Damaged) => Event::Damaged,
                Some(Frame::Nack) => Event::Nack,
            };
            let ended = session.handle(event);
            last = said.take();
            whole(&last);
            if ended.is_some() {
                return ended;
            }
        }
        None
    };
    for line in bytes.split(|byte| *byte == b'\n') {
        let ended = match line {
            [0, raw @ ..] => hear(raw),
            body => hear(&framing::encode(body)),
        };
        if ended.is_some() {
            return ended;
        }
    }
    let ended = hear(&framing::encode(b"qAttached"));
    assert_eq!(ended, None);
    assert!(last.ends_with(&framing::encode(b"1")), "{}", String::from_utf8_lossy(&last));
    None
}

/// Complains unless this is acknowledgements and whole packets.
fn whole(answer: &[u8]) {
    let mut framer = Framer::default();
    let frames: Vec<Frame> = answer.iter().filter_map(|byte| framer.push(*byte)).collect();
    let damaged = frames.contains(&Frame::Damaged) || frames.contains(&Frame::Interrupt);
    assert!(!damaged && framer.is_between(), "{}", String::from_utf8_lossy(answer));
}
