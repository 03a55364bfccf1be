//! A whole machine: board, processor, gate, and the loop that runs them.
//!
//! The loop alternates between letting the processor run up to the next moment at which anything
//! else is to happen (a deadline, a recorded input, the caller's limit) and letting that happen. At
//! one position the order is fixed: deadlines first, then inputs, then instructions or idling.

use crate::acpi::{self, AcpiConfig};
use crate::board::{Board, BoardConfig, BoardError, BoardState, Ending};
use crate::boot::{self, BootError};
use crate::clock::Idle;
use crate::gate::{Admitted, Gate, GateError, Input, Moment};
use crate::memory_hash::MemoryHash;
use crate::pci::PciBus;
use crate::processor::{Exit, Processor};
use crate::processors::Turn;
use crate::scheduler::{ScheduleError, Scheduler};
use base::{GuestTime, Position};
use cpu::{Activity, CpuState, SavedCpu};
use devices::{Outside, StateError};
use disk::DiskError;
use serde::{Deserialize, Serialize};

/// How often guest time may jump at one position before the caller gets a turn.
const IDLE_JUMPS_MAX: u32 = 10_000;

/// What a machine is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineConfig {
    /// The board.
    pub board: BoardConfig,
    /// What guest time does while every processor is halted.
    pub idle: Idle,
    /// Which schedule several processors follow; 0 is the plain one.
    pub seed: u64,
}

/// Why a run stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The limit is reached; nothing at that position but due deadlines has happened yet.
    Limit,
    /// ACPI S5.
    PowerOff,
    /// The guest reset itself.
    Reset,
    /// The guest reported a panic.
    Panic,
    /// The processor shut down after a triple fault.
    TripleFault,
    /// The guest wrote this to the debug-exit port.
    DebugExit(u32),
    /// Halted. Guest time does not pass by itself, or not that far ([`Machine::set_idle_horizon`]);
    /// `until` says when the machine would next act. With `None` it waits for input.
    Idle {
        /// The guest time of the next deadline.
        until: Option<GuestTime>,
    },
    /// Halted with interrupts off: no input can wake it.
    Dead,
    /// Guest time has jumped many times without an instruction; call again.
    Breath,
    /// A debugger set on the processor wants to look; only where one was set.
    Debugger,
    /// The host failed one of the devices; the machine cannot go on.
    Failed(String),
}

/// The state of a machine but for its RAM, which checkpoints keep by page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineState {
    /// Each processor's registers, a [`cpu::SavedCpu`] encoded by postcard.
    pub processors: Vec<Vec<u8>>,
    /// Devices and clock.
    pub board: BoardState,
    /// For which processors (bit n: number n) an NMI waits.
    pub nmi_held: u32,
    /// Whose turn it is, and for how long.
    pub scheduler: Scheduler,
}

/// A saved state this machine cannot take on.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Devices.
    #[error(transparent)]
    Devices(#[from] StateError),
    /// Registers.
    #[error(transparent)]
    Processor(#[from] cpu::RestoreError),
    /// Registers that do not decode.
    #[error("the processor's state does not decode: {0}")]
    Encoding(String),
    /// Not this machine's number of processors.
    #[error("the state of {found} processors is saved, this machine has {have}")]
    Processors {
        /// What the state has.
        found: usize,
        /// What there are.
        have: u32,
    },
    /// The schedule.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
}

/// A hash of the machine's whole state in three parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateHash {
    /// The processor's registers.
    pub registers: [u8; 32],
    /// Devices and clock.
    pub devices: [u8; 32],
    /// RAM.
    pub memory: [u8; 32],
}

impl StateHash {
    /// One hash for people to compare.
    pub fn combined(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        [self.registers, self.devices, self.memory].iter().for_each(|part| {
            hasher.update(part);
        });
        *hasher.finalize().as_bytes()
    }
}

/// A machine.
pub struct Machine<P> {
    config: MachineConfig,
    pub(crate) board: Board,
    pub(crate) processor: P,
    pub(crate) scheduler: Scheduler,
    gate: Gate,
    memory_hash: MemoryHash,
    /// For which processors an NMI waits.
    pub(crate) nmi_held: u32,
    /// A debugger's watch for turns, and whether it has met one.
    pub(crate) turn_watch: Option<Turn>,
    pub(crate) turn_met: bool,
    /// The processor that ran last.
    pub(crate) ran: u32,
    /// How far guest time may jump while the processor is halted.
    idle_horizon: GuestTime,
}

impl<P: Processor> Machine<P> {
    /// A machine at power-on, with nothing in its memory.
    pub fn new(
        config: MachineConfig,
        processor: P,
        pci: PciBus,
        gate: Gate,
        out: Box<dyn Outside + Send>,
    ) -> Result<Self, BoardError> {
        if processor.cpus() != config.board.cpus {
            return Err(BoardError::Sockets { board: config.board.cpus, processors: processor.cpus() });
        }
        let board = Board::new(&config.board, pci, out)?;
        let memory_hash = MemoryHash::new(board.memory());
        let idle_horizon = GuestTime::from_ns(u64::MAX);
        let scheduler = Scheduler::new(config.seed);
        Ok(Self {
            config,
            board,
            processor,
            scheduler,
            gate,
            memory_hash,
            nmi_held: 0,
            turn_watch: None,
            turn_met: false,
            ran: 0,
            idle_horizon,
        })
    }

    /// Puts a guest into memory and the processor at its entry, as a boot loader after firmware
    /// would: ACPI tables, virtual wire mode.
    pub fn load(&mut self, guest: &boot::Guest) -> Result<(), BootError> {
        boot::load(self.board.memory_mut(), self.processor.state_mut(), guest)?;
        let board = &self.config.board;
        let acpi = AcpiConfig { cpus: board.cpus, memory: board.memory, hpet: board.hpet };
        if !acpi::write_tables(self.board.memory_mut(), &acpi) {
            return Err(BootError::KernelMemory { memory_mib: board.memory >> 20, needed_mib: 1 });
        }
        self.board.set_virtual_wire();
        self.processor.state_replaced();
        Ok(())
    }

    /// Begins anew, as after a reset: devices and processor are as at power-on and the guest is to
    /// be loaded again; RAM, disks, the clock and the position stay.
    pub fn reset(&mut self) {
        self.board.reset();
        self.nmi_held = 0;
        let retired = self.processor.state().retired;
        self.processor.select(0);
        for cpu in 0..self.processor.cpus() {
            let fresh = if cpu == 0 { CpuState::power_on() } else { CpuState::power_on_waiting(cpu) };
            *self.processor.context_mut(cpu) = CpuState { retired, ..fresh };
        }
        self.processor.state_replaced();
    }

    /// Lets guest time jump to `horizon` and no further while the processor is halted, with
    /// [`Idle::Skip`]. Beyond it the machine stops with [`Stop::Idle`]. No limit at first. The guest
    /// cannot see how far one call goes.
    pub fn set_idle_horizon(&mut self, horizon: GuestTime) {
        self.idle_horizon = horizon;
    }

    /// Lets guest time pass up to `time`, which must not lie beyond the next deadline, while the
    /// machine stands at [`Stop::Idle`]: before an input that comes at that time.
    pub fn pass_idle_time(&mut self, time: GuestTime) {
        let position = self.position();
        self.board.skip_to(position, time);
    }

    /// What it is made of.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// The board.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// The board, to inspect or set up while the machine stands.
    pub fn board_mut(&mut self) -> &mut Board {
        &mut self.board
    }

    /// Both, to set up a debugger's traps.
    pub fn processor_and_board(&mut self) -> (&mut P, &mut Board) {
        (&mut self.processor, &mut self.board)
    }

    /// The processor.
    pub fn processor(&self) -> &P {
        &self.processor
    }

    /// The processor, to inspect or set up while the machine stands.
    pub fn processor_mut(&mut self) -> &mut P {
        &mut self.processor
    }

    /// Where the machine is.
    pub fn position(&self) -> Position {
        self.processor.position()
    }

    /// Where and when the machine is.
    pub fn moment(&self) -> Moment {
        let position = self.position();
        Moment { position, time: self.board.clock().time_at(position) }
    }

    /// The gate.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Exchanges the gate: to go live from a replayed past, or to replay again after a restore.
    pub fn set_gate(&mut self, gate: Gate) -> Gate {
        std::mem::replace(&mut self.gate, gate)
    }

    /// Lets one input in, here and now. How much of it was taken (bytes; 0 or 1 for what is not
    /// made of bytes); what was not taken is lost to the guest, in a replay just the same.
    pub fn inject(&mut self, input: Input) -> Result<usize, GateError> {
        let admitted = self.gate.enter(self.moment(), input)?;
        Ok(self.admit(&admitted))
    }

    fn admit(&mut self, admitted: &Admitted) -> usize {
        let taken = self.board.admit(admitted);
        self.note_woken();
        taken
    }

    /// Lets in every recorded input that is due at this moment: what [`Self::run_until`] leaves to
    /// the next call when it stops at its limit. For comparing final states.
    pub fn admit_due(&mut self) {
        while let Some(admitted) = self.gate.take_due(self.moment()) {
            self.admit(&admitted);
        }
    }

    /// Runs until the position is `limit`, or something stops the machine earlier. Stopping at a
    /// limit is invisible to the guest.
    pub fn run_until(&mut self, limit: Position) -> Stop {
        self.run_until_moment(Moment { position: limit, time: GuestTime::ZERO })
    }

    /// Runs until the machine's moment is `limit` or later; inputs at that moment have not entered.
    pub fn run_until_moment(&mut self, limit: Moment) -> Stop {
        let mut jumps = 0;
        loop {
            self.board.tick(self.position());
            self.note_woken();
            if let Some(stop) = self.stop_of_guest() {
                return stop;
            }
            if self.moment() >= limit {
                return Stop::Limit;
            }
            if let Some(admitted) = self.gate.take_due(self.moment()) {
                self.admit(&admitted);
                continue;
            }
            self.pass_signals();
            if !self.schedule() {
                if let Some(stop) = self.idle(&mut jumps) {
                    return stop;
                }
                continue;
            }
            if self.turn_met {
                return Stop::Debugger;
            }
            jumps = 0;
            let bound = self.bound(limit);
            let exit = self.processor.run(&mut self.board, bound);
            self.after_run(exit);
            match exit {
                Exit::Shutdown => return Stop::TripleFault,
                _ if self.turn_met => return Stop::Debugger,
                Exit::Limit | Exit::Halted | Exit::Pause => {}
                // The breakpoint of one whose turn is over is met in its next turn.
                Exit::Debugger if self.ran != self.processor.current() && !self.processor.has_hit() => {}
                Exit::Debugger => return Stop::Debugger,
            }
        }
    }

    /// How far the processor may run without regard to deadlines, which the bus tells it.
    fn bound(&self, limit: Moment) -> Position {
        // A moment later at this same position is reached by idling only; a processor that turns
        // out not to idle has to go on.
        let here = self.position();
        if self.awaits_iret() {
            // NMIs are unblocked by an IRET, which nothing else would stop after.
            return here.after(1);
        }
        let past = |moment: Moment| if moment.position > here { moment.position } else { here.after(1) };
        let turn = if self.processor.cpus() > 1 { self.scheduler.horizon(here) } else { Position::NEVER };
        self.gate.next().map_or(Position::NEVER, past).min(past(limit)).min(turn)
    }

    fn stop_of_guest(&mut self) -> Option<Stop> {
        if let Some(why) = self.board.failure() {
            return Some(Stop::Failed(why));
        }
        if let Some(ending) = self.board.take_ending() {
            return Some(match ending {
                Ending::PowerOff => Stop::PowerOff,
                Ending::Reset => Stop::Reset,
                Ending::Panic => Stop::Panic,
                Ending::DebugExit(value) => Stop::DebugExit(value),
            });
        }
        (self.processor.state().activity == Activity::Shutdown).then_some(Stop::TripleFault)
    }

    /// Lets idle time pass: `None` when something may have changed.
    fn idle(&mut self, jumps: &mut u32) -> Option<Stop> {
        let position = self.position();
        let deadline = self.board.next_deadline();
        if let Some(next) = self.gate.next().filter(|next| next.position <= position) {
            // A recorded input that came while guest time stood here.
            let before_deadline = self.config.idle == Idle::Wait || deadline.is_none_or(|d| next.time < d);
            if before_deadline {
                self.board.skip_to(position, next.time);
                return None;
            }
        }
        if !self.anyone_takes_interrupts() {
            return Some(Stop::Dead);
        }
        let skipped = deadline.filter(|until| self.config.idle == Idle::Skip && *until <= self.idle_horizon);
        let Some(until) = skipped else { return Some(Stop::Idle { until: deadline }) };
        *jumps += 1;
        if *jumps > IDLE_JUMPS_MAX {
            return Some(Stop::Breath);
        }
        self.board.skip_to(position, until);
        None
    }

    /// The state of devices, processor and clock.
    pub fn save(&self) -> MachineState {
        MachineState {
            processors: (0..self.processor.cpus()).map(|cpu| self.save_processor(cpu)).collect(),
            board: self.board.save(),
            nmi_held: self.nmi_held,
            scheduler: self.scheduler.clone(),
        }
    }

    /// Takes on a saved state; RAM is the caller's to restore. After an error the machine must not
    /// run before a restore has succeeded.
    pub fn restore(&mut self, state: &MachineState) -> Result<(), RestoreError> {
        let have = self.processor.cpus();
        if state.processors.len() != have as usize {
            return Err(RestoreError::Processors { found: state.processors.len(), have });
        }
        self.board.restore(&state.board)?;
        // First, for what it does to the one that is left.
        self.processor.select(self.board.current_cpu());
        self.ran = self.board.current_cpu();
        self.turn_met = false;
        for (cpu, saved) in (0..).zip(&state.processors) {
            let restored = self.restored(cpu, saved)?;
            *self.processor.context_mut(cpu) = restored;
        }
        self.processor.state_replaced();
        state.scheduler.check(self.position(), self.config.seed)?;
        self.scheduler = state.scheduler.clone();
        self.nmi_held = state.nmi_held & (u32::MAX >> (32 - have));
        Ok(())
    }

    fn save_processor(&self, cpu: u32) -> Vec<u8> {
        postcard::to_stdvec(&self.processor.context(cpu).save()).expect("plain data")
    }

    fn restored(&self, cpu: u32, saved: &[u8]) -> Result<CpuState, RestoreError> {
        let saved: SavedCpu =
            postcard::from_bytes(saved).map_err(|why| RestoreError::Encoding(why.to_string()))?;
        let state = saved.restore(self.processor.model())?;
        if state.apic_id != cpu {
            let value = state.apic_id.into();
            return Err(cpu::RestoreError::Impossible { what: "APIC identifier", value }.into());
        }
        Ok(state)
    }

    /// Pages of RAM written since the last call (or power-on), in order.
    pub fn take_changed_pages(&mut self) -> Vec<u32> {
        self.memory_hash.take_changed(self.board.memory_mut())
    }

    /// The hash of the whole state, disks included. Costs as much as was written since the last one.
    ///
    /// # Errors
    /// When the host cannot read back what the guest wrote to a disk.
    pub fn state_hash(&mut self) -> Result<StateHash, DiskError> {
        let state = self.save();
        let board =
            postcard::to_stdvec(&(&state.board, state.nmi_held, &state.scheduler)).expect("plain data");
        let mut devices = blake3::Hasher::new();
        devices.update(&board);
        let pci = self.board.pci();
        for disk in (0..pci.disks()).filter_map(|n| pci.disk(n)) {
            devices.update(disk.hash()?.as_bytes());
        }
        let mut registers = blake3::Hasher::new();
        state.processors.iter().for_each(|processor| {
            registers.update(processor);
        });
        Ok(StateHash {
            registers: *registers.finalize().as_bytes(),
            devices: *devices.finalize().as_bytes(),
            memory: self.memory_hash.hash(self.board.memory_mut()),
        })
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
