//! Running a case: a machine at power-on, its guest begun anew whenever it ends.

use crate::Case;
use crate::firmware::dispatcher;
use crate::layout::{self, selector};
use base::{GuestPhys, Position};
use cpu::{CpuState, Vcpu, VcpuConfig};
use devices::{Outside, UnixTime};
use disk::{Overlay, Store, Zeros};
use machine::{BoardConfig, ClockCorrection, Gate, Input, Machine, MachineConfig, PciBus, Stop};
use std::sync::{Arc, Mutex};
use x86::{CpuModel, DescriptorTable, Segment, SegmentIndex, flags};

/// How a case is run. The end must not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// From input to input.
    Whole,
    /// With stops at positions derived from this number.
    Pieces(u64),
    /// With translations and code dropped at times derived from this number.
    Chaos(u64),
    /// Every instruction from Rust.
    Interpreted,
    /// Saved at this position and restored into another machine.
    Restored(u64),
}

/// Ways in which guests ended, to show how far a case got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Began anew after a triple fault.
    pub triple_faults: u32,
    /// After a reset.
    pub resets: u32,
    /// After the last stage, or whatever else powers off.
    pub power_offs: u32,
    /// After a panic was reported.
    pub panics: u32,
    /// Halted for good.
    pub halts: u32,
    /// Inputs that were taken, in part at least.
    pub inputs_taken: u32,
    /// Frames and console bytes that left.
    pub outputs: u64,
    /// How often another processor woke up and got as far as a stage, since the guest last began.
    pub woken: u32,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Instructions retired.
    pub position: u64,
    /// The combined state hash.
    pub state: [u8; 32],
    /// A hash of everything that left the machine, in order.
    pub output: [u8; 32],
    /// How the guest fared.
    pub end: End,
    /// Hashes of registers, devices and memory, to say where a difference is.
    pub parts: [[u8; 32]; 3],
}

#[derive(Default)]
struct Left {
    hasher: blake3::Hasher,
    count: u64,
}

/// Collects what leaves the machine.
#[derive(Clone, Default)]
struct Tray(Arc<Mutex<Left>>);

impl Tray {
    fn note(&self, kind: u8, number: u32, bytes: &[u8]) {
        let mut left = self.0.lock().expect("nobody panics with it");
        left.hasher.update(&[kind]).update(&number.to_le_bytes());
        left.hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        left.count += if kind == 0 { bytes.len() as u64 } else { 1 };
    }
}

impl Outside for Tray {
    fn console(&mut self, port: u32, bytes: &[u8]) {
        // However the bytes are cut, they are the same.
        for byte in bytes {
            self.note(0, port, &[*byte]);
        }
    }
    fn frame(&mut self, card: u32, frame: &[u8]) {
        self.note(1, card, frame);
    }
}

/// Runs `case`.
///
/// # Panics
/// When the machine cannot be made on this host: no memory, a processor without what the model asks.
pub fn run(case: &Case, pace: Pace) -> Outcome {
    Run::new(case, pace).into_outcome()
}

/// The machine at the end of a run.
pub(crate) fn finish(case: &Case, pace: Pace) -> Machine<Vcpu> {
    let mut run = Run::new(case, pace);
    run.all();
    run.machine
}

struct Run<'a> {
    case: &'a Case,
    pace: Pace,
    machine: Machine<Vcpu>,
    tray: Tray,
    /// The next input.
    input: usize,
    /// The stage with which the guest begins anew.
    stage: u32,
    end: End,
}

impl<'a> Run<'a> {
    fn new(case: &'a Case, pace: Pace) -> Self {
        let tray = Tray::default();
        let machine = machine(case, pace, &tray);
        let mut run = Self { case, pace, machine, tray, input: 0, stage: 0, end: End::default() };
        run.begin();
        run
    }

    /// Puts the guest into memory and the processor at the dispatcher.
    fn begin(&mut self) {
        for (at, bytes) in self.case.image(self.stage) {
            let memory = self.machine.board_mut().memory_mut();
            let (mut at, mut rest) = (at, bytes.as_slice());
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min((0x1000 - at % 0x1000) as usize));
                assert!(memory.write(GuestPhys(at), now), "the layout fits in memory");
                (at, rest) = (at + now.len() as u64, later);
            }
        }
        enter(self.machine.processor_mut().state_mut(), self.case);
    }

    /// After whatever ended the guest: the next stage but the one that did it.
    fn begin_anew(&mut self) {
        let memory = self.machine.board().memory();
        let running = memory.read_array(GuestPhys(layout::STAGE)).map_or(0, u32::from_le_bytes);
        let stages = self.case.stages.len() as u32;
        self.stage = if (self.stage..stages).contains(&running) { running + 1 } else { self.stage + 1 };
        self.machine.reset();
        self.begin();
    }

    fn into_outcome(mut self) -> Outcome {
        self.all();
        self.outcome()
    }

    fn all(&mut self) {
        let mut pieces = match self.pace {
            Pace::Pieces(seed) => Some(seed),
            _ => None,
        };
        let mut save_at = match self.pace {
            Pace::Restored(at) => Some(at),
            _ => None,
        };
        while self.position() < self.case.instructions && self.stage <= self.case.stages.len() as u32 {
            let limit = self.next_input().min(self.case.instructions).max(self.position());
            let mut stop_at = limit;
            if let Some(seed) = &mut pieces {
                *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                stop_at = stop_at.min(self.position() + 1 + (*seed >> 40) % 700);
            }
            if let Some(at) = save_at {
                stop_at = stop_at.min(at.max(self.position()));
            }
            let stop = self.machine.run_until(Position::from_count(stop_at));
            if save_at.is_some_and(|at| at <= self.position()) {
                save_at = None;
                self.move_house();
            }
            if !self.act(&stop, limit) {
                break;
            }
        }
    }

    fn position(&self) -> u64 {
        self.machine.position().count()
    }

    fn next_input(&self) -> u64 {
        self.case.inputs.get(self.input).map_or(u64::MAX, |(at, _)| *at)
    }

    /// Acts on a stop; false when nothing can go on.
    fn act(&mut self, stop: &Stop, limit: u64) -> bool {
        match stop {
            Stop::Limit if self.position() < limit => {}
            Stop::Limit => self.let_in(),
            Stop::PowerOff => {
                self.end.power_offs += 1;
                self.begin_anew();
            }
            Stop::Reset => {
                self.end.resets += 1;
                self.begin_anew();
            }
            Stop::Panic => {
                self.end.panics += 1;
                self.begin_anew();
            }
            Stop::TripleFault => {
                self.end.triple_faults += 1;
                self.begin_anew();
            }
            Stop::DebugExit(_) => {}
            Stop::Idle { .. } | Stop::Breath if self.input < self.case.inputs.len() => self.let_in(),
            Stop::Idle { until: Some(until) } => {
                let advance_ns = until.ns_since(self.machine.moment().time).max(1);
                self.inject(Input::Clock(ClockCorrection { advance_ns, rate: None }));
                self.end.halts += 1;
                if self.end.halts > 1000 {
                    self.begin_anew();
                }
            }
            Stop::Idle { until: None } | Stop::Breath | Stop::Dead => {
                self.end.halts += 1;
                self.begin_anew();
            }
            Stop::Failed(why) => panic!("the machine failed: {why}"),
            Stop::Debugger => panic!("no debugger is set"),
        }
        true
    }

    fn let_in(&mut self) {
        if let Some((_, input)) = self.case.inputs.get(self.input) {
            self.input += 1;
            self.inject(input.clone());
        }
    }

    fn inject(&mut self, input: Input) {
        let taken = self.machine.inject(input).expect("a live gate takes every input");
        self.end.inputs_taken += u32::from(taken > 0);
    }

    /// Goes on in another machine with this one's state.
    fn move_house(&mut self) {
        let state = self.machine.save();
        let mut other = machine(self.case, self.pace, &self.tray);
        for n in 0..self.machine.board().pci().disks() {
            let snapshot = self.machine.board().pci().disk(n).map(Overlay::snapshot);
            if let (Some(snapshot), Some(disk)) = (snapshot, other.board_mut().pci_mut().disk_mut(n)) {
                disk.restore(&snapshot);
            }
        }
        for page in 0..self.machine.board().memory().pages() {
            let bytes = *self.machine.board().memory().page_bytes(page);
            other.board_mut().memory_mut().write_page(page, 0, &bytes);
        }
        let here = self.machine.position();
        other.restore(&state).unwrap_or_else(|why| panic!("a saved state is refused at {here}: {why}"));
        self.machine = other;
    }

    fn outcome(mut self) -> Outcome {
        let hash = self.machine.state_hash().expect("disks in memory");
        let left = self.tray.0.lock().expect("nobody panics with it");
        self.end.outputs = left.count;
        let woken = self.machine.board().memory().read_array(GuestPhys(layout::NEXT_OF_OTHERS));
        // What a guest has written over it is no count.
        self.end.woken = woken.map(u32::from_le_bytes).filter(|count| *count < 10_000).unwrap_or(0);
        Outcome {
            position: self.machine.position().count(),
            state: hash.combined(),
            output: *left.hasher.finalize().as_bytes(),
            end: self.end,
            parts: [hash.registers, hash.devices, hash.memory],
        }
    }
}

fn machine(case: &Case, pace: Pace, tray: &Tray) -> Machine<Vcpu> {
    let chaos = match pace {
        Pace::Chaos(seed) => Some(seed),
        _ => None,
    };
    let model = CpuModel { processors: case.cpus, ..CpuModel::plain(case.level) };
    let vcpu = Vcpu::new(VcpuConfig { model, code_cache_bytes: 1 << 20, chaos, mirror_after: Some(0) });
    let mut vcpu = vcpu.unwrap_or_else(|why| panic!("no processor: {why}"));
    vcpu.set_interpret_all(pace == Pace::Interpreted);
    if let Pace::Chaos(_) = pace {
        // What is dropped comes back as it was kept. The file has no name, and remains without the folder.
        let folder = tempfile::tempdir().unwrap_or_else(|why| panic!("no temporary folder: {why}"));
        vcpu.keep_translations(folder.path()).unwrap_or_else(|why| panic!("no translations are kept: {why}"));
        vcpu.compare_kept();
    }
    let board = BoardConfig {
        memory: case.ram,
        cpus: case.cpus,
        start_of_day: UnixTime(1_700_000_000),
        rate: case.rate,
        hpet: case.hpet,
        debug_ports: case.debug_ports,
    };
    let config = MachineConfig { board, idle: case.idle, seed: case.seed };
    let bus = bus(case).expect("few devices");
    Machine::new(config, vcpu, bus, Gate::live(None), Box::new(tray.clone()))
        .unwrap_or_else(|why| panic!("no machine: {why}"))
}

fn bus(case: &Case) -> Result<PciBus, machine::PciFull> {
    let mut bus = PciBus::new();
    if case.devices.entropy {
        bus.add_entropy([case.seed as u8; 32])?;
    }
    if let Some(sectors) = case.devices.disk {
        let base = Arc::new(Zeros(sectors * disk::SECTOR_SIZE));
        bus.add_disk(
            Overlay::new(base, Store::in_temp_dir(64 << 20)),
            "torture",
            case.seed.is_multiple_of(8),
        )?;
    }
    if case.devices.card {
        bus.add_card([2, 0, 0, 0, 0, 1], 1500)?;
    }
    if case.devices.console {
        bus.add_console(1, 80, 25)?;
    }
    Ok(bus)
}

/// 64-bit mode with interrupts off, at the dispatcher.
fn enter(state: &mut CpuState, case: &Case) {
    let flat = |selector, attributes| Segment { base: 0, limit: u32::MAX, attributes, selector };
    let common = Segment::CODE_OR_DATA | Segment::PRESENT | Segment::GRANULAR;
    state.seg = [flat(selector::KERNEL_DATA, common | Segment::DEFAULT_BIG | 3); 6];
    state.seg[SegmentIndex::Cs as usize] = flat(selector::KERNEL_CODE, common | Segment::LONG | 0xb);
    state.gdtr = DescriptorTable { base: layout::GDT, limit: 8 * layout::GDT_ENTRIES as u16 - 1 };
    state.idtr = DescriptorTable { base: layout::IDT, limit: 0xfff };
    state.cr0 = case.sane.cr0;
    state.cr3 = layout::PML4;
    state.cr4 = case.sane.cr4;
    state.efer = case.sane.efer;
    state.rflags = flags::FIXED;
    state.gpr[4] = layout::STACK_TOPS[0];
    state.rip = dispatcher();
    state.cpl = 0;
}
