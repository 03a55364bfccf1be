//! Branches, calls, returns and loops.
//!
//! Control flow is made so that it stays within the program: forward branches over a few
//! instructions, loops that count a register down which their body leaves alone, calls of a function
//! that follows, returns to an address pushed on purpose. Data can still send a return or an
//! indirect jump anywhere; the host steps such programs and looks before it executes.

use super::universe::{Class, Entry};
use super::{ATTEMPTS, Generator, MemoryUse, Operand, RSP, craft};
use crate::case::{Item, Link, Mode, Target};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Mnemonic};

impl Generator<'_> {
    /// Adds the branch `entry` with something for it to branch to.
    pub(super) fn flow(&mut self, entry: &Entry) {
        // Branches with 16-bit operand size leave for the first 64 KiB.
        if entry.shape.operand_size() == 16 && self.dice.percent(85) {
            return;
        }
        match entry.code.flow_control() {
            FlowControl::ConditionalBranch => self.conditional(entry),
            FlowControl::UnconditionalBranch => self.branch(entry, 1),
            FlowControl::Call => self.call(entry),
            FlowControl::Return => self.return_to_pushed(entry),
            _ => self.indirect(entry),
        }
    }

    fn conditional(&mut self, entry: &Entry) {
        let counting = matches!(entry.mnemonic, Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne);
        if counting && self.dice.percent(70) {
            self.counted_loop(|generator, body| generator.branch_to(entry, body));
        } else if entry.code == Code::Jne_rel8_64 || entry.code == Code::Jne_rel8_32 {
            self.counted_loop(|generator, body| {
                let dec_ecx: &[u8] = if generator.mode == Mode::Long { &[0xff, 0xc9] } else { &[0x49] };
                generator.append_bytes(dec_ecx).glued = true;
                generator.branch_to(entry, body);
            });
        } else {
            let skipped = self.dice.below(3);
            self.branch(entry, skipped);
        }
    }

    /// A forward branch over the next `skipped` items.
    fn branch(&mut self, entry: &Entry, skipped: usize) {
        let target = self.items.len() + 1 + skipped;
        self.branch_to(entry, target);
    }

    /// A branch with a displacement, to item `target`.
    fn branch_to(&mut self, entry: &Entry, target: usize) {
        for _ in 0..ATTEMPTS {
            let Some(made) = craft(entry, self.mode, &Operand::Register, None, &mut self.dice) else {
                continue;
            };
            let mut decoder = Decoder::new(self.mode.bits(), &made.bytes, DecoderOptions::NONE);
            let instruction = decoder.decode();
            let offsets = decoder.get_constant_offsets(&instruction);
            let truncates = entry.shape.operand_size() == 16;
            let link = (!truncates).then(|| Link {
                field: offsets.immediate_offset() as u8,
                size: offsets.immediate_size() as u8,
                relative: true,
                target: Target::Item { index: target, byte: 0 },
            });
            let item = Item { bytes: made.bytes, link, glued: false, patched: None };
            return self.append(item, &made.instruction);
        }
    }

    /// MOV ECX, count; body; what `close` adds to go back to the body's first item.
    fn counted_loop(&mut self, close: impl FnOnce(&mut Self, usize)) {
        let count = 1 + self.dice.below(5) as u64;
        self.load(1, count);
        self.glue_last();
        let body = self.items.len();
        for _ in 0..1 + self.dice.below(2) {
            self.body_instruction();
        }
        if self.items.len() > body {
            close(self, body);
        }
    }

    /// An instruction for a loop's body: leaves the counter alone.
    fn body_instruction(&mut self) {
        for _ in 0..ATTEMPTS {
            let class = self.dice.pick(&[Class::Integer, Class::Sse, Class::Avx]);
            let class = &self.universe.classes[class as usize];
            let entry = &self.universe.entries[class[self.dice.below(class.len())]];
            let images =
                super::stores_pointers(entry.mnemonic) || entry.code.op_code().is_stack_instruction();
            if images || self.options.exclude.contains(&entry.code) {
                continue;
            }
            let before = self.items.len();
            let Some(made) = self.make(entry) else { continue };
            if self.writes(&made.instruction, 1) {
                // What `make` may have put before it stays.
                self.items.truncate(before.max(self.items.len()));
                continue;
            }
            return self.push(made);
        }
    }

    /// A call: forward over some instructions, or of a function with a return.
    fn call(&mut self, entry: &Entry) {
        self.ensure_pointer(RSP);
        let wide = if self.mode == Mode::Long { Code::Jmp_rel8_64 } else { Code::Jmp_rel8_32 };
        let (Some(over), true) = (self.universe.entry(wide), self.dice.percent(50)) else {
            let skipped = self.dice.below(2);
            return self.branch(entry, skipped);
        };
        let call = self.items.len();
        self.branch_to(entry, call + 2);
        let jump = self.items.len();
        self.branch_to(over, jump + 1);
        self.simple();
        self.append_bytes(&[0xc3]); // ret
        let behind = self.items.len();
        for at in call..behind {
            let to = if at == jump { behind } else { jump + 1 };
            if let Some(Link { target: Target::Item { index, .. }, .. }) = &mut self.items[at].link {
                *index = to;
            }
        }
    }

    /// PUSH of the address of a later instruction, and the return `entry`.
    fn return_to_pushed(&mut self, entry: &Entry) {
        self.ensure_pointer(RSP);
        let register = self.address_of_later(2 + self.dice.clone().below(2));
        self.glue_last();
        let low = (register & 7) as u8;
        let bytes: &[u8] = if register >= 8 { &[0x41, 0x50 | low] } else { &[0x50 | low] };
        self.append_bytes(bytes).glued = true;
        for _ in 0..ATTEMPTS {
            if let Some(made) = craft(entry, self.mode, &Operand::Register, None, &mut self.dice) {
                return self.push(made);
            }
        }
    }

    /// Loads the address of the item `distance` behind the loading one into a register.
    fn address_of_later(&mut self, distance: usize) -> usize {
        let register = loop {
            let register = self.dice.below(self.mode.registers());
            if register != RSP {
                break register;
            }
        };
        let index = self.items.len() + 1 + distance;
        let low = (register & 7) as u8;
        let target = Target::Item { index, byte: 0 };
        let link = if self.mode == Mode::Long {
            let high = (register >> 3) as u8;
            self.append_bytes(&[0x48 | high << 2, 0x8d, 0x05 | low << 3, 0, 0, 0, 0]);
            Link { field: 3, size: 4, relative: true, target }
        } else {
            self.append_bytes(&[0xb8 | low, 0, 0, 0, 0]);
            Link { field: 1, size: 4, relative: false, target }
        };
        self.items.last_mut().expect("just appended").link = Some(link);
        self.tracker.known[register] = None;
        // By chance something may read there.
        self.reads_code = true;
        register
    }

    /// An indirect jump or call, through a register or memory.
    fn indirect(&mut self, entry: &Entry) {
        let calls = entry.code.flow_control() == FlowControl::IndirectCall;
        if calls {
            self.ensure_pointer(RSP);
        }
        if self.dice.percent(8) {
            self.plain(entry);
            return;
        }
        let through_memory = self.dice.percent(50);
        self.ensure_base();
        let skipped = self.dice.below(2);
        let register = self.address_of_later(1 + usize::from(through_memory) + skipped);
        self.glue_last();
        let mut operand = Operand::Register;
        if through_memory {
            let data = self.data();
            let size = self.mode.bits() as usize / 8;
            let at = self.target(data, MemoryUse { size, written: true, aligned: true });
            let code = if self.mode == Mode::Long { Code::Mov_rm64_r64 } else { Code::Mov_rm32_r32 };
            let Some(store) = self.universe.entry(code) else { return };
            let stored = Operand::Memory(self.say(at, false, false));
            let made = (0..ATTEMPTS)
                .find_map(|_| craft(store, self.mode, &stored, Some(register as u8), &mut self.dice));
            let Some(made) = made else { return };
            self.push(made);
            self.glue_last();
            operand = Operand::Memory(self.say(at, false, false));
        }
        for _ in 0..ATTEMPTS * 4 {
            let Some(made) = craft(entry, self.mode, &operand, None, &mut self.dice) else { continue };
            let wanted = through_memory || made.instruction.op0_register().number() == register;
            if wanted {
                return self.push(made);
            }
        }
    }

    /// Moves branch targets off the second half of instructions that belong together.
    pub(super) fn settle_links(&mut self) {
        for at in 0..self.items.len() {
            let Some(Link { target: Target::Item { mut index, byte: 0 }, .. }) = self.items[at].link else {
                continue;
            };
            let forward = index > at;
            while index > 0 && index < self.items.len() && self.items[index - 1].glued {
                if forward {
                    index += 1;
                } else {
                    break;
                }
            }
            if let Some(link) = &mut self.items[at].link {
                link.target = Target::Item { index, byte: 0 };
            }
        }
    }
}
