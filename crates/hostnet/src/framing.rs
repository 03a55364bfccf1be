//! QEMU's framing of a byte stream: a frame's length in bytes as 32 bits, big-endian, then the
//! frame (QEMU, `net/stream.c`, also what passt speaks).

use crate::FRAME_BYTES;

const LENGTH_BYTES: usize = 4;

/// The length that stands before a frame.
pub fn header(frame: &[u8]) -> [u8; LENGTH_BYTES] {
    (frame.len() as u32).to_be_bytes()
}

/// Cuts a byte stream into frames, however the stream is chopped up.
///
/// Holds at most one incomplete frame. After an error the stream has lost its boundaries, and the
/// deframer must not be used further.
#[derive(Debug, Default)]
pub struct Deframer {
    /// A length and the begin of its frame, or a part of these.
    partial: Vec<u8>,
}

/// A length beyond [`FRAME_BYTES`]: the peer does not speak this framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong {
    /// What the length said.
    pub bytes: u32,
}

impl Deframer {
    /// Takes the next bytes of the stream and calls `each` with every frame that they complete,
    /// runts included.
    pub fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), TooLong> {
        while !bytes.is_empty() {
            if self.partial.is_empty() && bytes.len() >= LENGTH_BYTES {
                // The usual case: a whole frame lies in the bytes, and is not copied on the way.
                let end = LENGTH_BYTES + length(bytes)?;
                if let Some(frame) = bytes.get(LENGTH_BYTES..end) {
                    each(frame);
                    bytes = &bytes[end..];
                    continue;
                }
            }
            let taken = self.missing_bytes()?.min(bytes.len());
            self.partial.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.partial.len() >= LENGTH_BYTES && self.missing_bytes()? == 0 {
                each(&self.partial[LENGTH_BYTES..]);
                self.partial.clear();
            }
        }
        Ok(())
    }

    /// Whether the stream stands between two frames.
    pub fn is_between_frames(&self) -> bool {
        self.partial.is_empty()
    }

    /// How many bytes would complete what has begun: the length, or the frame behind it.
    pub fn missing_bytes(&self) -> Result<usize, TooLong> {
        match self.partial.len() {
            have @ 0..LENGTH_BYTES => Ok(LENGTH_BYTES - have),
            have => Ok(LENGTH_BYTES + length(&self.partial)? - have),
        }
    }
}

/// The length that `bytes`, at least four, begin with.
fn length(bytes: &[u8]) -> Result<usize, TooLong> {
    let announced = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    if announced as usize > *FRAME_BYTES.end() {
        Err(TooLong { bytes: announced })
    } else {
        Ok(announced as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dice::Dice;

    fn stream(frames: &[Vec<u8>]) -> Vec<u8> {
        frames.iter().flat_map(|frame| header(frame).into_iter().chain(frame.iter().copied())).collect()
    }

    #[test]
    fn frames_survive_every_way_of_chopping_the_stream_up() {
        for seed in 0..200 {
            let mut dice = Dice::new(seed, 1);
            let mut roll = |most: usize| dice.below(most + 1);
            let frames: Vec<Vec<u8>> = (0..20)
                .map(|i| {
                    let most = if i == 7 { *FRAME_BYTES.end() } else { 40 };
                    vec![i as u8; roll(most)]
                })
                .collect();
            let stream = stream(&frames);
            let (mut rest, mut got, mut deframer) = (&stream[..], Vec::new(), Deframer::default());
            while !rest.is_empty() {
                let most = if roll(3) == 0 { 100_000 } else { 9 };
                let (now, later) = rest.split_at(roll(most).min(rest.len()));
                deframer.push(now, |frame| got.push(frame.to_vec())).unwrap();
                rest = later;
            }
            assert!(deframer.is_between_frames(), "seed {seed}");
            assert_eq!(got, frames, "seed {seed}");
        }
    }

    #[test]
    fn an_impossible_length_is_refused_as_soon_as_it_is_known() {
        let longest = *FRAME_BYTES.end() as u32;
        for (length, refused) in [(longest, false), (longest + 1, true), (u32::MAX, true), (1 << 31, true)] {
            let bytes = length.to_be_bytes();
            let at_once = Deframer::default().push(&bytes, |_| ());
            let mut deframer = Deframer::default();
            let bytewise = bytes.iter().try_for_each(|byte| deframer.push(&[*byte], |_| ()));
            let expected = if refused { Err(TooLong { bytes: length }) } else { Ok(()) };
            assert_eq!((at_once, bytewise), (expected, expected), "{length}");
        }
    }

    #[test]
    fn what_is_missing_is_known_at_every_byte() {
        let mut deframer = Deframer::default();
        let bytes = stream(&[vec![7; 20]]);
        let missing: Vec<usize> = bytes
            .iter()
            .map(|byte| {
                deframer.push(&[*byte], |_| ()).unwrap();
                deframer.missing_bytes().unwrap()
            })
            .collect();
        let expected: Vec<usize> = [3, 2, 1].into_iter().chain((1..=20).rev()).chain([4]).collect();
        assert_eq!(missing, expected);
    }
}
