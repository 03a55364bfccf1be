//! The folder, its segments, and what becomes of them.

use super::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

const FINGERPRINT: u64 = 0x1234;

fn entry(n: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|k| (n * 31 + k) as u8).collect()
}

/// Adds entries of these numbers in a run of their own.
fn run(folder: &Path, numbers: std::ops::Range<u64>, len: usize) {
    let mut run = Translations::open(folder, FINGERPRINT).unwrap();
    numbers.for_each(|n| run.add(hash(n), &entry(n, len)));
}

fn hash(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn finds(translations: &mut Translations, n: u64, len: usize) -> bool {
    translations.find(hash(n), |bytes| (bytes == entry(n, len)).then_some(())).is_some()
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn a_later_run_finds_what_an_earlier_one_has_added_and_each_finds_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = Translations::open(folder.path(), FINGERPRINT).unwrap();
    for n in 0..2000 {
        assert!(!finds(&mut first, n, 500));
        first.add(hash(n), &entry(n, 500));
        assert!(finds(&mut first, n / 2, 500), "{n}");
        // What has just been added, now and then: the file grows in the middle of what was read together.
        assert!(n % 7 != 0 || finds(&mut first, n, 500), "{n}");
    }
    first.add(hash(5000), &entry(5000, 5000));
    assert!(finds(&mut first, 5000, 5000), "longer than is read at once");
    drop(first);
    let mut second = Translations::open(folder.path(), FINGERPRINT).unwrap();
    assert!((0..2000).all(|n| finds(&mut second, n, 500)) && finds(&mut second, 5000, 5000));
    assert!(!finds(&mut second, 2000, 500));
    drop(second);
    assert_eq!(segments(folder.path()).len(), 1);
    let mut other = Translations::open(folder.path(), FINGERPRINT + 1).unwrap();
    assert!(!(0..2000).any(|n| finds(&mut other, n, 500)), "another translator's");
}

#[test]
fn the_entry_that_fits_is_found_among_those_of_one_hash() {
    let folder = tempfile::tempdir().unwrap();
    let mut translations = Translations::open(folder.path(), FINGERPRINT).unwrap();
    (0..9).for_each(|n| translations.add(7 << 32, &entry(n, 10)));
    let mut seen = 0;
    let found = translations.find(7 << 32, |bytes| {
        seen += 1;
        (bytes == entry(4, 10)).then(|| bytes.to_vec())
    });
    assert_eq!(found, Some(entry(4, 10)));
    assert!(seen <= 9);
    assert_eq!(translations.find(7 << 32 | 1, |_| Some(())), None, "a hash that differs in its lower half");
}

#[test]
fn only_so_many_of_one_hash_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let mut run = Translations::open(folder.path(), FINGERPRINT).unwrap();
        (0..500).for_each(|n| run.add(7 << 32, &entry(n, 10)));
        (0..200).for_each(|n| run.add(hash(n), &entry(n, 100)));
        let mut seen = 0;
        let _: Option<()> = run.find(7 << 32, |_| {
            seen += 1;
            None
        });
        assert_eq!(seen, SAME_MAX);
    }
}

#[test]
fn little_is_not_worth_a_segment_and_small_ones_are_taken_in() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), 0..WORTH as u64 - 1, 100);
    assert!(segments(folder.path()).is_empty());
    run(folder.path(), 0..1000, 100);
    run(folder.path(), 1000..1200, 100);
    assert_eq!(segments(folder.path()).len(), 2, "the first is larger");
    run(folder.path(), 1200..1500, 100);
    assert_eq!(segments(folder.path()).len(), 2, "the second has been taken in");
    run(folder.path(), 1500..2100, 100);
    assert_eq!(segments(folder.path()).len(), 1, "and now all have");
    let mut all = Translations::open(folder.path(), FINGERPRINT).unwrap();
    assert!((0..2100).all(|n| finds(&mut all, n, 100)));
}

#[test]
fn damage_is_not_found_and_harms_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), 0..300, 200);
    let [path] = &segments(folder.path())[..] else { panic!("one segment") };
    let whole = fs::read(path).unwrap();
    let found = || {
        let mut all = Translations::open(folder.path(), FINGERPRINT).unwrap();
        (0..300).filter(|n| finds(&mut all, *n, 200)).count()
    };
    for (at, lost) in
        [(segment::HEAD + 100, 1), (segment::HEAD + 9, 1), (0, 300), (17, 300), (whole.len() - 3, 300)]
    {
        let mut damaged = whole.clone();
        damaged[at] ^= 4;
        fs::write(path, damaged).unwrap();
        assert_eq!(found(), 300 - lost, "byte {at}");
    }
    for len in [0, 5, segment::HEAD, 5000, whole.len() - 1] {
        fs::write(path, &whole[..len]).unwrap();
        assert_eq!(found(), 0, "cut to {len}");
    }
    fs::write(path, &whole).unwrap();
    assert_eq!(found(), 300);
}

#[test]
fn what_has_not_served_for_the_longest_time_goes_first_and_so_does_what_was_never_finished() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, age: u64, len: usize| {
        let path = folder.path().join(name);
        fs::write(&path, vec![0; len]).unwrap();
        let then = SystemTime::now() - Duration::from_secs(age);
        fs::File::options().write(true).open(&path).unwrap().set_modified(then).unwrap();
    };
    file("a.code", 300, 400);
    file("b.code", 100, 400);
    file("c.code", 200, 400);
    file("d.part", 10, 4000);
    file("e.part", 100_000, 4000);
    file("else", 1_000_000, 4000);
    segment::make_room(folder.path(), 800).unwrap();
    let names = segments(folder.path());
    let names: Vec<_> = names.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["b.code", "c.code", "d.part", "else"]);
}

#[test]
fn a_segment_that_has_served_is_the_newest() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), 0..300, 200);
    let [path] = &segments(folder.path())[..] else { panic!("one segment") };
    let long_ago = SystemTime::now() - Duration::from_secs(1_000_000);
    let age = || fs::metadata(path).unwrap().modified().unwrap().elapsed().unwrap().as_secs();
    fs::File::options().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
    drop(Translations::open(folder.path(), FINGERPRINT).unwrap());
    assert!(age() > 900_000, "it has not");
    let mut later = Translations::open(folder.path(), FINGERPRINT).unwrap();
    assert!(finds(&mut later, 8, 200));
    drop(later);
    assert!(age() < 1000);
}

#[test]
fn a_run_adds_only_so_much() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = Translations::open(folder.path(), FINGERPRINT).unwrap();
    let large = vec![0; 1 << 19];
    for n in 0..(2 * ADDED_MAX) >> 19 {
        run.add(hash(n), &large);
    }
    let bytes = run.added.as_ref().unwrap().bytes();
    assert!((ADDED_MAX..ADDED_MAX + (1 << 20)).contains(&bytes), "{bytes}");
}

#[test]
fn a_folder_that_others_may_write_to_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let below = folder.path().join("to be made/translations");
    run(&below, 0..300, 200);
    assert_eq!(segments(&below).len(), 1);
    fs::set_permissions(&below, fs::Permissions::from_mode(0o775)).unwrap();
    let error = Translations::open(&below, FINGERPRINT).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(Translations::open(&file, FINGERPRINT).is_err());
}

#[test]
fn a_folder_that_cannot_be_written_to_is_read() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), 0..300, 200);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let mut reader = Translations::open(folder.path(), FINGERPRINT).unwrap();
    reader.add(hash(1000), &entry(1000, 10));
    assert!((0..300).all(|n| finds(&mut reader, n, 200)));
    drop(reader);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(segments(folder.path()).len(), 1);
}
