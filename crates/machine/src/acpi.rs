//! The ACPI tables: how a guest finds what is on the board (ACPI 6.5, chapters 5 and 6).
//!
//! RSDP → XSDT → FADT (→ FACS, DSDT), MADT, HPET, MCFG, all in the BIOS area below 1 MiB.

use crate::layout::{self, port};
use acpi_tables::aml::{self, EISAName, IO, Interrupt, Memory32Fixed, Name, Path, ResourceTemplate};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use base::GuestPhys;
use memory::Ram;

const OEM: [u8; 6] = *b"HNDSGT";
const TABLE: [u8; 8] = *b"HINDSGHT";
const REVISION: u32 = 1;
/// The SCI.
const SCI: u8 = 9;
/// First GSI of the PCI interrupt lines.
const PCI_GSI: u32 = 16;

/// What the tables describe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcpiConfig {
    /// Processors; their APIC ids are 0, 1, …
    pub cpus: u32,
    /// Bytes of RAM: the PCI window above it depends on it.
    pub memory: u64,
    /// Whether there is an HPET.
    pub hpet: bool,
}

/// Writes the tables, the RSDP at [`layout::RSDP`]. False when RAM ends below 1 MiB.
#[must_use]
pub fn write_tables(ram: &mut Ram, config: &AcpiConfig) -> bool {
    tables(config).into_iter().all(|(at, bytes)| ram.write(GuestPhys(at), &bytes))
}

/// The tables with their addresses.
fn tables(config: &AcpiConfig) -> Vec<(u64, Vec<u8>)> {
    let mut placed = Vec::new();
    let mut next = layout::RSDP.0 + 64;
    let mut place = |bytes: Vec<u8>| {
        let at = next;
        next = (at + bytes.len() as u64).next_multiple_of(64);
        assert!(next <= layout::ACPI_AREA.end, "the tables fit into their area");
        placed.push((at, bytes));
        at
    };
    let facs = place(facs());
    let dsdt = place(dsdt(config));
    let mut entries = vec![place(fadt(facs, dsdt)), place(madt(config)), place(mcfg())];
    if config.hpet {
        entries.push(place(hpet()));
    }
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    entries.into_iter().for_each(|entry| xsdt.add_entry(entry));
    let xsdt = place(bytes_of(&xsdt));
    placed.push((layout::RSDP.0, bytes_of(&Rsdp::new(OEM, xsdt))));
    placed
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// A generic address structure (ACPI 6.5, 5.2.3.2) for `bytes` bytes of port space.
fn io_address(at: u16, bytes: u8) -> [u8; 12] {
    // Address space 1 is system I/O; access sizes 1 to 3 are byte, word, doubleword.
    let mut address = [1, bytes * 8, 0, bytes.ilog2() as u8 + 1, 0, 0, 0, 0, 0, 0, 0, 0];
    address[4..6].copy_from_slice(&at.to_le_bytes());
    address
}

fn facs() -> Vec<u8> {
    let mut facs = vec![0; 64];
    facs[..4].copy_from_slice(b"FACS");
    facs[4..8].copy_from_slice(&64u32.to_le_bytes());
    facs[32] = 2; // version
    facs
}

/// The fixed ACPI description table (ACPI 6.5, 5.2.9).
fn fadt(facs: u64, dsdt: u64) -> Vec<u8> {
    const WBINVD: u32 = 1 << 0;
    const PROC_C1: u32 = 1 << 2;
    const NO_SLEEP_BUTTON: u32 = 1 << 5;
    const NO_FIXED_RTC_WAKE: u32 = 1 << 6;
    const TIMER_32_BITS: u32 = 1 << 8;
    const RESET_REGISTER: u32 = 1 << 10;
    const RESET_VALUE: u8 = 6;
    let flags = WBINVD | PROC_C1 | NO_SLEEP_BUTTON | NO_FIXED_RTC_WAKE | TIMER_32_BITS | RESET_REGISTER;
    // Boot architecture: legacy devices, an 8042, no VGA.
    let boot_architecture: u16 = 1 << 0 | 1 << 1 | 1 << 2;
    let (event, control, timer) = (port::ACPI_PM, port::ACPI_PM + 4, port::ACPI_PM + 8);

    let mut fadt = Sdt::new(*b"FACP", 276, 6, OEM, TABLE, REVISION);
    fadt.write_u32(36, facs as u32);
    fadt.write_u32(40, dsdt as u32);
    fadt.write_u16(46, u16::from(SCI));
    fadt.write_u32(56, u32::from(event));
    fadt.write_u32(64, u32::from(control));
    fadt.write_u32(76, u32::from(timer));
    fadt.write_u8(88, 4);
    fadt.write_u8(89, 2);
    fadt.write_u8(91, 4);
    fadt.write_u16(96, 0xfff); // no C2
    fadt.write_u16(98, 0xfff); // no C3
    fadt.write_u8(108, 0x32); // the RTC's century register
    fadt.write_u16(109, boot_architecture);
    fadt.write_u32(112, flags);
    fadt.write_bytes(116, &io_address(port::RESET, 1));
    fadt.write_u8(128, RESET_VALUE);
    fadt.write_u8(131, 5); // minor version
    fadt.write_u64(140, dsdt);
    fadt.write_bytes(148, &io_address(event, 4));
    fadt.write_bytes(172, &io_address(control, 2));
    fadt.write_bytes(208, &io_address(timer, 4));
    fadt.as_slice().to_vec()
}

/// The multiple APIC description table (ACPI 6.5, 5.2.12).
fn madt(config: &AcpiConfig) -> Vec<u8> {
    const PCAT_COMPATIBLE: u32 = 1;
    const LEVEL_ACTIVE_HIGH: u8 = 0x0d;
    let mut madt = Sdt::new(*b"APIC", 44, 5, OEM, TABLE, REVISION);
    madt.write_u32(36, layout::LOCAL_APIC.start as u32);
    madt.write_u32(40, PCAT_COMPATIBLE);
    for cpu in 0..config.cpus as u8 {
        madt.append_slice(&[0, 8, cpu, cpu, 1, 0, 0, 0]);
    }
    let [a, b, c, d] = (layout::IOAPIC.start as u32).to_le_bytes();
    madt.append_slice(&[1, 12, 0, 0, a, b, c, d, 0, 0, 0, 0]);
    // The timer's ISA interrupt 0 arrives on pin 2.
    madt.append_slice(&[2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    madt.append_slice(&[2, 10, 0, SCI, SCI, 0, 0, 0, LEVEL_ACTIVE_HIGH, 0]);
    // LINT1 of every processor is NMI.
    madt.append_slice(&[4, 6, 0xff, 0, 0, 1]);
    madt.as_slice().to_vec()
}

/// The HPET description table (IA-PC HPET specification 1.0a, 3.2.4).
fn hpet() -> Vec<u8> {
    const BLOCK_ID: u32 = 0x8086_a201; // the low half of the capabilities register
    let mut hpet = Sdt::new(*b"HPET", 56, 1, OEM, TABLE, REVISION);
    hpet.write_u32(36, BLOCK_ID);
    hpet.write_bytes(40, &[0, 64, 0, 0]); // system memory
    hpet.write_u64(44, layout::HPET.start);
    hpet.write_u16(53, 128); // fewest ticks for periodic interrupts
    hpet.as_slice().to_vec()
}

fn mcfg() -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM, TABLE, REVISION);
    mcfg.add_ecam(layout::PCI_ECAM.start, 0, 0, 255);
    bytes_of(&mcfg)
}

fn dsdt(config: &AcpiConfig) -> Vec<u8> {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    let mut aml_bytes = Vec::new();
    sleep_state().to_aml_bytes(&mut aml_bytes);
    system_bus(config, &mut aml_bytes);
    dsdt.append_slice(&aml_bytes);
    dsdt.as_slice().to_vec()
}

/// `\_S5`: the sleep type that powers off.
fn sleep_state() -> Name {
    Name::new(Path::new("_S5_"), &aml::Package::new(vec![&5u8, &5u8, &0u8, &0u8]))
}

fn system_bus(config: &AcpiConfig, sink: &mut dyn AmlSink) {
    let mut devices = Vec::new();
    pci_root(config, &mut devices);
    board_resources(&mut devices);
    let serial = EISAName::new("PNP0501");
    isa_device("COM1", &serial, 1, &[(port::COM1, 8)], Some(4), &mut devices);
    isa_device("COM2", &serial, 2, &[(port::COM2, 8)], Some(3), &mut devices);
    isa_device("RTC_", &EISAName::new("PNP0B00"), 0, &[(0x70, 2)], Some(8), &mut devices);
    isa_device("PS2K", &EISAName::new("PNP0303"), 0, &[(0x60, 1), (0x64, 1)], Some(1), &mut devices);
    isa_device("PEVT", &"QEMU0001", 0, &[(port::PVPANIC, 1)], None, &mut devices);
    if config.hpet {
        let registers = Memory32Fixed::new(true, layout::HPET.start as u32, 0x400);
        let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&registers]));
        let id = Name::new(Path::new("_HID"), &EISAName::new("PNP0103"));
        aml::Device::new(Path::new("HPET"), vec![&id, &resources]).to_aml_bytes(&mut devices);
    }
    for cpu in 0..config.cpus {
        let id = Name::new(Path::new("_HID"), &"ACPI0007");
        let uid = Name::new(Path::new("_UID"), &cpu);
        aml::Device::new(Path::new(&format!("CP{cpu:02X}")), vec![&id, &uid]).to_aml_bytes(&mut devices);
    }
    sink.vec(&aml::Scope::raw(Path::new("_SB_"), devices));
}

/// A device with ports and perhaps an edge-triggered interrupt.
fn isa_device(
    name: &str,
    hid: &dyn Aml,
    uid: u8,
    ports: &[(u16, u8)],
    irq: Option<u32>,
    sink: &mut dyn AmlSink,
) {
    let ports: Vec<IO> = ports.iter().map(|(at, length)| IO::new(*at, *at, 1, *length)).collect();
    let interrupt = irq.map(|irq| Interrupt::new(true, true, false, false, irq));
    let mut resources: Vec<&dyn Aml> = ports.iter().map(|port| port as &dyn Aml).collect();
    resources.extend(interrupt.as_ref().map(|interrupt| interrupt as &dyn Aml));
    let id = Name::new(Path::new("_HID"), hid);
    let uid = Name::new(Path::new("_UID"), &uid);
    // Present, enabled, functioning; not for people to see.
    let status = Name::new(Path::new("_STA"), &0x0bu8);
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources));
    aml::Device::new(Path::new(name), vec![&id, &uid, &status, &resources]).to_aml_bytes(sink);
}

/// Addresses that belong to the board itself (PNP0C02), so that nothing else is put there.
fn board_resources(sink: &mut dyn AmlSink) {
    let ecam_size = layout::PCI_ECAM.end - layout::PCI_ECAM.start;
    let ecam = Memory32Fixed::new(true, layout::PCI_ECAM.start as u32, ecam_size as u32);
    let pm = IO::new(port::ACPI_PM, port::ACPI_PM, 1, 12);
    let id = Name::new(Path::new("_HID"), &EISAName::new("PNP0C02"));
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ecam, &pm]));
    aml::Device::new(Path::new("MBRD"), vec![&id, &resources]).to_aml_bytes(sink);
}

fn pci_root(config: &AcpiConfig, sink: &mut dyn AmlSink) {
    use aml::{AddressSpace, AddressSpaceCacheable::NotCacheable};
    let high = layout::pci_mmio_high(config.memory);
    let buses = AddressSpace::new_bus_number(0u16, 255);
    let config_ports = IO::new(port::PCI_CONFIG, port::PCI_CONFIG, 1, 8);
    let low_ports = AddressSpace::new_io(0u16, port::PCI_CONFIG - 1, None);
    let high_ports = AddressSpace::new_io(port::PCI_CONFIG + 8, u16::MAX, None);
    let window = layout::PCI_MMIO;
    let memory =
        AddressSpace::new_memory(NotCacheable, true, window.start as u32, window.end as u32 - 1, None);
    let high_memory = AddressSpace::new_memory(NotCacheable, true, high.start, high.end - 1, None);
    let resources: Vec<&dyn Aml> =
        vec![&buses, &config_ports, &low_ports, &high_ports, &memory, &high_memory];
    let names = [
        Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
        Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
        Name::new(Path::new("_UID"), &0u8),
        Name::new(Path::new("_SEG"), &0u8),
        Name::new(Path::new("_BBN"), &0u8),
        Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources)),
        Name::new(Path::new("_PRT"), &pci_routing()),
    ];
    aml::Device::new(Path::new("PCI0"), names.iter().map(|name| name as &dyn Aml).collect())
        .to_aml_bytes(sink);
}

/// Which line pin INTA (0) to INTD (3) of each slot is wired to, rotating with the slot.
fn pci_routing() -> aml::PackageBuilder {
    let mut routing = aml::PackageBuilder::new();
    for slot in 0..32u32 {
        for pin in 0..4u32 {
            let (address, gsi) = (slot << 16 | 0xffff, PCI_GSI + (slot + pin) % 4);
            routing.add_element(&aml::Package::new(vec![&address, &(pin as u8), &0u8, &gsi]));
        }
    }
    routing
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: AcpiConfig = AcpiConfig { cpus: 16, memory: 8 << 30, hpet: true };

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// The table at `at` in memory, its checksum checked.
    fn table(ram: &Ram, at: u64) -> Vec<u8> {
        let mut header = [0; 36];
        assert!(ram.read(GuestPhys(at), &mut header));
        let mut bytes = vec![0; u32_at(&header, 4) as usize];
        assert!(ram.read(GuestPhys(at), &mut bytes));
        if &bytes[..4] != b"FACS" {
            assert_eq!(sum(&bytes), 0, "checksum of {:?}", String::from_utf8_lossy(&bytes[..4]));
        }
        bytes
    }

    fn written() -> (Ram, Vec<Vec<u8>>) {
        let mut ram = Ram::new(1 << 20).unwrap();
        assert!(write_tables(&mut ram, &CONFIG));
        let mut rsdp = [0; 36];
        assert!(ram.read(layout::RSDP, &mut rsdp));
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
        let xsdt = table(&ram, u64::from_le_bytes(rsdp[24..32].try_into().unwrap()));
        let tables =
            xsdt[36..].chunks(8).map(|entry| table(&ram, u64::from_le_bytes(entry.try_into().unwrap())));
        let tables = tables.collect();
        (ram, tables)
    }

    #[test]
    fn every_table_is_reached_from_the_rsdp_and_sums_to_zero() {
        let (ram, tables) = written();
        let names: Vec<&[u8]> = tables.iter().map(|table| &table[..4]).collect();
        assert_eq!(names, [b"FACP", b"APIC", b"MCFG", b"HPET"]);
        let fadt = &tables[0];
        assert_eq!(&table(&ram, u64::from(u32_at(fadt, 36)))[..4], b"FACS");
        assert_eq!(&table(&ram, u64::from(u32_at(fadt, 40)))[..4], b"DSDT");
        assert_eq!(u32_at(fadt, 76), 0x608, "PM timer");
    }

    #[test]
    fn the_madt_lists_every_processor_and_the_timer_override() {
        let (_, tables) = written();
        let mut rest = &tables[1][44..];
        let mut apics = 0;
        let mut overrides = Vec::new();
        while !rest.is_empty() {
            let (entry, after) = rest.split_at(usize::from(rest[1]));
            apics += usize::from(entry[0] == 0);
            if entry[0] == 2 {
                overrides.push((entry[3], entry[4]));
            }
            rest = after;
        }
        assert_eq!(apics, 16);
        assert_eq!(overrides, [(0, 2), (9, 9)]);
    }
}
