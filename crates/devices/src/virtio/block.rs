//! Block (virtio 1.2, 5.2): a disk whose contents are part of the machine's state.
//!
//! A request is taken when the driver notifies, and finishes at a guest time that follows from the
//! request alone: the disk's channel moves one byte a nanosecond, one request after the other, and
//! [`LATENCY_NS`] later the request is done. Only then does data move between memory and the
//! [`Overlay`], reads and writes alike, in the order of the requests. So neither the host's disk
//! nor its load can be seen from inside, and what lies between submission and completion is a list
//! of plain requests that is saved like any other field.
//!
//! WARNING: the contents themselves are not in [`VirtioDevice::save`]: whoever keeps a checkpoint
//! keeps [`Block::disk`]'s snapshot beside it, and puts its hash into the state hash.

use super::queue::{Chain, Queue, QueueError, Segment, gather, scatter, total};
use super::transport::{CONFIG_SIZE, Io, VirtioDevice};
use base::GuestTime;
use disk::{DiskError, Overlay, SECTOR_SIZE};
use memory::Ram;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// From the end of a request's transfer to its completion, in nanoseconds.
pub const LATENCY_NS: u64 = 20_000;

const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

const QUEUE_SIZE: u16 = 256;
/// Room for the header and the status in a chain.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
const SIZE_MAX: u32 = 256 << 10;
const CHAIN_BYTES_MAX: u64 = HEADER + SEG_MAX as u64 * SIZE_MAX as u64 + 1;
const HEADER: u64 = 16;
const ID_SIZE: usize = 20;
const RANGE_SIZE: u64 = 16;
const RANGES_MAX: u32 = 64;
const RANGE_SECTORS_MAX: u32 = 1 << 22;
const RANGE_UNMAP: u32 = 1;
/// How much is moved at a time, in bytes.
const STEP: usize = 256 << 10;

/// The outcome a driver sees (5.2.6).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// The block device.
pub struct Block {
    disk: Overlay,
    id: [u8; ID_SIZE],
    read_only: bool,
    fields: Fields,
    failure: Option<String>,
    buffer: Vec<u8>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Fields {
    /// In the order they were submitted, which is the order they finish in.
    in_flight: VecDeque<Request>,
    /// When the channel has moved everything submitted so far.
    channel_free: GuestTime,
}

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    kind: u32,
    sector: u64,
    chain: Chain,
    due: GuestTime,
}

impl Request {
    /// What the driver sends after the header.
    fn payload_len(&self) -> u64 {
        total(&self.chain.readable).saturating_sub(HEADER)
    }
    /// What the driver expects before the status byte.
    fn answer_len(&self) -> u64 {
        total(&self.chain.writable).saturating_sub(1)
    }
}

/// What happened while a request was carried out.
enum Trouble {
    /// The driver's fault: it hears of it.
    Refused(Outcome),
    /// The host's fault: the guest must not see it.
    Host(DiskError),
}

impl From<DiskError> for Trouble {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Range { .. } => Self::Refused(Outcome::IoError),
            host => Self::Host(host),
        }
    }
}

impl Block {
    /// A disk with the given contents. `id` is its serial number (cut after 20 bytes).
    pub fn new(disk: Overlay, id: &str, read_only: bool) -> Self {
        let mut bytes = [0; ID_SIZE];
        let n = id.len().min(ID_SIZE);
        bytes[..n].copy_from_slice(&id.as_bytes()[..n]);
        Self { disk, id: bytes, read_only, fields: Fields::default(), failure: None, buffer: Vec::new() }
    }

    /// The contents.
    pub fn disk(&self) -> &Overlay {
        &self.disk
    }

    /// The contents, for going to a snapshot.
    pub fn disk_mut(&mut self) -> &mut Overlay {
        &mut self.disk
    }

    fn submit(&mut self, ram: &Ram, now: GuestTime, chain: Chain) -> Result<(), QueueError> {
        let mut header = [0; HEADER as usize];
        let whole = gather(ram, &chain.readable, 0, &mut header) == header.len();
        if !whole || total(&chain.writable) == 0 {
            return Err(QueueError::Shape(chain.head));
        }
        let kind = u32::from_le_bytes(header[..4].try_into().expect("4 bytes"));
        let sector = u64::from_le_bytes(header[8..].try_into().expect("8 bytes"));
        let mut request = Request { kind, sector, chain, due: now };
        let bytes = match kind {
            T_IN => request.answer_len(),
            T_OUT => request.payload_len(),
            _ => 0,
        };
        let moved = self.fields.channel_free.max(now).after_ns(bytes);
        self.fields.channel_free = moved;
        request.due = moved.after_ns(LATENCY_NS);
        self.fields.in_flight.push_back(request);
        Ok(())
    }

    fn carry_out(&mut self, ram: &mut Ram, request: &Request) -> Result<(), Trouble> {
        match request.kind {
            T_IN => self.read(ram, request),
            T_OUT => self.write(ram, request),
            // Everything finished earlier is already in the overlay, which outlives the guest.
            T_FLUSH => Ok(()),
            T_GET_ID => {
                scatter(ram, &request.chain.writable, 0, &self.id[..self.id_len(request)]);
                Ok(())
            }
            T_DISCARD | T_WRITE_ZEROES => self.zero(ram, request),
            _ => Err(Trouble::Refused(Outcome::Unsupported)),
        }
    }

    fn id_len(&self, request: &Request) -> usize {
        request.answer_len().min(ID_SIZE as u64) as usize
    }

    /// The first byte of a transfer of `len` bytes that lies on the disk.
    fn offset(&self, sector: u64, len: u64) -> Result<u64, Trouble> {
        let end = |start: u64| start.checked_add(len).is_some_and(|end| end <= self.disk.len());
        sector
            .checked_mul(SECTOR_SIZE)
            .filter(|start| len.is_multiple_of(SECTOR_SIZE) && end(*start))
            .ok_or(Trouble::Refused(Outcome::IoError))
    }

    fn read(&mut self, ram: &mut Ram, request: &Request) -> Result<(), Trouble> {
        let len = request.answer_len();
        let start = self.offset(request.sector, len)?;
        let mut done = 0;
        while done < len {
            let n = (len - done).min(STEP as u64) as usize;
            self.buffer.resize(n, 0);
            self.disk.read_at(start + done, &mut self.buffer)?;
            scatter(ram, &request.chain.writable, done, &self.buffer);
            done += n as u64;
        }
        Ok(())
    }

    fn write(&mut self, ram: &Ram, request: &Request) -> Result<(), Trouble> {
        let len = request.payload_len();
        let start = self.offset(request.sector, len)?;
        self.check_writable()?;
        let mut done = 0;
        while done < len {
            let n = (len - done).min(STEP as u64) as usize;
            self.buffer.resize(n, 0);
            let got = gather(ram, &request.chain.readable, HEADER + done, &mut self.buffer);
            self.buffer[got..].fill(0); // of a damaged saved request only
            self.disk.write_at(start + done, &self.buffer)?;
            done += n as u64;
        }
        Ok(())
    }

    fn check_writable(&self) -> Result<(), Trouble> {
        if self.read_only { Err(Trouble::Refused(Outcome::IoError)) } else { Ok(()) }
    }

    /// Discarded sectors read as zeros afterwards, which is one of the things a discard may do and
    /// the only one that is the same every time.
    fn zero(&mut self, ram: &Ram, request: &Request) -> Result<(), Trouble> {
        self.check_writable()?;
        let len = request.payload_len();
        if len == 0 || !len.is_multiple_of(RANGE_SIZE) || len / RANGE_SIZE > u64::from(RANGES_MAX) {
            return Err(Trouble::Refused(Outcome::IoError));
        }
        let allowed = if request.kind == T_WRITE_ZEROES { RANGE_UNMAP } else { 0 };
        for i in 0..len / RANGE_SIZE {
            let mut range = [0; RANGE_SIZE as usize];
            gather(ram, &request.chain.readable, HEADER + i * RANGE_SIZE, &mut range);
            let sector = u64::from_le_bytes(range[..8].try_into().expect("8 bytes"));
            let sectors = u32::from_le_bytes(range[8..12].try_into().expect("4 bytes"));
            let flags = u32::from_le_bytes(range[12..].try_into().expect("4 bytes"));
            if flags & !allowed != 0 {
                return Err(Trouble::Refused(Outcome::Unsupported));
            }
            if sectors > RANGE_SECTORS_MAX {
                return Err(Trouble::Refused(Outcome::IoError));
            }
            let bytes = u64::from(sectors) * SECTOR_SIZE;
            let start = self.offset(sector, bytes)?;
            self.disk.zero_at(start, bytes)?;
        }
        Ok(())
    }

    /// Finishes one request; false when the host failed and nothing was finished.
    fn finish(&mut self, io: &mut Io, request: &Request) -> Result<bool, QueueError> {
        let outcome = match self.carry_out(io.cx.ram, request) {
            Ok(()) => Outcome::Ok,
            Err(Trouble::Refused(outcome)) => outcome,
            Err(Trouble::Host(error)) => {
                self.failure = Some(error.to_string());
                return Ok(false);
            }
        };
        let answer = request.answer_len();
        scatter(io.cx.ram, &request.chain.writable, answer, &[outcome as u8]);
        // The used length covers bytes from the start on, so it stops where nothing was written.
        let written = match (outcome, request.kind) {
            (Outcome::Ok, T_IN) => answer + 1,
            (Outcome::Ok, T_GET_ID) if self.id_len(request) as u64 != answer => self.id_len(request) as u64,
            (Outcome::Ok, T_GET_ID) => answer + 1,
            _ => u64::from(answer == 0),
        };
        io.queues[0].give_back(io.cx.ram, request.chain.head, written as u32)?;
        Ok(true)
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> &'static str {
        "virtio-blk"
    }
    fn device_type(&self) -> u16 {
        2
    }
    fn class(&self) -> u32 {
        0x01_80_00 // mass storage, other
    }

    fn features(&self) -> u64 {
        let common = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY;
        common | if self.read_only { F_RO } else { F_DISCARD | F_WRITE_ZEROES }
    }

    fn queues(&self) -> Vec<Queue> {
        vec![Queue::new(QUEUE_SIZE, CHAIN_BYTES_MAX)]
    }

    /// 5.2.4.
    fn config(&self, space: &mut [u8; CONFIG_SIZE]) {
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(self.disk.len() / SECTOR_SIZE).to_le_bytes());
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &(SECTOR_SIZE as u32).to_le_bytes());
        put(24, &[3]); // physical blocks of 2^3 sectors, the overlay's blocks
        put(26, &8u16.to_le_bytes()); // best smallest transfer, in sectors
        put(36, &RANGE_SECTORS_MAX.to_le_bytes()); // discard
        put(40, &RANGES_MAX.to_le_bytes());
        put(44, &8u32.to_le_bytes());
        put(48, &RANGE_SECTORS_MAX.to_le_bytes()); // write zeroes
        put(52, &RANGES_MAX.to_le_bytes());
        put(56, &[1]); // write zeroes may unmap
    }

    fn notify(&mut self, io: &mut Io, queue: usize) -> Result<(), QueueError> {
        let queue = &mut io.queues[queue];
        for _ in 0..queue.available(io.cx.ram)? {
            let chain = queue.take(io.cx.ram)?;
            self.submit(io.cx.ram, io.cx.now, chain)?;
        }
        queue.request_notify(io.cx.ram)
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
        if fields.in_flight.len() > usize::from(QUEUE_SIZE) {
            return Err(format!("{} requests in flight", fields.in_flight.len()));
        }
        let plain = |segments: &[Segment]| {
            segments.len() <= usize::from(QUEUE_SIZE) && total(segments) <= CHAIN_BYTES_MAX
        };
        if !fields.in_flight.iter().all(|r| plain(&r.chain.readable) && plain(&r.chain.writable)) {
            return Err("a request longer than the queue allows".into());
        }
        if !fields.in_flight.iter().is_sorted_by_key(|r| r.due) {
            return Err("requests out of order".into());
        }
        self.fields = fields;
        self.failure = None;
        Ok(())
    }

    fn deadline(&self) -> Option<GuestTime> {
        self.fields.in_flight.front().filter(|_| self.failure.is_none()).map(|request| request.due)
    }

    fn expire(&mut self, io: &mut Io) -> Result<(), QueueError> {
        while self.deadline().is_some_and(|due| due <= io.cx.now) {
            let Some(request) = self.fields.in_flight.pop_front() else { break };
            if !self.finish(io, &request)? {
                self.fields.in_flight.push_front(request);
            }
        }
        Ok(())
    }

    fn failure(&self) -> Option<String> {
        self.failure.clone()
    }
}
