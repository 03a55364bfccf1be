//! Names of recordings and of contents.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::io::Read;

macro_rules! hex_bytes {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }
        impl std::str::FromStr for $name {
            type Err = &'static str;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let mut bytes = [0; $len];
                if text.len() != 2 * $len || !text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
                    return Err(concat!("expected ", $len, " bytes in lower-case hexadecimal"));
                }
                for (i, byte) in bytes.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| "not hexadecimal")?;
                }
                Ok(Self(bytes))
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

hex_bytes! {
    /// What tells one recording from every other; in the manifest and in the head of every log.
    RecordingId, 16
}
hex_bytes! {
    /// A BLAKE3 hash of a file's contents.
    ContentHash, 32
}
hex_bytes! {
    /// The first 16 bytes of a BLAKE3 hash: of a part of the machine's state, or of a chunk.
    Digest, 16
}

impl RecordingId {
    /// A new identity, from the host's entropy. It is a name only: nothing in the guest sees it.
    pub fn fresh() -> std::io::Result<Self> {
        let mut id = [0; 16];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut id)?;
        Ok(Self(id))
    }
}

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_hash(&blake3::hash(bytes))
    }
    /// The first half of a hash.
    pub fn from_hash(hash: &blake3::Hash) -> Self {
        Self(hash.as_bytes()[..16].try_into().expect("16 of 32 bytes"))
    }
}
