//! Travelling in a guest with a disk, a clock and a network: what devices do is found like anything else.

mod support;

use base::{GuestPhys, GuestVirt, PAGE_SIZE, Position};
use recording::{HashCache, Recording, StateHash};
use std::collections::BTreeMap;
use support::{Place, facts, in_ci};
use symbols::{Extents, Symbols};
use timeline::{Pause, Travel, Tuning, Until, WatchRange};

const MARK: &[u8; 24] = b"what the disk has to say";

fn open(place: &Place, name: &str) -> Travel {
    let recording = Recording::open(&place.path(name)).unwrap();
    Travel::open(recording, &Tuning::default(), &mut HashCache::for_user()).unwrap()
}

fn hash(travel: &mut Travel) -> StateHash {
    travel.session_mut().state_hash().unwrap()
}

/// Where Linux maps all of physical memory.
fn direct_map(travel: &Travel) -> u64 {
    let ram = travel.session().machine().board().memory();
    let mut read = |at: u64, buf: &mut [u8]| {
        let mut done = 0;
        while done < buf.len() {
            let here = GuestVirt(at.wrapping_add(done as u64));
            let n = (PAGE_SIZE - here.page_offset()).min(buf.len() - done);
            if !travel.physical(here).is_some_and(|phys| ram.read(phys, &mut buf[done..done + n])) {
                return false;
            }
            done += n;
        }
        true
    };
    let kernel = Symbols::find(&Extents::of_guest(&mut read)).unwrap();
    let mut base = [0; 8];
    assert!(read(kernel.address("page_offset_base").unwrap(), &mut base));
    u64::from_le_bytes(base)
}

fn marked(travel: &Travel, at: GuestPhys) -> bool {
    let mut bytes = [0; MARK.len()];
    travel.session().machine().board().memory().read(at, &mut bytes) && bytes == *MARK
}

#[test]
fn a_watchpoint_sees_what_a_device_writes_and_a_disk_goes_back_in_time() {
    let Some(place) = Place::new() else { return };
    let mut disk = vec![0u8; 8 << 20];
    disk[4096..4096 + MARK.len()].copy_from_slice(MARK);
    std::fs::write(place.path("disk.img"), &disk).unwrap();
    // Reads, then writes, discards nothing, reads back: the overlay has several states.
    let job = "dd if=/dev/vda bs=4096 skip=1 count=1 2>/dev/null | sha256sum; i=0; while [ $i -lt 300 ]; do \
        i=$((i+1)); done; for n in 10 20 30; do dd if=/dev/zero bs=4096 count=40 2>/dev/null | tr '\\0' $n | \
        dd of=/dev/vda bs=4096 seek=$n conv=fsync,notrunc 2>/dev/null; done; dd if=/dev/vda bs=4096 2>/dev/null | \
        sha256sum";
    let record = ["record", "--json", "--memory", "256M", "--disk", "disk.img"];
    let spacing = ["--checkpoint-every", "100000000", "-o", "./rec", "--", job];
    let recorded = place.json(&[&record[..], &spacing].concat(), 0);

    // Whose page is it that has the mark?
    let mut travel = open(&place, "rec");
    let end = travel.end().count();
    travel.seek(Position::from_count(end)).unwrap();
    let ram = travel.session().machine().board().memory();
    let pages = ram.pages();
    let found = (0..pages).find(|page| ram.page_bytes(*page).starts_with(MARK));
    let page = ram.page_address(found.expect("the disk's block is in the page cache"));
    let base = direct_map(&travel);
    let watch = WatchRange { start: GuestVirt(base + page.0), bytes: 8, reads: false, writes: true };
    let until = Until { watches: vec![watch], ..Until::default() };
    let pause = travel.run_back_until(&until, &|| false).unwrap();
    assert!(matches!(pause, Pause::Hit(_)), "{pause:?}");
    let before = travel.position();
    assert!(!marked(&travel, page), "before the write, the mark is not there");
    let one = Until { position: Some(before.after(1)), ..Until::default() };
    travel.run_until(&one, &|| false).unwrap();
    let later = Until { position: Some(before.after(2)), ..Until::default() };
    travel.run_until(&later, &|| false).unwrap();
    assert!(marked(&travel, page), "behind it, it is");
    // Forwards it is the same write.
    travel.seek(Position::from_count(before.count() - 1000)).unwrap();
    let pause = travel.run_until(&until, &|| false).unwrap();
    assert!(matches!(pause, Pause::Hit(_)), "{pause:?}");
    assert_eq!(travel.position(), before.after(1));

    // States with a written disk, from a straight run and from checkpoints, in any order.
    let places: Vec<u64> = (1..=8).map(|n| end - (8 - n) * 9_000_000).collect();
    let mut straight = BTreeMap::new();
    let mut first = open(&place, "rec");
    for at in &places {
        let until = Until { position: Some(Position::from_count(*at)), ..Until::default() };
        first.run_until(&until, &|| false).unwrap();
        straight.insert(*at, hash(&mut first));
    }
    for at in [7, 0, 4, 1, 6, 2, 5, 3].map(|n| places[n]) {
        travel.seek(Position::from_count(at)).unwrap();
        assert_eq!(hash(&mut travel), straight[&at], "at {at}");
    }
    // And a branch goes on with the disk as it was.
    let branch = place.json(&["record", "--json", "-o", "./branch", "--from", "./rec@97%"], 0);
    assert_eq!(facts(&branch), facts(&recorded));
    assert_eq!(facts(&place.json(&["replay", "--json", "./branch"], 0)), facts(&recorded));
}

#[test]
fn a_guest_that_follows_the_hosts_clock_is_travelled_in_and_branched() {
    let Some(place) = Place::new() else { return };
    let job = "for i in 1 2 3; do echo $i | sha256sum; sleep 0.2; done; date; sleep 0.3";
    let record =
        ["record", "--json", "--memory", "256M", "--clock", "host", "--checkpoint-every", "200000000"];
    let recorded = place.json(&[&record[..], &["-o", "./rec", "--", job]].concat(), 0);
    let mut travel = open(&place, "rec");
    let end = travel.end().count();
    let places: Vec<u64> = (1..10).map(|n| end / 10 * n).collect();
    let mut straight = BTreeMap::new();
    for at in &places {
        let until = Until { position: Some(Position::from_count(*at)), ..Until::default() };
        travel.run_until(&until, &|| false).unwrap();
        straight.insert(*at, hash(&mut travel));
    }
    let mut travel = open(&place, "rec");
    for at in places.iter().rev() {
        travel.seek(Position::from_count(*at)).unwrap();
        assert_eq!(hash(&mut travel), straight[at], "at {at}");
    }
    // Live again, its clock goes its own way; what follows replays exactly.
    let branch = place.json(&["record", "--json", "-o", "./branch", "--from", "./rec@90%"], 0);
    assert_eq!(facts(&place.json(&["replay", "--json", "./branch"], 0)), facts(&branch));
    assert_eq!(facts(&place.json(&["replay", "--json", "./rec"], 0)), facts(&recorded));
}

#[test]
fn thinned_checkpoints_lead_everywhere_all_the_same() {
    let Some(place) = Place::new() else { return };
    let job = "for i in 1 2 3 4 5 6; do echo $i | sha256sum; done";
    let record =
        ["record", "--memory", "256M", "--checkpoint-every", "40000000", "--checkpoint-budget", "24M"];
    place.hindsight(&[&record[..], &["-o", "./rec", "--", job]].concat(), 0);
    let info = place.json(&["info", "./rec", "--json"], 0);
    let mut travel = open(&place, "rec");
    let end = travel.end().count();
    let kept = info["checkpoints"].as_u64().unwrap();
    assert!(kept >= 2 && kept < end / 40_000_000, "{kept} checkpoints were kept, none was given up");
    let places: Vec<u64> = (1..12).map(|n| end / 12 * n).collect();
    let mut straight = open(&place, "rec");
    let mut expected = BTreeMap::new();
    for at in &places {
        let until = Until { position: Some(Position::from_count(*at)), ..Until::default() };
        straight.run_until(&until, &|| false).unwrap();
        expected.insert(*at, hash(&mut straight));
    }
    for at in places.iter().rev() {
        travel.seek(Position::from_count(*at)).unwrap();
        assert_eq!(hash(&mut travel), expected[at], "at {at}");
    }
}

#[test]
fn a_guest_on_a_network_is_travelled_in_and_its_branch_has_a_cable_of_its_own() {
    let Some(place) = Place::new() else { return };
    let job = "ip addr show eth0 | grep -c 'inet '; for i in 1 2 3; do echo $i | sha256sum; done; sleep 0.3";
    let record = ["record", "--json", "--memory", "256M", "--net", "user", "--checkpoint-every", "200000000"];
    let output = place.command(&[&record[..], &["-o", "./rec", "--", job]].concat()).output().unwrap();
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!in_ci(), "no network to test with: {told}");
        eprintln!("skipped, there is no network to test with: {told}");
        return;
    }
    let info = place.json(&["info", "./rec", "--json"], 0);
    assert!(info["events"]["frame"].as_u64().unwrap() >= 2, "the guest got its address by frames: {info}");
    let mut travel = open(&place, "rec");
    let end = travel.end().count();
    let places: Vec<u64> = (4..10).map(|n| end / 10 * n).collect();
    let mut straight = BTreeMap::new();
    for at in &places {
        let until = Until { position: Some(Position::from_count(*at)), ..Until::default() };
        travel.run_until(&until, &|| false).unwrap();
        straight.insert(*at, hash(&mut travel));
    }
    let mut travel = open(&place, "rec");
    for at in places.iter().rev() {
        travel.seek(Position::from_count(*at)).unwrap();
        assert_eq!(hash(&mut travel), straight[at], "at {at}");
    }
    // One branch whose cable leads nowhere, and one on the host's network again.
    for (name, net) in [("none", "none"), ("user", "user")] {
        let to = format!("./{name}");
        let words = ["record", "--json", "--from", "./rec@92%", "--net", net, "-o", &to];
        let branch = place.json(&words, 0);
        assert_eq!(facts(&place.json(&["replay", "--json", &to], 0)), facts(&branch), "--net {net}");
    }
}
