//! From a seed to a case.
//!
//! A case begins with registers that mostly point to its pages or hold small numbers; then
//! instruction after instruction is added, while a [`Tracker`] keeps book of which registers still
//! hold what, so that most memory operands can be [aimed](aim) at an address chosen on purpose: on
//! a page edge, across one, aligned or not, read-only, unmapped. Instructions that need certain
//! values (a pointer for string instructions, a small count for REP) get them loaded first.

mod aim;
mod encode;
mod flow;
mod setup;
mod tracker;
mod universe;
mod values;

pub use universe::Class;
pub use universe::Universe;

use crate::case::{Case, ITEMS_MAX, Item, Link, Mode, Target};
use crate::layout::PAGE;
use crate::state::{Registers, flag};
use aim::Data;
use dice::Dice;
use encode::{Made, Memory, Operand, craft};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic};
use tracker::{RSP, Tracker};
use universe::{Entry, MemoryUse};

/// What cases to make.
#[derive(Clone, Debug)]
pub struct Options {
    /// Share of compatibility-mode cases, in percent.
    pub compatibility_percent: usize,
    /// Share of instructions made of random bytes, in percent.
    pub raw_percent: usize,
    /// Whether POPF may set AC, with which misaligned accesses raise #AC.
    pub alignment_check: bool,
    /// Instructions never to use.
    pub exclude: Vec<Code>,
    /// When not empty, every second instruction is one of these.
    pub focus: Vec<Code>,
    /// Most random instructions in a case, at least 1. What prepares them comes on top.
    pub length_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            compatibility_percent: 0,
            raw_percent: 6,
            alignment_check: false,
            exclude: Vec::new(),
            focus: Vec::new(),
            length_max: 16,
        }
    }
}

impl Case {
    /// The 64-bit case of `seed`, with default options.
    pub fn from_seed(seed: u64) -> Case {
        Case::generate(seed, &Options::default())
    }

    /// The case of `seed`: equal seeds and options give equal cases.
    pub fn generate(seed: u64, options: &Options) -> Case {
        // A short branch may turn out not to reach; then the next stream of dice has its turn.
        (0..)
            .find_map(|stream| Generator::new(seed, stream, options).case())
            .expect("some stream gives a case")
    }
}

/// A case in the making.
struct Generator<'a> {
    dice: Dice,
    seed: u64,
    options: &'a Options,
    mode: Mode,
    universe: &'static Universe,
    items: Vec<Item>,
    registers: Registers,
    tracker: Tracker,
    factory: InstructionInfoFactory,
    /// Whether a 64-bit case also has pages below 4 GiB, for 32-bit addressing.
    low: bool,
    /// Whether the code pages are writable.
    writable_code: bool,
    /// Vector registers that hold small indices at the start.
    index_vectors: [usize; 3],
    /// An x87 instruction has run that leaves its address in the x87 pointers, so an image of them
    /// would show it: a translator keeps those pointers at zero.
    pointers_set: bool,
    /// Some access is aimed at the code pages.
    reads_code: bool,
}

/// Attempts to encode one form before another is picked.
const ATTEMPTS: usize = 24;

impl<'a> Generator<'a> {
    fn new(seed: u64, stream: u64, options: &'a Options) -> Self {
        let mut dice = Dice::new(seed, stream);
        let compatible = dice.percent(options.compatibility_percent);
        let mode = if compatible { Mode::Compatibility } else { Mode::Long };
        let low = mode == Mode::Long && dice.percent(12);
        let writable_code = dice.percent(2);
        let index_vectors = [(); 3].map(|()| dice.below(mode.registers()));
        let mut registers = setup::registers(&mut dice, mode, low, &index_vectors);
        if options.alignment_check && dice.percent(35) {
            registers.rflags |= flag::AC;
        }
        let tracker = Tracker::new(mode, &registers.gpr);
        Self {
            dice,
            seed,
            options,
            mode,
            universe: Universe::of(mode),
            items: Vec::with_capacity(32),
            registers,
            tracker,
            factory: InstructionInfoFactory::new(),
            low,
            writable_code,
            index_vectors,
            pointers_set: false,
            reads_code: false,
        }
    }

    fn case(mut self) -> Option<Case> {
        let count = 1 + self.dice.below(self.options.length_max.max(1));
        for _ in 0..count {
            if self.items.len() + 12 > ITEMS_MAX {
                break;
            }
            self.step();
        }
        if self.items.is_empty() {
            return None;
        }
        self.settle_links();
        let length = self.items.iter().map(|item| item.bytes.len()).sum();
        let (start, pages) = setup::pages(&mut self.dice, self.mode, self.low, self.writable_code, length);
        let mut case = Case::new(self.seed, self.mode, start, self.items, self.registers, pages).ok()?;
        case.reads_code = self.reads_code;
        Some(case)
    }

    /// Adds one random instruction, or a small group around one.
    fn step(&mut self) {
        if self.dice.percent(self.options.raw_percent) && self.raw() {
            return;
        }
        if !self.options.focus.is_empty() && self.dice.percent(50) {
            let code = self.options.focus[self.dice.below(self.options.focus.len())];
            if let Some(entry) = self.universe.entry(code) {
                return self.add(entry);
            }
        }
        if self.writable_code && self.dice.percent(12) {
            return self.patch();
        }
        if self.dice.percent(3) {
            self.move_stack();
        }
        let class = match self.dice.below(1000) {
            0..420 => Class::Integer,
            420..520 => Class::X87,
            520..680 => Class::Sse,
            680..870 => Class::Avx,
            870..910 => Class::String,
            910..985 => Class::Flow,
            985..993 => Class::Rare,
            _ => Class::PopFlags,
        };
        let class = &self.universe.classes[class as usize];
        let entry = &self.universe.entries[class[self.dice.below(class.len())]];
        self.add(entry);
    }

    /// Adds an instruction of the form `entry`, with what it needs before it.
    fn add(&mut self, entry: &Entry) {
        if self.options.exclude.contains(&entry.code) {
            return;
        }
        match entry.class {
            Class::Flow => self.flow(entry),
            Class::PopFlags => self.pop_flags(entry),
            // An image of the x87 pointers can be compared only while they are zero.
            Class::X87 | Class::Integer | Class::Sse
                if stores_pointers(entry.mnemonic) && self.pointers_set => {}
            _ => {
                self.prepare(entry);
                self.plain(entry);
            }
        }
    }

    /// Adds the instruction itself; false when no attempt succeeded.
    fn plain(&mut self, entry: &Entry) -> bool {
        let Some(made) = self.make(entry) else { return false };
        self.pointers_set |= entry.class == Class::X87 && !stores_pointers(entry.mnemonic)
            || matches!(entry.mnemonic, Mnemonic::Fxrstor | Mnemonic::Fxrstor64);
        self.push(made);
        true
    }

    fn make(&mut self, entry: &Entry) -> Option<Made> {
        let keep_stack = self.dice.percent(96);
        for _ in 0..ATTEMPTS {
            let operand = match entry.memory {
                Some(usage) if !entry.register_form || self.dice.percent(55) => {
                    self.ensure_base();
                    Operand::Memory(self.memory_operand(entry, usage))
                }
                _ => Operand::Register,
            };
            let reg = self.preferred_reg(entry.mnemonic);
            let Some(made) = craft(entry, self.mode, &operand, reg, &mut self.dice) else { continue };
            if keep_stack && !made.instruction.is_stack_instruction() && self.writes(&made.instruction, RSP) {
                continue;
            }
            return Some(made);
        }
        None
    }

    fn memory_operand(&mut self, entry: &Entry, usage: MemoryUse) -> Memory {
        // Loads of control registers raise #GP on reserved bits; put something valid there.
        let control = match entry.mnemonic {
            Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr => Some(0),
            Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => Some(24),
            _ => None,
        };
        if let Some(offset) = control
            && self.dice.percent(90)
        {
            let data = self.data();
            let at = self.target(data, MemoryUse { written: true, aligned: true, ..usage });
            let value = values::mxcsr(&mut self.dice);
            self.store(at.wrapping_add(offset), value);
            return self.say(at, false, false);
        }
        self.memory(usage, entry.shape.vector_index)
    }

    /// Bit tests address memory far beyond their operand when the bit number is large.
    fn preferred_reg(&mut self, mnemonic: Mnemonic) -> Option<u8> {
        let far = matches!(mnemonic, Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
        if !far || self.dice.percent(15) {
            return None;
        }
        self.small_register().map(|(register, _)| register as u8)
    }

    fn writes(&mut self, instruction: &Instruction, register: usize) -> bool {
        tracker::writes(instruction, register, &mut self.factory)
    }

    /// Appends an instruction and follows it.
    fn push(&mut self, made: Made) {
        let link = made.link.map(|(field, address)| Link {
            field,
            size: 4,
            relative: true,
            target: Target::Address(address),
        });
        self.append(Item { bytes: made.bytes, link, glued: false, patched: None }, &made.instruction);
    }

    fn append(&mut self, item: Item, instruction: &Instruction) {
        let used = self.factory.info(instruction).used_registers();
        self.tracker.apply(instruction, used);
        self.items.push(item);
    }

    /// Appends bytes of our own making.
    fn append_bytes(&mut self, bytes: &[u8]) -> &mut Item {
        let instruction = Decoder::new(self.mode.bits(), bytes, DecoderOptions::NONE).decode();
        self.append(Item::plain(bytes), &instruction);
        self.items.last_mut().expect("just appended")
    }

    /// Random bytes, as long as they decode to something a case may contain.
    fn raw(&mut self) -> bool {
        for _ in 0..ATTEMPTS {
            let mut bytes = [0_u8; 16];
            bytes[..8].copy_from_slice(&self.dice.bits().to_le_bytes());
            bytes[8..].copy_from_slice(&self.dice.bits().to_le_bytes());
            if self.dice.percent(40) {
                bytes[0] = self.dice.pick(&[0x0f, 0x66, 0xf2, 0xf3, 0x48, 0x41, 0xc5, 0xc4]);
            }
            let mut decoder = Decoder::new(self.mode.bits(), &bytes[..15], DecoderOptions::NONE);
            let instruction = decoder.decode();
            let Some(entry) = self.universe.entry(instruction.code()) else { continue };
            let tame = matches!(entry.class, Class::Integer | Class::Sse | Class::Avx | Class::X87);
            let segment = self.mode == Mode::Long || !instruction.has_segment_prefix();
            let images = stores_pointers(entry.mnemonic);
            if !tame || !segment || images || self.options.exclude.contains(&entry.code) {
                continue;
            }
            self.pointers_set |= entry.class == Class::X87 || entry.mnemonic == Mnemonic::Fxrstor;
            self.append(Item::plain(&bytes[..decoder.position()]), &instruction);
            return true;
        }
        false
    }

    /// Loads what an instruction wants to find in certain registers.
    fn prepare(&mut self, entry: &Entry) {
        use Mnemonic::*;
        let info = entry.code.op_code();
        match entry.mnemonic {
            Div | Idiv => self.prepare_division(info.memory_size().size()),
            Leave => self.ensure_pointer(5),
            Xlatb => self.ensure_pointer(3),
            Maskmovq | Maskmovdqu | Vmaskmovdqu => self.ensure_pointer(7),
            _ => {}
        }
        if info.is_stack_instruction() {
            self.ensure_pointer(RSP);
        }
        if entry.class == Class::String {
            self.ensure_pointer(6);
            self.ensure_pointer(7);
            // Whether there is a REP prefix is not yet decided; a small count does no harm.
            if self.tracker.known[1].is_none_or(|count| count > 40) {
                // Seldom one that leads from page to page.
                let long = self.dice.percent(4);
                let count = if long { PAGE + self.dice.below(64) } else { self.dice.below(12) } as u64;
                self.load(1, count);
                self.glue_last();
            }
        }
    }

    fn prepare_division(&mut self, size: usize) {
        if self.dice.percent(20) {
            return;
        }
        if size == 1 {
            self.append_bytes(&[0xb4, 0]); // mov ah, 0
        } else {
            self.append_bytes(&[0x31, 0xd2]); // xor edx, edx
        }
    }

    /// Makes `register` point into the data pages, unless it does already.
    fn ensure_pointer(&mut self, register: usize) {
        let known = self.tracker.known[register];
        if known.is_some_and(|at| Data::HIGH.holds(at) || Data::LOW.holds(at)) || self.dice.percent(4) {
            return;
        }
        let data = self.data();
        let aligned = self.dice.percent(80);
        let address = self.target(data, MemoryUse { size: 8, written: true, aligned });
        self.load(register, address);
        if register != RSP {
            self.glue_last();
        }
    }

    /// ADD or LEA that moves RSP by a little, as functions do for their frames.
    fn move_stack(&mut self) {
        self.ensure_pointer(RSP);
        let step = (8 * self.dice.below(17) as i16 - 64) as i8;
        let wide: &[u8] = if self.mode == Mode::Long { &[0x48] } else { &[] };
        let opcode: &[u8] = if self.dice.percent(50) { &[0x83, 0xc4] } else { &[0x8d, 0x64, 0x24] };
        let before = self.tracker.known[RSP];
        self.append_bytes(&[wide, opcode, &[step as u8]].concat());
        if let Some(at) = before {
            self.tracker.set(RSP, at.wrapping_add_signed(step.into()));
        }
    }

    /// Makes sure that some register points near the data pages.
    fn ensure_base(&mut self) {
        let near = |value: &Option<u64>| value.is_some_and(|at| Data::HIGH.holds(at) || Data::LOW.holds(at));
        if !self.tracker.known.iter().any(near) {
            let register = self.dice.pick(&[0, 2, 3, 5, 6, 7]);
            self.ensure_pointer(register);
        }
    }

    /// MOV register, constant.
    fn load(&mut self, register: usize, value: u64) {
        let low = (register & 7) as u8;
        let bytes = if self.mode == Mode::Compatibility || value <= u64::from(u32::MAX) && register < 8 {
            [&[0xb8 | low], &(value as u32).to_le_bytes()[..]].concat()
        } else {
            [&[0x48 | (register >> 3) as u8, 0xb8 | low], &value.to_le_bytes()[..]].concat()
        };
        self.append_bytes(&bytes);
        self.tracker.set(register, value);
    }

    /// MOV of a constant to a doubleword at an address.
    fn store(&mut self, address: u64, value: u32) {
        let Some(entry) = self.universe.entry(Code::Mov_rm32_imm32) else { return };
        for _ in 0..ATTEMPTS {
            let operand = Operand::Memory(self.say(address, false, false));
            let Some(mut made) = craft(entry, self.mode, &operand, None, &mut self.dice) else { continue };
            let at = made.bytes.len() - 4;
            made.bytes[at..].copy_from_slice(&value.to_le_bytes());
            return self.push(made);
        }
    }

    fn glue_last(&mut self) {
        if let Some(item) = self.items.last_mut() {
            item.glued = true;
        }
    }

    /// PUSH of an image that POPF may load, and POPF.
    fn pop_flags(&mut self, entry: &Entry) {
        self.ensure_pointer(RSP);
        let random = self.dice.bits();
        let mut image = random & (flag::STATUS | flag::ID | flag::IF | 3 << 12);
        for (bit, percent) in [(flag::TF, 6), (flag::DF, 20), (flag::NT, 6)] {
            if self.dice.percent(percent) {
                image |= bit;
            }
        }
        if self.options.alignment_check && self.dice.percent(30) {
            image |= flag::AC;
        }
        if entry.mnemonic == Mnemonic::Popf {
            self.append_bytes(&[&[0x66, 0x68], &(image as u16).to_le_bytes()[..]].concat()).glued = true;
            self.append_bytes(&[0x66, 0x9d]);
        } else {
            self.append_bytes(&[&[0x68], &(image as u32).to_le_bytes()[..]].concat()).glued = true;
            self.append_bytes(&[0x9d]);
        }
    }

    /// Self-modifying code: a store to the immediate of an instruction further on.
    fn patch(&mut self) {
        let value = self.dice.byte();
        let between = self.dice.below(3);
        let store = self.items.len();
        // MOV byte [address], value; the address is RIP-relative in 64-bit code, absolute in 32-bit code.
        self.append_bytes(&[0xc6, 0x05, 0, 0, 0, 0, value]);
        for _ in 0..between {
            self.simple();
        }
        let register = self.dice.pick(&[0_u8, 1, 2, 3, 5, 6, 7]);
        let immediate = (self.dice.bits() as u32).to_le_bytes();
        let patched = self.items.len();
        self.append_bytes(&[&[0xb8 | register], &immediate[..]].concat()).patched = Some((1, 4));
        let byte = 1 + self.dice.below(4) as u8;
        self.items[store].link = Some(Link {
            field: 2,
            size: 4,
            relative: self.mode == Mode::Long,
            target: Target::Item { index: patched, byte },
        });
    }

    /// A random instruction that is not a branch and needs nothing prepared.
    fn simple(&mut self) {
        let class = self.dice.pick(&[Class::Integer, Class::Integer, Class::Sse, Class::Avx]);
        let class = &self.universe.classes[class as usize];
        let entry = &self.universe.entries[class[self.dice.below(class.len())]];
        let images = stores_pointers(entry.mnemonic) || entry.code.op_code().is_stack_instruction();
        if !images && !self.options.exclude.contains(&entry.code) {
            self.plain(entry);
        }
    }
}

/// Whether it stores the x87 instruction and data pointers.
fn stores_pointers(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::Fnstenv | Mnemonic::Fnsave | Mnemonic::Fxsave | Mnemonic::Fxsave64)
}
