//! What the tests share: a small guest, seeded numbers, a recording worth damaging.
#![allow(dead_code)]

use base::Position;
use recording::*;
use std::path::Path;

pub const MACHINE: u32 = 3;
/// A payload larger than this makes a chunk of its own.
pub const CHUNK: usize = 256 << 10;

/// A seeded generator (SplitMix64); every random test prints its seed when it fails.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    /// Below `end`, which is positive.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
    pub fn digest(&mut self) -> Digest {
        Digest(self.bytes(16).try_into().unwrap())
    }
}

pub fn at(count: u64) -> Position {
    Position::from_count(count)
}

pub fn guest() -> Guest {
    Guest {
        memory_bytes: 64 << 20,
        cpus: 1,
        cpu_model: "base-v2".into(),
        kernel: None,
        initrd: None,
        disks: Vec::new(),
        command_line: "console=ttyS0 quiet".into(),
        seed: 7,
        clock: Clock::Host,
        start_of_day_unix_ns: 1_700_000_000_000_000_000,
        host_features: vec!["avx2".into()],
        host_vendor: "GenuineIntel".into(),
        config: serde_json::json!({"net": "user", "forward": [[8080, 80]]}),
    }
}

pub fn manifest() -> Manifest {
    Manifest::new(MACHINE, guest()).unwrap()
}

pub fn end() -> End {
    End { reason: EndReason::Poweroff, status: 0 }
}

/// `count` events of every kind, at positions that sometimes repeat.
pub fn some_events(rng: &mut Rng, count: u64) -> Vec<Event> {
    let mut position = 0;
    let mut hash = StateHash::default();
    let mut events = Vec::new();
    for _ in 0..count {
        position += rng.below(3) * rng.below(1_000_000);
        let kind = match rng.below(5) {
            1 => EventKind::Reached,
            0 => {
                hash.registers = rng.digest();
                if rng.below(2) == 0 {
                    hash.memory = rng.digest();
                }
                EventKind::Hash(hash)
            }
            _ => {
                let len = rng.below(60) as usize;
                EventKind::Input { kind: rng.below(5) as u16, payload: rng.bytes(len) }
            }
        };
        events.push(Event { at: at(position), kind });
    }
    events
}

pub fn write(writer: &Writer, events: &[Event]) {
    for event in events {
        match &event.kind {
            EventKind::Input { kind, payload } => {
                writer.input(event.at, *kind, payload);
                // Ends a chunk here, whatever the threads' timing.
                if payload.len() > CHUNK {
                    writer.flush().unwrap();
                }
            }
            EventKind::Hash(hash) => writer.hash(event.at, hash),
            EventKind::Reached => writer.reached(event.at),
            EventKind::End(_) => unreachable!("the end is written by finish"),
        }
    }
}

/// Records `events` and ends the run after them. Returns what reading must give.
pub fn record(folder: &Path, events: &[Event]) -> Vec<Event> {
    let writer = Writer::create(folder, manifest()).unwrap();
    finish(writer, events)
}

pub fn finish(writer: Writer, events: &[Event]) -> Vec<Event> {
    write(&writer, events);
    let last = events.last().map_or(at(0), |e| e.at).after(10);
    writer.finish(last, end(), StateHash::default(), 5_000_000_000).unwrap();
    let mut all = events.to_vec();
    all.push(Event { at: last, kind: EventKind::End(end()) });
    all
}

pub fn read(path: &Path) -> Result<Vec<Event>, Error> {
    Recording::open(path)?.events().collect()
}

/// Runs `steps` random checkpoints over a model of a machine of `pages` pages.
pub fn add_checkpoints(checkpoints: &Checkpoints, rng: &mut Rng, steps: u64, pages: u64) {
    let mut parent = None;
    for step in 0..steps {
        let mut draft = checkpoints.draft(at(step * 1000), parent);
        for _ in 0..rng.below(20) {
            let mut page = [0; PAGE_BYTES];
            let len = rng.below(200) as usize;
            page[..len].copy_from_slice(&rng.bytes(len));
            draft.page(rng.below(2) as u16, rng.below(pages), &page);
        }
        parent = Some(checkpoints.submit(draft, rng.bytes(50)));
    }
    checkpoints.sync().unwrap();
}

/// Everything that can be learned from a recording's checkpoints, by position.
pub fn everything(checkpoints: &Checkpoints) -> Result<Vec<(Position, Vec<u8>, Digest)>, Error> {
    let mut all = Vec::new();
    for checkpoint in checkpoints.list() {
        let mut contents = Vec::new();
        for change in checkpoints.diff(None, &checkpoint) {
            let mut page = [0; PAGE_BYTES];
            change.page.map_or(Ok(()), |stored| checkpoints.load(stored, &mut page))?;
            contents.extend_from_slice(&change.space.to_le_bytes());
            contents.extend_from_slice(&change.index.to_le_bytes());
            contents.extend_from_slice(&page);
        }
        let state = checkpoint.state().ok_or_else(|| Error::Name("no state".into()))?;
        all.push((checkpoint.at(), state, Digest::of(&contents)));
    }
    Ok(all)
}
