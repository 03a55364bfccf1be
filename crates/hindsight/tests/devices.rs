//! Travelling in a guest with a disk, a clock and a network: what devices do is found like anything else.

mod place;

use base::{GuestPhys, GuestVirt, PAGE_SIZE, Position};
use place::past::{open, run_to, sought, straight};
use place::{Place, facts, missing};
use std::ops::Range;
use symbols::{Extents, Symbols};
use timeline::{Pause, Travel, Until, WatchRange};

const MARK: &[u8; 24] = b"what the disk has to say";

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

/// From the last to the first, these parts of the recording are what they are in a straight run.
fn the_same_backwards(place: &Place, parts: Range<u64>, of: u64) {
    let recording = place.path("rec");
    let mut travel = open(&recording);
    let end = travel.end().count();
    let places: Vec<u64> = parts.map(|n| end / of * n).collect();
    let expected = straight(&recording, &places);
    sought(&mut travel, places.into_iter().rev(), &expected);
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
    let mut travel = open(&place.path("rec"));
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
    run_to(&mut travel, before.after(1).count());
    run_to(&mut travel, before.after(2).count());
    assert!(marked(&travel, page), "behind it, it is");
    // Forwards it is the same write.
    travel.seek(Position::from_count(before.count() - 1000)).unwrap();
    let pause = travel.run_until(&until, &|| false).unwrap();
    assert!(matches!(pause, Pause::Hit(_)), "{pause:?}");
    assert_eq!(travel.position(), before.after(1));

    // States with a written disk, from a straight run and from checkpoints, in any order.
    let places: Vec<u64> = (1..=8).map(|n| end - (8 - n) * 9_000_000).collect();
    let expected = straight(&place.path("rec"), &places);
    sought(&mut travel, [7, 0, 4, 1, 6, 2, 5, 3].map(|n| places[n]), &expected);
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
    the_same_backwards(&place, 1..10, 10);
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
    place.hindsight(&[&record[..], &["-o", "./rec", "--", job]].concat()).with_status(0);
    let info = place.json(&["info", "./rec", "--json"], 0);
    let end = open(&place.path("rec")).end().count();
    let kept = info["checkpoints"].as_u64().unwrap();
    assert!(kept >= 2 && kept < end / 40_000_000, "{kept} checkpoints were kept, none was given up");
    the_same_backwards(&place, 1..12, 12);
}

#[test]
fn a_guest_on_a_network_is_travelled_in_and_its_branch_has_a_cable_of_its_own() {
    let Some(place) = Place::new() else { return };
    let job = "ip addr show eth0 | grep -c 'inet '; for i in 1 2 3; do echo $i | sha256sum; done; sleep 0.3";
    let record = ["record", "--json", "--memory", "256M", "--net", "user", "--checkpoint-every", "200000000"];
    let output = place.command(&[&record[..], &["-o", "./rec", "--", job]].concat()).output().unwrap();
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        return missing(&format!("there is no network to test with: {told}"));
    }
    let info = place.json(&["info", "./rec", "--json"], 0);
    assert!(info["events"]["frame"].as_u64().unwrap() >= 2, "the guest got its address by frames: {info}");
    the_same_backwards(&place, 4..10, 10);
    // One branch whose cable leads nowhere, and one on the host's network again.
    for (name, net) in [("none", "none"), ("user", "user")] {
        let to = format!("./{name}");
        let words = ["record", "--json", "--from", "./rec@92%", "--net", net, "-o", &to];
        let branch = place.json(&words, 0);
        assert_eq!(facts(&place.json(&["replay", "--json", &to], 0)), facts(&branch), "--net {net}");
    }
}
