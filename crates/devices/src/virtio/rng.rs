//! Entropy (virtio 1.2, 5.4): a stream computed from the run's seed.
//!
//! The stream is the extended output of BLAKE3 keyed by the seed, so the only state is how far it
//! has been read, and guests get bytes that are as good as random to anyone without the seed.

use super::queue::{Queue, QueueError, scatter, total};
use super::transport::{CONFIG_SIZE, Io, VirtioDevice};

/// Most bytes handed out for one request; drivers ask again for more.
const REQUEST_MAX: u64 = 4096;

/// The entropy device.
pub struct Rng {
    seed: [u8; 32],
    position: u64,
}

impl Rng {
    /// A device whose stream follows from `seed`.
    pub fn new(seed: [u8; 32]) -> Self {
        Self { seed, position: 0 }
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> &'static str {
        "virtio-rng"
    }
    fn device_type(&self) -> u16 {
        4
    }
    fn class(&self) -> u32 {
        0x10_00_00 // encryption controller, as entropy sources are classed
    }
    fn features(&self) -> u64 {
        0
    }
    fn queues(&self) -> Vec<Queue> {
        vec![Queue::new(64, 1 << 32)]
    }
    fn config(&self, _space: &mut [u8; CONFIG_SIZE]) {}

    fn notify(&mut self, io: &mut Io, queue: usize) -> Result<(), QueueError> {
        let (ram, queue) = (&mut *io.cx.ram, &mut io.queues[queue]);
        for _ in 0..queue.available(ram)? {
            let chain = queue.take(ram)?;
            let mut bytes = vec![0; total(&chain.writable).min(REQUEST_MAX) as usize];
            if bytes.is_empty() {
                return Err(QueueError::Shape(chain.head));
            }
            let mut stream = blake3::Hasher::new_keyed(&self.seed).finalize_xof();
            stream.set_position(self.position);
            stream.fill(&mut bytes);
            self.position = self.position.wrapping_add(bytes.len() as u64);
            scatter(ram, &chain.writable, 0, &bytes);
            queue.give_back(ram, chain.head, bytes.len() as u32)?;
        }
        queue.request_notify(ram)
    }

    fn reset(&mut self) {
        self.position = 0;
    }
    // A driver's reset must not make the stream repeat itself.
    fn driver_reset(&mut self) {}
    fn save(&self) -> Vec<u8> {
        self.position.to_le_bytes().to_vec()
    }
    fn restore(&mut self, fields: &[u8]) -> Result<(), String> {
        let bytes = fields.try_into().map_err(|_| format!("position of {} bytes", fields.len()))?;
        self.position = u64::from_le_bytes(bytes);
        Ok(())
    }
}
