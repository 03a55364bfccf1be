//! How long travelling takes in a recording: `cargo run --release -p timeline --example travel -- REC [SEEKS [WRITERS]]`.
//!
//! `SEEKS` random positions are sought, with steps back at each; `WRITERS` times each kind of last
//! writer is looked for, 100 M instructions back. With 0 of either that part is left out, and with 0
//! of both there remains the way back over all of the recording beside its forward replay.
//!
//! Each figure is given as wall time and as the processor time of this process, which says more on a
//! host that does other things too.

use base::{GuestPhys, GuestVirt, PAGE_SIZE, Position};
use dice::Dice;
use recording::{HashCache, Recording};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};
use symbols::{Extents, Symbols};
use timeline::{HostFailed, Pause, Replay, Target, Travel, Tuning, Until, WatchRange, Watcher};

struct Nobody;

impl Watcher for Nobody {
    fn console(&mut self, _: u32, _: &[u8]) -> Result<(), HostFailed> {
        Ok(())
    }
    fn wants_stop(&mut self) -> bool {
        false
    }
}

/// User and system time of this process so far (proc(5): fields 14 and 15 of stat, in 1/100 s).
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<u64> = stat
        .rsplit_once(") ")
        .map_or(Vec::new(), |(_, rest)| rest.split(' ').map(|field| field.parse().unwrap_or(0)).collect());
    Duration::from_millis(10 * fields.get(11..13).map_or(0, |times| times.iter().sum()))
}

/// Wall and processor time of something.
fn timed(work: impl FnOnce()) -> (Duration, Duration) {
    let (wall, cpu) = (Instant::now(), processor_time());
    work();
    (wall.elapsed(), processor_time() - cpu)
}

fn spread(name: &str, mut times: Vec<(Duration, Duration)>) {
    if times.is_empty() {
        return println!("{name}: none");
    }
    times.sort();
    let wall = (times[times.len() / 2].0, times[times.len() - 1].0);
    times.sort_by_key(|(_, cpu)| *cpu);
    let cpu = (times[times.len() / 2].1, times[times.len() - 1].1);
    println!(
        "{name} ({}): wall median {:.1?}, worst {:.1?}; processor median {:?}, worst {:?}",
        times.len(),
        wall.0,
        wall.1,
        cpu.0,
        cpu.1
    );
}

fn at(count: u64) -> Position {
    Position::from_count(count)
}

fn seeks(travel: &mut Travel, count: u64, dice: &mut Dice) {
    let end = travel.end().count();
    let (mut seeks, mut first, mut steps) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..count {
        let to = dice.under(end);
        seeks.push(timed(|| travel.seek(at(to)).expect("a seek")));
        for n in 0..4 {
            let until =
                Until { position: Some(at(travel.position().count().saturating_sub(1))), ..Until::default() };
            let time = timed(|| {
                travel.run_back_until(&until, &|| false).expect("a step");
            });
            if n == 0 { first.push(time) } else { steps.push(time) }
        }
    }
    spread("seek", seeks);
    spread("first step back", first);
    spread("step back", steps);
}

/// How far back the last writer is.
const BACK: u64 = 100_000_000;
/// It is somewhere within so many instructions.
const WITHIN: u64 = 20_000_000;

/// Reads by virtual address as the kernel sees it; false when not all of it is there.
fn read(travel: &Travel, from: u64, into: &mut [u8]) -> bool {
    let ram = travel.session().machine().board().memory();
    let mut done = 0;
    while done < into.len() {
        let here = GuestVirt(from.wrapping_add(done as u64));
        let count = (PAGE_SIZE - here.page_offset()).min(into.len() - done);
        if !travel.physical(here).is_some_and(|phys| ram.read(phys, &mut into[done..done + count])) {
            return false;
        }
        done += count;
    }
    true
}

/// The kernel's variables: the range of addresses.
fn variables(travel: &Travel) -> Option<(u64, usize)> {
    let kernel = Symbols::find(&Extents::of_guest(&mut |at, into| read(travel, at, into))).ok()?;
    let (start, end) = (kernel.address("_sdata")?, kernel.address("_edata")?);
    Some((start, (end - start) as usize))
}

/// The bytes at `start`, a quadword each; empty when they are not mapped.
fn words(travel: &Travel, start: u64, bytes: usize) -> Vec<u64> {
    let mut buffer = vec![0; bytes];
    let there = read(travel, start, &mut buffer);
    buffer.truncate(if there { bytes } else { 0 });
    buffer.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes"))).collect()
}

/// Where `start` leads, and in which address space that is: the kernel's half is the same in all.
fn leads_to(travel: &Travel, start: u64) -> (Option<GuestPhys>, u64) {
    let cr3 = travel.session().machine().processor().state().cr3;
    // Linux keeps the user's copy of the top table in the page behind the kernel's.
    let root = if start >> 63 == 0 { cr3 >> 13 } else { 0 };
    (travel.physical(GuestVirt(start)), root)
}

/// Where words are whose last writer is looked for.
struct Words<F> {
    name: &'static str,
    /// Chooses their first address and their bytes, at the position that is come back from.
    place: F,
    /// They have been written [`BACK`] instructions ago; else not so lately, and the search ends there:
    /// what stands on a stack for long is rare, and what it costs is to look for it on the way.
    written: bool,
}

/// At one position, looks for the last writers of such words. `None` when all had been written later,
/// with the value that they had.
fn last_writer<F: Fn(&Travel) -> (u64, usize)>(
    travel: &mut Travel,
    dice: &mut Dice,
    sort: &Words<F>,
) -> Option<(Duration, Duration)> {
    let then = dice.under(travel.end().count() - BACK - WITHIN);
    let now = then + WITHIN + BACK;
    travel.seek(at(now)).expect("a seek");
    let (start, bytes) = (sort.place)(travel);
    let place = leads_to(travel, start);
    let mut seen = vec![words(travel, start, bytes)];
    for earlier in [then + WITHIN, then] {
        travel.seek(at(earlier)).expect("a seek");
        if leads_to(travel, start) != place {
            return None;
        }
        seen.push(words(travel, start, bytes));
    }
    let [last, after, before] = &seen[..] else { return None };
    let mut changed: Vec<usize> = (0..last.len().min(after.len()).min(before.len()))
        .filter(|n| last[*n] == after[*n] && (after[*n] != before[*n]) == sort.written)
        .collect();
    for _ in 0..8.min(changed.len()) {
        let word = GuestVirt(start + 8 * changed.swap_remove(dice.below(changed.len())) as u64);
        travel.seek(at(now)).expect("a seek");
        let watch = WatchRange { start: word, bytes: 8, reads: false, writes: true };
        let position = (!sort.written).then(|| at(now - BACK));
        let until = Until { watches: vec![watch], position, ..Until::default() };
        let mut pause = Pause::Start;
        let time = timed(|| pause = travel.run_back_until(&until, &|| false).expect("a run"));
        let back = now - travel.position().count();
        println!("{}, {:#x} from {now}: {pause:?} {back} back, {time:.1?}", sort.name, word.0);
        let missed = sort.written && (!matches!(pause, Pause::Hit(_)) || back > BACK + WITHIN);
        assert!(!missed, "the write of {word:?} was missed");
        // One that wrote what was there already is a later writer all the same.
        if back >= BACK / 2 {
            return Some(time);
        }
    }
    None
}

/// Tries random positions until there have been `count` writers, or ten times as many tries.
fn writers<F: Fn(&Travel) -> (u64, usize)>(
    travel: &mut Travel,
    count: u64,
    dice: &mut Dice,
    sort: &Words<F>,
) {
    let found = (0..10 * count).filter_map(|_| last_writer(travel, dice, sort));
    let found = found.take(count as usize).collect();
    spread(&format!("last writer of {}", sort.name), found);
}

fn all_the_way(travel: &mut Travel, path: &Path) {
    let recording = Recording::open(path).expect("a recording");
    let mut replay =
        Replay::open(&recording, &Tuning::default(), &mut HashCache::for_user()).expect("a replay");
    let forward = timed(|| {
        replay.run(Target::End, &mut Nobody).expect("it replays");
    });
    println!("forward replay: wall {:.1?}, processor {:?}", forward.0, forward.1);
    drop(replay);
    travel.seek(travel.end()).expect("a seek");
    let never = Until { breakpoints: BTreeSet::from([0xffff_ffff_ffff_f000]), ..Until::default() };
    let back = timed(|| assert_eq!(travel.run_back_until(&never, &|| false).expect("a run"), Pause::Start));
    let ratio = back.1.as_secs_f64() / forward.1.as_secs_f64();
    println!("back over all of it: wall {:.1?}, processor {:?}, {ratio:.2} x forward", back.0, back.1);
}

fn main() {
    let mut words = std::env::args().skip(1);
    let path = words.next().expect("which recording");
    let mut number = |or: u64| words.next().map_or(or, |count| count.parse().expect("a number"));
    let (count, writer_count) = (number(100), number(10));
    let path = Path::new(&path);
    let recording = Recording::open(path).expect("a recording");
    let mut travel = Travel::open(recording, &Tuning::default(), &mut HashCache::for_user()).expect("a past");
    println!("{} instructions", travel.end().count());
    let mut dice = Dice::new(7, 0);
    if count > 0 {
        seeks(&mut travel, count, &mut dice);
    }
    if writer_count > 0 {
        travel.seek(at(travel.end().count() / 2)).expect("a seek");
        let kernel = variables(&travel).expect("a Linux kernel with symbols");
        let variable = Words { name: "a variable", place: |_: &Travel| kernel, written: true };
        writers(&mut travel, writer_count, &mut dice, &variable);
        let stack = |travel: &Travel| {
            let rsp = travel.session().machine().processor().state().gpr[4];
            (rsp & !(PAGE_SIZE as u64 - 1), PAGE_SIZE)
        };
        let hot = Words { name: "a word on the stack's page", place: stack, written: false };
        writers(&mut travel, writer_count, &mut dice, &hot);
    }
    if count + writer_count == 0 || count > 0 && writer_count > 0 {
        all_the_way(&mut travel, path);
    }
}
