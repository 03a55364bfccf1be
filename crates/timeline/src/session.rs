//! A machine made from a [`Guest`], and the one way to move it.

use crate::output::{Output, Tray};
use crate::{ClockMode, Fault, Guest, Tuning};
use base::{GuestTime, Position};
use cpu::profile::{self, Work};
use cpu::{CpuError, Vcpu, VcpuConfig};
use devices::UnixTime;
use disk::{DiskError, Overlay, Store};
use machine::boot::{self, BootError};
use machine::{
    BoardConfig, BoardError, Gate, Idle, Machine, MachineConfig, Moment, PciBus, PciFull, Rate, Stop,
};
use recording::{Digest, StateHash};
use std::sync::Arc;

/// A guest that cannot be made into a machine here.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The processor.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// The board.
    #[error(transparent)]
    Board(#[from] BoardError),
    /// Kernel or initrd.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Too many devices.
    #[error(transparent)]
    Pci(#[from] PciFull),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A guest that contradicts itself.
    #[error("the guest has {guest} processors and its processors say that they are {model}")]
    Processors {
        /// The guest's.
        guest: u32,
        /// The model's.
        model: u32,
    },
}

/// A machine with its guest.
pub struct Session {
    machine: Machine<Vcpu>,
    guest: Arc<Guest>,
    tray: Tray,
    store: Arc<Store>,
    fault: Option<Fault>,
}

impl Session {
    /// A machine at power-on with the guest loaded; inputs come from `gate`.
    pub fn new(guest: Arc<Guest>, tuning: &Tuning, gate: Gate) -> Result<Self, SessionError> {
        if guest.model.processors != guest.cpus {
            return Err(SessionError::Processors { guest: guest.cpus, model: guest.model.processors });
        }
        let mut vcpu = Vcpu::new(VcpuConfig {
            model: guest.model.clone(),
            code_cache_bytes: tuning.code_cache_bytes,
            chaos: tuning.chaos,
            mirror_after: tuning.mirror_after,
        })?;
        if let Some(folder) = &tuning.translations {
            // Without, everything is translated: no reason not to run.
            let _ = vcpu.keep_translations(folder);
        }
        let store = Store::in_temp_dir(tuning.disk_memory_bytes);
        let tray = Tray::default();
        let config = MachineConfig {
            board: BoardConfig {
                memory: guest.memory_bytes,
                cpus: guest.cpus,
                start_of_day: UnixTime((guest.start_of_day_unix_ns / 1_000_000_000) as _),
                rate: Rate::ONE,
                hpet: true,
                debug_ports: guest.debug_ports,
            },
            idle: match guest.clock {
                ClockMode::Virtual => Idle::Skip,
                ClockMode::Host => Idle::Wait,
            },
            seed: guest.seed,
        };
        let machine = Machine::new(config, vcpu, bus_of(&guest, &store)?, gate, Box::new(tray.clone()))?;
        let mut session = Self { machine, guest, tray, store, fault: tuning.fault };
        session.load()?;
        Ok(session)
    }

    fn load(&mut self) -> Result<(), BootError> {
        let guest = &self.guest;
        self.machine.load(&boot::Guest {
            kernel_path: &guest.kernel.path,
            kernel: &guest.kernel.bytes,
            initrd: guest.initrd.as_ref().map(|initrd| initrd.as_slice()),
            command_line: &guest.command_line,
        })
    }

    /// Runs until the machine's moment is `limit` or later, or something stops it: see
    /// [`Machine::run_until_moment`]. A guest that [reboots](Guest::reboots) does so in here.
    pub fn run_until_moment(&mut self, limit: Moment) -> Stop {
        if let Some(fault) = self.fault
            && self.position() < fault.at
            && fault.at <= limit.position
        {
            let at = Moment { position: fault.at, time: GuestTime::ZERO };
            let stop = self.run_well_until(at);
            if stop != Stop::Limit {
                return stop;
            }
            fault.strike(&mut self.machine);
        }
        self.run_well_until(limit)
    }

    fn run_well_until(&mut self, limit: Moment) -> Stop {
        loop {
            let stop = self.machine.run_until_moment(limit);
            if stop != Stop::Reset || !self.guest.reboots {
                return stop;
            }
            self.machine.reset();
            if let Err(error) = self.load() {
                return Stop::Failed(error.to_string());
            }
        }
    }

    /// Runs until the position is `limit`, or something stops the machine.
    pub fn run_until(&mut self, limit: Position) -> Stop {
        self.run_until_moment(Moment { position: limit, time: GuestTime::ZERO })
    }

    /// What left the machine since the last call.
    pub fn take_output(&mut self) -> Output {
        self.tray.take()
    }

    /// Where and when the machine is.
    pub fn moment(&self) -> Moment {
        self.machine.moment()
    }

    /// Where the machine is.
    pub fn position(&self) -> Position {
        self.machine.position()
    }

    /// The hash of the whole state; costs as much as was written since the last one.
    ///
    /// # Errors
    /// When the host cannot read back what the guest wrote to a disk.
    pub fn state_hash(&mut self) -> Result<StateHash, DiskError> {
        let _work = profile::work(Work::Hash);
        let hash = self.machine.state_hash()?;
        let digest = |bytes: [u8; 32]| Digest::from_hash(&blake3::Hash::from_bytes(bytes));
        Ok(StateHash {
            registers: digest(hash.registers),
            devices: digest(hash.devices),
            memory: digest(hash.memory),
        })
    }

    /// Sets or takes away the error that the machine makes on purpose.
    pub fn set_fault(&mut self, fault: Option<Fault>) {
        self.fault = fault;
    }

    /// The guest.
    pub fn guest(&self) -> &Arc<Guest> {
        &self.guest
    }

    /// The machine, to look into.
    pub fn machine(&self) -> &Machine<Vcpu> {
        &self.machine
    }

    /// The machine, to look into or to set up.
    pub fn machine_mut(&mut self) -> &mut Machine<Vcpu> {
        &mut self.machine
    }

    /// Where written disk blocks are kept.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }
}

/// The PCI bus of a guest. The order is part of the machine's definition.
fn bus_of(guest: &Guest, store: &Arc<Store>) -> Result<PciBus, PciFull> {
    let mut bus = PciBus::new();
    bus.add_entropy(blake3::derive_key("hindsight 2026 guest entropy", &guest.seed.to_le_bytes()))?;
    for (number, disk) in guest.disks.iter().enumerate() {
        let contents = Overlay::new(disk.base.clone(), store.clone());
        bus.add_disk(contents, &format!("hindsight-{number}"), false)?;
    }
    if let Some(card) = &guest.card {
        bus.add_card(card.mac, card.mtu)?;
    }
    Ok(bus)
}
