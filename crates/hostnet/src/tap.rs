//! Tap interfaces (Linux, `Documentation/networking/tuntap.rst`).

use crate::{NetError, sys};
use rustix::net::netdevice;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;

const CONTROL: &str = "/dev/net/tun";

/// Opens a tap interface that exists. Frames have neither a packet-information nor a virtio
/// header.
pub fn open(name: &str) -> Result<File, NetError> {
    let refuse = |reason: String| NetError::Tap { name: name.to_owned(), reason };
    let control = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(CONTROL);
    let file = control.map_err(|error| {
        refuse(match error.kind() {
            io::ErrorKind::NotFound => format!("this host has no {CONTROL} (modprobe tun)"),
            _ => format!("{CONTROL}: {error}"),
        })
    })?;
    // For an unknown name, TUNSETIFF would make an interface that leads nowhere, and goes with us.
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None);
    let known = socket.and_then(|socket| netdevice::name_to_index(socket, name));
    if known.is_err() {
        return Err(NetError::NoInterface { name: name.to_owned() });
    }
    sys::attach_tap(&file, name).map_err(|error| {
        refuse(match error.raw_os_error() {
            Some(libc::EPERM) => {
                format!("not permitted; give it to your user: ip tuntap add {name} mode tap user $USER")
            }
            Some(libc::EBUSY) => "another program uses it".to_owned(),
            Some(libc::EINVAL) => "not a tap interface with one queue".to_owned(),
            _ => error.to_string(),
        })
    })?;
    Ok(file)
}
