//! Cases as guest programs, run by the translator.
//!
//! One processor with its RAM serves all cases, so what one case left in the caches is there when
//! the next begins: pages are rewritten through the hooks that devices use, page-table entries
//! change, code is thrown away and made again. A case ends with an exception, delivered through a
//! gate to a handler that halts; what the handler would see is what is compared, so delivery is
//! tested along with what came before it.

mod board;

use crate::STEP_LIMIT;
use crate::case::{Case, Mode};
use crate::executor::Executor;
use crate::layout::{Frame, PAGE};
use crate::outcome::{Discard, Ending, Fault, Outcome, vector};
use crate::state::Registers;
use board::{Board, KERNEL_CODE, USER_CODE_32, USER_CODE_64, USER_DATA, system_state};
use cpu::{CpuError, Exit, Vcpu, VcpuConfig};
use dice::Dice;
use iced_x86::Code;
use x86::CpuModel;
use x86::cpuid::Level;

/// Instructions that store what a guest must not see of its host, so that outcomes differ by design:
/// addresses of the last x87 instruction and its operand, and the processor's MXCSR mask; and
/// decimal adjustments, which cannot run in 64-bit mode and leave flags undefined.
pub const UNLIKE_HOST: [Code; 12] = [
    Code::Aaa,
    Code::Aad_imm8,
    Code::Aam_imm8,
    Code::Aas,
    Code::Daa,
    Code::Das,
    Code::Fnstenv_m14byte,
    Code::Fnstenv_m28byte,
    Code::Fnsave_m94byte,
    Code::Fnsave_m108byte,
    Code::Fxsave_m512byte,
    Code::Fxsave64_m512byte,
];

/// How the engine is made to run a case. The outcome must not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// From start to end.
    Whole,
    /// Every instruction executed singly, from Rust.
    Single,
    /// Stopped at random positions, with caches dropped and epochs begun at some of them.
    Stops,
    /// With the program's memory mirrored, as far as this process has no other mirror; half of the cases
    /// from start to end, half stopped like the others.
    Mirrored,
}

impl Pace {
    /// All of them.
    pub const ALL: [Pace; 4] = [Pace::Whole, Pace::Single, Pace::Stops, Pace::Mirrored];

    fn stops(self, case: &Case) -> bool {
        self == Pace::Stops || self == Pace::Mirrored && !case.seed.is_multiple_of(2)
    }
}

/// Runs cases in the engine.
pub struct EngineExecutor {
    cpu: Vcpu,
    board: Board,
    pace: Pace,
    /// Blocks whose copies have been compared.
    compared: usize,
}

/// More than a case that is not discarded on the host retires.
const RETIRED_MAX: u64 = 2 * STEP_LIMIT;
/// CR2 before a case: nothing but a page fault may change it.
const CR2_BEFORE: u64 = 0x1234_5678_9abc;

impl EngineExecutor {
    /// A guest that runs cases at `pace`.
    ///
    /// # Errors
    /// When the host cannot run the processor model.
    pub fn new(pace: Pace) -> Result<Self, CpuError> {
        let model = CpuModel::for_host(Level::V3, &cpu::host_features(), 1);
        let cpu = Vcpu::new(VcpuConfig {
            model,
            code_cache_bytes: 4 << 20,
            chaos: None,
            mirror_after: (pace == Pace::Mirrored).then_some(0),
        })?;
        let mut executor = Self { cpu, board: Board::new(), pace, compared: 0 };
        executor.cpu.set_interpret_all(pace == Pace::Single);
        Ok(executor)
    }

    fn load(&mut self, case: &Case) {
        for frame in Frame::ALL {
            let page = case.pages().iter().find(|page| page.frame == frame);
            self.board.map(frame, page.map(|page| page.access));
            if let Some(page) = page {
                assert!(self.board.ram.write(Board::phys(frame), &page.bytes[..]), "a page of RAM");
            }
        }
        let registers = &case.registers;
        let state = self.cpu.state_mut();
        system_state(state, case.mode);
        state.gpr = registers.gpr;
        if case.mode == Mode::Compatibility {
            state.gpr[8..].fill(0);
        }
        state.rip = case.start;
        state.rflags = registers.rflags;
        state.cr2 = CR2_BEFORE;
        if case.mode == Mode::Long {
            state.seg[4].base = registers.fs_base;
            state.seg[5].base = registers.gs_base;
        }
        state.fpu.ymm = registers.ymm;
        state.fpu.mxcsr = registers.mxcsr;
        state.fpu.x87 = registers.x87;
    }

    /// Runs until the guest halts; false when it does not.
    fn go(&mut self, case: &Case) -> Exit {
        let end = self.cpu.position().after(RETIRED_MAX);
        if !self.pace.stops(case) {
            return self.cpu.run(&mut self.board, end);
        }
        let mut dice = Dice::new(case.seed, 0x5709);
        while self.cpu.position() < end {
            let most = dice.pick(&[1, 2, 3, 5, 9, 20, 300]);
            let stop = self.cpu.position().after(1 + dice.below(most) as u64);
            let exit = self.cpu.run(&mut self.board, stop);
            if exit != Exit::Limit {
                return exit;
            }
            assert_eq!(self.cpu.position(), stop, "stopped somewhere else in {case}");
            match dice.below(40) {
                0 => self.cpu.drop_caches(&mut self.board),
                1 => self.board.ram.begin_epoch(),
                2 => drop(self.cpu.state_mut()),
                _ => {}
            }
        }
        Exit::Limit
    }

    fn registers(&self) -> Registers {
        let state = self.cpu.state();
        Registers {
            gpr: state.gpr,
            rflags: state.rflags,
            fs_base: state.seg[4].base,
            gs_base: state.seg[5].base,
            ymm: state.fpu.ymm,
            mxcsr: state.fpu.mxcsr,
            x87: state.fpu.x87,
        }
    }

    fn memory(&self, case: &Case) -> Vec<(Frame, Box<[u8; PAGE]>)> {
        let page = |frame| {
            let index = self.board.ram.page_index(Board::phys(frame)).expect("a page of RAM");
            Box::new(*self.board.ram.page_bytes(index))
        };
        let pages = case.pages().iter().filter(|page| page.access.writable());
        pages.map(|shown| (shown.frame, page(shown.frame))).collect()
    }

    /// What the handler of the exception finds.
    fn outcome(&self, case: &Case, retired: u64, vector: u8) -> Outcome {
        let with_code = matches!(vector, 8 | 10..=14 | vector::AC | 21);
        let [code, rip, cs, rflags, rsp, ss] = self.board.pushed(with_code);
        let wanted = if case.mode == Mode::Long { USER_CODE_64 } else { USER_CODE_32 };
        assert_eq!((cs, ss), (u64::from(wanted), u64::from(USER_DATA)), "the selectors pushed in {case}");
        let state = self.cpu.state();
        assert_eq!((state.cpl, state.seg[1].selector), (0, KERNEL_CODE), "the handler of {case}");
        let cr2 = if vector == vector::PF { state.cr2 } else { 0 };
        assert!(
            vector == vector::PF || state.cr2 == CR2_BEFORE,
            "CR2 changed without a page fault in {case}"
        );
        let mut registers = self.registers();
        registers.rflags = rflags;
        registers.gpr[4] = rsp;
        let fault = Fault { vector, error_code: code as u32, cr2 };
        // INT3 and INTO retire here, and do not count there.
        let retired = if matches!(vector, vector::BP | vector::OF) { retired - 1 } else { retired };
        Outcome::from_exception(registers, rip, retired, fault, case.end(), self.memory(case))
    }
}

impl Executor for EngineExecutor {
    fn run(&mut self, case: &Case) -> Outcome {
        self.load(case);
        let start = self.cpu.position();
        let exit = self.go(case);
        self.compared = self
            .cpu
            .compare_copies(&self.board.ram, self.compared)
            .unwrap_or_else(|difference| panic!("{difference} in {case}"));
        let retired = self.cpu.position().since(start);
        let rip = self.cpu.state().rip;
        let (ending, retired) = match (exit, Board::vector(rip)) {
            // The handler's HLT retired as well.
            (Exit::Halted, Some(vector)) => return self.outcome(case, retired - 1, vector),
            (Exit::Limit, _) => (Ending::Discarded(Discard::Runaway), retired),
            // A double fault is never right.
            _ => (Ending::Fault(Fault { vector: 8, error_code: 0, cr2: 0 }), retired),
        };
        let memory = self.memory(case);
        Outcome { registers: self.registers(), rip, retired, ending, memory, visited: 0 }
    }
}
