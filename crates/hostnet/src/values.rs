//! What `--net` and `--forward` say.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// Where the guest's network card leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Net {
    /// There is no card.
    None,
    /// To the host's network through passt, without root.
    User,
    /// To a tap interface of the host.
    Tap(String),
    /// To a stream socket with QEMU's framing.
    Unix(PathBuf),
}

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "none" => Ok(Net::None),
            None if text == "user" => Ok(Net::User),
            // Linux's IFNAMSIZ is 16 with the closing zero.
            Some(("tap", name)) if (1..16).contains(&name.len()) && !name.contains(['/', '\0', '%']) => {
                Ok(Net::Tap(name.to_owned()))
            }
            Some(("unix", path)) if !path.is_empty() => Ok(Net::Unix(path.into())),
            _ => Err("a network is none, user, tap=INTERFACE or unix=PATH".to_owned()),
        }
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Net::None => f.write_str("none"),
            Net::User => f.write_str("user"),
            Net::Tap(name) => write!(f, "tap={name}"),
            Net::Unix(path) => write!(f, "unix={}", path.display()),
        }
    }
}

/// What a forwarded port carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A port of the host that leads to one of the guest: `[tcp:|udp:][ADDRESS:]HOST:GUEST`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// TCP when nothing is said.
    pub protocol: Protocol,
    /// The host's address that listens; IPv4's loopback when nothing is said. IPv6 addresses are
    /// written in brackets.
    pub address: IpAddr,
    /// The port on the host.
    pub host: u16,
    /// The port in the guest.
    pub guest: u16,
}

impl Forward {
    /// A TCP port of the host's loopback address.
    pub fn tcp(host: u16, guest: u16) -> Self {
        Self { protocol: Protocol::Tcp, address: Ipv4Addr::LOCALHOST.into(), host, guest }
    }

    /// Where the host listens.
    pub fn listens_at(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.host)
    }
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            "a forward is [tcp:|udp:][ADDRESS:]HOST:GUEST with two ports from 1 to 65535, such as 8080:80 or \
             udp:0.0.0.0:5353:53"
                .to_owned()
        };
        let port = |text: &str| {
            let plain = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|port| plain && *port != 0).ok_or_else(wrong)
        };
        let (protocol, rest) = match text.split_once(':') {
            Some(("tcp", rest)) => (Protocol::Tcp, rest),
            Some(("udp", rest)) => (Protocol::Udp, rest),
            _ => (Protocol::Tcp, text),
        };
        let (rest, guest) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let (address, host) = match rest.rsplit_once(':') {
            None => (Ipv4Addr::LOCALHOST.into(), rest),
            Some((address, host)) => {
                let address = match address.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
                    Some(v6) => v6.parse().map(IpAddr::V6).map_err(|_| wrong())?,
                    None => address.parse().map(IpAddr::V4).map_err(|_| wrong())?,
                };
                (address, host)
            }
        };
        Ok(Self { protocol, address, host: port(host)?, guest: port(guest)? })
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.protocol == Protocol::Udp {
            f.write_str("udp:")?;
        }
        if self.address != Ipv4Addr::LOCALHOST {
            write!(f, "{}:{}", self.listens_at(), self.guest)
        } else {
            write!(f, "{}:{}", self.host, self.guest)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        assert_eq!("tap=tap0".parse(), Ok(Net::Tap("tap0".into())));
        assert_eq!("unix=/run/a=b".parse(), Ok(Net::Unix("/run/a=b".into())));
        for wrong in
            ["", "tap", "tap=", "tap=a/b", "tap=t%d", "tap=abcdefghijklmnop", "unix=", "users", "none=1"]
        {
            assert!(wrong.parse::<Net>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn forwards_are_tcp_on_the_loopback_unless_told_otherwise() {
        assert_eq!("8080:80".parse(), Ok(Forward::tcp(8080, 80)));
        assert_eq!("tcp:8080:80".parse(), Ok(Forward::tcp(8080, 80)));
        let forward: Forward = "udp:0.0.0.0:5353:53".parse().unwrap();
        assert_eq!(
            (forward.protocol, forward.listens_at()),
            (Protocol::Udp, "0.0.0.0:5353".parse().unwrap())
        );
        let forward: Forward = "[::1]:2222:22".parse().unwrap();
        assert_eq!((forward.listens_at(), forward.guest), ("[::1]:2222".parse().unwrap(), 22));
        for text in ["8080:80", "udp:53:5353", "0.0.0.0:1:2", "udp:[fe80::1]:1:2"] {
            assert_eq!(text.parse::<Forward>().unwrap().to_string(), text);
        }
        for wrong in [
            "",
            "80",
            "80:",
            "0:80",
            "1:65536",
            "a:b",
            "1:2:3",
            "+1:2",
            "udp:",
            "udp:1",
            "sctp:1:2",
            "::1:1:2",
            "[::1:1:2",
            "[127.0.0.1]:1:2",
            ":1:2",
            "localhost:1:2",
        ] {
            assert!(wrong.parse::<Forward>().is_err(), "{wrong}");
        }
    }
}
