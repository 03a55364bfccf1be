//! Stream sockets of the host.

use crate::NetError;
use rustix::net::sockopt::set_socket_send_buffer_size;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// What the host may keep of a stream, in each direction, before we have to; it grants less when
/// its limits are lower (`net.core.wmem_max`).
const SOCKET_BYTES: usize = 1 << 20;

/// Connects to a socket at which someone listens.
pub fn connect(path: &Path) -> Result<UnixStream, NetError> {
    let failed = |source| NetError::Unix { path: path.to_path_buf(), source };
    let stream = UnixStream::connect(path).map_err(failed)?;
    prepare(&stream).map_err(failed)?;
    Ok(stream)
}

/// Two ends of a new stream: ours, and one to give away.
pub fn pair() -> io::Result<(UnixStream, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    prepare(&ours)?;
    let _ = set_socket_send_buffer_size(&theirs, SOCKET_BYTES);
    Ok((ours, theirs))
}

fn prepare(stream: &UnixStream) -> io::Result<()> {
    let _ = set_socket_send_buffer_size(stream, SOCKET_BYTES);
    stream.set_nonblocking(true)
}
