//! Where gdb connects: a TCP port or a Unix socket.

use crate::wire::Stream;
use rustix::event::{PollFd, PollFlags, poll};
use std::fmt;
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// An address as `--listen` takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `HOST:PORT`; without a host, this machine only.
    Tcp(String),
    /// `unix:PATH`.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
        if port.parse::<u16>().is_err() {
            return Err(format!("\"{text}\" is not an address; it is HOST:PORT, :PORT or unix:PATH"));
        }
        Ok(Self::Tcp(format!("{}:{port}", if host.is_empty() { "127.0.0.1" } else { host })))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// A socket that gdb can connect to.
pub struct Listener {
    socket: Socket,
    pub(crate) wake: UnixStream,
    stopper: Stopper,
}

/// Ends [`crate::serve`] from another thread.
#[derive(Clone)]
pub struct Stopper {
    wake: Arc<UnixStream>,
    asked: Arc<AtomicBool>,
}

impl Stopper {
    /// Makes `serve` return soon, also while the machine runs or nobody is connected.
    pub fn stop(&self) {
        self.asked.store(true, Ordering::SeqCst);
        self.wake();
    }
    pub(crate) fn asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }
    pub(crate) fn wake(&self) {
        // A full socket is as good as another byte in it.
        let _ = (&*self.wake).write(&[0]);
    }
}

impl Listener {
    /// Opens the socket. Errors: the address is in use, not ours, or not permitted.
    pub fn bind(address: &Address) -> io::Result<Self> {
        let socket = match address {
            Address::Tcp(address) => Socket::Tcp(TcpListener::bind(address)?),
            Address::Unix(path) => Socket::Unix(UnixListener::bind(path)?, path.clone()),
        };
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let stopper = Stopper { wake: Arc::new(waker), asked: Arc::default() };
        let listener = Self { socket, wake, stopper };
        listener.set_nonblocking()?;
        Ok(listener)
    }

    fn set_nonblocking(&self) -> io::Result<()> {
        match &self.socket {
            Socket::Tcp(socket) => socket.set_nonblocking(true),
            Socket::Unix(socket, _) => socket.set_nonblocking(true),
        }
    }

    /// What gdb's `target remote` takes to get here.
    pub fn address(&self) -> io::Result<String> {
        match &self.socket {
            Socket::Tcp(socket) => Ok(socket.local_addr()?.to_string()),
            Socket::Unix(_, path) => Ok(path.display().to_string()),
        }
    }

    /// A handle that ends [`crate::serve`] on this listener.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(socket) => socket.as_fd(),
            Socket::Unix(socket, _) => socket.as_fd(),
        }
    }

    /// The next client if one waits.
    pub(crate) fn accept(&self) -> io::Result<Option<Stream>> {
        let accepted = match &self.socket {
            Socket::Tcp(socket) => socket.accept().map(|(stream, _)| Stream::Tcp(stream)),
            Socket::Unix(socket, _) => socket.accept().map(|(stream, _)| Stream::Unix(stream)),
        };
        match accepted {
            Ok(stream) => {
                stream.prepare()?;
                Ok(Some(stream))
            }
            Err(error) if is_passing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits for a client; `None` when asked to stop.
    pub(crate) fn wait(&self) -> io::Result<Option<Stream>> {
        loop {
            if self.stopper.asked() {
                return Ok(None);
            }
            if let Some(stream) = self.accept()? {
                return Ok(Some(stream));
            }
            let (listener, wake) = (self.fd(), self.wake.as_fd());
            let mut fds = [
                PollFd::from_borrowed_fd(listener, PollFlags::IN),
                PollFd::from_borrowed_fd(wake, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Whether an error of `accept` concerns just that one client, or nobody waits.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted | ConnectionAborted | ConnectionReset)
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix(_, path) = &self.socket {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_local_unless_a_host_is_named() {
        let address = |text: &str| text.parse::<Address>().ok().map(|address| address.to_string());
        assert_eq!(address(":1234").as_deref(), Some("127.0.0.1:1234"));
        assert_eq!(address("1234").as_deref(), Some("127.0.0.1:1234"));
        assert_eq!(address("0.0.0.0:1").as_deref(), Some("0.0.0.0:1"));
        assert_eq!(address("unix:/tmp/x").as_deref(), Some("unix:/tmp/x"));
        for wrong in ["", "unix:", "localhost", ":70000", "a:b"] {
            assert_eq!(address(wrong), None, "{wrong}");
        }
    }
}
