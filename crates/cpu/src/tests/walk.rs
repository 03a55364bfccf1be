use super::*;
use crate::walk::{Access, probe, translate};
use base::GuestVirt;
use x86::paging::fault;

const P: u64 = paging::PRESENT;
const W: u64 = paging::WRITABLE;
const U: u64 = paging::USER;
const NX: u64 = paging::NO_EXECUTE;

fn access(write: bool, fetch: bool, user: bool, ac: bool) -> Access {
    Access { write, fetch, user, ac }
}

/// The rules of SDM vol. 3A, 4.6.1, written down once more, from the text rather than the code.
fn manual_allows(m: &Machine, leaf: u64, a: Access) -> bool {
    let (wp, smep, smap) =
        (m.state.cr0 & cr0::WP != 0, m.state.cr4 & cr4::SMEP != 0, m.state.cr4 & cr4::SMAP != 0);
    let (writable, user_page, nx) = (leaf & W != 0, leaf & U != 0, leaf & NX != 0);
    match (a.user, a.fetch, a.write) {
        (true, true, _) => user_page && !nx,
        (true, false, true) => user_page && writable,
        (true, false, false) => user_page,
        (false, true, _) if user_page => !smep && !nx,
        (false, true, _) => !nx,
        (false, false, write) => {
            let smap_ok = !user_page || !smap || a.ac;
            smap_ok && (!write || writable || !wp)
        }
    }
}

#[test]
fn every_combination_of_rights_and_accesses_is_judged_as_the_manual_says() {
    let mut judged = 0;
    for setting in 0..8u32 {
        for rights in 0..8u32 {
            for want in 0..12u32 {
                let mut m = Machine::kernel();
                let bit = |n: u32, of: u32, value: u64| if of >> n & 1 != 0 { value } else { 0 };
                m.state.cr0 = m.state.cr0 & !cr0::WP | bit(0, setting, cr0::WP);
                m.state.cr4 |= bit(1, setting, cr4::SMEP) | bit(2, setting, cr4::SMAP);
                let leaf = P | bit(0, rights, W) | bit(1, rights, U) | bit(2, rights, NX);
                m.map(0x50, 0x9_9000 | leaf);
                let a = access(want % 3 == 1, want % 3 == 2, want / 3 % 2 == 1, want / 6 == 1);
                let result = translate(&m.state, &mut m.bus.ram, GuestVirt(0x5_0123), a);
                let entry = m.peek64(PT + 0x50 * 8);
                if manual_allows(&m, leaf, a) {
                    let t = result.unwrap();
                    assert_eq!(t.phys, GuestPhys(0x9_9123));
                    let dirty = if a.write { paging::DIRTY } else { 0 };
                    assert_eq!(entry, 0x9_9000 | leaf | paging::ACCESSED | dirty);
                } else {
                    let code = fault::PRESENT
                        | if a.write { fault::WRITE } else { 0 }
                        | if a.user { fault::USER } else { 0 }
                        | if a.fetch { fault::FETCH } else { 0 };
                    assert_eq!(result, Err(Exception::page_fault(0x5_0123, code)));
                    assert_eq!(entry, 0x9_9000 | leaf, "a refused access leaves no trace");
                }
                judged += 1;
            }
        }
    }
    assert_eq!(judged, 8 * 8 * 12);
}

#[test]
fn rights_of_all_levels_are_combined() {
    let mut m = Machine::kernel();
    m.poke64(PDPT, PD | P | U); // not writable at the second level
    let write = access(true, false, true, false);
    let result = translate(&m.state, &mut m.bus.ram, GuestVirt(0x5000), write);
    let code = fault::PRESENT | fault::WRITE | fault::USER;
    assert_eq!(result, Err(Exception::page_fault(0x5000, code)));
    let t =
        translate(&m.state, &mut m.bus.ram, GuestVirt(0x5000), access(false, false, true, false)).unwrap();
    assert!(!t.writable_now && t.user && t.executable);
    assert_eq!(t.entries, [PML4, PDPT, PD, PT + 5 * 8].map(GuestPhys));
    assert_eq!(m.peek64(PML4) & paging::ACCESSED, paging::ACCESSED);
}

#[test]
fn a_read_of_a_clean_page_is_not_yet_writable_and_a_write_makes_it_so() {
    let mut m = Machine::kernel();
    let at = GuestVirt(0x8000);
    let read = translate(&m.state, &mut m.bus.ram, at, access(false, false, false, false)).unwrap();
    assert!(!read.writable_now);
    let write = translate(&m.state, &mut m.bus.ram, at, access(true, false, false, false)).unwrap();
    assert!(write.writable_now);
    let again = translate(&m.state, &mut m.bus.ram, at, access(false, false, false, false)).unwrap();
    assert!(again.writable_now);
    assert!(!m.bus.ram.is_disturbed(), "Accessed and Dirty bits disturb nobody");
}

#[test]
fn large_pages_map_two_mebibytes_and_one_gibibyte() {
    let mut m = Machine::kernel();
    let read = access(false, false, false, false);
    let t = translate(&m.state, &mut m.bus.ram, GuestVirt(0x31_2345), read).unwrap();
    assert_eq!((t.phys, t.page_shift, t.levels), (GuestPhys(0x31_2345), 21, 3));
    let t = translate(&m.state, &mut m.bus.ram, GuestVirt(0x5abc_def0), read).unwrap();
    assert_eq!((t.phys, t.page_shift, t.levels), (GuestPhys(0x5abc_def0), 30, 2));
}

#[test]
fn reserved_bits_fault_at_every_level() {
    let reserved =
        [(PML4, paging::LARGE), (PML4, 1 << 45), (PDPT + 8, 1 << 13), (PD + 8, 1 << 20), (PT, 1 << 40)];
    for (entry, bit) in reserved {
        let mut m = Machine::kernel();
        let linear = match entry {
            e if e == PDPT + 8 => 0x4000_0000,
            e if e == PD + 8 => 0x20_0000,
            _ => 0,
        };
        let old = m.peek64(entry);
        m.poke64(entry, old | bit);
        let read = access(false, false, true, false);
        let result = translate(&m.state, &mut m.bus.ram, GuestVirt(linear), read);
        let code = fault::PRESENT | fault::RESERVED | fault::USER;
        assert_eq!(result, Err(Exception::page_fault(linear, code)), "{entry:#x} {bit:#x}");
    }
}

#[test]
fn without_nxe_the_execute_disable_bit_is_reserved() {
    let mut m = Machine::kernel();
    m.state.efer &= !efer::NXE;
    m.map(1, 0x1000 | P | NX);
    let fetch = access(false, true, false, false);
    let result = translate(&m.state, &mut m.bus.ram, GuestVirt(0x1000), fetch);
    // Neither NXE nor SMEP: the error code does not tell fetches apart.
    assert_eq!(result, Err(Exception::page_fault(0x1000, fault::PRESENT | fault::RESERVED)));
}

#[test]
fn a_table_outside_of_ram_is_a_reserved_bit_fault_and_no_panic() {
    let mut m = Machine::kernel();
    m.state.cr3 = 0xff_ffff_f000;
    let result = translate(&m.state, &mut m.bus.ram, GuestVirt(0x1000), access(true, false, false, false));
    let code = fault::PRESENT | fault::RESERVED | fault::WRITE;
    assert_eq!(result, Err(Exception::page_fault(0x1000, code)));
    assert_eq!(probe(&m.state, &m.bus.ram, GuestVirt(0x1000)), None);
}

#[test]
fn thirty_two_bit_paging_walks_two_levels_and_large_pages_reach_above_four_gibibytes() {
    let mut m = Machine::kernel();
    m.state.efer = 0;
    m.state.cr4 = cr4::PSE;
    m.state.cr3 = 0x8000;
    // Directory entry 1 lies in the upper half of an aligned 8-byte word.
    m.poke(0x8004, &(0x9000u32 | 7).to_le_bytes());
    m.poke(0x9004, &(0xa000u32 | 7).to_le_bytes());
    m.poke(0x8008, &(0x0040_0083u32 | 1 << 13).to_le_bytes());
    let write = access(true, false, true, false);
    let t = translate(&m.state, &mut m.bus.ram, GuestVirt(0x40_1234), write).unwrap();
    assert_eq!((t.phys, t.levels), (GuestPhys(0xa234), 2));
    assert_eq!(m.bytes(0x8004, 4), (0x9000u32 | 7 | 0x20).to_le_bytes());
    assert_eq!(m.bytes(0x9004, 4), (0xa000u32 | 7 | 0x60).to_le_bytes());
    let read = access(false, false, false, false);
    let t = translate(&m.state, &mut m.bus.ram, GuestVirt(0x81_2345), read).unwrap();
    assert_eq!((t.phys, t.page_shift), (GuestPhys(0x1_0041_2345), 22));
}

#[test]
fn pae_paging_takes_no_rights_and_sets_no_bits_in_the_top_entries() {
    let mut m = Machine::kernel();
    m.state.efer = efer::NXE;
    m.state.cr3 = 0x8020;
    m.poke64(0x8020, 0x9000 | P);
    m.poke64(0x9000, 0xa000 | P | W | U);
    m.poke64(0xa008, 0xb000 | P | W | U);
    let write = access(true, false, true, false);
    let t = translate(&m.state, &mut m.bus.ram, GuestVirt(0x1_0000_1010), write).unwrap();
    assert_eq!((t.phys, t.levels), (GuestPhys(0xb010), 3), "linear addresses have 32 bits");
    assert_eq!(m.peek64(0x8020), 0x9000 | P);
    assert_eq!(m.peek64(0xa008), 0xb000 | P | W | U | paging::ACCESSED | paging::DIRTY);
}

#[test]
fn a_probe_sets_no_bits_and_reads_through_any_rights() {
    let mut m = Machine::user();
    m.map(0x50, 0x9_9000 | P);
    let t = probe(&m.state, &m.bus.ram, GuestVirt(0x5_0004)).unwrap();
    assert_eq!(t.phys, GuestPhys(0x9_9004));
    assert_eq!(m.peek64(PT + 0x50 * 8), 0x9_9000 | P);
    assert_eq!(probe(&m.state, &m.bus.ram, GuestVirt(0x8000_0000_0000)), None);
}

#[test]
fn mmio_is_split_into_naturally_aligned_pieces() {
    let mut m = Machine::kernel();
    let data: Vec<u8> = (0..11).collect();
    m.core().write(MMIO + 3, &data, crate::Intent::Explicit).unwrap();
    let sizes: Vec<_> = m.bus.written.iter().map(|(at, d)| (at - MMIO, d.len())).collect();
    assert_eq!(sizes, [(3, 1), (4, 4), (8, 4), (12, 2)]);
    let mut buf = [0; 8];
    m.core().read(MMIO + 0x40, &mut buf, crate::Intent::Explicit).unwrap();
    assert_eq!(buf, [0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47]);
}

#[test]
fn a_write_across_a_page_that_faults_in_its_second_half_writes_nothing() {
    let mut m = Machine::user();
    m.map(0x51, 0);
    let error = m.core().write(0x5_0ffe, &[1, 2, 3, 4], crate::Intent::Explicit).unwrap_err();
    assert_eq!(error, Exception::page_fault(0x5_1000, fault::WRITE | fault::USER));
    assert_eq!(m.bytes(0x5_0ffe, 2), [0, 0]);
}
