//! What recording costs, for people to look at: `cargo test --release -p recording -- --ignored
//! --nocapture costs`. Figures depend on the host, so nothing is asserted but order of magnitude.

mod common;
use common::*;
use recording::*;
use std::time::Instant;

#[test]
#[ignore = "prints figures"]
fn costs_of_recording_an_event() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Writer::create(dir.path(), manifest()).unwrap();
    let payload = Rng(1).bytes(24);
    let count = 2_000_000;
    let started = Instant::now();
    for n in 0..count {
        writer.input(at(n * 1000), 1, &payload);
    }
    let ns = started.elapsed().as_nanos() as u64 / count;
    let started = Instant::now();
    drop(writer);
    println!("{ns} ns an event, {:?} to close", started.elapsed());
    assert!(ns < 20_000);
}

#[test]
#[ignore = "prints figures"]
fn costs_of_checkpoints_and_of_going_between_them() {
    let dir = tempfile::tempdir().unwrap();
    let id = RecordingId::fresh().unwrap();
    let checkpoints = Checkpoints::create(dir.path(), id, Options::default()).unwrap();
    let mut rng = Rng(2);
    let (mut parent, pages, steps) = (None, 10_000, 10);
    let started = Instant::now();
    let mut handing_over = std::time::Duration::ZERO;
    for step in 0..steps {
        let mut draft = checkpoints.draft(at(step), parent);
        for _ in 0..pages {
            let mut page = [0; PAGE_BYTES];
            for word in page[..2048].chunks_exact_mut(16) {
                word[..4].copy_from_slice(&(rng.next() as u32).to_le_bytes());
            }
            let begun = Instant::now();
            draft.page(SPACE_RAM, rng.below(1 << 17), &page);
            handing_over += begun.elapsed();
        }
        parent = Some(checkpoints.submit(draft, vec![0; 100_000]));
    }
    checkpoints.sync().unwrap();
    let (total, bytes) = (started.elapsed(), checkpoints.bytes());
    println!(
        "{:?} to hand over {pages} pages, {:?} to write them",
        handing_over / steps as u32,
        total / steps as u32
    );
    println!("{} bytes a page", bytes / (pages * steps));
    drop(checkpoints.list());
    let list = checkpoints.list();
    let started = Instant::now();
    let changes = checkpoints.diff(Some(&list[0]), &list[9]);
    let compared = started.elapsed();
    let mut page = [0; PAGE_BYTES];
    for change in &changes {
        change.page.map_or(Ok(()), |stored| checkpoints.load(stored, &mut page)).unwrap();
    }
    println!("{} pages differ: {compared:?} to find, {:?} with reading", changes.len(), started.elapsed());
    let started = Instant::now();
    drop(checkpoints);
    println!("{:?} to close", started.elapsed());
}
