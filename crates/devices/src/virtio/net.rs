//! Network (virtio 1.2, 5.1): one Ethernet card.
//!
//! Frames leave in the notification that brings them. Frames from outside enter through
//! [`VirtioPci::receive`], wait while the driver has no buffers, and are dropped beyond a fixed
//! number: what is dropped follows from the state and the inputs alone.

use super::queue::{Chain, Queue, QueueError, gather, scatter, total};
use super::transport::{CONFIG_SIZE, Io, VirtioDevice, VirtioPci};
use crate::Cx;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

const F_CSUM: u64 = 1 << 0;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;
const F_CTRL_VQ: u64 = 1 << 17;
const F_CTRL_RX: u64 = 1 << 18;
const F_CTRL_MAC_ADDR: u64 = 1 << 23;

const RX: usize = 0;
const TX: usize = 1;
const HEADER: usize = 12;
const HDR_NEEDS_CSUM: u8 = 1;
const STATUS_LINK_UP: u16 = 1;

const CTRL_RX: u8 = 0;
const CTRL_MAC: u8 = 1;
const CTRL_MAC_TABLE_SET: u8 = 0;
const CTRL_MAC_ADDR_SET: u8 = 1;

/// Bytes of the shortest and the longest frame, without FCS: a bare header, and 64 KiB behind it.
pub const FRAME_BYTES: std::ops::RangeInclusive<usize> = 14..=14 + 4 + 65536;
/// Most frames that wait for the driver.
pub const PENDING_FRAMES_MAX: usize = 512;
/// With so many waiting, whoever brings frames had better wait too: see [`Net::has_room`].
const PENDING_FRAMES_COMFORTABLE: usize = 64;
/// Most bytes that wait for the driver.
pub const PENDING_BYTES_MAX: usize = 2 << 20;

/// The network device.
pub struct Net {
    card: u32,
    mac: [u8; 6],
    mtu: u16,
    fields: Fields,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Fields {
    /// The address the driver has set, if it has.
    mac: Option<[u8; 6]>,
    pending: VecDeque<Vec<u8>>,
    pending_bytes: usize,
}

impl Net {
    /// A card whose frames go to card number `card` of [`Outside`](crate::Outside), with the given
    /// hardware address and largest packet (in bytes, without the Ethernet header).
    pub fn new(card: u32, mac: [u8; 6], mtu: u16) -> Self {
        Self { card, mac, mtu, fields: Fields::default() }
    }

    /// Whether the driver keeps up with the frames that come. When it does not, more would sooner or
    /// later be dropped; a peer that can wait loses nothing by waiting.
    pub fn has_room(&self) -> bool {
        self.fields.pending.len() < PENDING_FRAMES_COMFORTABLE
            && self.fields.pending_bytes < PENDING_BYTES_MAX / 2
    }

    fn enqueue(&mut self, frame: &[u8]) -> bool {
        let fields = &mut self.fields;
        let fits = fields.pending.len() < PENDING_FRAMES_MAX
            && fields.pending_bytes + frame.len() <= PENDING_BYTES_MAX
            && FRAME_BYTES.contains(&frame.len());
        if fits {
            fields.pending_bytes += frame.len();
            fields.pending.push_back(frame.to_vec());
        }
        fits
    }

    fn deliver(&mut self, io: &mut Io) -> Result<(), QueueError> {
        while let Some(frame) = self.fields.pending.front() {
            if !deliver_frame(io, frame)? {
                return io.queues[RX].request_notify(io.cx.ram);
            }
            self.fields.pending_bytes -= frame.len();
            self.fields.pending.pop_front();
        }
        Ok(())
    }

    fn transmit(&self, io: &mut Io) -> Result<(), QueueError> {
        let queue = &mut io.queues[TX];
        let mut buf = Vec::new();
        for _ in 0..queue.available(io.cx.ram)? {
            let chain = queue.take(io.cx.ram)?;
            let len = total(&chain.readable) as usize; // bounded by the queue
            if len < HEADER {
                return Err(QueueError::Shape(chain.head));
            }
            buf.resize(len, 0);
            gather(io.cx.ram, &chain.readable, 0, &mut buf);
            let (header, frame) = buf.split_at_mut(HEADER);
            if FRAME_BYTES.contains(&frame.len()) && prepare(header, frame) {
                io.cx.out.frame(self.card, frame);
            }
            queue.give_back(io.cx.ram, chain.head, 0)?;
        }
        queue.request_notify(io.cx.ram)
    }

    fn control(&mut self, io: &mut Io, queue: usize) -> Result<(), QueueError> {
        let (ram, queue) = (&mut *io.cx.ram, &mut io.queues[queue]);
        for _ in 0..queue.available(ram)? {
            let chain = queue.take(ram)?;
            let mut command = [0; 8];
            let n = gather(ram, &chain.readable, 0, &mut command);
            if n < 2 || total(&chain.writable) == 0 {
                return Err(QueueError::Shape(chain.head));
            }
            let done = match (command[0], command[1]) {
                // Filters: more than asked for may always be delivered (5.1.6.5.1).
                (CTRL_RX, 0 | 1) | (CTRL_MAC, CTRL_MAC_TABLE_SET) => true,
                (CTRL_MAC, CTRL_MAC_ADDR_SET) if n == 8 => {
                    self.fields.mac = Some(command[2..].try_into().expect("6 bytes"));
                    true
                }
                _ => false,
            };
            scatter(ram, &chain.writable, 0, &[u8::from(!done)]);
            queue.give_back(ram, chain.head, 1)?;
        }
        queue.request_notify(ram)
    }
}

/// Puts a frame into the driver's buffers; false when there are not enough of them yet.
fn deliver_frame(io: &mut Io, frame: &[u8]) -> Result<bool, QueueError> {
    let (ram, queue) = (&mut *io.cx.ram, &mut io.queues[RX]);
    let merge = io.features & F_MRG_RXBUF != 0;
    let available = queue.available(ram)?;
    let need = (HEADER + frame.len()) as u64;
    let mut chains: Vec<Chain> = Vec::new();
    let mut room = 0;
    while room < need {
        if chains.len() == usize::from(available) {
            queue.untake(chains.len() as u16);
            return Ok(false);
        }
        let chain = queue.take(ram)?;
        let bytes = total(&chain.writable);
        if bytes < HEADER as u64 {
            return Err(QueueError::Shape(chain.head));
        }
        if !merge && bytes < need {
            queue.untake(1);
            return Ok(true); // does not fit: dropped
        }
        room += bytes;
        chains.push(chain);
    }
    let mut packet = vec![0; HEADER];
    packet[10..].copy_from_slice(&(chains.len() as u16).to_le_bytes());
    packet.extend_from_slice(frame);
    let mut done = 0;
    for chain in chains {
        let n = scatter(ram, &chain.writable, 0, &packet[done..]);
        done += n;
        queue.give_back(ram, chain.head, n as u32)?;
    }
    Ok(true)
}

/// Does what a frame's header asks for; false when that cannot be done.
fn prepare(header: &[u8], frame: &mut [u8]) -> bool {
    let word = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    if header[1] != 0 {
        return false; // segmentation was never offered
    }
    if header[0] & HDR_NEEDS_CSUM == 0 {
        return true;
    }
    let (start, field) = (word(6), word(6) + word(8));
    if start >= frame.len() || field + 2 > frame.len() {
        return false;
    }
    // The field holds the sum of the pseudo header, so the sum over everything completes it; a
    // result of zero is sent as its other form, which UDP does not read as "none".
    let sum = match !ones_complement_sum(&frame[start..]) {
        0 => 0xffff,
        sum => sum,
    };
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    true
}

/// The Internet checksum's sum (RFC 1071), not inverted.
fn ones_complement_sum(bytes: &[u8]) -> u16 {
    let mut sum: u64 = 0;
    let mut words = bytes.chunks_exact(2);
    for word in &mut words {
        sum += u64::from(u16::from_be_bytes([word[0], word[1]]));
    }
    if let [last] = words.remainder() {
        sum += u64::from(*last) << 8;
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

impl VirtioPci<Net> {
    /// A frame from outside, without FCS. False when it was dropped: too short, too long, or too
    /// many are waiting.
    pub fn receive(&mut self, cx: &mut Cx, frame: &[u8]) -> bool {
        let taken = self.device.enqueue(frame);
        self.run(cx, Net::deliver);
        taken
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> &'static str {
        "virtio-net"
    }
    fn device_type(&self) -> u16 {
        1
    }
    fn class(&self) -> u32 {
        0x02_00_00 // Ethernet controller
    }
    fn features(&self) -> u64 {
        F_CSUM | F_MTU | F_MAC | F_MRG_RXBUF | F_STATUS | F_CTRL_VQ | F_CTRL_RX | F_CTRL_MAC_ADDR
    }
    fn queues(&self) -> Vec<Queue> {
        let frame_max = (HEADER + FRAME_BYTES.end()) as u64;
        vec![Queue::new(256, 1 << 32), Queue::new(256, frame_max), Queue::new(64, 1 << 20)]
    }

    fn config(&self, space: &mut [u8; CONFIG_SIZE]) {
        space[..6].copy_from_slice(&self.fields.mac.unwrap_or(self.mac));
        space[6..8].copy_from_slice(&STATUS_LINK_UP.to_le_bytes());
        space[8..10].copy_from_slice(&1u16.to_le_bytes());
        space[10..12].copy_from_slice(&self.mtu.to_le_bytes());
    }

    fn notify(&mut self, io: &mut Io, queue: usize) -> Result<(), QueueError> {
        match queue {
            RX => self.deliver(io),
            TX => self.transmit(io),
            control => self.control(io, control),
        }
    }

    fn reset(&mut self) {
        self.fields = Fields::default();
    }

    fn save(&self) -> Vec<u8> {
        postcard::to_stdvec(&self.fields).expect("plain data")
    }
    fn show(&self) -> String {
        format!("{:#?}", self.fields)
    }

    fn restore(&mut self, fields: &[u8]) -> Result<(), String> {
        let fields: Fields = postcard::from_bytes(fields).map_err(|e| e.to_string())?;
        let bytes: usize = fields.pending.iter().map(Vec::len).sum();
        let whole = fields.pending.iter().all(|frame| FRAME_BYTES.contains(&frame.len()));
        if !whole
            || fields.pending.len() > PENDING_FRAMES_MAX
            || bytes > PENDING_BYTES_MAX
            || bytes != fields.pending_bytes
        {
            return Err("impossible frames waiting".into());
        }
        self.fields = fields;
        Ok(())
    }
}
