//! Small guest programs, run by the engine. Each is assembled by iced, placed in RAM with paging
//! off or identity-mapped, and ends in HLT.

mod access;
mod contexts;
mod entered;
mod fast_calls;
mod found;
mod kept;
mod mirrored;
mod modes;
mod moves;
mod returns;
mod stack;
mod strings;
mod table_stores;
mod xstate;

use super::contexts::PROCESSORS_MAX;
use super::hot::{KERNEL, tlb_entries};
use super::vcpu::{Exit, Vcpu, VcpuConfig};
use crate::{Bus, CpuState};
use base::{GuestPhys, Position};
use iced_x86::code_asm::*;
use memory::Ram;
use x86::control::{cr0, cr4, efer};
use x86::cpuid::Level;
use x86::{CpuModel, Segment, gpr};

const CODE: u64 = 0x1_0000;
const STACK: u64 = 0x2_0000;
const DATA: u64 = 0x3_0000;
const TABLES: u64 = 0x8_0000;

struct Board {
    ram: Ram,
    ports: Vec<(u16, u32)>,
}

impl Bus for Board {
    fn ram(&mut self) -> &mut Ram {
        &mut self.ram
    }
    fn mmio_read(&mut self, _: Position, address: GuestPhys, data: &mut [u8]) {
        data.fill((address.0 >> 4) as u8);
    }
    fn mmio_write(&mut self, _: Position, address: GuestPhys, data: &[u8]) {
        self.ports.push((address.0 as u16, data[0] as u32));
    }
    fn io_read(&mut self, _: Position, port: u16, _: usize) -> u32 {
        port as u32
    }
    fn io_write(&mut self, _: Position, port: u16, _: usize, value: u32) {
        self.ports.push((port, value));
    }
    fn msr_read(&mut self, _: Position, _: u32) -> Option<u64> {
        None
    }
    fn msr_write(&mut self, _: Position, _: u32, _: u64) -> bool {
        false
    }
    fn tsc(&mut self, at: Position) -> u64 {
        at.count()
    }
    fn read_cr8(&mut self) -> u64 {
        0
    }
    fn write_cr8(&mut self, _: Position, _: u64) {}
    fn interrupt_pending(&self) -> bool {
        false
    }
    fn acknowledge_interrupt(&mut self, _: Position) -> Option<u8> {
        None
    }
    fn horizon(&self) -> Position {
        Position::NEVER
    }
}

struct Guest {
    cpu: Vcpu,
    board: Board,
}

impl Guest {
    /// 64-bit mode, CPL 0, the first 2 MiB identity-mapped, `code` at `CODE`.
    fn new(code: &[u8]) -> Self {
        let mut board = Board { ram: Ram::new(4 << 20).unwrap(), ports: Vec::new() };
        let present = 3 | 1 << 5;
        assert!(board.ram.write_u64(GuestPhys(TABLES), TABLES + 0x1000 + present));
        assert!(board.ram.write_u64(GuestPhys(TABLES + 0x1000), TABLES + 0x2000 + present));
        assert!(board.ram.write_u64(GuestPhys(TABLES + 0x2000), TABLES + 0x3000 + present));
        for page in 0..512 {
            let entry = (page << 12) + present;
            assert!(board.ram.write_u64(GuestPhys(TABLES + 0x3000 + 8 * page), entry));
        }
        assert!(board.ram.write(GuestPhys(CODE), code));
        let config = VcpuConfig {
            model: CpuModel::plain(Level::V3),
            code_cache_bytes: 4 << 20,
            chaos: None,
            mirror_after: Some(0),
        };
        let mut cpu = Vcpu::new(config).unwrap();
        set_up(cpu.state_mut());
        Self { cpu, board }
    }

    fn program(build: impl FnOnce(&mut CodeAssembler)) -> Self {
        let mut a = CodeAssembler::new(64).unwrap();
        build(&mut a);
        Self::new(&a.assemble(CODE).unwrap())
    }

    fn run(&mut self) -> Exit {
        self.run_to(10_000_000)
    }

    fn run_to(&mut self, limit: u64) -> Exit {
        self.cpu.run(&mut self.board, Position::from_count(limit))
    }

    fn reg(&self, n: usize) -> u64 {
        self.cpu.state().gpr[n]
    }
}

fn set_up(s: &mut CpuState) {
    s.cr0 = cr0::PE | cr0::PG | cr0::WP | cr0::NE | cr0::MP;
    s.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXSAVE;
    s.xcr0 = 7;
    s.efer = efer::LME | efer::LMA;
    s.cr3 = TABLES;
    let code = Segment { base: 0, limit: u32::MAX, attributes: 0xa09b, selector: 8 };
    let data = Segment { base: 0, limit: u32::MAX, attributes: 0xc093, selector: 16 };
    s.seg = [data; 6];
    s.seg[1] = code;
    s.cpl = 0;
    s.rip = CODE;
    s.gpr = [0; 16];
    s.gpr[gpr::RSP] = STACK;
}

#[test]
fn a_loop_counts_every_instruction() {
    let mut g = Guest::program(|a| {
        a.mov(ecx, 1000).unwrap();
        a.xor(eax, eax).unwrap();
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.add(rax, rcx).unwrap();
        a.dec(rcx).unwrap();
        a.jnz(top).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(g.run(), Exit::Halted);
    assert_eq!(g.reg(gpr::RAX), 500_500);
    assert_eq!(g.cpu.position(), Position::from_count(2 + 3000 + 1));
}

#[test]
fn registers_without_a_home_keep_their_values() {
    let mut g = Guest::program(|a| {
        a.mov(r10, 0x1111_2222_3333_4444u64).unwrap();
        a.mov(r11d, 7).unwrap();
        a.lea(r14, qword_ptr(r10 + r11 * 8 + 5)).unwrap();
        a.mov(r15, r14).unwrap();
        a.add(r15b, r11b).unwrap();
        a.xchg(r10, r15).unwrap();
        a.mov(cl, 4).unwrap();
        a.shl(r11, cl).unwrap();
        a.mov(ch, 9).unwrap();
        a.movzx(eax, ch).unwrap();
        a.mulx(r14, r15, r10).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(g.run(), Exit::Halted);
    let value = 0x1111_2222_3333_4444u64 + 7 * 8 + 5;
    assert_eq!(g.reg(gpr::R10), (value & !0xff) | ((value + 7) & 0xff));
    assert_eq!(g.reg(gpr::R11), 7 << 4);
    assert_eq!(g.reg(gpr::RAX), 9);
    assert_eq!(g.reg(gpr::RCX), 0x904);
}

#[test]
fn memory_calls_and_returns_work() {
    let mut g = Guest::program(|a| {
        let mut callee = a.create_label();
        a.mov(rdi, DATA).unwrap();
        a.mov(r11, 3u64).unwrap();
        a.mov(qword_ptr(rdi + r11 * 8), 0x1234).unwrap();
        a.push(r11).unwrap();
        a.call(callee).unwrap();
        a.pop(r14).unwrap();
        a.mov(rcx, qword_ptr(rdi + 24)).unwrap();
        a.add(dword_ptr(rdi + 24), 1).unwrap();
        a.mov(r10d, dword_ptr(rdi + 24)).unwrap();
        a.lea(rsi, ptr(callee)).unwrap();
        a.call(rsi).unwrap();
        a.hlt().unwrap();
        a.set_label(&mut callee).unwrap();
        a.add(rax, 5).unwrap();
        a.bts(qword_ptr(rdi), rax).unwrap();
        a.ret().unwrap();
    });
    assert_eq!(g.run(), Exit::Halted);
    assert_eq!((g.reg(gpr::RCX), g.reg(gpr::R10), g.reg(gpr::R14), g.reg(gpr::RAX)), (0x1234, 0x1235, 3, 10));
    assert_eq!(g.reg(gpr::RSP), STACK);
    assert_eq!(g.board.ram.read_u64(GuestPhys(DATA)), Some(1 << 5 | 1 << 10));
}

#[test]
fn a_run_stops_exactly_at_every_position() {
    let build = |a: &mut CodeAssembler| {
        a.mov(rdi, DATA).unwrap();
        a.mov(ecx, 5).unwrap();
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.add(qword_ptr(rdi), rcx).unwrap();
        a.push(rcx).unwrap();
        a.pop(rdx).unwrap();
        a.cmp(rdx, 3).unwrap();
        let mut skip = a.create_label();
        a.je(skip).unwrap();
        a.add(rbx, rdx).unwrap();
        a.set_label(&mut skip).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(top).unwrap();
        a.hlt().unwrap();
    };
    let mut whole = Guest::program(build);
    whole.run();
    let end = whole.cpu.position().count();
    let mut stepped = Guest::program(build);
    stepped.cpu.set_interpret_all(true);
    for stop in 1..end {
        let mut jumped = Guest::program(build);
        assert_eq!(jumped.run_to(stop), Exit::Limit);
        assert_eq!(stepped.run_to(stop), Exit::Limit);
        let (a, b) = (jumped.cpu.state(), stepped.cpu.state());
        assert_eq!((a.retired, a.rip, a.rflags, a.gpr), (stop, b.rip, b.rflags, b.gpr), "at {stop}");
    }
}

#[test]
fn stores_and_loads_across_pages_are_whole() {
    let mut g = Guest::program(|a| {
        a.mov(rdi, DATA + 0xffb).unwrap();
        a.mov(rax, 0x1122_3344_5566_7788u64).unwrap();
        a.mov(qword_ptr(rdi), rax).unwrap();
        a.mov(rbx, qword_ptr(rdi)).unwrap();
        a.not(qword_ptr(rdi)).unwrap();
        a.mov(rcx, qword_ptr(rdi)).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(g.run(), Exit::Halted, "{:x?}", (g.cpu.state().rip, g.cpu.state().cr2, g.cpu.state().gpr));
    assert_eq!(g.reg(gpr::RBX), 0x1122_3344_5566_7788);
    assert_eq!(g.reg(gpr::RCX), !0x1122_3344_5566_7788);
}

#[test]
fn code_that_rewrites_itself_runs_what_it_wrote() {
    let mut g = Guest::program(|a| {
        let mut again = a.create_label();
        a.mov(ebx, 0).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(eax, 1).unwrap();
        a.inc(ebx).unwrap();
        a.lea(rdi, ptr(again)).unwrap();
        a.mov(dword_ptr(rdi + 1), ebx).unwrap();
        a.cmp(ebx, 5).unwrap();
        a.jne(again).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(g.run(), Exit::Halted, "{:x?}", (g.cpu.state().rip, g.cpu.state().cr2, g.cpu.state().gpr));
    assert_eq!((g.reg(gpr::RAX), g.reg(gpr::RBX)), (4, 5));
}

#[test]
fn vector_and_x87_registers_survive_exits() {
    let mut g = Guest::program(|a| {
        a.mov(rdi, DATA).unwrap();
        a.fninit().unwrap();
        a.mov(dword_ptr(rdi), 0x4049_0fdb).unwrap();
        a.vbroadcastss(ymm13, dword_ptr(rdi)).unwrap();
        a.fld(dword_ptr(rdi)).unwrap();
        a.mov(eax, 0u32).unwrap();
        a.cpuid().unwrap();
        a.vaddps(ymm13, ymm13, ymm13).unwrap();
        a.fadd_2(st0, st0).unwrap();
        a.fstp(dword_ptr(rdi + 64)).unwrap();
        a.vmovups(ymmword_ptr(rdi + 0x1000 - 8), ymm13).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(g.run(), Exit::Halted, "{:x?}", (g.cpu.state().rip, g.cpu.state().cr2, g.cpu.state().gpr));
    let two_pi = 0x40c9_0fdbu32.to_le_bytes();
    assert_eq!(g.board.ram.read_array(GuestPhys(DATA + 64)), Some(two_pi));
    assert_eq!(g.board.ram.read_array(GuestPhys(DATA + 0x1000 + 20)), Some(two_pi));
    assert_eq!(g.cpu.state().fpu.ymm[13][28..], two_pi);
}

#[test]
fn the_upper_half_of_any_one_vector_register_survives_exits() {
    for at in (0..16 * 32).filter(|at| at & 16 != 0) {
        let mut g = Guest::program(|a| {
            a.xor(eax, eax).unwrap();
            a.cpuid().unwrap();
            a.hlt().unwrap();
        });
        let mut ymm = [[0; 32]; 16];
        ymm.iter_mut().for_each(|register| register[..16].fill(0x5a));
        ymm[at / 32][at % 32] = 1;
        g.cpu.state_mut().fpu.ymm = ymm;
        assert_eq!(g.run(), Exit::Halted);
        assert_eq!(g.cpu.state().fpu.ymm, ymm, "byte {} of register {}", at % 32, at / 32);
    }
}

#[test]
fn device_memory_is_reached_at_any_width() {
    let mut g = Guest::program(|a| {
        a.mov(rdi, 0x10_0000u64).unwrap();
        a.movzx(eax, byte_ptr(rdi)).unwrap();
        a.mov(byte_ptr(rdi), 0x5a).unwrap();
        a.hlt().unwrap();
    });
    // The page at 1 MiB leads to physical memory that is not RAM.
    assert!(g.board.ram.write_u64(GuestPhys(TABLES + 0x3000 + 8 * 0x100), 0xfed0_0000 + 3));
    assert_eq!(g.run(), Exit::Halted, "{:x?}", (g.cpu.state().rip, g.cpu.state().cr2, g.cpu.state().gpr));
    assert_eq!(g.reg(gpr::RAX), 0, "from address bits 4 to 11");
    assert_eq!(g.board.ports, vec![(0, 0x5a)]);
}

#[test]
fn string_moves_count_their_iterations() {
    let mut g = Guest::program(|a| {
        a.mov(rdi, DATA + 0x800).unwrap();
        a.mov(rsi, CODE).unwrap();
        a.mov(ecx, 0x1000).unwrap();
        a.rep().movsb().unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(g.run_to(3 + 17), Exit::Limit);
    assert_eq!((g.reg(gpr::RCX), g.reg(gpr::RDI)), (0x1000 - 17, DATA + 0x800 + 17));
    assert_eq!(g.run(), Exit::Halted);
    assert_eq!(g.cpu.position().count(), 3 + 0x1000 + 1);
    assert_eq!(g.reg(gpr::RSI), CODE + 0x1000);
}

/// As many bytes as the pages of a data TLB's slots: 256 MB.
const ALIAS: u64 = (tlb_entries(KERNEL) as u64) << 12;

/// Maps the lowest 2 MB a second time, at [`ALIAS`].
fn show_low_memory_again(guest: &mut Guest) {
    let entry = GuestPhys(TABLES + 0x2000 + 8 * (ALIAS >> 21));
    assert!(guest.board.ram.write_u64(entry, TABLES + 0x3000 + 3));
}

#[test]
fn operands_in_two_pages_that_want_the_same_tlb_entry_do_not_miss_by_turns_for_ever() {
    // The stack's page, and what the guest has one TLB further on: the same memory.
    let stack_page = (STACK - 8) & !0xfff;
    let pointer = stack_page + ALIAS;
    let mut guest = Guest::program(|a| {
        a.mov(rsp, STACK).unwrap();
        a.mov(rax, pointer).unwrap();
        a.push(qword_ptr(rax)).unwrap();
        a.pop(rbx).unwrap();
        a.hlt().unwrap();
    });
    show_low_memory_again(&mut guest);
    assert!(guest.board.ram.write_u64(GuestPhys(stack_page), 0x1234_5678_9abc));
    assert_eq!(guest.run(), Exit::Halted);
    assert_eq!(guest.reg(gpr::RBX), 0x1234_5678_9abc);
    assert_eq!(guest.cpu.state().retired, 5);
}

/// Counts the signals of the test below.
static SIGNALLED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

extern "C" fn count_signal(_: libc::c_int) {
    SIGNALLED.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
}

#[test]
fn a_signal_handler_without_a_stack_of_its_own_never_runs_on_the_guests() {
    // SAFETY: a handler that only counts, for a signal nobody else uses.
    unsafe { libc::signal(libc::SIGUSR2, count_signal as *const () as libc::sighandler_t) };
    // SAFETY: the calling thread's own identity.
    let vcpu_thread = unsafe { libc::pthread_self() };
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let sender = std::thread::spawn({
        let done = done.clone();
        move || {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                // SAFETY: the thread lives until `done` is set and this one is joined.
                unsafe { libc::pthread_kill(vcpu_thread, libc::SIGUSR2) };
                std::thread::sleep(std::time::Duration::from_micros(200));
            }
        }
    });
    let mut g = Guest::program(|a| {
        a.mov(rsp, 0x8000_0000_0000_1234u64).unwrap();
        a.mov(ecx, 60_000_000).unwrap();
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.dec(rcx).unwrap();
        a.jnz(top).unwrap();
        a.hlt().unwrap();
    });
    for part in 1..=12 {
        assert_eq!(g.run_to(10_000_000 * part), Exit::Limit, "a signal looked like a fault");
    }
    assert_eq!(g.run_to(u64::MAX), Exit::Halted);
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    sender.join().unwrap();
    assert_eq!(g.reg(gpr::RSP), 0x8000_0000_0000_1234);
    assert!(SIGNALLED.load(std::sync::atomic::Ordering::Relaxed) > 0, "no signal came");
}
