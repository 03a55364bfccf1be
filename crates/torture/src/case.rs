//! A case: a machine, a hostile guest and what comes from outside, all from one seed.

use crate::firmware::{self, Sane, start};
use crate::layout::{self, selector};
use crate::stage::{self, Kind, Stage};
use dice::Dice;
use machine::{ClockCorrection, Idle, Input, Rate};
use x86::Level;
use x86::control::{cr0, cr4, efer, xcr0};
use x86::paging::{GLOBAL, LARGE, PRESENT, USER, WRITABLE};

/// What is plugged into the machine, in the order of its slots.
#[derive(Clone, Copy, Debug)]
pub struct Devices {
    /// The entropy source.
    pub entropy: bool,
    /// A disk of this many sectors.
    pub disk: Option<u64>,
    /// A network card.
    pub card: bool,
    /// A virtio console.
    pub console: bool,
}

impl Devices {
    /// How many functions there are behind the host bridge.
    pub fn functions(&self) -> usize {
        [self.entropy, self.disk.is_some(), self.card, self.console].iter().filter(|there| **there).count()
    }
}

/// A case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Where it comes from.
    pub seed: u64,
    /// The guest's stages, in order.
    pub stages: Vec<Stage>,
    /// Inputs and the positions from which on they enter, in order.
    pub inputs: Vec<(u64, Input)>,
    /// What is on the PCI bus.
    pub devices: Devices,
    /// The most instructions it runs for.
    pub instructions: u64,
    /// How many processors take turns; those behind the first wait to be woken up.
    pub cpus: u32,
    pub(crate) ram: u64,
    pub(crate) level: Level,
    pub(crate) hpet: bool,
    pub(crate) debug_ports: bool,
    pub(crate) idle: Idle,
    pub(crate) rate: Rate,
    pub(crate) sane: Sane,
    /// Stacks of interrupts are chosen by the IDT (IST) rather than by privilege.
    pub(crate) own_stacks: bool,
    /// Bytes at addresses: what a case's guest has in memory beside firmware and stages.
    pub(crate) memory: Vec<(u64, Vec<u8>)>,
}

impl Case {
    /// The case of `seed`.
    pub fn new(seed: u64) -> Self {
        let dice = &mut Dice::new(seed, 0);
        let devices = Devices {
            entropy: dice.percent(80),
            disk: dice.percent(80).then(|| [2048, 8, 1, 1 << 30][dice.below(4)]),
            card: dice.percent(70),
            console: dice.percent(60),
        };
        let kinds: Vec<Kind> = match dice.below(4) {
            0 => vec![dice.pick(&Kind::WEIGHTED)],
            _ => Kind::WEIGHTED.to_vec(),
        };
        let count = 4 + dice.below(layout::STAGES_MAX - 4);
        let stages = (0..count as u64).map(|place| {
            let dice = &mut Dice::new(seed, 100 + place);
            Stage::new(dice.pick(&kinds), place, &devices, dice)
        });
        let instructions = [20_000, 60_000, 150_000][dice.below(3)];
        let level = if dice.percent(75) { Level::V3 } else { Level::V2 };
        let cpus = Dice::new(seed, 6).pick(&[1, 1, 2, 2, 3]);
        Self {
            seed,
            cpus,
            stages: stages.collect(),
            inputs: inputs(&mut Dice::new(seed, 1), instructions),
            devices,
            instructions,
            ram: layout::RAM + 0x1000 * dice.below(512) as u64,
            level,
            hpet: dice.percent(80),
            debug_ports: dice.percent(30),
            idle: if dice.percent(80) { Idle::Skip } else { Idle::Wait },
            rate: rate(dice),
            sane: sane(dice, level),
            own_stacks: dice.percent(85),
            memory: [data(&mut Dice::new(seed, 2)), stage::virtio_memory(&mut Dice::new(seed, 3))].concat(),
        }
    }

    /// Everything the guest has in memory when it begins with stage `first`, in the order of
    /// writing.
    pub(crate) fn image(&self, first: u32) -> Vec<(u64, Vec<u8>)> {
        let mut parts = self.memory.clone();
        parts.extend(self.tables());
        parts.push((layout::FIRMWARE.start, firmware::code(self.stages.len(), &self.sane)));
        parts.push((layout::STAGE, first.wrapping_sub(1).to_le_bytes().to_vec()));
        parts.push((layout::GDT, words(&self.gdt())));
        parts.push((layout::IDT, words(&self.idt())));
        let [top, _] = layout::OTHERS_STACK_TOPS;
        parts.push((layout::TSS, task_state(layout::STACK_TOPS)));
        parts.push((layout::OTHERS_TSS, task_state([top; 5])));
        parts.push((layout::WAKE_UP, firmware::wake_up(self.stages.len().max(1), &self.sane)));
        for (pointer, base, limit) in [
            (layout::GDT_POINTER, layout::GDT, 8 * layout::GDT_ENTRIES - 1),
            (layout::IDT_POINTER, layout::IDT, 0xfff),
        ] {
            parts.push((pointer, [&(limit as u16).to_le_bytes()[..], &base.to_le_bytes()].concat()));
        }
        for (n, stage) in self.stages.iter().enumerate() {
            parts.push((layout::STARTS + n as u64 * layout::START_SIZE, start_state(stage)));
            parts.push((stage.address(), stage.code()));
        }
        parts
    }

    /// Page tables: the first 4 GiB at their own addresses, the low 4 MiB in 4 KiB pages.
    fn tables(&self) -> Vec<(u64, Vec<u8>)> {
        let table = PRESENT | WRITABLE | USER;
        let pdpt: Vec<u64> = (0..4).map(|n| (layout::PDS + n * 0x1000) | table).collect();
        let directories: Vec<u64> = (0..2048u64)
            .map(|n| match n {
                0..2 => (layout::PTS + n * 0x1000) | table,
                _ => n << 21 | PRESENT | WRITABLE | LARGE | if n % 3 == 0 { USER } else { 0 },
            })
            .collect();
        let pages: Vec<u64> = (0..1024u64).map(|n| n << 12 | self.rights(n << 12)).collect();
        vec![
            (layout::PML4, words(&[layout::PDPT | table])),
            (layout::PDPT, words(&pdpt)),
            (layout::PDS, words(&directories)),
            (layout::PTS, words(&pages)),
        ]
    }

    fn rights(&self, page: u64) -> u64 {
        let both = PRESENT | WRITABLE;
        if (layout::CODE..layout::CODE_END).contains(&page) {
            let user = self.stages.iter().any(|s| s.user && s.address() == page & !(layout::CODE_SIZE - 1));
            return both | if user { USER } else { 0 };
        }
        let user_stack = layout::STACK_TOPS[3]..layout::STACK_TOPS[4];
        if layout::FIRMWARE.contains(&page) {
            PRESENT | GLOBAL
        } else if layout::DATA.contains(&page) || user_stack.contains(&page) || page >= layout::BUFFERS.end {
            both | USER
        } else {
            both
        }
    }

    fn gdt(&self) -> Vec<u64> {
        let dice = &mut Dice::new(self.seed, 4);
        let mut gdt = vec![
            0,
            0x00af_9b00_0000_ffff, // kernel code
            0x00cf_9300_0000_ffff, // kernel data
            0x00cf_fb00_0000_ffff, // user code, 32 bits
            0x00cf_f300_0000_ffff, // user data
            0x00af_fb00_0000_ffff, // user code
            0x00cf_9b00_0000_ffff, // kernel code, 32 bits
            0x0000_9b02_0000_ffff, // kernel code, 16 bits, from CODE on
            0x00af_9f00_0000_ffff, // conforming code
            0x0000_fb02_0000_ffff, // user code, 16 bits, from CODE on
            0x67 | layout::TSS << 16 | 0x89 << 40,
            0,
            0x7f | layout::LDT << 16 | 0x82 << 40,
            0,
            0x67 | layout::OTHERS_TSS << 16 | 0x89 << 40,
            0,
        ];
        let rest = layout::GDT_ENTRIES as usize - gdt.len();
        gdt.extend((0..rest).map(|_| stage::any_descriptor(dice)));
        gdt
    }

    fn idt(&self) -> Vec<u64> {
        let dice = &mut Dice::new(self.seed, 5);
        let mut idt = Vec::with_capacity(512);
        for vector in 0..256u64 {
            let stack = match vector {
                8 => 2,
                2 => 3,
                0..32 | 0xf0 if self.own_stacks => 1,
                0..32 if dice.percent(50) => 1,
                _ => 0,
            };
            let kind = if dice.percent(95) { 0xe } else { 0xf };
            let level = if matches!(vector, 3 | 4 | 0x80) || dice.percent(10) { 3 } else { 0 };
            let offset = firmware::stub(vector);
            let low = offset & 0xffff | u64::from(selector::KERNEL_CODE) << 16 | stack << 32;
            idt.extend([
                low | (0x80 | level << 5 | kind) << 40 | (offset >> 16 & 0xffff) << 48,
                offset >> 32,
            ]);
        }
        idt
    }

    /// The kinds of its stages, each once.
    pub fn kinds(&self) -> Vec<Kind> {
        let mut kinds: Vec<Kind> = self.stages.iter().map(|stage| stage.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn rate(dice: &mut Dice) -> Rate {
    let (ns, instructions) = dice.pick(&[(1, 1), (1, 1), (1, 1), (3, 2), (1, 7), (1000, 1)]);
    Rate::new(ns, instructions).expect("within a rate's parts")
}

fn sane(dice: &mut Dice, level: Level) -> Sane {
    let mut optional = |bit: u64, percent: usize| if dice.percent(percent) { bit } else { 0 };
    let cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::PG | optional(cr0::WP, 80) | optional(cr0::AM, 40);
    let cr0 = cr0 | optional(cr0::MP, 50) | optional(cr0::TS, 5) | optional(cr0::EM, 3);
    let cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
    let cr4 = cr4 | optional(cr4::PGE, 70) | optional(cr4::PCIDE, 20) | optional(cr4::SMEP, 30);
    let cr4 = cr4 | optional(cr4::SMAP, 20) | optional(cr4::FSGSBASE, 60) | optional(cr4::UMIP, 20);
    let cr4 = cr4 | optional(cr4::TSD, 10) | optional(cr4::DE, 40) | optional(cr4::PCE, 30);
    let avx = if level >= Level::V3 { optional(xcr0::AVX, 85) } else { 0 };
    Sane {
        cr0,
        cr4: cr4 & x86::CpuModel::plain(level).cr4_supported(),
        efer: efer::LME | efer::LMA | optional(efer::SCE, 70) | optional(efer::NXE, 80),
        xcr0: xcr0::X87 | xcr0::SSE | avx,
    }
}

fn task_state(tops: [u64; 5]) -> Vec<u8> {
    let mut tss = vec![0; 0x68];
    let mut put = |at: usize, value: u64| tss[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put(4, tops[0] - 0x800);
    put(12, tops[0] - 0x400);
    for (n, top) in tops.into_iter().take(3).enumerate() {
        put(0x24 + 8 * n, top);
    }
    tss
}

fn start_state(stage: &Stage) -> Vec<u8> {
    let mut bytes = vec![0; layout::START_SIZE as usize];
    let mut put =
        |at: u64, value: &[u8]| bytes[at as usize..at as usize + value.len()].copy_from_slice(value);
    for (n, value) in stage.gpr.iter().enumerate() {
        put(start::GPR + 8 * n as u64, &value.to_le_bytes());
    }
    let based = matches!(stage.cs, selector::KERNEL_CODE16 | selector::USER_CODE16);
    let rip = stage.address() - if based { layout::CODE } else { 0 };
    let fields = [(start::RIP, rip), (start::CS, stage.cs.into()), (start::SS, stage.ss.into())];
    for (at, value) in fields.into_iter().chain([(start::RFLAGS, stage.rflags)]) {
        put(at, &value.to_le_bytes());
    }
    put(start::WATCHDOG, &stage.watchdog.to_le_bytes());
    put(start::FAULTS, &stage.faults.to_le_bytes());
    put(start::RELOAD, &u32::from(stage.reload).to_le_bytes());
    bytes
}

/// What programs find to work on: noise, and pointers.
fn data(dice: &mut Dice) -> Vec<(u64, Vec<u8>)> {
    let count = (layout::DATA.end - layout::DATA.start) / 8;
    let words = (0..count).flat_map(|_| stage::value(dice).to_le_bytes()).collect();
    vec![(layout::DATA.start, words)]
}

fn inputs(dice: &mut Dice, instructions: u64) -> Vec<(u64, Input)> {
    let mut inputs: Vec<(u64, Input)> = (0..dice.below(24))
        .map(|_| {
            let bytes = |dice: &mut Dice, most: usize| (0..dice.below(most)).map(|_| dice.byte()).collect();
            let input = match dice.below(10) {
                0..=1 => Input::Serial { port: dice.below(2) as u32, bytes: bytes(dice, 40) },
                2..=3 => Input::Console { port: dice.below(2) as u32, bytes: bytes(dice, 3000) },
                4..=6 => Input::Frame { card: dice.below(2) as u32, bytes: bytes(dice, 2000) },
                7 => Input::Key { scan_code: bytes(dice, 6) },
                8 => Input::PowerButton,
                _ => {
                    let rate = dice.percent(50).then(|| rate(dice));
                    Input::Clock(ClockCorrection { advance_ns: dice.number() >> 30, rate })
                }
            };
            (dice.below(instructions as usize) as u64, input)
        })
        .collect();
    inputs.sort_by_key(|(position, _)| *position);
    inputs
}
