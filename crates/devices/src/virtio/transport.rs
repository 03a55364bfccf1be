//! The PCI transport (virtio 1.2, 4.1): registers, feature negotiation, interrupts.
//!
//! ```text
//! BAR 4 (64-bit memory, 16 KiB)          BAR 1 (32-bit memory, 4 KiB)
//!   0x0000 common configuration            MSI-X table and pending bits
//!   0x1000 ISR status
//!   0x2000 device configuration
//!   0x3000 notifications, 4 bytes a queue
//! ```

use super::queue::{Queue, QueueError};
use super::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use crate::pci::{Bar, BarKind, CAP_VENDOR, ConfigSpace, Identity, Msix, MsixState, NO_VECTOR, PciFunction};
use crate::{Cx, DeviceState, StateError};
use base::GuestTime;
use serde::{Deserialize, Serialize};

/// Bytes of the largest device configuration.
pub const CONFIG_SIZE: usize = 64;

const VERSION: u32 = 1;
const MSIX_BAR: u8 = 1;
const REGISTER_BAR: u8 = 4;
const REGION: u64 = 0x1000;
const COMMON: u64 = 0;
const ISR: u64 = 1;
const DEVICE: u64 = 2;
const NOTIFY: u64 = 3;
const NOTIFY_MULTIPLIER: u32 = 4;

const STATUS_DRIVER_OK: u8 = 4;
const STATUS_FEATURES_OK: u8 = 8;
const STATUS_NEEDS_RESET: u8 = 64;
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// What a device is handed while it works.
pub struct Io<'a, 'b> {
    /// Time, memory and the outside.
    pub cx: &'a mut Cx<'b>,
    /// The device's queues. After the device returns, the driver is interrupted for every queue
    /// on which something was given back, if it wants to be.
    pub queues: &'a mut [Queue],
    /// The features both sides agreed on.
    pub features: u64,
}

/// A virtio device without its transport. The contract of [`Device`](crate::Device) holds here too.
pub trait VirtioDevice: Send + 'static {
    /// Kind, as in [`DeviceState::kind`].
    fn kind(&self) -> &'static str;
    /// Device type (virtio 1.2, 5).
    fn device_type(&self) -> u16;
    /// PCI class code, 24 bits.
    fn class(&self) -> u32;
    /// The device's own feature bits; the transport adds its own.
    fn features(&self) -> u64;
    /// The queues at power-on.
    fn queues(&self) -> Vec<Queue>;
    /// Writes the device configuration into `space`, which holds zeros.
    fn config(&self, space: &mut [u8; CONFIG_SIZE]);
    /// The driver writes to the device configuration.
    fn config_write(&mut self, _cx: &mut Cx, _offset: u64, _data: &[u8]) {}
    /// The driver notifies queue `queue`, or has just become ready.
    fn notify(&mut self, io: &mut Io, queue: usize) -> Result<(), QueueError>;
    /// Back to power-on state.
    fn reset(&mut self);
    /// The driver resets the device.
    fn driver_reset(&mut self) {
        self.reset();
    }
    /// The device's fields, encoded.
    fn save(&self) -> Vec<u8>;
    /// The fields for people who compare two states: one a line.
    fn show(&self) -> String {
        crate::data::hex(&self.save())
    }
    /// Takes on saved fields, or says what is wrong with them.
    fn restore(&mut self, fields: &[u8]) -> Result<(), String>;
    /// When the device next acts by itself.
    fn deadline(&self) -> Option<GuestTime> {
        None
    }
    /// Called once guest time has reached the deadline.
    fn expire(&mut self, _io: &mut Io) -> Result<(), QueueError> {
        Ok(())
    }
    /// See [`PciFunction::failure`].
    fn failure(&self) -> Option<String> {
        None
    }
}

/// A virtio device as a PCI function.
pub struct VirtioPci<D> {
    pub(super) device: D,
    config: ConfigSpace,
    /// Offset of the data register of the configuration access capability.
    window: usize,
    msix: Msix,
    regs: Registers,
    queues: Vec<Queue>,
    /// Why the device stopped, for people; what the guest sees of it is in the status.
    fault: Option<QueueError>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Registers {
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    queue_select: u16,
    status: u8,
    generation: u8,
    isr: u8,
}

impl Registers {
    const POWER_ON: Self = Self {
        device_feature_select: 0,
        driver_feature_select: 0,
        driver_features: 0,
        config_vector: NO_VECTOR,
        queue_select: 0,
        status: 0,
        generation: 0,
        isr: 0,
    };
}

#[derive(Serialize, Deserialize)]
struct State {
    regs: Registers,
    queues: Vec<Queue>,
    msix: MsixState,
    device: Vec<u8>,
}

impl<D: VirtioDevice> VirtioPci<D> {
    /// Puts a device on the bus' side of virtio.
    pub fn new(device: D) -> Self {
        let id = 0x1040 + device.device_type();
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: id,
            revision: 1,
            class: device.class(),
            subsystem: (0x1af4, id),
            pin: 1,
        });
        config.add_bar(Bar { index: MSIX_BAR, kind: BarKind::Memory32, size: Msix::BAR_SIZE });
        config.add_bar(Bar { index: REGISTER_BAR, kind: BarKind::Memory64, size: 4 * REGION });
        let queues = device.queues();
        let msix = Msix::new(&mut config, MSIX_BAR, queues.len() + 1);
        for (kind, region) in [(1, COMMON), (3, ISR), (4, DEVICE)] {
            config.add_capability(CAP_VENDOR, &capability(kind, 16, region, 0));
        }
        let mut notify = capability(2, 20, NOTIFY, 0).to_vec();
        notify.extend(NOTIFY_MULTIPLIER.to_le_bytes());
        config.add_capability(CAP_VENDOR, &notify);
        let mut access = capability(5, 20, 0, 0).to_vec();
        access[2] = 0; // the driver chooses BAR, offset and length
        access[10..14].fill(0);
        access.extend([0; 4]);
        let at = config.add_capability(CAP_VENDOR, &access);
        config.allow(at + 4, &[0xff]);
        config.allow(at + 8, &[0xff; 8]);
        let regs = Registers::POWER_ON;
        Self { device, config, window: at + 16, msix, regs, queues, fault: None }
    }

    /// The device behind the transport.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device, for the board to restore contents that are not part of its saved fields.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Why the device stopped and waits for a reset, if it did.
    pub fn fault(&self) -> Option<QueueError> {
        self.fault
    }

    fn offered(&self) -> u64 {
        self.device.features() | F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC
    }

    /// Whether the driver is ready, the device in order, and memory in reach.
    fn live(&self) -> bool {
        self.regs.status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET) == STATUS_DRIVER_OK
            && self.config.bus_master()
    }

    /// Lets the device work, if it can, and interrupts the driver for what it finished.
    pub(super) fn run(&mut self, cx: &mut Cx, work: impl FnOnce(&mut D, &mut Io) -> Result<(), QueueError>) {
        if !self.live() {
            return;
        }
        let mut io = Io { cx, queues: &mut self.queues, features: self.regs.driver_features };
        let result = work(&mut self.device, &mut io).and_then(|()| self.signal_queues(cx));
        if let Err(fault) = result {
            self.stop(cx, fault);
        }
    }

    fn signal_queues(&mut self, cx: &mut Cx) -> Result<(), QueueError> {
        for i in 0..self.queues.len() {
            if self.queues[i].enabled && self.queues[i].wants_interrupt(cx.ram)? {
                self.interrupt(cx, self.queues[i].vector, ISR_QUEUE);
            }
        }
        Ok(())
    }

    fn interrupt(&mut self, cx: &mut Cx, vector: u16, cause: u8) {
        if !self.msix.enabled() {
            self.regs.isr |= cause;
        } else if self.config.bus_master() {
            self.msix.raise(cx.irq, vector);
        }
    }

    /// The driver broke a rule: no more work until it resets the device (2.1.2).
    fn stop(&mut self, cx: &mut Cx, fault: QueueError) {
        self.fault = Some(fault);
        self.regs.status |= STATUS_NEEDS_RESET;
        if self.regs.status & STATUS_DRIVER_OK != 0 {
            self.interrupt(cx, self.regs.config_vector, ISR_CONFIG);
        }
    }

    /// Tells the driver that the device configuration has changed.
    pub(super) fn config_changed(&mut self, cx: &mut Cx) {
        self.regs.generation = self.regs.generation.wrapping_add(1);
        if self.regs.status & STATUS_DRIVER_OK != 0 {
            self.interrupt(cx, self.regs.config_vector, ISR_CONFIG);
        }
    }

    /// Lets the device look at every queue.
    fn look_at_queues(&mut self, cx: &mut Cx) {
        for queue in 0..self.queues.len() {
            self.run(cx, |device, io| device.notify(io, queue));
        }
    }

    fn reset_registers(&mut self) {
        let generation = self.regs.generation;
        self.regs = Registers { generation, ..Registers::POWER_ON };
        self.queues.iter_mut().for_each(Queue::reset);
        self.fault = None;
    }

    fn set_status(&mut self, cx: &mut Cx, status: u8) {
        if status == 0 {
            self.reset_registers();
            self.device.driver_reset();
            return;
        }
        let old = self.regs.status;
        let mut new = old | status & !STATUS_NEEDS_RESET;
        if new & !old & STATUS_FEATURES_OK != 0 {
            let chosen = self.regs.driver_features;
            if chosen & !self.offered() != 0 || chosen & F_VERSION_1 == 0 {
                new &= !STATUS_FEATURES_OK;
            } else {
                let event_idx = chosen & F_EVENT_IDX != 0;
                self.queues.iter_mut().for_each(|queue| queue.event_idx = event_idx);
            }
        }
        if new & STATUS_FEATURES_OK == 0 {
            new &= !STATUS_DRIVER_OK;
        }
        self.regs.status = new;
        if new & !old & STATUS_DRIVER_OK != 0 {
            self.look_at_queues(cx);
        }
    }

    fn queue(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(usize::from(self.regs.queue_select))
    }

    /// The common configuration as the driver sees it (4.1.4.3).
    fn common(&mut self) -> [u8; 64] {
        let mut image = [0; 64];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let offered = self.offered();
        let regs = &self.regs;
        put(0, &regs.device_feature_select.to_le_bytes());
        put(4, &half(offered, regs.device_feature_select).to_le_bytes());
        put(8, &regs.driver_feature_select.to_le_bytes());
        put(12, &half(regs.driver_features, regs.driver_feature_select).to_le_bytes());
        put(16, &regs.config_vector.to_le_bytes());
        put(18, &(self.queues.len() as u16).to_le_bytes());
        put(20, &[regs.status, regs.generation]);
        put(22, &regs.queue_select.to_le_bytes());
        let select = regs.queue_select;
        if let Some(queue) = self.queue() {
            put(24, &queue.size.to_le_bytes());
            put(26, &queue.vector.to_le_bytes());
            put(28, &u16::from(queue.enabled).to_le_bytes());
            put(30, &select.to_le_bytes()); // the queue's place among the notifications
            put(32, &queue.desc.to_le_bytes());
            put(40, &queue.avail.to_le_bytes());
            put(48, &queue.used.to_le_bytes());
        } else {
            put(26, &NO_VECTOR.to_le_bytes());
        }
        image
    }

    /// A write to the common configuration. Fields are written whole; the 64-bit ones also in halves.
    fn common_write(&mut self, cx: &mut Cx, offset: u64, data: &[u8]) {
        match *data {
            [value] if offset == 20 => self.set_status(cx, value),
            [a, b] => self.common_write_u16(cx, offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.common_write_u32(offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] if offset >= 32 => {
                self.common_write_u32(offset, u32::from_le_bytes([a, b, c, d]));
                self.common_write_u32(offset + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
    }

    fn common_write_u16(&mut self, cx: &mut Cx, offset: u64, value: u16) {
        let vector = if usize::from(value) < self.msix.entries() { value } else { NO_VECTOR };
        match offset {
            16 => self.regs.config_vector = vector,
            22 => self.regs.queue_select = value,
            _ => {
                let Some(queue) = self.queue() else { return };
                match offset {
                    24 if !queue.enabled => queue.set_size(value),
                    26 => queue.vector = vector,
                    28 if value == 1 && !queue.enabled => match queue.check_rings(cx.ram) {
                        Ok(()) => queue.enabled = true,
                        Err(fault) => self.stop(cx, fault),
                    },
                    _ => {}
                }
            }
        }
    }

    fn common_write_u32(&mut self, offset: u64, value: u32) {
        match offset {
            0 => self.regs.device_feature_select = value,
            8 => self.regs.driver_feature_select = value,
            12 if self.regs.status & STATUS_FEATURES_OK == 0 && self.regs.driver_feature_select < 2 => {
                set_half(&mut self.regs.driver_features, self.regs.driver_feature_select == 1, value);
            }
            _ => {
                let Some(queue) = self.queue().filter(|queue| !queue.enabled) else { return };
                match offset {
                    32 | 36 => set_half(&mut queue.desc, offset == 36, value),
                    40 | 44 => set_half(&mut queue.avail, offset == 44, value),
                    48 | 52 => set_half(&mut queue.used, offset == 52, value),
                    _ => {}
                }
            }
        }
    }

    /// What the configuration access capability points at now: BAR and offset, if an access of
    /// `len` bytes there is well-formed (4.1.4.9).
    fn window_target(&self, len: usize) -> Option<(u8, u64)> {
        let capability = self.window - 16;
        let bar = self.config.read_u32(capability + 4) as u8;
        let offset = u64::from(self.config.read_u32(capability + 8));
        let length = self.config.read_u32(capability + 12) as usize;
        let size = self.config.bars().iter().find(|b| b.index == bar)?.size;
        let fits = length == len && matches!(len, 1 | 2 | 4) && offset % len as u64 == 0;
        (fits && offset + len as u64 <= size).then_some((bar, offset))
    }
}

/// Replaces one half of a 64-bit word.
fn set_half(word: &mut u64, high: bool, value: u32) {
    let shift = if high { 32 } else { 0 };
    *word = *word & !(0xffff_ffff << shift) | u64::from(value) << shift;
}

/// The body of a virtio capability (4.1.4), less its ID and next pointer: a whole region of the BAR.
fn capability(kind: u8, len: u8, region: u64, id: u8) -> [u8; 14] {
    let mut body = [0; 14];
    body[0] = len;
    body[1] = kind;
    body[2] = REGISTER_BAR;
    body[3] = id;
    body[6..10].copy_from_slice(&((region * REGION) as u32).to_le_bytes());
    body[10..14].copy_from_slice(&(REGION as u32).to_le_bytes());
    body
}

/// Copies what lies at `offset` of `image`, zeros beyond it.
fn read_image(image: &[u8], offset: u64, data: &mut [u8]) {
    for (i, byte) in data.iter_mut().enumerate() {
        *byte = image.get(offset as usize + i).copied().unwrap_or(0);
    }
}

impl<D: VirtioDevice> PciFunction for VirtioPci<D> {
    fn kind(&self) -> &'static str {
        self.device.kind()
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_read(&mut self, cx: &mut Cx, offset: usize, data: &mut [u8]) {
        match self.window_target(data.len()) {
            Some((bar, at)) if offset == self.window => self.bar_read(cx, bar, at, data),
            _ => self.config.read(offset, data),
        }
    }

    fn config_write(&mut self, cx: &mut Cx, offset: usize, data: &[u8]) {
        if offset == self.window {
            if let Some((bar, at)) = self.window_target(data.len()) {
                self.bar_write(cx, bar, at, data);
            }
            return;
        }
        let mastered = self.config.bus_master();
        self.config.write(offset, data);
        self.msix.config_written(&self.config, cx.irq);
        if !mastered && self.config.bus_master() {
            self.look_at_queues(cx);
        }
    }

    fn bar_read(&mut self, _cx: &mut Cx, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if bar == MSIX_BAR {
            return self.msix.read(offset, data);
        }
        let at = offset % REGION;
        match offset / REGION {
            COMMON => read_image(&self.common(), at, data),
            ISR if at == 0 => data[0] = std::mem::take(&mut self.regs.isr),
            DEVICE => {
                let mut space = [0; CONFIG_SIZE];
                self.device.config(&mut space);
                read_image(&space, at, data);
            }
            _ => {}
        }
    }

    fn bar_write(&mut self, cx: &mut Cx, bar: u8, offset: u64, data: &[u8]) {
        if bar == MSIX_BAR {
            return self.msix.write(cx.irq, offset, data);
        }
        let at = offset % REGION;
        match offset / REGION {
            COMMON => self.common_write(cx, at, data),
            DEVICE => self.device.config_write(cx, at, data),
            NOTIFY => {
                let queue = (at / u64::from(NOTIFY_MULTIPLIER)) as usize;
                if queue < self.queues.len() {
                    self.run(cx, |device, io| device.notify(io, queue));
                }
            }
            _ => {}
        }
    }

    fn intx(&self) -> bool {
        self.regs.isr != 0 && !self.msix.enabled()
    }

    fn reset(&mut self) {
        self.msix.reset();
        self.reset_registers();
        self.regs.generation = 0;
        self.device.reset();
    }

    fn save(&self) -> DeviceState {
        let state = State {
            regs: self.regs.clone(),
            queues: self.queues.clone(),
            msix: self.msix.save(),
            device: self.device.save(),
        };
        DeviceState::encode(self.kind(), VERSION, &state)
    }
    fn show(&self) -> String {
        let device = self.device.show();
        format!("{:#?}\n{:#?}\n{:?}\n{device}", self.regs, self.queues, self.msix.save())
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let kind = self.kind();
        let state: State = state.decode(kind, VERSION)?;
        let damaged = |why: String| StateError::Damaged { kind, why };
        let fresh = self.device.queues();
        let fit = state.queues.len() == fresh.len();
        if !fit || !fresh.iter().zip(&state.queues).all(|(fresh, saved)| fresh.accepts(saved)) {
            return Err(damaged("queues of other sizes".into()));
        }
        if !self.msix.restore(&state.msix) {
            return Err(damaged("a message table of another size".into()));
        }
        self.device.restore(&state.device).map_err(damaged)?;
        self.regs = state.regs;
        self.queues = state.queues;
        self.fault = None;
        Ok(())
    }

    fn deadline(&self) -> Option<GuestTime> {
        self.device.deadline().filter(|_| self.live())
    }

    fn expire(&mut self, cx: &mut Cx) {
        self.run(cx, |device, io| device.expire(io));
    }

    fn failure(&self) -> Option<String> {
        self.device.failure()
    }
}
