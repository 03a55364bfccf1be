//! Split virtqueues (virtio 1.2, 2.7), from the device's side.
//!
//! ```text
//! driver writes:  descriptor table   what memory, how long, which way, which next
//!                 available ring     heads of chains, in the order they are offered
//! device writes:  used ring          heads that are done, and how much was written
//! ```
//!
//! The queue code of the rust-vmm project is not used because guest memory here is not a plain
//! mapping: every write must mark its page dirty for checkpoints and be noted where translated
//! code or page tables lie, which is what [`Ram`] does. It is also the place where strictness
//! matters most. The rings are the guest's to fill with anything, so:
//!
//! * a chain is followed for at most as many descriptors as the queue has, so loops end;
//! * every buffer is checked to be RAM before the device sees it;
//! * no more chains are taken than the queue has descriptors without giving some back;
//! * one notification handles what was offered when it came, even if the device's own writes hit
//!   the ring meanwhile.
//!
//! Whatever breaks these rules is a [`QueueError`]; the transport then stops the device and sets
//! DEVICE_NEEDS_RESET (2.1.2).

use base::{GuestPhys, PAGE_SHIFT};
use memory::Ram;
use serde::{Deserialize, Serialize};

/// Largest queue size a device may offer here.
pub const QUEUE_SIZE_MAX: u16 = 1024;

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
const DESC_INDIRECT: u16 = 4;
const DESC_SIZE: u64 = 16;
const AVAIL_NO_INTERRUPT: u16 = 1;

/// A rule of the ring that the driver broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// A ring lies outside of RAM or is misaligned.
    #[error("a ring at {0} is not in memory")]
    Ring(GuestPhys),
    /// The available index is further ahead than the queue is long.
    #[error("available index {0} is more than a queue ahead")]
    AvailIndex(u16),
    /// More chains taken than the queue has descriptors.
    #[error("more chains offered than the queue holds")]
    Overcommitted,
    /// A descriptor number beyond the table.
    #[error("descriptor {0} does not exist")]
    Descriptor(u16),
    /// A chain longer than the queue: a loop.
    #[error("the chain from {0} does not end")]
    Loop(u16),
    /// A buffer that is not RAM.
    #[error("a buffer of {len} bytes at {addr} is not in memory")]
    Buffer {
        /// Its first byte.
        addr: GuestPhys,
        /// Its length.
        len: u32,
    },
    /// An indirect table that is empty, ragged, nested, or chained on.
    #[error("the indirect table of {0} is malformed")]
    Indirect(u16),
    /// A readable buffer after a writable one.
    #[error("the chain from {0} has readable buffers after writable ones")]
    Order(u16),
    /// More bytes than the device takes at once.
    #[error("the chain from {0} is too long for the device")]
    TooLong(u16),
    /// The chain has not the shape the device's requests have.
    #[error("the chain from {0} is not a request")]
    Shape(u16),
}

/// A buffer in guest memory, known to be RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Its first byte.
    pub addr: GuestPhys,
    /// Its length in bytes.
    pub len: u32,
}

/// A chain of buffers taken from the available ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// The first descriptor, which names the chain in the used ring.
    pub head: u16,
    /// What the device may read, in order.
    pub readable: Vec<Segment>,
    /// What it may write, in order.
    pub writable: Vec<Segment>,
}

/// Bytes in a list of segments.
pub fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|s| u64::from(s.len)).sum()
}

/// The pieces of `segments` that make up `len` bytes from byte `skip` on (fewer when they end).
pub fn pieces(segments: &[Segment], skip: u64, len: u64) -> impl Iterator<Item = Segment> {
    let (mut skip, mut left) = (skip, len);
    segments.iter().filter_map(move |segment| {
        let jump = skip.min(u64::from(segment.len));
        skip -= jump;
        let n = (u64::from(segment.len) - jump).min(left);
        left -= n;
        (n > 0).then_some(Segment { addr: segment.addr.offset(jump), len: n as u32 })
    })
}

/// Reads `buf.len()` bytes from byte `skip` of `segments` on; how many there were.
pub fn gather(ram: &Ram, segments: &[Segment], skip: u64, buf: &mut [u8]) -> usize {
    let mut done = 0;
    for piece in pieces(segments, skip, buf.len() as u64) {
        let target = &mut buf[done..done + piece.len as usize];
        if !ram.read(piece.addr, target) {
            break; // cannot happen: segments are RAM
        }
        done += piece.len as usize;
    }
    done
}

/// Writes `data` from byte `skip` of `segments` on; how many bytes had room.
pub fn scatter(ram: &mut Ram, segments: &[Segment], skip: u64, data: &[u8]) -> usize {
    let mut done = 0;
    for piece in pieces(segments, skip, data.len() as u64) {
        if !ram.write(piece.addr, &data[done..done + piece.len as usize]) {
            break; // cannot happen: segments are RAM
        }
        done += piece.len as usize;
    }
    done
}

/// One virtqueue. All of it is state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// Descriptors offered by the device: the largest size.
    size_max: u16,
    /// Size chosen by the driver.
    pub(super) size: u16,
    /// Whether the driver has enabled it.
    pub(super) enabled: bool,
    /// Whether both sides use event indexes instead of flags (VIRTIO_F_EVENT_IDX).
    pub(super) event_idx: bool,
    /// Descriptor table.
    pub(super) desc: u64,
    /// Available ring ("driver area").
    pub(super) avail: u64,
    /// Used ring ("device area").
    pub(super) used: u64,
    /// MSI-X vector.
    pub(super) vector: u16,
    /// Position in the available ring: the next chain to take.
    next_avail: u16,
    /// Position in the used ring: the next chain to give back.
    next_used: u16,
    /// `next_used` when the driver was last considered for an interrupt.
    signalled: u16,
    /// Most bytes in a chain.
    chain_bytes_max: u64,
}

impl Queue {
    /// A queue of up to `size_max` descriptors (a power of two) whose chains hold at most
    /// `chain_bytes_max` bytes.
    pub fn new(size_max: u16, chain_bytes_max: u64) -> Self {
        assert!(size_max.is_power_of_two() && size_max <= QUEUE_SIZE_MAX);
        Self {
            size_max,
            size: size_max,
            enabled: false,
            event_idx: false,
            desc: 0,
            avail: 0,
            used: 0,
            vector: crate::pci::NO_VECTOR,
            next_avail: 0,
            next_used: 0,
            signalled: 0,
            chain_bytes_max,
        }
    }

    /// Back to power-on state.
    pub fn reset(&mut self) {
        *self = Self::new(self.size_max, self.chain_bytes_max);
    }

    /// Whether a saved queue can stand in for this one.
    pub(super) fn accepts(&self, saved: &Queue) -> bool {
        saved.size_max == self.size_max
            && saved.chain_bytes_max == self.chain_bytes_max
            && saved.size.is_power_of_two()
            && saved.size <= self.size_max
            && saved.in_flight() <= saved.size
    }

    /// Takes the size a driver asks for; others than powers of two up to the maximum are ignored.
    pub(super) fn set_size(&mut self, size: u16) {
        if size.is_power_of_two() && size <= self.size_max {
            self.size = size;
        }
    }

    /// Whether the rings lie in RAM and are aligned (2.7: 16, 2 and 4 bytes).
    pub(super) fn check_rings(&self, ram: &Ram) -> Result<(), QueueError> {
        let size = u64::from(self.size);
        let rings =
            [(self.desc, 16, DESC_SIZE * size), (self.avail, 2, 6 + 2 * size), (self.used, 4, 6 + 8 * size)];
        for (start, align, len) in rings {
            if start % align != 0 || !is_ram(ram, GuestPhys(start), len) {
                return Err(QueueError::Ring(GuestPhys(start)));
            }
        }
        Ok(())
    }

    fn in_flight(&self) -> u16 {
        self.next_avail.wrapping_sub(self.next_used)
    }

    fn read_u16(&self, ram: &Ram, at: GuestPhys) -> Result<u16, QueueError> {
        let bytes = ram.read_array(at).ok_or(QueueError::Ring(at))?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// How many chains the driver has offered that were not yet taken; 0 for a queue that is not
    /// enabled. A device handles that many, then calls
    /// [`Self::request_notify`].
    pub fn available(&self, ram: &Ram) -> Result<u16, QueueError> {
        if !self.enabled {
            return Ok(0);
        }
        let index = self.read_u16(ram, place(self.avail, 2))?;
        let ahead = index.wrapping_sub(self.next_avail);
        if ahead > self.size {
            return Err(QueueError::AvailIndex(index));
        }
        Ok(ahead)
    }

    /// Takes the next chain. The caller knows from [`Self::available`] that there is one.
    pub fn take(&mut self, ram: &Ram) -> Result<Chain, QueueError> {
        if self.in_flight() >= self.size {
            return Err(QueueError::Overcommitted);
        }
        let slot = u64::from(self.next_avail & (self.size - 1));
        let head = self.read_u16(ram, place(self.avail, 4 + 2 * slot))?;
        let chain = self.walk(ram, head)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(chain)
    }

    /// Puts back the last `count` chains taken, as if they had not been.
    pub fn untake(&mut self, count: u16) {
        self.next_avail = self.next_avail.wrapping_sub(count);
    }

    /// Asks the driver to notify as soon as it offers more than it has so far (2.7.10). To be called
    /// after handling what was available, and when waiting for more.
    pub fn request_notify(&mut self, ram: &mut Ram) -> Result<(), QueueError> {
        if self.enabled && self.event_idx {
            let index = self.read_u16(ram, place(self.avail, 2))?;
            let at = place(self.used, 4 + 8 * u64::from(self.size));
            if !ram.write(at, &index.to_le_bytes()) {
                return Err(QueueError::Ring(at));
            }
        }
        Ok(())
    }

    fn walk(&self, ram: &Ram, head: u16) -> Result<Chain, QueueError> {
        let mut chain = Chain { head, readable: Vec::new(), writable: Vec::new() };
        let mut table = (self.desc, self.size);
        let mut indirect = false;
        let mut index = head;
        let mut bytes = 0;
        let mut followed = 0;
        loop {
            if index >= table.1 {
                return Err(QueueError::Descriptor(index));
            }
            // An indirect chain may be as long as the queue, not counting the way there.
            if followed > self.size {
                return Err(QueueError::Loop(head));
            }
            followed += 1;
            let at = place(table.0, DESC_SIZE * u64::from(index));
            let raw: [u8; 16] = ram.read_array(at).ok_or(QueueError::Ring(at))?;
            let addr = GuestPhys(u64::from_le_bytes(raw[..8].try_into().expect("8 bytes")));
            let len = u32::from_le_bytes(raw[8..12].try_into().expect("4 bytes"));
            let flags = u16::from_le_bytes([raw[12], raw[13]]);
            let next = u16::from_le_bytes([raw[14], raw[15]]);
            if !is_ram(ram, addr, u64::from(len)) {
                return Err(QueueError::Buffer { addr, len });
            }
            if flags & DESC_INDIRECT != 0 {
                let count = u64::from(len) / DESC_SIZE;
                let whole = u64::from(len) % DESC_SIZE == 0 && (1..=u64::from(self.size)).contains(&count);
                if indirect || flags & DESC_NEXT != 0 || !whole {
                    return Err(QueueError::Indirect(index));
                }
                indirect = true;
                table = (addr.0, count as u16);
                index = 0;
                continue;
            }
            bytes += u64::from(len);
            if bytes > self.chain_bytes_max {
                return Err(QueueError::TooLong(head));
            }
            let segment = Segment { addr, len };
            if flags & DESC_WRITE != 0 {
                chain.writable.push(segment);
            } else if chain.writable.is_empty() {
                chain.readable.push(segment);
            } else {
                return Err(QueueError::Order(head));
            }
            if flags & DESC_NEXT == 0 {
                return Ok(chain);
            }
            index = next;
        }
    }

    /// Gives a chain back, with `written` bytes written to it.
    pub fn give_back(&mut self, ram: &mut Ram, head: u16, written: u32) -> Result<(), QueueError> {
        let slot = u64::from(self.next_used & (self.size - 1));
        let at = place(self.used, 4 + 8 * slot);
        let mut entry = [0; 8];
        entry[..2].copy_from_slice(&head.to_le_bytes());
        entry[4..].copy_from_slice(&written.to_le_bytes());
        self.next_used = self.next_used.wrapping_add(1);
        let index = place(self.used, 2);
        if ram.write(at, &entry) && ram.write(index, &self.next_used.to_le_bytes()) {
            Ok(())
        } else {
            Err(QueueError::Ring(at))
        }
    }

    /// Whether the driver wants to be interrupted for what was given back since the last call
    /// (2.7.7, 2.7.10).
    pub fn wants_interrupt(&mut self, ram: &Ram) -> Result<bool, QueueError> {
        let old = std::mem::replace(&mut self.signalled, self.next_used);
        if old == self.next_used {
            return Ok(false);
        }
        if self.event_idx {
            let event = self.read_u16(ram, place(self.avail, 4 + 2 * u64::from(self.size)))?;
            let given = self.next_used.wrapping_sub(old);
            return Ok(self.next_used.wrapping_sub(event).wrapping_sub(1) < given);
        }
        Ok(self.read_u16(ram, GuestPhys(self.avail))? & AVAIL_NO_INTERRUPT == 0)
    }
}

/// `offset` bytes from `start` on, wrapping: reads of it then fail for not being RAM.
fn place(start: u64, offset: u64) -> GuestPhys {
    GuestPhys(start).offset(offset)
}

/// Whether `len` bytes from `at` on are RAM throughout.
fn is_ram(ram: &Ram, at: GuestPhys, len: u64) -> bool {
    if len == 0 {
        return true;
    }
    let Some(last) = at.0.checked_add(len - 1) else { return false };
    match (ram.page_index(at), ram.page_index(GuestPhys(last))) {
        // RAM on both sides of the hole below 4 GiB is not one piece.
        (Some(a), Some(b)) => (b - a) as u64 == (last >> PAGE_SHIFT) - (at.0 >> PAGE_SHIFT),
        _ => false,
    }
}
