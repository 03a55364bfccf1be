//! How long travelling takes in a recording: `cargo run --release -p timeline --example travel -- REC [SEEKS]`.
//!
//! Each figure is given as wall time and as the processor time of this process, which says more on a
//! host that does other things too.

use base::{GuestVirt, Position};
use recording::{HashCache, Recording};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};
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
    times.sort();
    let wall = (times[times.len() / 2].0, times[times.len() - 1].0);
    times.sort_by_key(|(_, cpu)| *cpu);
    let cpu = (times[times.len() / 2].1, times[times.len() - 1].1);
    println!(
        "{name}: wall median {:.1?}, worst {:.1?}; processor median {:?}, worst {:?}",
        wall.0, wall.1, cpu.0, cpu.1
    );
}

fn main() {
    let mut words = std::env::args().skip(1);
    let path = words.next().expect("which recording");
    let count: u64 = words.next().map_or(100, |count| count.parse().expect("a number of seeks"));
    let open = || Recording::open(Path::new(&path)).expect("a recording");
    let mut travel = Travel::open(open(), &Tuning::default(), &mut HashCache::for_user()).expect("a past");
    let end = travel.end().count();
    println!("{end} instructions");
    let mut dice = 7u64;
    let mut roll = |below: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((u128::from(dice) * u128::from(below)) >> 64) as u64
    };
    let (mut seeks, mut first, mut steps) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..count {
        let to = roll(end);
        seeks.push(timed(|| travel.seek(Position::from_count(to)).expect("a seek")));
        for n in 0..4 {
            let position = Position::from_count(travel.position().count().saturating_sub(1));
            let until = Until { position: Some(position), ..Until::default() };
            let time = timed(|| {
                travel.run_back_until(&until, &|| false).expect("a step");
            });
            if n == 0 { first.push(time) } else { steps.push(time) }
        }
    }
    if count > 0 {
        spread("seek", seeks);
        spread("first step back", first);
        spread("step back", steps);
    }
    let mut finds = Vec::new();
    for _ in 0..10 {
        // A word that is written here is watched from 100 M instructions later.
        let at = roll(end - 120_000_000);
        travel.seek(Position::from_count(at)).expect("a seek");
        let rsp = travel.session().machine().processor().state().gpr[4] & !7;
        travel.seek(Position::from_count(at + 100_000_000)).expect("a seek");
        if travel.physical(GuestVirt(rsp)).is_none() {
            continue;
        }
        let watch = WatchRange { start: GuestVirt(rsp), bytes: 8, reads: false, writes: true };
        let until = Until { watches: vec![watch], ..Until::default() };
        let from = travel.position().count();
        let mut pause = Pause::Start;
        let time = timed(|| pause = travel.run_back_until(&until, &|| false).expect("a run"));
        println!(
            "last write of a stack word: {pause:?} {} back, {time:.1?}",
            from - travel.position().count()
        );
        finds.push(time);
    }
    spread("last writer", finds);
    if count == 0 {
        return;
    }
    let recording = open();
    let mut replay =
        Replay::open(&recording, &Tuning::default(), &mut HashCache::for_user()).expect("a replay");
    let forward = timed(|| {
        replay.run(Target::End, &mut Nobody).expect("it replays");
    });
    println!("forward replay: wall {:.1?}, processor {:?}", forward.0, forward.1);
    drop(replay);
    travel.seek(Position::from_count(end)).expect("a seek");
    let never = Until { breakpoints: BTreeSet::from([0xffff_ffff_ffff_f000]), ..Until::default() };
    let back = timed(|| assert_eq!(travel.run_back_until(&never, &|| false).expect("a run"), Pause::Start));
    let ratio = back.1.as_secs_f64() / forward.1.as_secs_f64();
    println!("back over all of it: wall {:.1?}, processor {:?}, {ratio:.2} x forward", back.0, back.1);
}
