//! Frames made by hand, and waiting for answers.
#![allow(dead_code, reason = "each test program uses its share")]

use hostnet::Network;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// The card's address.
pub const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
pub const BROADCAST: [u8; 6] = [0xff; 6];
/// How long anything may take on a busy host.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A wake callback and where its calls arrive.
pub fn bell() -> (impl Fn() + Send + 'static, Receiver<()>) {
    let (ring, rung) = channel();
    (move || _ = ring.send(()), rung)
}

/// Takes frames until one is wanted, sleeping until woken in between as a machine does.
pub fn answer<T>(network: &Network, rung: &Receiver<()>, wanted: impl Fn(&[u8]) -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        while let Some(frame) = network.receive() {
            if let Some(answer) = wanted(&frame) {
                return answer;
            }
        }
        if let Some(failure) = network.failure() {
            panic!("the network failed: {failure}");
        }
        let left = end.saturating_duration_since(Instant::now());
        rung.recv_timeout(left).expect("an answer in time");
    }
}

/// Waits until something holds.
pub fn eventually(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn ethernet(to: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &MAC, &kind.to_be_bytes(), payload].concat()
}

/// Who has `wanted`? Tell `own`.
pub fn arp_request(own: [u8; 4], wanted: [u8; 4]) -> Vec<u8> {
    let payload = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &MAC, &own, &[0; 6], &wanted].concat();
    ethernet(BROADCAST, 0x0806, &payload)
}

/// The hardware address in an ARP reply about `wanted`.
pub fn arp_reply(frame: &[u8], wanted: [u8; 4]) -> Option<[u8; 6]> {
    let is_reply = frame.get(12..14)? == [8, 6] && frame.get(20..22)? == [0, 2];
    (is_reply && frame.get(28..32)? == wanted).then(|| frame[22..28].try_into().unwrap())
}

/// The Internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

pub fn ipv4(protocol: u8, from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len()) as u16;
    let mut header =
        [&[0x45, 0][..], &length.to_be_bytes(), &[0, 0, 0, 0, 64, protocol, 0, 0], &from, &to].concat();
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [header, payload.to_vec()].concat()
}

/// DHCPDISCOVER from the card (RFC 2131).
pub fn dhcp_discover(transaction: u32) -> Vec<u8> {
    let mut bootp = vec![0; 236];
    bootp[..4].copy_from_slice(&[1, 1, 6, 0]);
    bootp[4..8].copy_from_slice(&transaction.to_be_bytes());
    bootp[10] = 0x80;
    bootp[28..34].copy_from_slice(&MAC);
    bootp.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 55, 3, 1, 3, 6, 255]);
    let length = (8 + bootp.len()) as u16;
    let udp = [&[0, 68, 0, 67][..], &length.to_be_bytes(), &[0, 0], &bootp].concat();
    ethernet(BROADCAST, 0x0800, &ipv4(17, [0; 4], [255; 4], &udp))
}

/// The address that a DHCPOFFER has for us, and the router it names.
pub fn dhcp_offer(frame: &[u8], transaction: u32) -> Option<([u8; 4], [u8; 4])> {
    let bootp = frame.get(14 + 20 + 8..)?;
    let is_reply = frame.get(12..14)? == [8, 0] && frame.get(23) == Some(&17) && bootp.first() == Some(&2);
    if !is_reply || bootp.get(4..8)? != transaction.to_be_bytes() {
        return None;
    }
    let mut options = bootp.get(240..)?;
    let (mut offers, mut router) = (false, None);
    while let [code, length, rest @ ..] = options {
        let value = rest.get(..*length as usize)?;
        match code {
            53 => offers = value == [2],
            3 => router = value.get(..4).and_then(|value| value.try_into().ok()),
            255 => break,
            _ => (),
        }
        options = &rest[value.len()..];
    }
    offers.then_some((bootp[16..20].try_into().unwrap(), router?))
}

/// Skips a test that the host cannot run; with `CI=true` that is a failure.
pub fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
    eprintln!("skipped: {why}");
}
