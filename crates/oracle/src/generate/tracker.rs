//! What the generator believes the general registers hold while the program runs.
//!
//! Only for aiming: a wrong belief (after a branch, say) costs a hit on the data pages, never
//! correctness.

use crate::case::Mode;
use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register, UsedRegister};

/// RSP's number.
pub const RSP: usize = 4;

/// Believed values.
#[derive(Clone, Debug)]
pub struct Tracker {
    /// Value of each general register, where one is known.
    pub known: [Option<u64>; 16],
    mask: u64,
}

impl Tracker {
    /// All known.
    pub fn new(mode: Mode, gpr: &[u64; 16]) -> Self {
        let mask = if mode == Mode::Long { u64::MAX } else { u64::from(u32::MAX) };
        let mut known = gpr.map(|value| Some(value & mask));
        known[mode.registers()..].fill(None);
        Self { known, mask }
    }

    /// A register loaded with a constant.
    pub fn set(&mut self, register: usize, value: u64) {
        self.known[register] = Some(value & self.mask);
    }

    /// Follows one instruction.
    pub fn apply(&mut self, instruction: &Instruction, used: &[UsedRegister]) {
        let stack = instruction.is_stack_instruction();
        let string = instruction.is_string_instruction();
        let popped = matches!(instruction.mnemonic(), Mnemonic::Pop)
            && instruction.op0_register().full_register() == Register::RSP;
        for register in used {
            let Some(number) = written(register) else { continue };
            if number == RSP && stack && !popped && instruction.mnemonic() != Mnemonic::Leave {
                let step = i64::from(instruction.stack_pointer_increment());
                self.known[RSP] = self.known[RSP].map(|value| value.wrapping_add_signed(step) & self.mask);
            } else if string && matches!(number, 6 | 7) {
                // Moved by a few elements: near enough.
            } else {
                self.known[number] = None;
            }
        }
    }
}

/// The number of the general register that `used` writes, if it does.
pub fn written(used: &UsedRegister) -> Option<usize> {
    let writes = matches!(
        used.access(),
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    );
    (writes && used.register().is_gpr()).then(|| used.register().full_register().number())
}

/// Whether `instruction` writes general register `number`.
pub fn writes(instruction: &Instruction, number: usize, factory: &mut InstructionInfoFactory) -> bool {
    factory.info(instruction).used_registers().iter().any(|used| written(used) == Some(number))
}
