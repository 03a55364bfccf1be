//! A recording as gdb sees it.

use super::registers;
use base::{GuestPhys, GuestTime, GuestVirt, PAGE_SIZE, Position};
use cpu::Activity;
use gdb::{
    Bookmark, Checkpoint, Conditions, ConsoleLine, CpuId, Direction, Registers, Stop, Stopped, Target,
    TargetError, WatchKind, Watchpoint,
};
use recording::Bookmarks;
use timeline::{Change, ChangeError, Hit, Pause, ReplayError, Travel, Until, WatchRange};

/// History in gdb's terms.
pub struct History(pub Travel);

fn failed(error: impl ToString) -> TargetError {
    TargetError::Failed(error.to_string())
}

fn replay(error: ReplayError) -> TargetError {
    failed(error)
}

fn read_only() -> TargetError {
    TargetError::ReadOnly("begin a branch here with `monitor branch` to try something else".into())
}

fn watch_range(watch: &Watchpoint) -> WatchRange {
    WatchRange {
        start: watch.start,
        bytes: watch.bytes,
        reads: watch.kind != WatchKind::Write,
        writes: watch.kind != WatchKind::Read,
    }
}

/// Goes forward by one instruction of processor `cpu`, through the turns of others.
/// [`Pause::Position`] when it has executed one.
fn step(
    travel: &mut Travel,
    cpu: u32,
    until: &Until,
    interrupt: &dyn Fn() -> bool,
) -> Result<Pause, ReplayError> {
    loop {
        if travel.session().machine().processor().current_cpu() != cpu {
            let pause = travel.run_until(&Until { turn: Some(cpu), ..until.clone() }, interrupt)?;
            if pause != Pause::Hit(Hit::Turn) {
                return Ok(pause);
            }
            let next = travel.session().machine().processor().linear_rip();
            if until.breakpoints.contains(&next) {
                return Ok(Pause::Hit(Hit::Breakpoint(next)));
            }
        }
        let to = travel.position().after(1);
        let pause = travel.run_until(&Until { position: Some(to), ..until.clone() }, interrupt)?;
        // A step that ends where history does is a whole step.
        let stepped = pause == Pause::Position || pause == Pause::End && travel.position() == to;
        // Where all are halted, whoever is woken first goes on.
        if !stepped || travel.session().machine().ran() == cpu {
            return Ok(if stepped { Pause::Position } else { pause });
        }
    }
}

/// Goes back by one instruction of processor `cpu`, likewise.
fn step_back(
    travel: &mut Travel,
    cpu: u32,
    until: &Until,
    interrupt: &dyn Fn() -> bool,
) -> Result<Pause, ReplayError> {
    let from = travel.position();
    if from == Position::START {
        return Ok(Pause::Start);
    }
    let to = Position::from_count(from.count() - 1);
    let pause = travel.run_back_until(&Until { position: Some(to), ..until.clone() }, interrupt)?;
    let arrived = matches!(pause, Pause::Position | Pause::Start) && travel.position() < from;
    if !arrived {
        return Ok(pause);
    }
    if travel.session().machine().processor().cpus() == 1 {
        return Ok(Pause::Position);
    }
    // Who has executed it?
    travel.run_until(&Until { position: Some(from), ..Until::default() }, interrupt)?;
    if travel.session().machine().ran() == cpu {
        travel.seek(to)?;
        return Ok(Pause::Position);
    }
    let pause = travel.run_back_until(&Until { turn: Some(cpu), ..until.clone() }, interrupt)?;
    Ok(if pause == Pause::Hit(Hit::Turn) { Pause::Position } else { pause })
}

impl History {
    fn processor(&self) -> &cpu::Vcpu {
        self.0.session().machine().processor()
    }

    fn number(&self, cpu: CpuId) -> Result<u32, TargetError> {
        let number = u32::try_from(cpu).ok().filter(|number| *number < self.processor().cpus());
        number.ok_or(TargetError::NoCpu(cpu))
    }

    fn change(&mut self, change: Change) -> Result<(), TargetError> {
        self.0.change(change).map_err(|error| match error {
            ChangeError::History => read_only(),
            ChangeError::NoMemory(at) => TargetError::Unmapped(at),
            ChangeError::InDelivery => failed(error),
        })
    }

    fn lines(&mut self, to: Position) -> Result<Vec<ConsoleLine>, TargetError> {
        let mut lines = Vec::new();
        let mut line = Vec::new();
        for text in self.0.console_to(to).map_err(replay)?.iter().filter(|text| text.at <= to) {
            for byte in &text.bytes {
                match byte {
                    b'\n' => {
                        let text_of = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                        lines.push(ConsoleLine { at: text.at, text: text_of });
                        line.clear();
                    }
                    byte => line.push(*byte),
                }
            }
        }
        Ok(lines)
    }

    /// Reads as much of memory as `physical` finds, page by page.
    fn read_pages(
        &self,
        at: u64,
        into: &mut [u8],
        physical: impl Fn(u64) -> Option<GuestPhys>,
    ) -> Result<usize, TargetError> {
        let ram = self.0.session().machine().board().memory();
        let mut done = 0;
        while done < into.len() {
            let here = at.wrapping_add(done as u64);
            let n = (PAGE_SIZE - here as usize % PAGE_SIZE).min(into.len() - done);
            let read = physical(here).is_some_and(|phys| ram.read(phys, &mut into[done..done + n]));
            if !read {
                break;
            }
            done += n;
        }
        if done == 0 && !into.is_empty() { Err(TargetError::Unmapped(at)) } else { Ok(done) }
    }
}

impl Target for History {
    fn cpus(&self) -> usize {
        self.processor().cpus() as usize
    }

    fn activity(&self, cpu: CpuId) -> String {
        let Ok(number) = self.number(cpu) else { return String::new() };
        match self.processor().context(number).activity {
            Activity::Running if number == self.processor().current_cpu() => "running",
            Activity::Running => "waiting for its turn",
            Activity::Halted => "halted",
            Activity::Shutdown => "shut down",
            Activity::WaitForSipi => "waiting for its start",
        }
        .to_owned()
    }

    fn registers(&mut self, cpu: CpuId) -> Result<Registers, TargetError> {
        let number = self.number(cpu)?;
        let state = self.processor().context(number);
        let cr8 = self.0.session().machine().board().cr8(cpu);
        Ok(registers::of(state, state.linear_rip(), cr8))
    }

    fn write_registers(&mut self, cpu: CpuId, to: &Registers) -> Result<(), TargetError> {
        if !self.0.in_branch() {
            return Err(read_only());
        }
        let number = self.number(cpu)?;
        let now = self.registers(cpu)?;
        let mut state = self.processor().context(number).clone();
        registers::set(&mut state, &now, to).map_err(failed)?;
        self.change(Change::Registers { cpu: number, state: Box::new(state) })
    }

    fn read_virtual(&mut self, cpu: CpuId, at: GuestVirt, into: &mut [u8]) -> Result<usize, TargetError> {
        let cpu = self.number(cpu)?;
        self.read_pages(at.0, into, |virt| self.0.physical_for(cpu, GuestVirt(virt)))
    }

    fn read_physical(&mut self, at: GuestPhys, into: &mut [u8]) -> Result<usize, TargetError> {
        self.read_pages(at.0, into, |phys| Some(GuestPhys(phys)))
    }

    fn write_virtual(&mut self, cpu: CpuId, at: GuestVirt, bytes: &[u8]) -> Result<(), TargetError> {
        if !self.0.in_branch() {
            return Err(read_only());
        }
        let number = self.number(cpu)?;
        let mut pieces = Vec::new();
        let mut done = 0;
        while done < bytes.len() {
            let here = at.offset(done as u64);
            let n = (PAGE_SIZE - here.page_offset()).min(bytes.len() - done);
            let phys = self.0.physical_for(number, here).ok_or(TargetError::Unmapped(here.0))?;
            pieces.push(Change::Memory { at: phys, bytes: bytes[done..done + n].to_vec() });
            done += n;
        }
        let ram = self.0.session().machine().board().memory();
        let backed = |change: &Change| match change {
            Change::Memory { at, bytes } => ram.read(*at, &mut bytes.clone()),
            _ => true,
        };
        if !pieces.iter().all(backed) {
            return Err(TargetError::Unmapped(at.0));
        }
        pieces.into_iter().try_for_each(|piece| self.change(piece))
    }

    fn write_physical(&mut self, at: GuestPhys, bytes: &[u8]) -> Result<(), TargetError> {
        if !self.0.in_branch() {
            return Err(read_only());
        }
        self.change(Change::Memory { at, bytes: bytes.to_vec() })
    }

    fn position(&self) -> Position {
        self.0.position()
    }

    fn start(&self) -> Position {
        self.0.origin()
    }

    fn end(&self) -> Position {
        self.0.end()
    }

    fn time(&self) -> GuestTime {
        self.0.session().moment().time
    }

    fn position_at(&mut self, time: GuestTime) -> Result<Position, TargetError> {
        let here = self.0.position();
        let found = position_at(&mut self.0, time);
        self.0.seek(here).map_err(replay)?;
        found.map_err(replay)
    }

    fn seek(&mut self, to: Position) -> Result<(), TargetError> {
        self.0.seek(to).map_err(replay)
    }

    fn run(
        &mut self,
        conditions: &Conditions,
        direction: Direction,
        interrupt: &dyn Fn() -> bool,
    ) -> Result<Stop, TargetError> {
        let watched: Vec<Watchpoint> = conditions.watchpoints.iter().copied().collect();
        let until = Until {
            breakpoints: conditions.breakpoints.iter().map(|at| at.0).collect(),
            watches: watched.iter().map(watch_range).collect(),
            ..Until::default()
        };
        let pause = match (conditions.step, direction) {
            (None, Direction::Forward) => self.0.run_until(&until, interrupt).map_err(replay)?,
            (None, Direction::Back) => self.0.run_back_until(&until, interrupt).map_err(replay)?,
            (Some((cpu, count)), _) => {
                let number = self.number(cpu)?;
                let mut pause = Pause::Position;
                for _ in 0..count.max(1) {
                    pause = match direction {
                        Direction::Forward => step(&mut self.0, number, &until, interrupt),
                        Direction::Back => step_back(&mut self.0, number, &until, interrupt),
                    }
                    .map_err(replay)?;
                    if pause != Pause::Position {
                        break;
                    }
                }
                if pause == Pause::Position {
                    return Ok(Stop { cpu, why: Stopped::Step });
                }
                pause
            }
        };
        let cpu = match (pause, direction) {
            // It has made the access; the next instruction may be another's.
            (Pause::Hit(Hit::Watch(..)), Direction::Forward) => self.0.session().machine().ran(),
            _ => self.processor().current_cpu(),
        };
        let why = match pause {
            Pause::Hit(Hit::Breakpoint(at)) => Stopped::Breakpoint(GuestVirt(at)),
            Pause::Hit(Hit::Watch(number, address)) => {
                Stopped::Watchpoint { kind: watched[number].kind, address }
            }
            Pause::Position | Pause::Hit(Hit::Turn) => Stopped::Step,
            Pause::Start => Stopped::Start,
            Pause::End => {
                if let Some(over) = self.0.branch_over() {
                    eprintln!("hindsight: the guest {}; the branch ends here", over.why);
                }
                Stopped::End
            }
            Pause::Interrupted => Stopped::Interrupted,
        };
        Ok(Stop { cpu: cpu as usize, why })
    }

    fn checkpoints(&mut self) -> Vec<Checkpoint> {
        let marked = self.0.checkpoints().into_iter();
        marked.map(|marked| Checkpoint { at: marked.at, disk_bytes: marked.disk_bytes }).collect()
    }

    fn bookmarks(&mut self) -> Result<Vec<Bookmark>, TargetError> {
        let bookmarks = Bookmarks::open(self.0.recording()).map_err(failed)?;
        Ok(bookmarks.all().map(|(name, mark)| Bookmark { name: name.to_owned(), at: mark.at }).collect())
    }

    fn set_bookmark(&mut self, name: &str) -> Result<(), TargetError> {
        let mut bookmarks = Bookmarks::open(self.0.recording()).map_err(failed)?;
        let bookmark = recording::Bookmark { at: self.0.position(), note: String::new() };
        bookmarks.set(name, bookmark).map_err(failed)
    }

    fn console(&mut self, count: usize) -> Result<Vec<ConsoleLine>, TargetError> {
        let mut lines = self.lines(self.0.position())?;
        Ok(lines.split_off(lines.len().saturating_sub(count)))
    }

    fn find_console(&mut self, text: &str) -> Result<Option<ConsoleLine>, TargetError> {
        let lines = self.lines(self.0.end())?;
        Ok(lines.into_iter().find(|line| line.text.contains(text)))
    }

    fn info(&mut self) -> Vec<(String, String)> {
        let recording = self.0.recording();
        let manifest = recording.manifest();
        let pair = |name: &str, value: String| (name.to_owned(), value);
        let over =
            self.0.branch_over().map(|over| pair("branch", format!("ends here: the guest {}", over.why)));
        let facts = [
            pair("recording", recording.path().display().to_string()),
            pair("made by", manifest.recorded_by.clone()),
            pair("command line", manifest.guest.command_line.clone()),
            pair("memory", format!("{} MiB", manifest.guest.memory_bytes >> 20)),
            pair("instructions", self.0.end().to_string()),
        ];
        facts.into_iter().chain(over).collect()
    }

    fn writable(&self) -> bool {
        self.0.in_branch()
    }

    fn begin_branch(&mut self) -> Result<(), TargetError> {
        self.0.begin_branch().map_err(replay)
    }

    fn end_branch(&mut self) -> Result<(), TargetError> {
        self.0.end_branch().map_err(replay)
    }

    fn type_bytes(&mut self, bytes: &[u8]) -> Result<(), TargetError> {
        if !self.0.in_branch() {
            return Err(read_only());
        }
        let room = self.0.session().machine().board().serial_room(0);
        if bytes.len() > room {
            return Err(failed(format!(
                "the serial port takes {room} bytes now; run on and type the rest then"
            )));
        }
        self.change(Change::Input(machine::Input::Serial { port: 0, bytes: bytes.to_vec() }))
    }
}

/// The first position whose guest time is at least `time`, by halving.
pub fn position_at(travel: &mut Travel, time: GuestTime) -> Result<Position, ReplayError> {
    let (mut low, mut high) = (travel.origin().count(), travel.end().count());
    while low < high {
        let middle = low + (high - low) / 2;
        travel.seek(Position::from_count(middle))?;
        if travel.session().moment().time < time { low = middle + 1 } else { high = middle }
    }
    Ok(Position::from_count(low))
}
