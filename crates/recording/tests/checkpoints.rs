//! Checkpoints against a model: whatever is handed over is what comes back.

mod common;
use common::*;
use recording::*;
use std::collections::{BTreeMap, VecDeque};

type Model = BTreeMap<(u16, u64), Page>;

/// Pages that are fetched, in the order in which they were named.
struct Fetched(VecDeque<(u16, u64, Page)>);

impl Pages for Fetched {
    fn fetch(&mut self, space: u16, index: u64, page: &mut Page) -> std::io::Result<()> {
        let next = self.0.pop_front().filter(|next| (next.0, next.1) == (space, index));
        *page = next.ok_or_else(|| std::io::Error::other("out of order"))?.2;
        Ok(())
    }
}

/// Changes a model at random, telling a draft of it.
fn step(rng: &mut Rng, model: &mut Model, draft: &mut Draft) {
    let mut later = VecDeque::new();
    for _ in 0..1 + rng.below(40) {
        let place = (rng.below(3) as u16, rng.below(500) * (1 + rng.below(2) * 99_999));
        let mut page = [0; PAGE_BYTES];
        match rng.below(5) {
            0 => {}                                            // zeros
            1 => page.fill(rng.below(4) as u8),                // likely a duplicate
            2 => page.copy_from_slice(&rng.bytes(PAGE_BYTES)), // incompressible
            _ => page[..8].copy_from_slice(&rng.next().to_le_bytes()),
        }
        if place.0 > 0 && rng.below(10) == 0 {
            model.remove(&place);
            draft.absent(place.0, place.1);
        } else if !draft_has(model, place, &page) {
            model.insert(place, page);
            if rng.below(2) == 0 {
                draft.page(place.0, place.1, &page);
            } else {
                draft.later(place.0, place.1);
                later.push_back((place.0, place.1, page));
            }
        }
    }
    draft.source(Box::new(Fetched(later)));
}

fn draft_has(model: &Model, place: (u16, u64), page: &Page) -> bool {
    model.get(&place) == Some(page)
}

/// Applies what distinguishes two checkpoints to the contents of the first.
fn apply(
    checkpoints: &Checkpoints,
    from: Option<&Checkpoint>,
    to: &Checkpoint,
    contents: &mut Model,
) -> usize {
    let changes = checkpoints.diff(from, to);
    for change in &changes {
        match change.page {
            None => contents.remove(&(change.space, change.index)),
            Some(stored) => {
                let mut page = [0xee; PAGE_BYTES];
                checkpoints.load(stored, &mut page).unwrap();
                contents.insert((change.space, change.index), page)
            }
        };
    }
    changes.len()
}

fn assert_models(checkpoints: &Checkpoints, models: &BTreeMap<u64, Model>, rng: &mut Rng) {
    let list = checkpoints.list();
    let mut here = None;
    let mut contents = Model::new();
    for _ in 0..40 {
        let to = &list[rng.below(list.len() as u64) as usize];
        apply(checkpoints, here, to, &mut contents);
        assert!(contents == models[&to.id()], "checkpoint {} reached by differences", to.id());
        assert_eq!(to.state().unwrap(), to.id().to_le_bytes());
        here = Some(to);
    }
}

/// A tree of checkpoints: mostly a chain, sometimes a branch off an earlier one.
fn grow(checkpoints: &Checkpoints, rng: &mut Rng, models: &mut BTreeMap<u64, Model>, count: u64) {
    let mut parent = models.keys().next_back().copied();
    for _ in 0..count {
        if rng.below(6) == 0 && !models.is_empty() {
            checkpoints.sync().unwrap();
            let list = checkpoints.list();
            parent = Some(list[rng.below(list.len() as u64) as usize].id());
        }
        let mut model = parent.map_or_else(Model::new, |parent| models[&parent].clone());
        let position = models.len() as u64 * 1000;
        let mut draft = checkpoints.draft(at(position), parent);
        step(rng, &mut model, &mut draft);
        // The state names the checkpoint, so that the wrong one is noticed.
        let expected = models.keys().next_back().map_or(0, |id| id + 1);
        let id = checkpoints.submit(draft, expected.to_le_bytes().to_vec());
        assert_eq!(id, expected);
        models.insert(id, model);
        parent = Some(id);
    }
    checkpoints.sync().unwrap();
}

#[test]
fn any_checkpoint_is_reached_from_any_other_by_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path(), &[]);
    let recording = Recording::open(dir.path()).unwrap();
    let (mut models, mut rng) = (BTreeMap::new(), Rng(61));
    let checkpoints = Checkpoints::extend(&recording, Options::default()).unwrap();
    grow(&checkpoints, &mut rng, &mut models, 40);
    assert_models(&checkpoints, &models, &mut rng);
    checkpoints.finish().unwrap();

    let reopened = Checkpoints::open(&recording).unwrap().unwrap();
    assert_models(&reopened, &models, &mut rng);
    assert!(!reopened.is_writable());

    let extended = Checkpoints::extend(&recording, Options::default()).unwrap();
    grow(&extended, &mut rng, &mut models, 20);
    assert_models(&extended, &models, &mut rng);
    drop(extended);
    let reopened = Checkpoints::open(&recording).unwrap().unwrap();
    assert_eq!(reopened.list().len(), 60);
    assert_models(&reopened, &models, &mut rng);
}

#[test]
fn neighbours_differ_only_in_what_was_written_between_them() {
    let dir = tempfile::tempdir().unwrap();
    let id = RecordingId::fresh().unwrap();
    let checkpoints = Checkpoints::create(dir.path(), id, Options::default()).unwrap();
    let mut first = checkpoints.draft(at(0), None);
    for index in 0..2000 {
        first.page(SPACE_RAM, index, &[(index % 251) as u8 + 1; PAGE_BYTES]);
    }
    let first = checkpoints.submit(first, Vec::new());
    checkpoints.sync().unwrap();
    let before = checkpoints.bytes();
    let mut second = checkpoints.draft(at(1000), Some(first));
    second.page(SPACE_RAM, 7, &[99; PAGE_BYTES]);
    second.page(SPACE_RAM, 9, &[10; PAGE_BYTES]);
    second.page(1, 5, &[0; PAGE_BYTES]);
    let second = checkpoints.submit(second, Vec::new());
    checkpoints.sync().unwrap();
    let (first, second) = (checkpoints.get(first).unwrap(), checkpoints.get(second).unwrap());
    let places = |changes: Vec<Change>| changes.iter().map(|c| (c.space, c.index)).collect::<Vec<_>>();
    assert_eq!(places(checkpoints.diff(Some(&first), &second)), [(0, 7), (1, 5)]);
    assert_eq!(places(checkpoints.diff(Some(&second), &first)), [(0, 7), (1, 5)]);
    assert_eq!(checkpoints.diff(Some(&second), &first)[1].page, None);
    assert!(checkpoints.bytes() - before < 400, "{} bytes", checkpoints.bytes() - before);
    assert_eq!(checkpoints.at_or_before(at(999)).unwrap().id(), first.id());
    assert_eq!(checkpoints.at_or_before(at(1000)).unwrap().id(), second.id());
}

#[test]
fn thinning_frees_disk_and_spares_what_is_held() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path(), &[]);
    let recording = Recording::open(dir.path()).unwrap();
    let (mut models, mut rng) = (BTreeMap::new(), Rng(71));
    let checkpoints = Checkpoints::extend(&recording, Options::default()).unwrap();
    grow(&checkpoints, &mut rng, &mut models, 80);
    let before = checkpoints.bytes();
    let held = checkpoints.list()[33].clone();
    checkpoints.thin(before / 4);
    checkpoints.sync().unwrap();
    let list = checkpoints.list();
    assert!(list.len() < 40 && list.len() >= 2, "{} are left", list.len());
    assert!(checkpoints.bytes() < before / 2, "{} of {before} bytes", checkpoints.bytes());
    assert_eq!((list[0].id(), list[list.len() - 1].id()), (0, 79));
    assert_models(&checkpoints, &models, &mut rng);
    let mut contents = Model::new();
    apply(&checkpoints, None, &held, &mut contents);
    assert!(contents == models[&held.id()], "a checkpoint in use keeps its pages");

    // A child of the thinned checkpoint is still whole on disk.
    let mut model = models[&held.id()].clone();
    let mut draft = checkpoints.draft(at(33_500), Some(held.id()));
    step(&mut rng, &mut model, &mut draft);
    let child = checkpoints.submit(draft, 80u64.to_le_bytes().to_vec());
    assert_eq!(child, 80);
    models.insert(child, model);
    grow(&checkpoints, &mut rng, &mut models, 10);
    drop(checkpoints);
    let reopened = Checkpoints::open(&recording).unwrap().unwrap();
    assert!(reopened.get(child).is_some());
    assert_models(&reopened, &models, &mut rng);
    let stores =
        std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let stores: Vec<String> = stores.filter(|name| name.starts_with("pages.")).collect();
    assert_eq!(stores, ["pages.1.store"]);
}

#[test]
fn a_budget_is_kept_while_recording() {
    let dir = tempfile::tempdir().unwrap();
    let id = RecordingId::fresh().unwrap();
    let budget_bytes = 3 << 20;
    let checkpoints = Checkpoints::create(dir.path(), id, Options { budget_bytes }).unwrap();
    let (mut models, mut rng) = (BTreeMap::new(), Rng(81));
    for _ in 0..30 {
        grow_chain(&checkpoints, &mut rng, &mut models);
        assert!(checkpoints.bytes() < 2 * budget_bytes, "{} bytes", checkpoints.bytes());
    }
    let list = checkpoints.list();
    assert_eq!(list[list.len() - 1].id(), *models.keys().next_back().unwrap());
    assert!(list.len() > 3 && list.len() < models.len(), "{} of {}", list.len(), models.len());
}

/// Ten more at the end of a chain, each rewriting thirty of a hundred pages.
fn grow_chain(checkpoints: &Checkpoints, rng: &mut Rng, models: &mut BTreeMap<u64, Model>) {
    for _ in 0..10 {
        let parent = models.keys().next_back().copied();
        let mut draft = checkpoints.draft(at(models.len() as u64 * 1000), parent);
        for _ in 0..30 {
            let bytes: [u8; PAGE_BYTES] = rng.bytes(PAGE_BYTES).try_into().unwrap();
            draft.page(SPACE_RAM, rng.below(100), &bytes);
        }
        let id = checkpoints.submit(draft, Vec::new());
        models.insert(id, Model::new());
    }
    checkpoints.sync().unwrap();
}

#[test]
fn checkpoints_of_a_killed_recorder_are_used_and_extended() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path(), &[]);
    let recording = Recording::open(dir.path()).unwrap();
    let (mut models, mut rng) = (BTreeMap::new(), Rng(91));
    let checkpoints = Checkpoints::extend(&recording, Options::default()).unwrap();
    grow(&checkpoints, &mut rng, &mut models, 20);
    drop(checkpoints);
    // The last record and the last chunk of pages were being written.
    for name in ["checkpoints.log", "pages.store"] {
        let path = dir.path().join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        let torn: Vec<u8> = bytes[36..90].to_vec();
        bytes.extend_from_slice(&torn[..40]);
        std::fs::write(&path, &bytes).unwrap();
    }
    let checkpoints = Checkpoints::extend(&recording, Options::default()).unwrap();
    assert_eq!(checkpoints.list().len(), 20);
    grow(&checkpoints, &mut rng, &mut models, 5);
    drop(checkpoints);
    let reopened = Checkpoints::open(&recording).unwrap().unwrap();
    assert_eq!(reopened.list().len(), 25);
    assert_models(&reopened, &models, &mut rng);
}

#[test]
fn one_process_extends_and_others_extend_copies() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("rec");
    std::fs::create_dir(&folder).unwrap();
    record(&folder, &[]);
    let recording = Recording::open(&folder).unwrap();
    let (mut models, mut rng) = (BTreeMap::new(), Rng(101));
    let first = Checkpoints::extend(&recording, Options::default()).unwrap();
    grow(&first, &mut rng, &mut models, 10);
    assert!(Checkpoints::extend(&recording, Options::default()).is_err());
    let scratch = dir.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let copy = Checkpoints::extend_copy(&recording, &scratch, Options::default()).unwrap();
    let mut copied = models.clone();
    grow(&copy, &mut rng, &mut copied, 5);
    grow(&first, &mut rng, &mut models, 5);
    assert_models(&copy, &copied, &mut rng);
    assert_models(&first, &models, &mut rng);
}

#[test]
fn a_page_that_cannot_be_fetched_ends_the_writing_and_damages_nothing() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path(), &[]);
    let recording = Recording::open(dir.path()).unwrap();
    let (mut models, mut rng) = (BTreeMap::new(), Rng(111));
    let checkpoints = Checkpoints::extend(&recording, Options::default()).unwrap();
    grow(&checkpoints, &mut rng, &mut models, 10);
    let mut draft = checkpoints.draft(at(20_000), Some(9));
    (0..200).for_each(|index| draft.page(SPACE_RAM, index, &rng.bytes(PAGE_BYTES).try_into().unwrap()));
    draft.later(SPACE_RAM, 1000);
    draft.source(Box::new(Fetched(VecDeque::new())));
    checkpoints.submit(draft, Vec::new());
    let why = checkpoints.sync().unwrap_err().why;
    assert!(why.contains("out of order"), "{why}");
    assert!(!checkpoints.is_busy() && checkpoints.check().is_err());
    drop(checkpoints);
    let reopened = Checkpoints::open(&recording).unwrap().unwrap();
    assert_eq!(reopened.list().len(), 10);
    assert_models(&reopened, &models, &mut rng);
}
