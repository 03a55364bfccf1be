//! `replay --profile-engine`: where the host's time went, and in which guest functions.

use crate::failure::Failure;
use crate::session::ProfileTo;
use base::GuestVirt;
use cpu::Statistics;
use cpu::profile::{EXITS, GuestSample, Part, Profile, Profiler, Work};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;
use symbols::{Extents, Symbols};
use timeline::{Replay, ReplayError, ReplayStop, Session, Target, Watcher};

/// A prime number of microseconds, so that nothing periodic keeps step with it.
const PERIOD: Duration = Duration::from_micros(997);
/// Instructions that a report lists.
const INSTRUCTIONS_MAX: usize = 20;
/// Guest functions that a report lists.
const FUNCTIONS_MAX: usize = 40;

/// Replays up to `to`, and reports on the part from `from` on.
///
/// The result of the replay stands inside of that of the profile.
pub fn run(
    replay: &mut Replay,
    from: Option<Target>,
    to: Target,
    watcher: &mut dyn Watcher,
    report: ProfileTo,
) -> Result<Result<ReplayStop, ReplayError>, Failure> {
    if let Some(from) = from {
        match replay.run(from, watcher) {
            Ok(ReplayStop::Target) => {}
            // Its end, or whatever went wrong, came before.
            other => return Ok(other),
        }
    }
    let profiling = Profiling::begin(replay.session(), report)?;
    let result = replay.run(to, watcher);
    profiling.end(replay.session())?;
    Ok(result)
}

/// A profile being taken of this thread.
struct Profiling {
    profiler: Profiler,
    to: ProfileTo,
    /// What was counted before, and where.
    before: (Statistics, u64),
}

impl Profiling {
    fn begin(session: &Session, to: ProfileTo) -> Result<Self, Failure> {
        let before = (session.machine().processor().statistics, session.position().count());
        let profiler = Profiler::start(PERIOD);
        let profiler =
            profiler.map_err(|error| Failure::host(format!("--profile-engine: no timer: {error}")))?;
        Ok(Self { profiler, to, before })
    }

    /// Ends it, writes the report and the map for perf.
    fn end(self, session: &Session) -> Result<(), Failure> {
        let profile = self.profiler.finish();
        let names = Names::of(session);
        let statistics = since(&session.machine().processor().statistics, &self.before.0);
        let instructions = session.position().count() - self.before.1;
        let mut text = report(&profile, &statistics, instructions, &names);
        let map = PathBuf::from(format!("/tmp/perf-{}.map", std::process::id()));
        match write_map(session, &names, &map) {
            Ok(()) => _ = writeln!(text, "\nmap of the translated code for perf: {}", map.display()),
            // The report stands without it.
            Err(error) => _ = writeln!(text, "\nno map for perf: {}: {error}", map.display()),
        }
        match self.to {
            ProfileTo::Stderr => eprint!("{text}"),
            ProfileTo::File(mut file, path) => file
                .write_all(text.as_bytes())
                .map_err(|error| Failure::host(format!("{}: {error}", path.display())))?,
        }
        Ok(())
    }
}

/// What was counted between two moments.
fn since(now: &Statistics, before: &Statistics) -> Statistics {
    Statistics {
        exits: now.exits - before.exits,
        tlb_fills: now.tlb_fills - before.tlb_fills,
        blocks_translated: now.blocks_translated - before.blocks_translated,
        blocks_copied: now.blocks_copied - before.blocks_copied,
        blocks_slid: now.blocks_slid - before.blocks_slid,
        blocks_kept: now.blocks_kept - before.blocks_kept,
        cache_flushes: now.cache_flushes - before.cache_flushes,
        interpreted: now.interpreted - before.interpreted,
    }
}

/// Names for guest addresses.
struct Names(Option<Symbols>);

impl Names {
    /// The kernel's own, from the guest's memory as it is now.
    fn of(session: &Session) -> Self {
        let machine = session.machine();
        let (state, ram) = (machine.processor().state(), machine.board().memory());
        let mut read = |at: u64, buf: &mut [u8]| {
            let mut done = 0;
            while done < buf.len() {
                let here = GuestVirt(at.wrapping_add(done as u64));
                let n = (base::PAGE_SIZE - here.page_offset()).min(buf.len() - done);
                let found = cpu::walk::probe(state, ram, here);
                if !found.is_some_and(|found| ram.read(found.phys, &mut buf[done..done + n])) {
                    return false;
                }
                done += n;
            }
            true
        };
        Self(Symbols::find(&Extents::of_guest(&mut read)).ok())
    }

    /// The function at an address: a kernel symbol, or the page where there are no names.
    fn function(&self, address: u64, user: bool) -> String {
        let symbol = self.0.as_ref().filter(|_| !user).and_then(|symbols| symbols.nearest(address));
        match symbol {
            // Modules have no names here, and are far behind the last symbol.
            Some((symbol, offset)) if symbol.is_code() && offset < 1 << 16 => symbol.name.clone(),
            _ if user => format!("user page {:#x}", address & !0xfff),
            _ => format!("kernel page {:#x}", address & !0xfff),
        }
    }
}

/// One line for each kind of work that was seen, then the guest's functions.
fn report(profile: &Profile, statistics: &Statistics, instructions: u64, names: &Names) -> String {
    let mut text = String::new();
    let total = profile.total().max(1);
    let share = |samples: u64| 100.0 * samples as f64 / total as f64;
    let _ = writeln!(
        text,
        "engine profile: {:.2} s, {} samples, one every {} µs",
        profile.elapsed.as_secs_f64(),
        profile.total(),
        profile.period.as_micros()
    );
    let of = |user: bool| profile.guest.iter().filter(|s| s.user == user).map(|s| s.samples).sum::<u64>();
    let mut lines = vec![
        ("translated code, user", of(true)),
        ("translated code, kernel", of(false)),
        ("translated code, not looked up", profile.lost),
        (Part::Door.name(), profile.parts[Part::Door as usize]),
    ];
    lines.extend(Work::ALL.iter().map(|work| (work.name(), profile.work[*work as usize])));
    lines.sort_by_key(|(_, samples)| std::cmp::Reverse(*samples));
    for (what, samples) in lines.iter().filter(|(_, samples)| *samples > 0) {
        let _ = writeln!(text, "{:6.2} %  {what}", share(*samples));
    }
    let _ = writeln!(text, "\nof translated code:");
    for part in Part::ALL.iter().filter(|part| **part != Part::Door && profile.parts[**part as usize] > 0) {
        let _ = writeln!(text, "{:6.2} %  {}", share(profile.parts[*part as usize]), part.name());
    }
    let _ = writeln!(text, "\nper million of {instructions} instructions:");
    let million = instructions.max(1) as f64 / 1e6;
    for (what, count) in [
        ("exits from translated code", statistics.exits),
        ("TLB fills", statistics.tlb_fills),
        ("instructions from Rust", statistics.interpreted),
        ("blocks translated", statistics.blocks_translated),
        ("blocks copied for another address", statistics.blocks_copied),
        ("blocks slid to another address", statistics.blocks_slid),
        ("blocks kept by an earlier run", statistics.blocks_kept),
        ("flushes of the code cache", statistics.cache_flushes),
    ] {
        let _ = writeln!(text, "{:10.2}  {what} ({count})", count as f64 / million);
    }
    let _ = writeln!(text, "\nwhy translated code was left, per million instructions:");
    for (why, count) in EXITS.iter().zip(profile.exits).filter(|(_, count)| *count > 0) {
        let _ = writeln!(text, "{:10.2}  {why}", count as f64 / million);
    }
    let _ = writeln!(text, "\ninstructions of translated blocks that were executed from Rust:");
    for (name, access, count) in profile.interpreted.iter().take(INSTRUCTIONS_MAX) {
        let why = if *access { " because of where the operand is" } else { "" };
        let _ = writeln!(text, "{count:10}  {name}{why}");
    }
    let functions = by_function(&profile.guest, names);
    let _ = writeln!(text, "\ntranslated code by guest function ({} in all):", functions.len());
    for (name, samples) in functions.iter().take(FUNCTIONS_MAX) {
        let _ = writeln!(text, "{:6.2} %  {name}", share(*samples));
    }
    text
}

/// Samples by function, most first.
fn by_function(samples: &[GuestSample], names: &Names) -> Vec<(String, u64)> {
    let mut functions: BTreeMap<String, u64> = BTreeMap::new();
    for sample in samples {
        *functions.entry(names.function(sample.address, sample.user)).or_default() += sample.samples;
    }
    let mut functions: Vec<_> = functions.into_iter().collect();
    functions.sort_by_key(|(_, samples)| std::cmp::Reverse(*samples));
    functions
}

/// Writes what perf reads for code made at run time (Linux, tools/perf/Documentation/jit-interface.txt):
/// a line `START SIZE NAME` for each block, numbers in hexadecimal.
fn write_map(session: &Session, names: &Names, path: &std::path::Path) -> std::io::Result<()> {
    // Anyone may write to /tmp: nothing that is already there is followed or replaced.
    let mut file = std::io::BufWriter::new(std::fs::File::create_new(path)?);
    for block in session.machine().processor().translated_blocks() {
        let name = names.function(block.address, block.user);
        writeln!(file, "{:x} {:x} guest:{name}+{:#x}", block.host, block.bytes, block.address)?;
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use symbols::Symbol;

    fn names() -> Names {
        let symbol = |address, kind, name: &str| Symbol { address, kind, name: name.to_owned() };
        Names(Some(Symbols::new(vec![
            symbol(0xffff_ffff_8100_0000, 't', "first"),
            symbol(0xffff_ffff_8100_0100, 'T', "second"),
            symbol(0xffff_ffff_8200_0000, 'D', "data"),
        ])))
    }

    #[test]
    fn functions_have_the_kernels_names_and_others_their_page() {
        let names = names();
        assert_eq!(names.function(0xffff_ffff_8100_00ff, false), "first");
        assert_eq!(names.function(0xffff_ffff_8100_0100, false), "second");
        assert_eq!(names.function(0xffff_ffff_8200_0010, false), "kernel page 0xffffffff82000000");
        assert_eq!(names.function(0xffff_ffff_c000_1234, false), "kernel page 0xffffffffc0001000");
        assert_eq!(names.function(0x40_1234, true), "user page 0x401000");
    }

    #[test]
    fn a_report_adds_up() {
        let sample = |address, user, samples| GuestSample { address, user, samples };
        let mut work = [0; Work::ALL.len()];
        work[Work::TlbMiss as usize] = 25;
        let profile = Profile {
            period: PERIOD,
            elapsed: Duration::from_millis(100),
            work,
            parts: [40, 20, 10, 0, 5],
            guest: vec![
                sample(0xffff_ffff_8100_0008, false, 40),
                sample(0xffff_ffff_8100_0010, false, 10),
                sample(0x40_1000, true, 20),
            ],
            lost: 0,
            exits: [0, 0, 3_000_000, 0, 0, 0],
            interpreted: vec![("wrmsr".into(), false, 9), ("mov".into(), true, 4)],
        };
        let statistics = Statistics { exits: 4_000_000, ..Statistics::default() };
        let text = report(&profile, &statistics, 2_000_000, &names());
        for line in [
            "engine profile: 0.10 s, 100 samples, one every 997 µs",
            " 50.00 %  translated code, kernel",
            " 20.00 %  translated code, user",
            " 25.00 %  TLB misses",
            "  5.00 %  doors to and from Rust, spill table",
            " 20.00 %  what stands before them (TLB checks, addresses)",
            "2000000.00  exits from translated code (4000000)",
            "1500000.00  indirect branch not in the jump cache",
            "         9  wrmsr\n         4  mov because of where the operand is\n",
            " 50.00 %  first",
            " 20.00 %  user page 0x401000",
        ] {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
    }
}
