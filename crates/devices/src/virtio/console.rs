//! Console (virtio 1.2, 5.3): one port, `hvc0` to Linux.

use super::queue::{Queue, QueueError, pieces, scatter, total};
use super::transport::{CONFIG_SIZE, Io, VirtioDevice, VirtioPci};
use crate::Cx;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

const F_SIZE: u64 = 1 << 0;
const F_EMERG_WRITE: u64 = 1 << 2;
const RX: usize = 0;
const TX: usize = 1;
const EMERG_WRITE: u64 = 8;

/// Most bytes of input that wait for a driver.
pub const PENDING_BYTES_MAX: usize = 64 << 10;
/// Most bytes a driver may send in one request.
const CHAIN_BYTES_MAX: u64 = 1 << 20;

/// The console device.
pub struct Console {
    port: u32,
    fields: Fields,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Fields {
    columns: u16,
    rows: u16,
    pending: VecDeque<u8>,
}

impl Console {
    /// A console whose output goes to console `port` of [`Outside`](crate::Outside), of a size of
    /// `columns` by `rows` characters (0 by 0 when unknown).
    pub fn new(port: u32, columns: u16, rows: u16) -> Self {
        Self { port, fields: Fields { columns, rows, pending: VecDeque::new() } }
    }

    /// How many bytes of input can be taken now without loss.
    pub fn room(&self) -> usize {
        PENDING_BYTES_MAX - self.fields.pending.len()
    }

    fn deliver(&mut self, io: &mut Io) -> Result<(), QueueError> {
        let (ram, queue) = (&mut *io.cx.ram, &mut io.queues[RX]);
        for _ in 0..queue.available(ram)? {
            if self.fields.pending.is_empty() {
                return Ok(());
            }
            let chain = queue.take(ram)?;
            let n = total(&chain.writable).min(self.fields.pending.len() as u64) as usize;
            if n == 0 {
                return Err(QueueError::Shape(chain.head));
            }
            let bytes: Vec<u8> = self.fields.pending.drain(..n).collect();
            scatter(ram, &chain.writable, 0, &bytes);
            queue.give_back(ram, chain.head, n as u32)?;
        }
        if !self.fields.pending.is_empty() {
            queue.request_notify(ram)?;
        }
        Ok(())
    }

    fn transmit(&self, io: &mut Io) -> Result<(), QueueError> {
        let queue = &mut io.queues[TX];
        let mut buf = Vec::new();
        for _ in 0..queue.available(io.cx.ram)? {
            let chain = queue.take(io.cx.ram)?;
            for piece in pieces(&chain.readable, 0, u64::MAX) {
                buf.resize(piece.len as usize, 0);
                if io.cx.ram.read(piece.addr, &mut buf) {
                    io.cx.out.console(self.port, &buf);
                }
            }
            queue.give_back(io.cx.ram, chain.head, 0)?;
        }
        queue.request_notify(io.cx.ram)
    }
}

impl VirtioPci<Console> {
    /// Input from outside. Takes what there is room for ([`Console::room`]) and returns how much
    /// that was; the rest is lost.
    pub fn receive(&mut self, cx: &mut Cx, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.device.room());
        self.device.fields.pending.extend(&bytes[..n]);
        self.run(cx, Console::deliver);
        n
    }

    /// The terminal outside has changed its size.
    pub fn resize(&mut self, cx: &mut Cx, columns: u16, rows: u16) {
        let fields = &mut self.device.fields;
        if (fields.columns, fields.rows) != (columns, rows) {
            (fields.columns, fields.rows) = (columns, rows);
            self.config_changed(cx);
        }
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> &'static str {
        "virtio-console"
    }
    fn device_type(&self) -> u16 {
        3
    }
    fn class(&self) -> u32 {
        0x07_80_00 // communication controller
    }
    fn features(&self) -> u64 {
        F_SIZE | F_EMERG_WRITE
    }
    fn queues(&self) -> Vec<Queue> {
        vec![Queue::new(128, 1 << 32), Queue::new(128, CHAIN_BYTES_MAX)]
    }

    fn config(&self, space: &mut [u8; CONFIG_SIZE]) {
        space[..2].copy_from_slice(&self.fields.columns.to_le_bytes());
        space[2..4].copy_from_slice(&self.fields.rows.to_le_bytes());
        space[4..8].copy_from_slice(&1u32.to_le_bytes());
    }

    fn config_write(&mut self, cx: &mut Cx, offset: u64, data: &[u8]) {
        if offset == EMERG_WRITE {
            cx.out.console(self.port, &data[..1]);
        }
    }

    fn notify(&mut self, io: &mut Io, queue: usize) -> Result<(), QueueError> {
        match queue {
            RX => self.deliver(io),
            _ => self.transmit(io),
        }
    }

    fn reset(&mut self) {
        self.fields.pending.clear();
    }
    // What was typed before the driver came up is not lost.
    fn driver_reset(&mut self) {}

    fn save(&self) -> Vec<u8> {
        postcard::to_stdvec(&self.fields).expect("plain data")
    }
    fn show(&self) -> String {
        format!("{:#?}", self.fields)
    }
    fn restore(&mut self, fields: &[u8]) -> Result<(), String> {
        let fields: Fields = postcard::from_bytes(fields).map_err(|e| e.to_string())?;
        if fields.pending.len() > PENDING_BYTES_MAX {
            return Err(format!("{} bytes of waiting input", fields.pending.len()));
        }
        self.fields = fields;
        Ok(())
    }
}
