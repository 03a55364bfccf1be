//! Everything only a kernel may do, done wrong.

use super::{Slot, address, value};
use crate::assemble::{Code, reg};
use crate::layout::{self, selector};
use dice::Dice;

/// MSRs worth trying; X2APIC registers come on top.
const MSRS: [u32; 30] = [
    0x10,
    0x1b,
    0x3b,
    0x48,
    0x8b,
    0xfe,
    0x10a,
    0x174,
    0x175,
    0x176,
    0x179,
    0x17a,
    0x1a0,
    0x1d9,
    0x200,
    0x20f,
    0x250,
    0x26f,
    0x277,
    0x2ff,
    0x6e0,
    0xda0,
    0xc000_0080,
    0xc000_0081,
    0xc000_0082,
    0xc000_0084,
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
    0xc000_0103,
];

/// One thing, perhaps two.
pub fn slot(dice: &mut Dice) -> Slot {
    let mut code = Code::default();
    while code.0.len() < 28 {
        match dice.below(18) {
            16..=17 => processors(&mut code, dice),
            0..=2 => control(&mut code, dice),
            3..=4 => msr(&mut code, dice),
            5..=6 => descriptor(&mut code, dice),
            7 => table(&mut code, dice),
            8..=9 => segment(&mut code, dice),
            10 => frame(&mut code, dice),
            11 => far(&mut code, dice),
            12 => flags(&mut code, dice),
            13 => debug(&mut code, dice),
            14 => extended(&mut code, dice),
            _ => odd(&mut code, dice),
        }
    }
    Slot(code.0)
}

/// `mov rax, crN`, one bit flipped, back.
fn control(code: &mut Code, dice: &mut Dice) {
    let (register, bits): (u8, &[u8]) = match dice.below(8) {
        0..=2 => (0, &[1, 2, 3, 5, 16, 18, 29, 30, 31, 0, 4, 33]),
        3..=6 => (4, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 20, 21, 13, 22]),
        _ => (8, &[0, 1, 2, 3, 4]),
    };
    let modrm = 0xc0 | (register & 7) << 3;
    let prefix: &[u8] = if register == 8 { &[0x44] } else { &[] };
    code.raw(prefix).raw(&[0x0f, 0x20, modrm]);
    code.raw(&[0x48, 0x0f, 0xba, 0xf8, dice.pick(bits)]);
    code.raw(prefix).raw(&[0x0f, 0x22, modrm]);
}

fn msr(code: &mut Code, dice: &mut Dice) {
    let index = match dice.below(10) {
        0..=6 => dice.pick(&MSRS),
        7..=8 => 0x800 + dice.below(0x40) as u32,
        _ => dice.bits() as u32,
    };
    match dice.below(4) {
        0 => {
            code.wrmsr(index, value(dice));
        }
        // Flip a bit of what is there.
        1..=2 => {
            code.mov(reg::RCX, index.into()).raw(&[0x0f, 0x32]);
            code.raw(&[0x0f, 0xba, if dice.percent(80) { 0xf8 } else { 0xfa }, dice.byte() & 31]);
            code.raw(&[0x0f, 0x30]);
        }
        _ => {
            code.mov(reg::RCX, index.into()).raw(&[0x0f, 0x32]);
        }
    }
}

/// A random selector.
fn any_selector(dice: &mut Dice) -> u16 {
    match dice.below(8) {
        0 => dice.bits() as u16,
        1 => dice.below(4) as u16,
        2 => 4 | (dice.below(16) << 3) as u16 | dice.below(4) as u16,
        _ => (dice.below(layout::GDT_ENTRIES as usize) << 3) as u16 | dice.pick(&[0, 0, 0, 3, 1]),
    }
}

/// A descriptor of any type.
pub fn any_descriptor(dice: &mut Dice) -> u64 {
    let kind = dice.byte() as u64 | if dice.percent(80) { 0x80 } else { 0 };
    let base = if dice.percent(50) { 0 } else { address(dice) };
    let limit = if dice.percent(50) { 0xf_ffff } else { dice.number() & 0xf_ffff };
    let flags = dice.bits() & 15;
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | kind << 40
        | (limit >> 16) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

fn descriptor(code: &mut Code, dice: &mut Dice) {
    let at = match dice.below(4) {
        0 => layout::IDT + 8 * dice.below(512) as u64,
        1 => layout::LDT + 8 * dice.below(16) as u64,
        // The first half of the GDT is what the dispatcher stands on.
        2 => layout::GDT + 8 * dice.below(layout::GDT_ENTRIES as usize) as u64,
        _ => layout::GDT + 8 * (14 + dice.below(layout::GDT_ENTRIES as usize - 14)) as u64,
    };
    if dice.percent(50) {
        code.mov(reg::RDI, at).raw(&[0x48, 0x0f, 0xba, 0x3f, dice.byte() & 63]);
    } else {
        code.store(at, 8, any_descriptor(dice));
    }
}

/// LGDT, LIDT, SGDT, SIDT, LLDT, LTR, from a pointer made up on the stack.
fn table(code: &mut Code, dice: &mut Dice) {
    match dice.below(4) {
        0 => {
            let group = dice.pick(&[0x17, 0x1f, 0x07, 0x0f]);
            code.mov(reg::RDI, address(dice)).raw(&[0x0f, 0x01, group]);
        }
        1 => {
            let base = if dice.percent(60) { dice.pick(&[layout::GDT, layout::IDT]) } else { address(dice) };
            code.push(base).mov(reg::RAX, dice.number() << 48 >> 16 << 16 & 0xffff_0000_0000_0000);
            // push rax; lgdt or lidt [rsp + 6]
            code.raw(&[0x50, 0x0f, 0x01, dice.pick(&[0x54, 0x5c]), 0x24, 0x06]);
        }
        _ => {
            code.mov(reg::RAX, any_selector(dice).into()).raw(&[0x0f, 0x00, dice.pick(&[0xd0, 0xd8])]);
        }
    }
}

/// Segment registers, and the instructions that ask about selectors.
fn segment(code: &mut Code, dice: &mut Dice) {
    code.mov(reg::RAX, any_selector(dice).into());
    match dice.below(8) {
        0..=4 => code.raw(&[0x8e, 0xc0 | (dice.below(6) as u8) << 3]),
        5 => code.raw(&[0x0f, dice.pick(&[0x02, 0x03]), 0xd8]),
        6 => code.raw(&[0x0f, 0x00, dice.pick(&[0xe0, 0xe8])]),
        // swapgs; wrgsbase rax
        _ => code.raw(&[0x0f, 0x01, 0xf8, 0xf3, 0x48, 0x0f, 0xae, 0xd8]),
    };
}

/// IRET to a frame made up.
fn frame(code: &mut Code, dice: &mut Dice) {
    let near = |dice: &mut Dice, tidy: u64| if dice.percent(70) { tidy } else { value(dice) };
    let user = dice.percent(50);
    let place = dice.below(layout::STAGES_MAX) as u64;
    let tidy = layout::CODE + place * layout::CODE_SIZE + layout::SLOT * dice.below(120) as u64;
    let rip = near(dice, tidy);
    let cs = if user { selector::USER_CODE64 } else { any_selector(dice) };
    let ss = if user { selector::USER_DATA } else { any_selector(dice) };
    let flags = if dice.percent(50) { 0x202 } else { dice.bits() & 0x3f_ffff };
    code.raw(&[0x6a, ss as u8]);
    code.push(near(dice, layout::STACK_TOPS[4] - 64));
    code.raw(&[0x68]).raw(&(flags as u32).to_le_bytes());
    code.raw(&[0x6a, cs as u8]).push(rip);
    code.raw(dice.pick(&[&[0x48, 0xcf][..], &[0x48, 0xcf], &[0x48, 0xcf], &[0xcf], &[0x66, 0xcf]]));
}

/// Far transfers, software interrupts and fast calls.
fn far(code: &mut Code, dice: &mut Dice) {
    let target = layout::CODE + dice.below(layout::STAGES_MAX) as u64 * layout::CODE_SIZE;
    match dice.below(8) {
        0..=1 => {
            // push selector:offset; jmp or call far [rsp]
            let pointer = target | u64::from(any_selector(dice)) << 32;
            code.push(pointer).raw(&[0xff, dice.pick(&[0x2c, 0x1c]), 0x24]);
        }
        2 => {
            code.push(any_selector(dice).into()).push(target);
            code.raw(dice.pick(&[&[0x48, 0xcb][..], &[0xcb], &[0x66, 0xcb]]));
        }
        3..=4 => {
            code.raw(&[0xcd, dice.byte()]);
        }
        5 => {
            // SYSRET and SYSEXIT to a stage; SYSCALL and SYSENTER from here.
            code.mov(reg::RCX, target).mov(11, dice.bits() & 0x3f_ffff).mov(reg::RDX, target);
            code.raw(dice.pick(&[
                &[0x48, 0x0f, 0x07][..],
                &[0x0f, 0x07],
                &[0x0f, 0x35],
                &[0x48, 0x0f, 0x35],
            ]));
        }
        _ => {
            code.raw(dice.pick(&[&[0x0f, 0x05][..], &[0x0f, 0x34], &[0xcc], &[0xf1]]));
        }
    }
}

fn flags(code: &mut Code, dice: &mut Dice) {
    match dice.below(4) {
        0..=1 => {
            let flags = dice.bits() & if dice.percent(50) { 0x3f_ffff } else { 0x24_4fd5 };
            code.raw(&[0x68]).raw(&(flags as u32).to_le_bytes()).raw(&[0x9d]);
        }
        2 => {
            code.raw(&[dice.pick(&[0xfa, 0xfb, 0xfc, 0xfd])]);
        }
        _ => {
            code.raw(&[0x0f, 0x01, dice.pick(&[0xca, 0xcb])]);
        }
    }
}

/// Messages to other processors: INIT, start-up, NMI, interrupts.
fn processors(code: &mut Code, dice: &mut Dice) {
    const ICR: u64 = 0xfee0_0300;
    let start = layout::WAKE_UP >> 12;
    let message = match dice.below(10) {
        0..=3 => 0x4600 | if dice.percent(80) { start } else { 0x20 + dice.below(0x50) as u64 },
        4..=6 => 0x4500,
        7 => 0x4400,
        8 => 0x4000 | (0x20 + dice.below(0xe0) as u64),
        _ => dice.bits() & 0xcfff,
    };
    let shorthand = if dice.percent(30) { dice.pick(&[1, 2, 3]) << 18 } else { 0 };
    let whom = if dice.percent(90) { 1 + dice.below(2) as u64 } else { dice.bits() & 0xff };
    code.store(ICR + 0x10, 4, whom << 24).store(ICR, 4, message | shorthand);
}

/// Debug registers.
fn debug(code: &mut Code, dice: &mut Dice) {
    let register = dice.pick(&[0, 1, 2, 3, 6, 7, 7, 7, 4, 5]);
    let content = match register {
        7 => dice.bits() & 0xffff_2fff,
        6 => dice.number(),
        _ if dice.percent(50) => layout::CODE + dice.below(0x5_0000) as u64,
        _ => address(dice),
    };
    code.mov(reg::RAX, content).raw(&[0x0f, 0x23, 0xc0 | register << 3]);
}

/// XSETBV and the family of saved states, with headers as they happen to be.
fn extended(code: &mut Code, dice: &mut Dice) {
    if dice.percent(30) {
        code.mov(reg::RCX, if dice.percent(80) { 0 } else { dice.number() });
        code.mov(reg::RAX, dice.number() & 0xffff_ffff).mov(reg::RDX, if dice.percent(80) { 0 } else { 1 });
        code.raw(&[0x0f, 0x01, dice.pick(&[0xd1, 0xd0])]);
        return;
    }
    code.mov(reg::RDI, address(dice) & if dice.percent(90) { !63 } else { u64::MAX });
    code.mov(reg::RAX, dice.pick(&[7, 3, 1, 2, 4, 0, 0xffff_ffff])).raw(&[0x31, 0xd2]);
    if dice.percent(40) {
        code.raw(&[0x48]);
    }
    let operation: &[u8] = dice.pick(&[
        &[0x0f, 0xae, 0x07],
        &[0x0f, 0xae, 0x0f],
        &[0x0f, 0xae, 0x27],
        &[0x0f, 0xae, 0x2f],
        &[0x0f, 0xae, 0x37],
        &[0x0f, 0xae, 0x17],
        &[0x0f, 0xc7, 0x27],
        &[0x0f, 0xc7, 0x2f],
        &[0x0f, 0xc7, 0x1f],
        &[0xdd, 0x27],
        &[0xd9, 0x27],
        &[0xd9, 0x2f],
    ]);
    code.raw(operation);
}

/// What is left.
fn odd(code: &mut Code, dice: &mut Dice) {
    let one: &[u8] = dice.pick(&[
        &[0xfb, 0xf4],
        &[0xfb, 0xf4],
        &[0xf4],
        &[0x0f, 0x06],
        &[0x0f, 0x09],
        &[0x0f, 0x08],
        &[0x0f, 0xa2],
        &[0x0f, 0x31],
        &[0x0f, 0x01, 0xf9],
        &[0x0f, 0x33],
        &[0x0f, 0x01, 0xc8],
        &[0x0f, 0x01, 0xc9],
        &[0x0f, 0x01, 0xe0],
        &[0x0f, 0x01, 0xf0],
        &[0x0f, 0xaa],
        &[0x0f, 0x01, 0xc1],
        &[0x0f, 0x01, 0xd8],
        &[0x0f, 0x37],
        &[0x0f, 0xff, 0xc0],
        &[0x0f, 0xb9, 0xc0],
        &[0x0f, 0x00, 0xc0],
        &[0x0f, 0x00, 0xc8],
        &[0xf3, 0x0f, 0xae, 0xc0],
        &[0xf3, 0x0f, 0xae, 0xd8],
        &[0x0f, 0xc7, 0xf0],
        &[0x0f, 0xc7, 0xf8],
        &[0xf3, 0x0f, 0xc7, 0xf8],
        &[0xf3, 0x0f, 0x1e, 0xfa],
        &[0xf3, 0x90],
        &[0x9b, 0xd9, 0xd0],
        &[0x17],
        &[0xc7, 0xf8, 0, 0, 0, 0],
    ]);
    code.mov(reg::RAX, dice.number()).raw(one);
}
