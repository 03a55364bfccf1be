//! passt, the program that leads the guest's frames to ordinary sockets of the host.
//!
//! It gets one end of a socket pair (`--fd`), so there is no path to clash or to clean up, and it
//! ends by itself once our end closes (`--fd` implies `--one-off`), however we ended. A
//! parent-death signal would be no help: the kernel forgets it when passt changes its user and its
//! namespace, which it always does, and it would follow the thread that started passt instead of
//! the process.
//!
//! Started as root, passt becomes `nobody`, after it has opened the forwarded ports. It locks
//! itself up in a user namespace and has no option not to; where the host forbids these, it ends
//! with a message, and there is only `tap` or `unix`.
//!
//! **When is it ready?** passt does not say. So it is sent a frame that means nothing to anyone
//! (an EtherType for experiments, from and to the broadcast address, which passt takes the guest's
//! to be before it knows better), and is ready when it has taken that out of the socket: by then
//! it has its addresses, its ports and its prison.

use crate::{Forward, NetError, Protocol, framing, stream, sys};
use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long passt may take until it serves, on a very busy host.
const START_MAX: Duration = Duration::from_secs(20);
/// How long to wait for the last words of a passt that has closed its end.
const LAST_WORDS_MAX: Duration = Duration::from_millis(500);
/// Lines of complaint kept, and bytes of each.
const COMPLAINTS_MAX: usize = 4;
const COMPLAINT_BYTES_MAX: u64 = 400;

const SILENT_END: &str = "it ended without a word";

/// IEEE 802 local experimental EtherType 1.
const ETHERTYPE_EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];

/// Where passt is: on the PATH, or in `spare`.
pub fn find(spare: Option<&Path>) -> Result<PathBuf, NetError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|folder| folder.join("passt"));
    in_path
        .chain(spare.map(Path::to_path_buf))
        .find(|file| file.is_file())
        .and_then(|file| std::path::absolute(file).ok())
        .ok_or(NetError::NoPasst)
}

/// A running passt, ended when dropped.
#[derive(Debug)]
pub struct Passt {
    child: Child,
    complaints: Complaints,
}

impl Passt {
    /// Starts the passt at `program`, and returns it with our end of the stream once it serves.
    pub fn start(program: &Path, forwards: &[Forward]) -> Result<(Self, UnixStream), NetError> {
        let failed = |reason: String| NetError::Passt { program: program.to_path_buf(), reason };
        let cannot = |error: io::Error| failed(error.to_string());
        try_ports(forwards)?;
        let (ours, theirs) = stream::pair().map_err(cannot)?;
        let mut command = Command::new(program);
        command.args(["--foreground", "--quiet", "--fd", &theirs.as_raw_fd().to_string()]);
        for forward in forwards {
            command.args([option(forward.protocol).to_owned(), port_spec(forward)]);
        }
        sys::inherit(&mut command, theirs.as_raw_fd());
        // In a process group of its own, a Ctrl-C at the terminal does not reach it before us.
        command.process_group(0).current_dir("/").env("LC_ALL", "C.UTF-8");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(cannot)?;
        drop(theirs);
        let complaints = Complaints::default();
        let stderr = child.stderr.take();
        let passt = Self { child, complaints: complaints.clone() };
        let listener = thread::Builder::new().name("passt's errors".to_owned());
        listener.spawn(move || complaints.listen(stderr)).map_err(cannot)?;
        match passt.wait_until_it_serves(&ours) {
            Ok(()) => Ok((passt, ours)),
            Err(reason) => Err(failed(explain(&reason))),
        }
    }

    fn wait_until_it_serves(&self, ours: &UnixStream) -> Result<(), String> {
        let mut frame = [0xff; 60];
        frame[12..14].copy_from_slice(&ETHERTYPE_EXPERIMENTAL);
        frame[14..].fill(0);
        let packet = [&framing::header(&frame)[..], &frame].concat();
        // Rust's runtime ignores SIGPIPE, and the new stream has room.
        (&*ours).write_all(&packet).map_err(|_| self.last_words(SILENT_END))?;
        let begin = Instant::now();
        loop {
            let unread = sys::unread_by_peer(ours).map_err(|error| error.to_string())?;
            let ended = match ours.peek_one() {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
                Err(_) => true,
            };
            if ended {
                return Err(self.last_words(SILENT_END));
            }
            if unread == 0 {
                return Ok(());
            }
            if begin.elapsed() > START_MAX {
                return Err(self.last_words(&format!("not ready after {} s", START_MAX.as_secs())));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn last_words(&self, otherwise: &str) -> String {
        self.complaints.last_words().unwrap_or_else(|| otherwise.to_owned())
    }

    /// What it says on its standard error.
    pub fn complaints(&self) -> Complaints {
        self.complaints.clone()
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks into a stream without taking anything.
trait PeekOne {
    /// The next byte; an error of kind `UnexpectedEof` at the end.
    fn peek_one(&self) -> io::Result<u8>;
}

impl PeekOne for UnixStream {
    fn peek_one(&self) -> io::Result<u8> {
        let mut byte = [0];
        let (bytes, _) = rustix::net::recv(self, &mut byte, rustix::net::RecvFlags::PEEK)?;
        if bytes == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(byte[0]) }
    }
}

/// Binds every port once as passt will, for a better message than passt's.
///
/// Only bound and not listening, our sockets do not stand in passt's way, even if a program that
/// another thread is just starting has copies of them for a moment.
fn try_ports(forwards: &[Forward]) -> Result<(), NetError> {
    for forward in forwards {
        let kind = match forward.protocol {
            Protocol::Tcp => SocketType::STREAM,
            Protocol::Udp => SocketType::DGRAM,
        };
        let family = if forward.address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None);
        let tried = socket.and_then(|socket| {
            set_socket_reuseaddr(&socket, true)?;
            rustix::net::bind(&socket, &forward.listens_at())
        });
        tried.map_err(|errno| NetError::Port { forward: *forward, source: errno.into() })?;
    }
    Ok(())
}

fn option(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "--tcp-ports",
        Protocol::Udp => "--udp-ports",
    }
}

/// In passt's words.
fn port_spec(forward: &Forward) -> String {
    format!("{}/{}:{}", forward.address, forward.host, forward.guest)
}

/// Adds what may help to the complaints that come up in practice.
fn explain(said: &str) -> String {
    let help = if said.contains("user namespace") {
        " (it needs user namespaces, which this host forbids; use --net tap=IF or unix=PATH)"
    } else if said.contains("routable interface") || said.contains("interface not usable") {
        " (this host has no default route that the guest could use)"
    } else {
        ""
    };
    format!("{said}{help}")
}

/// What passt has said, without the chatter. Copies share it.
#[derive(Clone, Debug, Default)]
pub struct Complaints(Arc<(Mutex<Said>, Condvar)>);

#[derive(Debug, Default)]
struct Said {
    lines: VecDeque<String>,
    ended: bool,
}

impl Complaints {
    /// Reads to the end, so that passt never has to wait for us.
    fn listen(&self, stderr: Option<ChildStderr>) {
        if let Some(stderr) = stderr {
            self.listen_to(BufReader::new(stderr));
        }
        self.lock().ended = true;
        self.0.1.notify_all();
    }

    fn listen_to(&self, mut reader: impl BufRead) {
        let mut line = Vec::new();
        while let Ok(1..) = (&mut reader).take(COMPLAINT_BYTES_MAX).read_until(b'\n', &mut line) {
            if let Some(line) = telling(&String::from_utf8_lossy(&line)) {
                let lines = &mut self.lock().lines;
                if lines.len() == COMPLAINTS_MAX {
                    lines.pop_front();
                }
                lines.push_back(line);
            }
            line.clear();
        }
    }

    /// Waits for passt's end, though not forever, and returns its last lines as one.
    pub fn last_words(&self) -> Option<String> {
        let (said, changed) = &*self.0;
        let said = said.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_timeout_while(said, LAST_WORDS_MAX, |said| !said.ended);
        let (said, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<&str> = said.lines.iter().map(String::as_str).collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Said> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A line without control characters, unless it is one that passt says of no fault.
fn telling(line: &str) -> Option<String> {
    let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let line = line.trim();
    let chatter = ["Failed to send ", "Don't run as root", "Started as root"];
    let chatter = chatter.iter().any(|begin| line.starts_with(begin))
        && (!line.starts_with("Failed to send ") || line.ends_with("to syslog"));
    (!line.is_empty() && !chatter).then(|| line.to_owned())
}
