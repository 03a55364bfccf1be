//! What can go wrong with the network, each as one line that says what to do next.

use crate::{FRAME_BYTES, Forward, Protocol};
use std::io;
use std::path::PathBuf;

/// Why there is no network, or no longer one.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// passt is not installed.
    #[error("--net user needs the program passt; get it with: apt-get install passt")]
    NoPasst,
    /// passt cannot be started, or ended before it was ready.
    #[error("passt ({}) does not run: {reason}", program.display())]
    Passt {
        /// The program.
        program: PathBuf,
        /// What it said, and what may help.
        reason: String,
    },
    /// A forwarded port cannot be listened at.
    #[error(
        "--forward {forward}: cannot listen at {} port {}: {source}",
        name(forward.protocol), forward.listens_at()
    )]
    Port {
        /// The forward as it was given.
        forward: Forward,
        /// The host's reason.
        source: io::Error,
    },
    /// There is no such interface.
    #[error(
        "--net tap={name}: no interface {name}; make one with: ip tuntap add {name} mode tap user $USER && \
         ip link set {name} up"
    )]
    NoInterface {
        /// The interface's name.
        name: String,
    },
    /// A tap interface cannot be used.
    #[error("--net tap={name}: {reason}")]
    Tap {
        /// The interface's name.
        name: String,
        /// What is wrong, and what may help.
        reason: String,
    },
    /// Nobody listens at the socket.
    #[error("--net unix={}: {source}", path.display())]
    Unix {
        /// The socket's path.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// The peer went away. Frames to it are dropped from now on.
    #[error("{peer} closed the network connection{said}")]
    Closed {
        /// Who.
        peer: String,
        /// Its last words, with a leading colon, or nothing.
        said: String,
    },
    /// The peer went away within a frame.
    #[error("{peer} closed the network connection within a frame: {missing_bytes} bytes are missing")]
    Torn {
        /// Who.
        peer: String,
        /// How many bytes should have followed; with the length itself torn, those of the length.
        missing_bytes: usize,
    },
    /// The peer announced a frame that cannot be one.
    #[error(
        "{peer} announced a frame of {bytes} bytes, the most is {}; it does not speak QEMU's framing",
        FRAME_BYTES.end()
    )]
    TooLong {
        /// Who.
        peer: String,
        /// The length it announced.
        bytes: u32,
    },
    /// The host's operating system refused.
    #[error("network ({peer}): {source}")]
    Io {
        /// Who is at the other end.
        peer: String,
        /// The host's reason.
        source: io::Error,
    },
}

fn name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    }
}
