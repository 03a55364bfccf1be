//! Several recorders and readers at once, and the library they share.

mod common;
use common::*;
use recording::*;

#[test]
fn two_recorders_at_once_make_two_whole_recordings() {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::at(&dir.path().join("data/recordings"));
    let made: Vec<_> = std::thread::scope(|scope| {
        let library = &library;
        let recorders: Vec<_> = (0..4)
            .map(|n| {
                scope.spawn(move || {
                    let folder = library.create("debian").unwrap();
                    let events = record(&folder, &some_events(&mut Rng(n), 2000));
                    (folder, events)
                })
            })
            .collect();
        recorders.into_iter().map(|r| r.join().unwrap()).collect()
    });
    for (folder, events) in &made {
        assert!(&read(folder).unwrap() == events);
    }
    let mut names: Vec<String> = library.list().unwrap().into_iter().map(|e| e.name).collect();
    names.sort();
    assert_eq!(names, ["debian-0", "debian-1", "debian-2", "debian-3"]);
}

#[test]
fn the_latest_recording_is_the_one_begun_last_and_names_are_not_reused() {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::at(dir.path());
    assert!(library.latest().is_err());
    let mut folders = Vec::new();
    for _ in 0..3 {
        let folder = library.create("vm").unwrap();
        record(&folder, &[]);
        folders.push(folder);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(library.resolve(None).unwrap(), folders[2]);
    assert_eq!(library.resolve(Some("vm-1")).unwrap(), folders[1]);
    assert_eq!(library.resolve(Some(folders[0].to_str().unwrap())).unwrap(), folders[0]);
    assert!(library.resolve(Some("vm-9")).is_err());
    assert!(library.create("../escape").is_err());
    Library::remove(&folders[1]).unwrap();
    assert!(!folders[1].exists());
    assert!(library.create("vm").unwrap().ends_with("vm-3"));
}

#[test]
fn a_recording_is_not_removed_under_its_recorder_nor_with_things_that_are_not_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::at(dir.path());
    let folder = library.create("vm").unwrap();
    let writer = Writer::create(&folder, manifest()).unwrap();
    assert!(library.list().unwrap()[0].being_recorded);
    let error = Library::remove(&folder).unwrap_err().to_string();
    assert!(error.contains("being recorded"), "{error}");
    drop(writer);
    assert!(!library.list().unwrap()[0].being_recorded);
    std::fs::write(folder.join("thesis.txt"), "years of work").unwrap();
    assert!(Library::remove(&folder).is_err());
    assert!(folder.join("thesis.txt").exists());
}

#[test]
fn a_folder_takes_only_one_recording() {
    let dir = tempfile::tempdir().unwrap();
    let events = record(dir.path(), &some_events(&mut Rng(1), 10));
    assert!(Writer::create(dir.path(), manifest()).is_err());
    assert_eq!(read(dir.path()).unwrap(), events);
}
