//! Tests of images and overlays.

use crate::*;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// A small deterministic generator, so that a seed reproduces every failure.
struct Dice(u64);
impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

/// An image whose every byte depends on its place.
struct Pattern(u64);
impl Base for Pattern {
    fn len(&self) -> u64 {
        self.0
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        assert!(offset + buf.len() as u64 <= self.0, "never read past the end");
        for (i, byte) in buf.iter_mut().enumerate() {
            *byte = ((offset + i as u64) / 7 + 3) as u8;
        }
        Ok(())
    }
    fn name(&self) -> PathBuf {
        "pattern".into()
    }
}

fn everything(disk: &Overlay) -> Vec<u8> {
    let mut all = vec![0; disk.len() as usize];
    disk.read_at(0, &mut all).unwrap();
    all
}

/// Random writes, discards, snapshots and restores against a plain byte vector.
fn soak(seed: u64, memory_max: u64) {
    let len = 77 * BLOCK + 3 * SECTOR_SIZE;
    let store = Store::in_temp_dir(memory_max);
    let mut disk = Overlay::new(Arc::new(Pattern(len)), store.clone());
    let mut model = everything(&disk);
    let mut kept: Vec<(Snapshot, Vec<u8>, blake3::Hash)> = Vec::new();
    let mut dice = Dice(seed);
    for step in 0..400u32 {
        let at = dice.roll(len);
        let n = dice.roll((len - at).min(5 * BLOCK) + 1);
        match dice.roll(10) {
            0..5 => {
                let data: Vec<u8> = (0..n).map(|i| (i + u64::from(step)) as u8).collect();
                disk.write_at(at, &data).unwrap();
                model[at as usize..][..n as usize].copy_from_slice(&data);
            }
            5 => {
                let n = if dice.roll(4) == 0 { len - at } else { dice.roll(len - at + 1) };
                disk.zero_at(at, n).unwrap();
                model[at as usize..][..n as usize].fill(0);
            }
            6 => kept.push((disk.snapshot(), model.clone(), disk.hash().unwrap())),
            7 if !kept.is_empty() => {
                let (snapshot, bytes, hash) = &kept[dice.roll(kept.len() as u64) as usize];
                disk.restore(snapshot);
                model.clone_from(bytes);
                assert_eq!(disk.hash().unwrap(), *hash, "seed {seed} step {step}");
            }
            _ => {
                let mut buf = vec![0xaa; n as usize];
                disk.read_at(at, &mut buf).unwrap();
                assert_eq!(buf, model[at as usize..][..n as usize], "seed {seed} step {step}");
            }
        }
    }
    assert_eq!(everything(&disk), model, "seed {seed}");
    // Every snapshot can be reached from any other by the changes between them.
    for pair in kept.windows(2) {
        let mut copy = pair[0].1.clone();
        let mut untouched = vec![0; len as usize];
        Pattern(len).read_at(0, &mut untouched).unwrap();
        for change in pair[1].0.changes_since(Some(&pair[0].0)) {
            for block in change.first..change.first + change.blocks {
                let start = (block * BLOCK) as usize;
                let n = (len as usize - start).min(BLOCK_SIZE);
                match &change.content {
                    Content::Base => copy[start..][..n].copy_from_slice(&untouched[start..][..n]),
                    Content::Zero => copy[start..][..n].fill(0),
                    Content::Data(data) => data.read(0, &mut copy[start..][..n]).unwrap(),
                }
            }
        }
        assert_eq!(copy, pair[1].1, "seed {seed}");
    }
    drop((disk, kept));
    assert_eq!(store.usage_bytes(), (0, 0), "every block was given back");
}

#[test]
fn an_overlay_behaves_like_an_array_of_bytes_with_a_memory() {
    for seed in 0..8 {
        soak(seed, u64::MAX);
        soak(seed, 10 * BLOCK);
        soak(seed, 0);
    }
}

#[test]
fn an_imported_overlay_has_the_same_hash() {
    let base: Arc<dyn Base> = Arc::new(Pattern(300 * BLOCK));
    let store = Store::in_temp_dir(1 << 20);
    let mut disk = Overlay::new(base.clone(), store.clone());
    disk.write_at(100, b"hello").unwrap();
    disk.zero_at(16 * BLOCK, 200 * BLOCK).unwrap();
    disk.write_at(40 * BLOCK - 1, b"ab").unwrap();
    disk.zero_at(40 * BLOCK, BLOCK).unwrap();
    let mut copy = Overlay::new(base, store);
    for change in disk.snapshot().changes_since(None) {
        let bytes = match &change.content {
            Content::Data(block) => {
                let mut bytes = [0; BLOCK_SIZE];
                block.read(0, &mut bytes).unwrap();
                Some(bytes)
            }
            Content::Zero => None,
            Content::Base => panic!("nothing was taken back"),
        };
        copy.import(change.first, change.blocks, bytes.as_ref()).unwrap();
    }
    assert_eq!(everything(&copy), everything(&disk));
    assert_eq!(copy.hash().unwrap(), disk.hash().unwrap());
    assert!(copy.import(299, 2, None).is_err());
    assert!(copy.import(u64::MAX, 1, None).is_err());
}

#[test]
fn discarding_a_huge_disk_stores_nothing() {
    let store = Store::in_temp_dir(0);
    let mut disk = Overlay::new(Arc::new(Zeros(1 << 50)), store.clone());
    disk.zero_at(0, 1 << 50).unwrap();
    assert_eq!(store.usage_bytes(), (0, 0));
    assert_eq!(disk.snapshot().changes_since(None).len(), 1);
    let before = disk.snapshot();
    disk.write_at((1 << 49) + 5, &[7; 10]).unwrap();
    assert_eq!(disk.snapshot().changes_since(Some(&before)).len(), 1);
    assert!(disk.write_at((1 << 50) - 1, &[0; 2]).is_err());
    assert!(disk.read_at(u64::MAX, &mut [0; 2]).is_err());
}

fn file(dir: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::File::create(&path).unwrap().write_all(bytes).unwrap();
    path
}

#[test]
fn unusable_images_are_refused_with_their_path_and_a_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let check = |path: PathBuf, want: &str| {
        let message = Image::open(&path).err().expect("refused").to_string();
        assert!(message.contains(&*path.to_string_lossy()), "{message}");
        assert!(message.contains(want), "{message}");
    };
    check(dir.path().join("absent"), "no such file");
    check(dir.path().to_path_buf(), "a directory");
    check("/dev/null".into(), "a character device");
    check(file(&dir, "empty", b""), "is empty");
    check(file(&dir, "odd", &[1; 513]), "not a multiple of 512");
    check(file(&dir, "bad.qcow2", b"QFI\xfb\0\0\0\x09garbage"), "qcow2");
}

#[test]
fn an_image_locked_by_a_writer_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "disk", &[0; 4096]);
    let writer = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    use std::os::fd::AsRawFd;
    // As QEMU does it: a shared lock on the byte that stands for "I write".
    let mut lock = libc::flock {
        l_type: libc::F_RDLCK as _,
        l_whence: libc::SEEK_SET as _,
        l_start: 101,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: `lock` is complete and the descriptor is open.
    assert_eq!(unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_OFD_SETLK, &raw mut lock) }, 0);
    assert!(matches!(Image::open(&path), Err(DiskError::Locked { .. })));
    drop(writer);
    let first = Image::open(&path).expect("free again");
    let second = Image::open(&path).expect("readers share");
    assert_eq!(first.identity().unwrap(), second.identity().unwrap());
    // SAFETY: the descriptor is open.
    let writer = std::fs::File::open(&path).unwrap();
    // SAFETY: the descriptor is open.
    let locked = unsafe { libc::flock(writer.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    assert_ne!(locked, 0, "readers keep writers out");
}

#[test]
fn a_raw_image_is_known_by_its_content() {
    let dir = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..100 * 512u32).map(|i| (i / 3) as u8).collect();
    let image = Image::open(&file(&dir, "disk", &bytes)).unwrap();
    assert_eq!(image.format(), Format::Raw);
    assert_eq!(image.identity().unwrap(), blake3::hash(&bytes));
    assert_eq!(image.stamp().unwrap().len, bytes.len() as u64);
    let disk = Overlay::new(Arc::new(image), Store::in_temp_dir(0));
    assert_eq!(everything(&disk), bytes);
}

/// The smallest qcow2 file (version 2): header, one L1 table, one L2 table, refcounts, one data
/// cluster of 64 KiB at guest offset 64 KiB.
fn qcow2(backing: Option<&str>) -> Vec<u8> {
    const CLUSTER: usize = 1 << 16;
    let mut f = vec![0u8; 6 * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| f[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &2u32.to_be_bytes());
    if let Some(name) = backing {
        put(8, &256u64.to_be_bytes());
        put(16, &(name.len() as u32).to_be_bytes());
        put(256, name.as_bytes());
    }
    put(20, &16u32.to_be_bytes()); // cluster bits
    put(24, &(4 * CLUSTER as u64).to_be_bytes()); // virtual size
    put(36, &1u32.to_be_bytes()); // L1 entries
    put(40, &(CLUSTER as u64).to_be_bytes()); // L1 table
    put(48, &(2 * CLUSTER as u64).to_be_bytes()); // refcount table
    put(56, &1u32.to_be_bytes()); // refcount table clusters
    let copied = 1u64 << 63;
    put(CLUSTER, &(copied | (4 * CLUSTER as u64)).to_be_bytes());
    put(2 * CLUSTER, &(3 * CLUSTER as u64).to_be_bytes());
    for cluster in 0..6 {
        put(3 * CLUSTER + 2 * cluster, &1u16.to_be_bytes());
    }
    put(4 * CLUSTER + 8, &(copied | (5 * CLUSTER as u64)).to_be_bytes());
    put(5 * CLUSTER, &[0x5a; CLUSTER]);
    f
}

#[test]
fn a_qcow2_image_is_read_through_its_tables() {
    let dir = tempfile::tempdir().unwrap();
    let image = Image::open(&file(&dir, "disk.qcow2", &qcow2(None))).unwrap();
    assert_eq!((image.format(), image.len()), (Format::Qcow2, 4 << 16));
    let mut disk = Overlay::new(Arc::new(image), Store::in_temp_dir(1 << 20));
    let mut buf = vec![1; 3 << 16];
    disk.read_at(1 << 15, &mut buf).unwrap();
    for (i, byte) in buf.iter().enumerate() {
        let cluster = (i + (1 << 15)) >> 16;
        assert_eq!(*byte, if cluster == 1 { 0x5a } else { 0 }, "byte {i}");
    }
    disk.write_at(1 << 16, &[9]).unwrap();
    disk.read_at((1 << 16) - 1, &mut buf[..3]).unwrap();
    assert_eq!(buf[..3], [0, 9, 0x5a]);
}

#[test]
fn a_qcow2_image_cannot_pull_in_other_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "disk.qcow2", &qcow2(Some("/etc/passwd")));
    assert!(matches!(Image::open(&path), Err(DiskError::NeedsOther { .. })));
    // Said to be raw, it is just bytes.
    assert_eq!(Image::open_as(&path, Some(Format::Raw)).unwrap().len(), 6 << 16);
}

/// Version 3 of the header, with the field that names zstd for compressed clusters.
#[test]
fn a_qcow2_image_compressed_with_zstd_is_refused_with_a_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = qcow2(None);
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(4, &3u32.to_be_bytes());
    put(72, &(1u64 << 3).to_be_bytes()); // incompatible feature: compression type
    put(96, &4u32.to_be_bytes()); // refcount order
    put(100, &112u32.to_be_bytes()); // header length
    put(104, &[1]); // zstd
    let path = file(&dir, "disk.qcow2", &bytes);
    let error = Image::open(&path).map(|image| image.len()).unwrap_err().to_string();
    assert!(error.contains("disk.qcow2") && error.contains("qemu-img convert"), "{error}");
}
