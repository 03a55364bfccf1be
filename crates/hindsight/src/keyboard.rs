//! Standard input on its way to the guest: a thread reads it, so that the machine never waits.
//!
//! At a terminal, Ctrl-A is the way to talk to Hindsight instead: `Ctrl-A x` leaves, `Ctrl-A h`
//! helps, `Ctrl-A Ctrl-A` sends a Ctrl-A. Piped input passes unchanged.

use crate::failure::Failure;
use crate::stop::{Reason, Stop, spawn};
use std::io::{ErrorKind, Read};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};

const CTRL_A: u8 = 0x01;
const HELP: &str = "\r\nCtrl-A x  leave\r\nCtrl-A h  this help\r\nCtrl-A Ctrl-A  send Ctrl-A\r\n";
const CHUNK_BYTES: usize = 4096;
/// Input waits in the host until the guest takes it; more chunks than these stay unread.
const CHUNKS_MAX: usize = 16;

/// What standard input brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Bytes for the guest's console.
    Bytes(Vec<u8>),
    /// There will be no more. A job in [`guest::job::Mode::Pipe`] is told by [`end_of_input`].
    End,
}

/// The bytes that tell a job in [`guest::job::Mode::Pipe`] that its input is over: one Control-D
/// at the start of a line; in its middle the first only passes the line on.
pub fn end_of_input(last: Option<u8>) -> &'static [u8] {
    match last {
        None | Some(b'\n') => b"\x04",
        Some(_) => b"\x04\x04",
    }
}

/// Starts reading standard input. `escapes` says that it is a terminal, where Ctrl-A is ours.
pub fn start(escapes: bool, stop: &Stop) -> Result<Receiver<Input>, Failure> {
    let (sender, receiver) = sync_channel(CHUNKS_MAX);
    let stop = stop.clone();
    spawn("keyboard", move || {
        read_all(&mut std::io::stdin(), escapes.then(Escapes::default), &sender, &stop)
    })?;
    Ok(receiver)
}

/// An input that never brings anything.
pub fn silent() -> Receiver<Input> {
    channel().1
}

fn read_all(from: &mut dyn Read, mut escapes: Option<Escapes>, to: &SyncSender<Input>, stop: &Stop) {
    let mut chunk = [0; CHUNK_BYTES];
    loop {
        let bytes = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) => &chunk[..length],
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // A terminal that has gone, or input that cannot be read, is an end too.
            Err(_) => break,
        };
        let bytes = match &mut escapes {
            Some(escapes) => escapes.filter(bytes, &mut |key| obey(key, stop)),
            None => bytes.to_vec(),
        };
        // The machine has ended when nobody receives.
        if !bytes.is_empty() && to.send(Input::Bytes(bytes)).is_err() {
            return;
        }
    }
    let _ = to.send(Input::End);
}

fn obey(key: Key, stop: &Stop) {
    match key {
        Key::Leave => {
            stop.request(Reason::Left);
        }
        Key::Help => eprint!("{HELP}"),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Leave,
    Help,
}

/// Takes our keys out of what is typed.
#[derive(Debug, Default)]
struct Escapes {
    after_ctrl_a: bool,
}

impl Escapes {
    fn filter(&mut self, typed: &[u8], obey: &mut dyn FnMut(Key)) -> Vec<u8> {
        let mut passed = Vec::with_capacity(typed.len());
        for &byte in typed {
            match (std::mem::take(&mut self.after_ctrl_a), byte) {
                (false, CTRL_A) => self.after_ctrl_a = true,
                (false, _) | (true, CTRL_A) => passed.push(byte),
                (true, b'x' | b'X') => obey(Key::Leave),
                (true, b'h' | b'H' | b'?') => obey(Key::Help),
                // Not a key of ours, so it was meant for the guest.
                (true, _) => passed.extend([CTRL_A, byte]),
            }
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_keys_are_taken_out_wherever_reads_fall() {
        for split in 0..=11 {
            let mut keys = Vec::new();
            let mut escapes = Escapes::default();
            let (first, rest) = b"a\x01\x01b\x01hc\x01zd\x01x".split_at(split);
            let mut passed = escapes.filter(first, &mut |key| keys.push(key));
            passed.extend(escapes.filter(rest, &mut |key| keys.push(key)));
            assert_eq!(passed, b"a\x01bc\x01zd");
            assert_eq!(keys, [Key::Help, Key::Leave]);
        }
    }

    #[test]
    fn piped_input_passes_unchanged_and_ends() {
        let (sender, receiver) = sync_channel(CHUNKS_MAX);
        let stop = Stop::new();
        let text: Vec<u8> = (0..=255).cycle().take(10_000).collect();
        read_all(&mut text.as_slice(), None, &sender, &stop);
        drop(sender);
        let mut got = Vec::new();
        let mut ends = 0;
        for input in receiver {
            match input {
                Input::Bytes(bytes) => got.extend(bytes),
                Input::End => ends += 1,
            }
        }
        assert_eq!((got, ends, stop.reason()), (text, 1, None));
    }

    #[test]
    fn leaving_stops_the_run() {
        let (sender, receiver) = sync_channel(CHUNKS_MAX);
        let stop = Stop::new();
        read_all(&mut &b"ls\x01x"[..], Some(Escapes::default()), &sender, &stop);
        assert_eq!(receiver.recv(), Ok(Input::Bytes(b"ls".to_vec())));
        assert_eq!(stop.reason(), Some(Reason::Left));
    }
}
