//! `debug`: gdb on a recording.

use crate::cli::Debug;
use crate::failure::Failure;
use crate::library::Library;
use crate::session::{Listen, Machine, Ready, machine};
use crate::stop::Stop;
use std::net::ToSocketAddrs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// `hindsight debug`
pub fn debug(options: &Debug) -> Result<u8, Failure> {
    let listen = options.listen.as_deref().map(parse_address).transpose()?;
    let recording = Library::of_user()?.find(options.recording.as_deref())?;
    for symbols in &options.symbols {
        let cannot = |error| Failure::usage(format!("--symbols {}: {error}", symbols.display()));
        std::fs::File::open(symbols).map_err(cannot)?;
    }
    match listen {
        Some(listen) => serve(options, &recording, &listen),
        None => start_gdb(options, &recording),
    }
}

/// Serves until the client leaves or a signal ends it.
fn serve(options: &Debug, recording: &Path, listen: &Listen) -> Result<u8, Failure> {
    let stop = Stop::new();
    stop.on_signals()?;
    let mut ready = |ready: &Ready| {
        if let Some(symbols) = &ready.symbols {
            eprintln!("hindsight: in gdb: add-symbol-file {}", symbols.display());
        }
        eprintln!("hindsight: in gdb: target remote {}", ready.address);
    };
    machine().debug(recording, options.at, &options.symbols, listen, &mut ready, &stop)?;
    Ok(0)
}

/// Starts gdb in the foreground and serves it over a socket that only this user can reach.
fn start_gdb(options: &Debug, recording: &Path) -> Result<u8, Failure> {
    // Ctrl-C at the terminal goes to gdb and to us; it is gdb's.
    let ignored = Arc::new(AtomicBool::new(false));
    let cannot = |error| Failure::host(format!("cannot watch signals: {error}"));
    signal_hook::flag::register(signal_hook::consts::SIGINT, ignored).map_err(cannot)?;
    let folder = PrivateFolder::new()?;
    let listen = Listen::Unix(folder.0.join("gdb"));
    let mut gdb: Option<Result<Child, std::io::Error>> = None;
    let stop = Stop::new();
    let script = folder.0.join("commands");
    let mut ready = |ready: &Ready| {
        let mut command = Command::new("gdb");
        command.arg("-q").arg("-x").arg(&script);
        let written = std::fs::write(&script, &ready.script);
        let started = written.and_then(|()| command.spawn());
        if started.is_err() {
            stop.request(crate::stop::Reason::Left);
        }
        gdb = Some(started);
    };
    let served = machine().debug(recording, options.at, &options.symbols, &listen, &mut ready, &stop);
    match gdb {
        Some(Ok(mut child)) => {
            if served.is_err() {
                // gdb is without its machine; it would only say that the connection is lost.
                let _ = child.kill();
            }
            let _ = child.wait();
            served.map(|()| 0)
        }
        Some(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(Failure::usage("gdb is missing; get it with: apt-get install gdb, or use --listen"))
        }
        Some(Err(error)) => Err(Failure::host(format!("gdb does not start: {error}"))),
        None => served.map(|()| 0),
    }
}

/// A folder of mode 0700 that goes away with the value.
struct PrivateFolder(PathBuf);

impl PrivateFolder {
    fn new() -> Result<Self, Failure> {
        let base = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let path = base.join(format!("hindsight-{}", std::process::id()));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| Failure::host(format!("{}: {error}", path.display())))?;
        Ok(Self(path))
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `HOST:PORT`, `:PORT` on the loopback address, or a path with a `/`.
fn parse_address(text: &str) -> Result<Listen, Failure> {
    let wrong =
        || Failure::usage(format!("--listen {text}: an address is HOST:PORT, :PORT or the path of a socket"));
    if text.contains('/') {
        return Ok(Listen::Unix(text.into()));
    }
    let local = if text.starts_with(':') { format!("127.0.0.1{text}") } else { text.to_owned() };
    let mut addresses = local.to_socket_addrs().map_err(|_| wrong())?;
    addresses.next().map(Listen::Tcp).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(parse_address(":1234").unwrap(), Listen::Tcp(([127, 0, 0, 1], 1234).into()));
        assert_eq!(parse_address("[::1]:0").unwrap(), Listen::Tcp("[::1]:0".parse().unwrap()));
        assert_eq!(parse_address("./sock").unwrap(), Listen::Unix("./sock".into()));
        for wrong in ["", "1234", "x:", ":65536", ":"] {
            assert_eq!(parse_address(wrong).unwrap_err().status(), Failure::USAGE, "{wrong}");
        }
    }
}
