//! `--net user`: the passt of this host.

mod support;

use hostnet::{Forward, Net, NetError, Network, Protocol, find_passt};
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::Receiver;
use support::*;

/// Starts the network, or skips the test.
fn open(forwards: &[Forward]) -> Option<(Network, Receiver<()>)> {
    let (wake, rung) = bell();
    match Network::open(&Net::User, forwards, None, wake) {
        Ok(network) => Some((network?, rung)),
        Err(error @ NetError::NoPasst) => {
            skip(&error.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// A port that is most likely free. Found as one for datagrams, since a socket that has listened
/// may live on for a moment in programs that other tests are starting.
fn free_port() -> u16 {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Whether a process runs; one that ended and was not waited for does not.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

/// Has passt name the card's address and the router, and learn the address by seeing it used.
fn configure(network: &Network, rung: &Receiver<()>) -> ([u8; 4], [u8; 4], [u8; 6]) {
    network.send(&dhcp_discover(0x1234_5678));
    let (own, router) = answer(network, rung, |frame| dhcp_offer(frame, 0x1234_5678));
    network.send(&arp_request(own, router));
    let router_mac = answer(network, rung, |frame| arp_reply(frame, router));
    (own, router, router_mac)
}

#[test]
fn passt_answers_dhcp_and_arp_and_ends_with_us() {
    let Some((network, rung)) = open(&[]) else { return };
    let (own, router, router_mac) = configure(&network, &rung);
    assert_ne!(own, [0; 4]);
    assert_ne!(own, router);
    assert_ne!(router_mac, MAC);
    let pid = network.passt_pid().unwrap();
    assert!(runs(pid));
    drop(network);
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "ended and waited for");
}

#[test]
fn a_connection_to_a_forwarded_port_reaches_the_guest() {
    let forward = Forward::tcp(free_port(), 80);
    let Some((network, rung)) = open(&[forward]) else { return };
    let (own, _, router_mac) = configure(&network, &rung);
    let client = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(forward.listens_at()).unwrap();
        let mut text = [0; 5];
        stream.read_exact(&mut text).unwrap();
        text
    });
    let is_syn = |frame: &[u8]| {
        let tcp = frame.get(34..)?;
        let to_port_80 = frame[12..14] == [8, 0] && frame[23] == 6 && tcp.get(2..4)? == [0, 80];
        (to_port_80 && tcp.get(13)? & 0x12 == 2).then(|| frame.to_vec())
    };
    let syn = answer(&network, &rung, is_syn);
    let peer: [u8; 4] = syn[26..30].try_into().unwrap();
    let theirs = u32::from_be_bytes(syn[38..42].try_into().unwrap());
    let segment = |number: u32, flags: u8, data: &[u8]| {
        let acknowledged = theirs.wrapping_add(1).to_be_bytes();
        let head = [&[0, 80][..], &syn[34..36], &number.to_be_bytes(), &acknowledged].concat();
        let mut tcp = [&head[..], &[0x50, flags, 0xff, 0xff, 0, 0, 0, 0], data].concat();
        let pseudo = [&own[..], &peer, &[0, 6], &(tcp.len() as u16).to_be_bytes(), &tcp].concat();
        let sum = checksum(&pseudo);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        ethernet(router_mac, 0x0800, &ipv4(6, own, peer, &tcp))
    };
    network.send(&segment(1000, 0x12, b""));
    // Data may follow at once: passt keeps the handshake's last part back until it has seen some.
    network.send(&segment(1001, 0x18, b"hello"));
    assert_eq!(&client.join().unwrap(), b"hello");
}

#[test]
fn a_datagram_to_a_forwarded_port_reaches_the_guest() {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let forward = Forward { protocol: Protocol::Udp, ..Forward::tcp(port, 53) };
    let Some((network, rung)) = open(&[forward]) else { return };
    configure(&network, &rung);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.send_to(b"a question", forward.listens_at()).unwrap();
    answer(&network, &rung, |frame| {
        let udp = frame.get(34..)?;
        let to_port_53 = frame[12..14] == [8, 0] && frame[23] == 17 && udp.get(2..4)? == [0, 53];
        (to_port_53 && udp.get(8..18)? == b"a question").then_some(())
    });
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let passt = std::env::current_exe().unwrap();
    let error = Network::user(&passt, &[Forward::tcp(port, 80)], || ()).unwrap_err();
    let expected =
        format!("--forward {port}:80: cannot listen at TCP port 127.0.0.1:{port}: Address already in use");
    assert!(error.to_string().starts_with(&expected), "{error}");
}

/// A stand-in for passt, with an end of its own.
fn ending(script: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("passt");
    // Written by a process of its own: a file that is open for writing here could not be run while
    // another test's child still has it.
    let write = "printf '#!/bin/sh\\n%s\\n' \"$2\" > \"$1\" && chmod +x \"$1\"";
    let written = Command::new("sh").args(["-c", write, "sh"]).arg(&program).arg(script).status().unwrap();
    assert!(written.success());
    let error = Network::user(&program, &[], || ()).unwrap_err().to_string();
    error.replace(&program.display().to_string(), "PASST")
}

#[test]
fn a_passt_that_does_not_start_is_quoted_in_one_line() {
    let noise =
        "echo 'Failed to send 47 bytes to syslog' >&2; echo \"Don't run as root. Changing to nobody...\" >&2";
    assert_eq!(ending("exit 1"), "passt (PASST) does not run: it ended without a word");
    assert_eq!(
        ending(&format!("{noise}; echo 'no luck' >&2; exit 1")),
        "passt (PASST) does not run: no luck"
    );
    let message = ending("echo \"Couldn't create user namespace: No space left on device\" >&2; exit 1");
    assert!(message.contains("this host forbids; use --net tap=IF or unix=PATH"), "{message}");
    let message = ending(
        "i=0; while [ $i -lt 3000 ]; do echo \"line $i of a very long complaint\" >&2; i=$((i+1)); done",
    );
    assert!(message.ends_with("line 2999 of a very long complaint") && message.len() < 400, "{message}");
    let missing = Network::user(Path::new("/nowhere/passt"), &[], || ()).unwrap_err();
    assert!(
        missing.to_string().starts_with("passt (/nowhere/passt) does not run: No such file"),
        "{missing}"
    );
}

#[test]
fn a_passt_that_dies_is_reported_and_the_guest_goes_on() {
    let Some((network, rung)) = open(&[]) else { return };
    let pid = network.passt_pid().unwrap();
    Command::new("kill").arg("-9").arg(pid.to_string()).status().unwrap();
    while network.failure().is_none() {
        rung.recv_timeout(PATIENCE).expect("woken at the failure");
    }
    assert_eq!(network.failure().unwrap().to_string(), "passt closed the network connection");
    network.send(&dhcp_discover(1));
    assert_eq!(network.counts().dropped_frames, 1);
}

const HELPER: &str = "HOSTNET_TEST_HOLDS_PASST";

/// The other half of the next test, run in a process of its own.
#[test]
fn holds_passt_until_killed() {
    if std::env::var_os(HELPER).is_some() {
        let (network, _rung) = open(&[]).unwrap();
        println!("\npid {}", network.passt_pid().unwrap());
        std::thread::sleep(PATIENCE * 2);
    }
}

#[test]
fn passt_ends_when_we_are_killed() {
    if let Err(error) = find_passt(None) {
        return skip(&error.to_string());
    }
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holds_passt_until_killed", "--nocapture"])
        .env(HELPER, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    let pid = lines.find_map(|line| line.unwrap().strip_prefix("pid ")?.parse().ok()).unwrap();
    assert!(runs(pid));
    holder.kill().unwrap();
    holder.wait().unwrap();
    eventually("passt ends", || !runs(pid));
}
