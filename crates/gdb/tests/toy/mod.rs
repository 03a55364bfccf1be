//! A toy machine with a history: not an x86, but with an x86's registers, so that a real gdb can
//! debug it. Its whole history is worked out in advance; a position is an index into it.
//!
//! The program is a loop of [`LOOP`] instructions of four bytes at [`CODE`], with a subroutine at
//! [`SUBROUTINE`] that every fifth round calls. Some instructions write a word of data, some read
//! one, and every write stores a value that was never there before.

#![allow(dead_code)] // each test program uses a part

use base::{GuestPhys, GuestTime, GuestVirt, Position};
use gdb::{
    Bookmark, Checkpoint, Conditions, ConsoleLine, CpuId, Direction, Registers, Stop, Stopped, Target,
    TargetError, WatchKind, Watchpoint,
};
use std::time::{Duration, Instant};

pub const CODE: u64 = 0x1000;
pub const SUBROUTINE: u64 = 0x1100;
pub const LOOP: u64 = 16;
/// Four words that are written in turn.
pub const DATA: u64 = 0x8000;
/// A word that is read in every round and written in every 16th.
pub const CELL: u64 = 0x8040;
pub const MEMORY_END: u64 = 0x1_0000;
/// Physical address of virtual address 0.
pub const PHYSICAL: u64 = 0x10_0000;

/// An access of an instruction.
#[derive(Clone, Debug)]
pub struct Access {
    pub at: u64,
    pub bytes: u64,
    /// The value written; `None` for a read.
    pub value: Option<u64>,
}

/// A moment: the registers, and what the next instruction will access.
#[derive(Clone)]
pub struct Moment {
    pub registers: Registers,
    pub access: Option<Access>,
}

pub struct Toy {
    pub history: Vec<Moment>,
    at: usize,
    memory: Vec<u8>,
    bookmarks: Vec<Bookmark>,
    /// A branch may be written to.
    pub branch: bool,
    /// Continuing without an end, until interrupted.
    pub endless: bool,
}

fn step(registers: &mut Registers, count: u64) -> Option<Access> {
    let (sub, index) = (registers.rip >= SUBROUTINE, registers.rip % 0x100 / 4);
    let mut access = None;
    match index % 8 {
        0 => registers.gpr[0] += 1,
        1 => {
            let at = DATA + 8 * (registers.gpr[0] % 4);
            access = Some(Access { at, bytes: 8, value: Some(count + 1) });
        }
        2 => access = Some(Access { at: CELL, bytes: 8, value: None }),
        3 if registers.gpr[0] % 16 == 7 => {
            access = Some(Access { at: CELL, bytes: 8, value: Some(count + 1) });
        }
        4 => registers.ymm[(registers.gpr[0] % 16) as usize] = [registers.gpr[0] as u8; 32],
        5 => registers.gpr[3] = registers.gpr[3].wrapping_mul(3).wrapping_add(count),
        _ => registers.rflags ^= 1,
    }
    registers.rip = match (sub, index) {
        (false, 9) if registers.gpr[0].is_multiple_of(5) => SUBROUTINE,
        (true, 6) => CODE + 4 * 10,
        (false, i) if i + 1 == LOOP => CODE,
        _ => registers.rip + 4,
    };
    access
}

impl Toy {
    pub fn new(length: usize) -> Self {
        let mut registers = Registers { rip: CODE, rflags: 2, cs: 0x10, ss: 0x18, ..Registers::default() };
        registers.fs_base = 0x1122_3344_5566;
        registers.gs_base = 0xffff_8880_0000_1000;
        registers.kernel_gs_base = 0x77;
        registers.cr0 = 0x8005_0033;
        registers.cr3 = 0x1234_5000;
        registers.efer = 0xd01;
        registers.mxcsr = 0x1f80;
        registers.fctrl = 0x37f;
        registers.st[0] = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]; // 1.0
        registers.gpr[4] = 0x9000;
        let mut history = Vec::with_capacity(length + 1);
        for count in 0..length {
            let before = registers.clone();
            let access = step(&mut registers, count as u64);
            history.push(Moment { registers: before, access });
        }
        history.push(Moment { registers, access: None });
        let mut toy =
            Self { history, at: 0, memory: Vec::new(), bookmarks: Vec::new(), branch: false, endless: false };
        toy.go(0);
        toy
    }

    fn go(&mut self, at: usize) {
        self.at = at;
        self.memory = self.memory_at(at);
    }

    /// Memory at a position, from the list of writes alone.
    pub fn memory_at(&self, at: usize) -> Vec<u8> {
        let mut memory: Vec<u8> = (0..MEMORY_END).map(|a| if a < DATA { 0x90 } else { 0 }).collect();
        for moment in &self.history[..at] {
            if let Some(Access { at, value: Some(value), .. }) = moment.access {
                memory[at as usize..][..8].copy_from_slice(&value.to_le_bytes());
            }
        }
        memory
    }

    fn watched(&self, instruction: usize, until: &Conditions) -> Option<Stopped> {
        let access = self.history[instruction].access.as_ref()?;
        let hit = |point: &&Watchpoint| {
            point.touches(GuestVirt(access.at), access.bytes)
                && match point.kind {
                    WatchKind::Write => access.value.is_some(),
                    WatchKind::Read => access.value.is_none(),
                    WatchKind::Access => true,
                }
        };
        let point = until.watchpoints.iter().find(hit)?;
        Some(Stopped::Watchpoint { kind: point.kind, address: GuestVirt(access.at.max(point.start.0)) })
    }

    fn slice(&self, at: u64, bytes: usize) -> Result<usize, TargetError> {
        if at >= MEMORY_END {
            return Err(TargetError::Unmapped(at));
        }
        Ok(bytes.min((MEMORY_END - at) as usize))
    }

    fn may_write(&self) -> Result<(), TargetError> {
        if self.branch { Ok(()) } else { Err(TargetError::ReadOnly("go live to change it".into())) }
    }

    fn line(&self, at: usize) -> Option<ConsoleLine> {
        (at.is_multiple_of(100) && at > 0).then(|| ConsoleLine {
            at: Position::from_count(at as u64),
            text: format!("line {} of the console\x1b[2J", at / 100),
        })
    }
}

impl Target for Toy {
    fn cpus(&self) -> usize {
        1
    }
    fn activity(&self, _: CpuId) -> String {
        "running".into()
    }
    fn registers(&mut self, cpu: CpuId) -> Result<Registers, TargetError> {
        if cpu == 0 { Ok(self.history[self.at].registers.clone()) } else { Err(TargetError::NoCpu(cpu)) }
    }
    fn write_registers(&mut self, _: CpuId, registers: &Registers) -> Result<(), TargetError> {
        self.may_write()?;
        self.history[self.at].registers = registers.clone();
        Ok(())
    }
    fn read_virtual(&mut self, _: CpuId, at: GuestVirt, into: &mut [u8]) -> Result<usize, TargetError> {
        let count = self.slice(at.0, into.len())?;
        into[..count].copy_from_slice(&self.memory[at.0 as usize..][..count]);
        Ok(count)
    }
    fn read_physical(&mut self, at: GuestPhys, into: &mut [u8]) -> Result<usize, TargetError> {
        let offset = at.0.checked_sub(PHYSICAL).ok_or(TargetError::Unmapped(at.0))?;
        self.read_virtual(0, GuestVirt(offset), into)
    }
    fn write_virtual(&mut self, _: CpuId, at: GuestVirt, bytes: &[u8]) -> Result<(), TargetError> {
        self.may_write()?;
        if self.slice(at.0, bytes.len())? < bytes.len() {
            return Err(TargetError::Unmapped(MEMORY_END));
        }
        self.memory[at.0 as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn write_physical(&mut self, at: GuestPhys, bytes: &[u8]) -> Result<(), TargetError> {
        self.write_virtual(0, GuestVirt(at.0.wrapping_sub(PHYSICAL)), bytes)
    }
    fn position(&self) -> Position {
        Position::from_count(self.at as u64)
    }
    fn start(&self) -> Position {
        Position::START
    }
    fn end(&self) -> Position {
        Position::from_count(self.history.len() as u64 - 1)
    }
    fn time(&self) -> GuestTime {
        GuestTime::from_ns(self.at as u64 * 1_000_000)
    }
    fn position_at(&mut self, time: GuestTime) -> Result<Position, TargetError> {
        Ok(Position::from_count(time.ns().div_ceil(1_000_000)).min(self.end()))
    }
    fn seek(&mut self, to: Position) -> Result<(), TargetError> {
        self.go(to.count() as usize);
        Ok(())
    }
    fn run(
        &mut self,
        until: &Conditions,
        direction: Direction,
        interrupt: &dyn Fn() -> bool,
    ) -> Result<Stop, TargetError> {
        let mut at = self.at;
        let mut steps = 0;
        let give_up = Instant::now() + Duration::from_secs(60);
        while self.endless && until.step.is_none() && Instant::now() < give_up {
            if interrupt() {
                return Ok(Stop { cpu: 0, why: Stopped::Interrupted });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let why = loop {
            let (instruction, next) = match direction {
                Direction::Forward if at + 1 == self.history.len() => break Stopped::End,
                Direction::Forward => (at, at + 1),
                Direction::Back if at == 0 => break Stopped::Start,
                Direction::Back => (at - 1, at - 1),
            };
            at = next;
            steps += 1;
            let rip = GuestVirt(self.history[at].registers.rip);
            if let Some(stop) = self.watched(instruction, until) {
                break stop;
            }
            if until.breakpoints.contains(&rip) {
                break Stopped::Breakpoint(rip);
            }
            if until.step.is_some_and(|(_, count)| steps >= count) {
                break Stopped::Step;
            }
        };
        self.go(at);
        Ok(Stop { cpu: 0, why })
    }
    fn checkpoints(&mut self) -> Vec<Checkpoint> {
        vec![Checkpoint { at: Position::from_count(500), disk_bytes: Some(4096) }]
    }
    fn bookmarks(&mut self) -> Result<Vec<Bookmark>, TargetError> {
        Ok(self.bookmarks.clone())
    }
    fn set_bookmark(&mut self, name: &str) -> Result<(), TargetError> {
        self.bookmarks.push(Bookmark { name: name.into(), at: self.position() });
        Ok(())
    }
    fn console(&mut self, count: usize) -> Result<Vec<ConsoleLine>, TargetError> {
        let all: Vec<_> = (0..=self.at).filter_map(|at| self.line(at)).collect();
        Ok(all[all.len().saturating_sub(count)..].to_vec())
    }
    fn find_console(&mut self, text: &str) -> Result<Option<ConsoleLine>, TargetError> {
        Ok((0..self.history.len()).filter_map(|at| self.line(at)).find(|line| line.text.contains(text)))
    }
    fn info(&mut self) -> Vec<(String, String)> {
        vec![("machine".into(), "a toy".into())]
    }
    fn writable(&self) -> bool {
        self.branch
    }
}
