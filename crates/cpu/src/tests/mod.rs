//! Tests of the semantics on a small machine of RAM, one port log and identity-mapped pages.

mod deliver;
mod gather;
mod hostile;
mod privileged;
mod returns;
mod saved;
mod string;
mod walk;
mod xstate;

use crate::system::{self, Outcome};
use crate::{Bus, Core, CpuState, Flush};
use base::{GuestPhys, Position};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use memory::Ram;
use x86::control::{cr0, cr4, efer};
use x86::{CpuModel, DescriptorTable, Exception, Level, Segment, SegmentIndex, flags, gpr, paging};

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const PT: u64 = 0x4000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const TSS: u64 = 0x7000;
const CODE: u64 = 0x1_0000;
const STACK: u64 = 0x2_0000;
const KERNEL_STACK: u64 = 0x3_0000;
/// Physical addresses from here on are a device that answers with its offset.
const MMIO: u64 = 0x4000_0000;

const KERNEL_CS: u16 = 0x08;
const KERNEL_SS: u16 = 0x10;
const USER_CS32: u16 = 0x1b;
const USER_SS: u16 = 0x23;
const USER_CS: u16 = 0x2b;
const TSS_SELECTOR: u16 = 0x30;
const CONFORMING: u16 = 0x40;
const NOT_PRESENT: u16 = 0x48;
const STACK16: u16 = 0x53;
const CALL_GATE: u16 = 0x5b;

struct TestBus {
    ram: Ram,
    written: Vec<(u64, Vec<u8>)>,
    ports: Vec<(u64, u16, u32)>,
    horizon: u64,
    /// IA32_TSC_DEADLINE, in ticks of [`Bus::tsc`].
    deadline: u64,
}

impl Bus for TestBus {
    fn ram(&mut self) -> &mut Ram {
        &mut self.ram
    }
    fn mmio_read(&mut self, _at: Position, address: GuestPhys, data: &mut [u8]) {
        assert!(data.len().is_power_of_two() && address.0.is_multiple_of(data.len() as u64));
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = (address.0 + i as u64) as u8;
        }
    }
    fn mmio_write(&mut self, _at: Position, address: GuestPhys, data: &[u8]) {
        assert!(data.len().is_power_of_two() && address.0.is_multiple_of(data.len() as u64));
        self.written.push((address.0, data.to_vec()));
    }
    fn io_read(&mut self, at: Position, port: u16, size: usize) -> u32 {
        self.ports.push((at.count(), port, u32::MAX));
        (0x1122_3344u64 & ((1 << (8 * size)) - 1)) as u32
    }
    fn io_write(&mut self, at: Position, port: u16, _size: usize, value: u32) {
        self.ports.push((at.count(), port, value));
    }
    fn msr_read(&mut self, _at: Position, index: u32) -> Option<u64> {
        (index == x86::msr::TSC_DEADLINE).then_some(self.deadline)
    }
    fn msr_write(&mut self, _at: Position, index: u32, value: u64) -> bool {
        self.deadline = value;
        index == x86::msr::TSC_DEADLINE
    }
    fn tsc(&mut self, at: Position) -> u64 {
        at.count() * 2
    }
    fn read_cr8(&mut self) -> u64 {
        5
    }
    fn write_cr8(&mut self, _at: Position, _value: u64) {}
    fn interrupt_pending(&self) -> bool {
        false
    }
    fn acknowledge_interrupt(&mut self, _at: Position) -> Option<u8> {
        None
    }
    fn horizon(&self) -> Position {
        Position::from_count(self.horizon)
    }
}

struct Machine {
    state: CpuState,
    model: CpuModel,
    bus: TestBus,
    flush: Flush,
}

fn segment(selector: u16, attributes: u16) -> Segment {
    Segment { base: 0, limit: u32::MAX, attributes, selector }
}

impl Machine {
    /// A processor in real mode at 0:0x8000 with its stack below 0:0x7000.
    fn real() -> Self {
        let mut state = CpuState::power_on();
        state.rip = 0x8000;
        state.seg[SegmentIndex::Cs as usize].base = 0;
        state.seg[SegmentIndex::Cs as usize].selector = 0;
        state.gpr[gpr::RSP] = 0x7000;
        state.idtr = DescriptorTable { base: 0, limit: 0x3ff };
        let bus = TestBus {
            ram: Ram::new(4 << 20).unwrap(),
            written: vec![],
            ports: vec![],
            horizon: u64::MAX,
            deadline: 0,
        };
        Self { state, model: CpuModel::plain(Level::V3), bus, flush: Flush::default() }
    }

    /// A processor in 64-bit mode at CPL 0. The first 2 MiB are mapped one to one by 4-KiB pages
    /// for user and supervisor, the next 2 MiB by one large page, linear MMIO to MMIO by a 1-GiB
    /// page.
    fn kernel() -> Self {
        let mut m = Self::real();
        let table = paging::PRESENT | paging::WRITABLE | paging::USER;
        m.poke64(PML4, PDPT | table);
        m.poke64(PDPT, PD | table);
        m.poke64(PDPT + 8, MMIO | table | paging::LARGE);
        m.poke64(PD, PT | table);
        m.poke64(PD + 8, 0x20_0000 | table | paging::LARGE);
        for page in 0..512 {
            m.poke64(PT + page * 8, page << 12 | table);
        }
        let gdt = [
            0,
            0x00af_9b00_0000_ffff, // kernel code
            0x00cf_9300_0000_ffff, // kernel stack
            0x00cf_fb00_0000_ffff, // user code, 32 bits
            0x00cf_f300_0000_ffff, // user data
            0x00af_fb00_0000_ffff, // user code, 64 bits
            0x0000_8900_7000_0067, // task state
            0,
            0x00af_9f00_0000_ffff, // conforming code
            0x00af_1b00_0000_ffff, // not present
            0x000f_f300_0000_ffff, // user data, 16 bits
            0x0000_ec00_0008_1234, // call gate to kernel code, callable from CPL 3
            0,
        ];
        for (i, entry) in gdt.iter().enumerate() {
            m.poke64(GDT + i as u64 * 8, *entry);
        }
        m.poke64(TSS + 4, KERNEL_STACK);
        m.poke64(TSS + 0x24, KERNEL_STACK + 0x1000); // IST1
        m.poke(TSS + 0x66, &[0x68, 0]); // the I/O map lies past the limit
        let s = &mut m.state;
        s.cr0 = cr0::PE | cr0::PG | cr0::ET | cr0::NE | cr0::WP | cr0::MP | cr0::AM;
        s.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXSAVE | cr4::PGE | cr4::FSGSBASE;
        s.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
        s.cr3 = PML4;
        s.xcr0 = 7;
        s.gdtr = DescriptorTable { base: GDT, limit: 0x67 };
        s.idtr = DescriptorTable { base: IDT, limit: 0xfff };
        s.tr = Segment { base: TSS, limit: 0x67, attributes: 0x8b, selector: TSS_SELECTOR };
        s.ldtr = Segment::default();
        s.seg = [segment(0, 0); 6];
        s.seg[SegmentIndex::Cs as usize] = segment(KERNEL_CS, 0xa09b);
        s.seg[SegmentIndex::Ss as usize] = segment(KERNEL_SS, 0xc093);
        s.rip = CODE;
        s.gpr[gpr::RSP] = STACK;
        m
    }

    /// The same at CPL 3, in 64-bit code.
    fn user() -> Self {
        let mut m = Self::kernel();
        m.state.cpl = 3;
        m.state.seg[SegmentIndex::Cs as usize] = segment(USER_CS, 0xa0fb);
        m.state.seg[SegmentIndex::Ss as usize] = segment(USER_SS, 0xc0f3);
        m.state.rflags |= flags::IF;
        m
    }

    /// The same at CPL 3, in 32-bit code.
    fn user32() -> Self {
        let mut m = Self::user();
        m.state.seg[SegmentIndex::Cs as usize] = segment(USER_CS32, 0xc0fb);
        m.state.seg[SegmentIndex::Es as usize] = segment(USER_SS, 0xc0f3);
        m.state.seg[SegmentIndex::Ds as usize] = segment(USER_SS, 0xc0f3);
        m
    }

    fn poke(&mut self, at: u64, bytes: &[u8]) {
        assert!(self.bus.ram.write(GuestPhys(at), bytes));
    }
    fn poke64(&mut self, at: u64, value: u64) {
        self.poke(at, &value.to_le_bytes());
    }
    fn peek64(&self, at: u64) -> u64 {
        self.bus.ram.read_u64(GuestPhys(at)).unwrap()
    }
    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        assert!(self.bus.ram.read(GuestPhys(at), &mut buf));
        buf
    }
    /// Replaces a page's entry in the lowest table.
    fn map(&mut self, page: u64, entry: u64) {
        self.poke64(PT + page * 8, entry);
    }
    /// An interrupt (0xe) or trap (0xf) gate to `offset` in kernel code.
    fn gate(&mut self, vector: u8, kind: u64, dpl: u64, ist: u64, offset: u64) {
        let low = offset & 0xffff
            | (KERNEL_CS as u64) << 16
            | ist << 32
            | (0x80 | dpl << 5 | kind) << 40
            | (offset >> 16 & 0xffff) << 48;
        self.poke64(IDT + vector as u64 * 16, low);
        self.poke64(IDT + vector as u64 * 16 + 8, offset >> 32);
    }
    fn core(&mut self) -> Core<'_> {
        Core::new(&mut self.state, &self.model, &mut self.bus, &mut self.flush)
    }
    fn decode(&self, code: &[u8]) -> Instruction {
        let bits = self.state.code_bits();
        Decoder::with_ip(bits, code, self.state.rip, DecoderOptions::NONE).decode()
    }
    /// Executes one instruction.
    fn exec(&mut self, code: &[u8]) -> Result<Outcome, Exception> {
        let instr = self.decode(code);
        system::execute(&mut self.core(), &instr)
    }
}
