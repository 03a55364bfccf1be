//! Executing one guest instruction from Rust, whatever it is.

use super::blocks::Mode;
use super::classify::{Class, classify, needs_no_unit};
use super::flow;
use super::translate::{decode_next, decoder_options};
use super::vcpu::Vcpu;
use super::x87;
use crate::Bus;
use crate::fpu::{FpuKind, fpu_available};
use crate::marks::mark;
use crate::walk::Access;
use crate::{debug, string, system};
use base::{GuestVirt, PAGE_SIZE};
use iced_x86::{CpuidFeature, Decoder, EncodingKind, Instruction, Mnemonic};
use x86::cpuid::Level;
use x86::{Exception, paging, vector};

/// The longest instruction.
pub(super) const MAX_BYTES: usize = 15;

/// What one instruction did.
pub(super) struct Done {
    /// Instructions retired (iterations, for string instructions).
    pub retired: u64,
    /// DR6 bits of data breakpoints hit.
    pub data_hits: u64,
}

/// A fault, with the iterations that retired before it.
pub(super) struct Faulted {
    pub exception: Exception,
    pub retired: u64,
}

impl From<Exception> for Faulted {
    fn from(exception: Exception) -> Self {
        Self { exception, retired: 0 }
    }
}

impl Vcpu {
    /// Fetches and decodes the instruction at RIP, as the processor does: a page fault only for
    /// bytes the instruction has, and #GP(0) for one that goes beyond the code segment's limit.
    pub(super) fn fetch(&mut self, bus: &mut dyn Bus) -> Result<Instruction, Exception> {
        let inside = self.fetchable()?;
        let mut core = self.core(bus);
        let start = crate::deliver::instruction_address(&core);
        let access = Access::fetch(core.state);
        let mut bytes = [0; MAX_BYTES];
        let first = (PAGE_SIZE - start.page_offset()).min(inside);
        core.read_as(start.0, &mut bytes[..first], access)?;
        let mut instr = self.decode(&bytes[..first]);
        // Invalid already in what the first page holds, or does it go on?
        if instr.is_invalid() && first < inside && self.incomplete(&bytes[..first]) {
            let second = GuestVirt(start.0.wrapping_add(first as u64));
            if self.state().code64() && !paging::is_canonical(second.0) {
                return Err(Exception::gp(0));
            }
            self.core(bus).read_as(second.0, &mut bytes[first..inside], access)?;
            instr = self.decode(&bytes[..inside]);
        }
        if instr.is_invalid() && inside < MAX_BYTES && self.incomplete(&bytes[..inside]) {
            return Err(Exception::gp(0));
        }
        Ok(instr)
    }

    /// How many bytes from RIP on an instruction may have: up to the code segment's limit, or 15.
    fn fetchable(&self) -> Result<usize, Exception> {
        let state = self.state();
        if state.code64() {
            let canonical = paging::is_canonical(state.rip);
            return if canonical { Ok(MAX_BYTES) } else { Err(Exception::gp(0)) };
        }
        let limit = u64::from(state.seg[1].limit);
        match limit.checked_sub(state.rip) {
            // A segment of all 4 GiB has no end: EIP wraps.
            Some(_) if limit == u64::from(u32::MAX) => Ok(MAX_BYTES),
            Some(left) => Ok((left + 1).min(MAX_BYTES as u64) as usize),
            None => Err(Exception::gp(0)),
        }
    }

    /// Whether instructions run one at a time from Rust: 16-bit code, whose addresses and stack
    /// wrap as no emitted check does, and code segments with a limit, which every fetch is held
    /// against.
    pub(super) fn runs_singly(&self, mode: Mode) -> bool {
        !mode.is64() && (mode.bits() == 16 || self.state().seg[1].limit != u32::MAX)
    }

    fn incomplete(&self, bytes: &[u8]) -> bool {
        let mut decoder =
            Decoder::with_ip(self.state().code_bits(), bytes, self.state().rip, decoder_options());
        let _ = decoder.decode();
        decoder.last_error() == iced_x86::DecoderError::NoMoreBytes
    }

    pub(super) fn decode(&self, bytes: &[u8]) -> Instruction {
        let mut decoder =
            Decoder::with_ip(self.state().code_bits(), bytes, self.state().rip, decoder_options());
        decode_next(&mut decoder, bytes)
    }

    /// Executes `instr`, which is at RIP, with at most `budget` (at least 1) retirements; RIP
    /// becomes that of the next instruction. The count of retirements is left to the caller.
    pub(super) fn interpret(
        &mut self,
        bus: &mut dyn Bus,
        instr: &Instruction,
        budget: u64,
    ) -> Result<Done, Faulted> {
        let class = self.class_of(instr);
        self.interpret_as(bus, instr, class, budget)
    }

    /// How an instruction is executed from Rust.
    pub(super) fn class_of(&mut self, instr: &Instruction) -> Class {
        // As if every unit were enabled: what is not is checked at each execution.
        let mode = Mode(self.mode().0 & !Mode::PRECISE.0).with(Mode::FPU).with(Mode::AVX);
        let info = self.info.info(instr);
        classify(instr, info, mode, self.model.level >= Level::V3)
    }

    /// As [`Self::interpret`], the class being known.
    pub(super) fn interpret_as(
        &mut self,
        bus: &mut dyn Bus,
        instr: &Instruction,
        class: Class,
        budget: u64,
    ) -> Result<Done, Faulted> {
        self.statistics.interpreted += 1;
        match class {
            Class::Hint => {
                self.contexts.paused = instr.mnemonic() == Mnemonic::Pause && bus.yields_at_pause();
                self.hot().state.rip = instr.next_ip();
                Ok(Done { retired: 1, data_hits: 0 })
            }
            Class::Registers | Class::Memory | Class::Lea => {
                check_units(self, instr)?;
                self.give_x87(instr);
                if waits_for_x87(instr) && self.x87_in_host && x87::exception_pending() {
                    return Err(Exception::plain(vector::MF).into());
                }
                let data_hits = self.bounce(bus, instr, class)?;
                Ok(Done { retired: 1, data_hits })
            }
            Class::Interpret | Class::InterpretAndLeave => self.interpret_system(bus, instr, budget),
            _ => {
                let mut core = self.core(bus);
                flow::execute(&mut core, instr)?;
                Ok(Done { retired: 1, data_hits: core.data_hits })
            }
        }
    }

    fn interpret_system(
        &mut self,
        bus: &mut dyn Bus,
        instr: &Instruction,
        budget: u64,
    ) -> Result<Done, Faulted> {
        self.take_x87(instr);
        // A breakpoint is met before every iteration: each is a position of its own.
        let budget = if self.has_breakpoint_here() { 1 } else { budget };
        let mut core = self.core(bus);
        if string::is_string(instr.code()) {
            return match string::string(&mut core, instr, budget) {
                Ok(outcome) => {
                    if core.state.rip == instr.ip() {
                        mark!(StringStopped);
                    }
                    Ok(Done { retired: outcome.iterations, data_hits: core.data_hits })
                }
                Err(fault) => {
                    if fault.iterations > 0 {
                        mark!(StringFaulted);
                    }
                    Err(Faulted { exception: fault.exception, retired: fault.iterations })
                }
            };
        }
        if is_stack(instr) {
            flow::execute(&mut core, instr)?;
        } else {
            system::execute(&mut core, instr)?;
        }
        Ok(Done { retired: 1, data_hits: core.data_hits })
    }

    /// Makes the state's copy of x87 the current one, before an instruction that looks at it.
    fn take_x87(&mut self, instr: &Instruction) {
        if self.x87_in_host && touches_fpu(instr) {
            x87::take(&mut self.hot().state.fpu);
            self.x87_in_host = false;
        }
    }

    /// Makes the host's registers the current copy, before an instruction that runs on the host.
    fn give_x87(&mut self, instr: &Instruction) {
        if !self.x87_in_host && touches_fpu(instr) {
            self.load_x87();
        }
    }

    pub(super) fn load_x87(&mut self) {
        if !self.x87_in_host {
            x87::give(&self.hot().state.fpu);
            self.x87_in_host = true;
        }
    }

    pub(super) fn store_x87(&mut self) {
        if self.x87_in_host {
            x87::take(&mut self.hot().state.fpu);
            self.x87_in_host = false;
        }
    }

    /// The fault of an instruction breakpoint at RIP.
    pub(super) fn code_breakpoint(&mut self) -> Option<Exception> {
        let state = &mut self.hot().state;
        let linear = if state.code64() { state.rip } else { state.seg[1].base.wrapping_add(state.rip) };
        debug::code_breakpoint(state, linear)
    }
}

fn is_stack(instr: &Instruction) -> bool {
    use iced_x86::Mnemonic::{Leave, Pop, Push};
    let segment = instr.op_count() == 1
        && instr.op0_kind() == iced_x86::OpKind::Register
        && instr.op0_register().is_segment_register();
    matches!(instr.mnemonic(), Push | Pop | Leave) && !segment
}

fn touches_fpu(instr: &Instruction) -> bool {
    use CpuidFeature::*;
    if instr.mnemonic() == Mnemonic::Wait {
        return true;
    }
    instr.cpuid_features().iter().any(|f| {
        matches!(
            f,
            FPU | FPU287 | FPU387 | MMX | SSE | SSE2 | SSE3 | SSSE3 | FXSR | XSAVE | XSAVEC | XSAVEOPT
        )
    })
}

/// Whether the instruction delivers a pending x87 exception, before it looks at memory (SDM vol. 1,
/// 8.3.11 and 8.6; for MMX, 9.5 and 11.6.6).
pub(super) fn waits_for_x87(instr: &Instruction) -> bool {
    use CpuidFeature::*;
    use iced_x86::Mnemonic::{Fnclex, Fndisi, Fneni, Fninit, Fnsetpm, Fnstcw, Fnstsw};
    let x87 = instr.cpuid_features().iter().any(|f| matches!(f, FPU | FPU287 | FPU387));
    let mmx = || (0..instr.op_count()).any(|op| instr.op_register(op).is_mm());
    x87 && !matches!(instr.mnemonic(), Fnclex | Fndisi | Fneni | Fninit | Fnsetpm | Fnstcw | Fnstsw) || mmx()
}

fn check_units(vcpu: &Vcpu, instr: &Instruction) -> Result<(), Exception> {
    use CpuidFeature::*;
    let state = vcpu.state();
    // VEX encodings of general-register instructions have no unit, but need protected mode too.
    if instr.code().encoding() == EncodingKind::VEX && state.real_segments() {
        return Err(Exception::ud());
    }
    if instr.mnemonic() == Mnemonic::Wait {
        return fpu_available(state, FpuKind::Wait);
    }
    if needs_no_unit(instr.mnemonic()) {
        return Ok(());
    }
    let features = instr.cpuid_features();
    // FISTTP came with SSE3, but belongs to the x87.
    let x87 = features.contains(&FPU);
    for feature in features {
        let kind = match feature {
            SSE3 if x87 => continue,
            FPU | FPU287 | FPU387 => FpuKind::X87,
            MMX => FpuKind::Mmx,
            SSE | SSE2 | SSE3 | SSSE3 | SSE4_1 | SSE4_2 | AES | PCLMULQDQ | SHA
                if !features.contains(&AVX) =>
            {
                FpuKind::Sse
            }
            AVX | AVX2 | FMA | F16C => FpuKind::Avx,
            _ => continue,
        };
        fpu_available(state, kind)?;
    }
    Ok(())
}
