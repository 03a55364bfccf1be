//! One file that replays with the originals deleted.

mod common;
use common::*;
use recording::*;
use std::path::Path;

fn with_images(dir: &Path) -> (std::path::PathBuf, Vec<Event>, Vec<u8>) {
    let cache = &mut HashCache::in_memory();
    let mut rng = Rng(5);
    let mut disk = vec![0u8; 3 << 20];
    for block in [0usize, 5, 300, 767] {
        let bytes = rng.bytes(4096);
        disk[block * 4096..][..4096].copy_from_slice(&bytes);
    }
    std::fs::write(dir.join("vmlinuz"), rng.bytes(200_001)).unwrap();
    std::fs::write(dir.join("disk.raw"), &disk).unwrap();
    let mut manifest = manifest();
    manifest.guest.kernel = Some(ImageRef::of(&dir.join("vmlinuz"), cache).unwrap());
    manifest.guest.disks = vec![ImageRef::of(&dir.join("disk.raw"), cache).unwrap()];
    let folder = dir.join("rec");
    std::fs::create_dir(&folder).unwrap();
    let writer = Writer::create(&folder, manifest).unwrap();
    let id = writer.manifest().id;
    let events = finish(writer, &some_events(&mut rng, 500));
    let checkpoints = Checkpoints::create(&folder, id, Options::default()).unwrap();
    add_checkpoints(&checkpoints, &mut rng, 10, 1000);
    checkpoints.finish().unwrap();
    (folder, events, disk)
}

fn contents(recording: &Recording, image: &ImageRef) -> Vec<u8> {
    let source = recording.image(image).unwrap();
    let mut bytes = vec![0; source.size() as usize];
    source.read_at(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_packed_recording_replays_with_the_originals_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, events, disk) = with_images(dir.path());
    let original = Recording::open(&folder).unwrap();
    let states = everything(&Checkpoints::open(&original).unwrap().unwrap()).unwrap();
    let kernel = std::fs::read(dir.path().join("vmlinuz")).unwrap();
    let packed = dir.path().join("a pack.hindsight");
    pack(&original, &packed, |_, _| Contents::Whole).unwrap();
    assert!(pack(&original, &packed, |_, _| Contents::Whole).is_err(), "it is not overwritten");
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::remove_file(dir.path().join("vmlinuz")).unwrap();
    std::fs::remove_file(dir.path().join("disk.raw")).unwrap();

    let spread = dir.path().join("unpacked");
    unpack(&packed, &spread).unwrap();
    for path in [&packed, &spread] {
        let recording = Recording::open(path).unwrap();
        recording.verify_images(&mut HashCache::in_memory()).unwrap();
        let guest = &recording.manifest().guest;
        assert!(contents(&recording, guest.kernel.as_ref().unwrap()) == kernel);
        assert!(contents(&recording, &guest.disks[0]) == disk);
        assert!(recording.events().map(Result::unwrap).eq(events.iter().cloned()));
        let checkpoints = Checkpoints::open(&recording).unwrap().unwrap();
        assert_eq!(everything(&checkpoints).unwrap(), states);
        assert_eq!(Info::gather(&recording).integrity, Integrity::Complete);
    }
    assert!(Checkpoints::extend(&Recording::open(&packed).unwrap(), Options::default()).is_err());
    Library::remove(&packed).unwrap();
    Library::remove(&spread).unwrap();
    assert!(!packed.exists() && !spread.exists());
}

#[test]
fn a_pack_of_touched_blocks_has_those_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, _, disk) = with_images(dir.path());
    let recording = Recording::open(&folder).unwrap();
    let packed = dir.path().join("small.hindsight");
    pack(&recording, &packed, |what, _| match what {
        "disk 0" => Contents::Touched([5, 767].into()),
        _ => Contents::Whole,
    })
    .unwrap();
    let recording = Recording::open(&packed).unwrap();
    recording.verify_images(&mut HashCache::in_memory()).unwrap();
    let image = &recording.manifest().guest.disks[0];
    assert!(image.partial && image.packed);
    let mut expected = vec![0; disk.len()];
    for block in [5usize, 767] {
        expected[block * 4096..][..4096].copy_from_slice(&disk[block * 4096..][..4096]);
    }
    assert!(contents(&recording, image) == expected);
}

#[test]
fn a_changed_image_is_noticed_before_replay() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, ..) = with_images(dir.path());
    let recording = Recording::open(&folder).unwrap();
    recording.verify_images(&mut HashCache::in_memory()).unwrap();
    let path = dir.path().join("vmlinuz");
    let mut kernel = std::fs::read(&path).unwrap();
    kernel[100_000] ^= 1;
    std::fs::write(&path, kernel).unwrap();
    let error = recording.verify_images(&mut HashCache::in_memory()).unwrap_err();
    assert!(matches!(&error, Error::ImageChanged { what, .. } if what == "kernel"), "{error}");
}
