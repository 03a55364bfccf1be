//! Guests that mean harm: whatever they execute, in whatever state, nothing of ours panics.

use super::*;
use crate::deliver;

/// A 64-bit linear congruential generator (Knuth's MMIX constants), upper bits.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 16
    }
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.next() as usize % from.len()]
    }
}

const EDGES: [u64; 16] = [
    0,
    1,
    7,
    0xffe,
    0x5_0ffc,
    STACK,
    TSS,
    GDT + 3,
    0x3f_fff9,
    MMIO + 5,
    0xffff_fff9,
    0x7fff_ffff_fffc,
    1 << 47,
    0xffff_8000_0000_0000,
    u64::MAX - 3,
    u64::MAX,
];
const PREFIXES: [u8; 8] = [0x66, 0x67, 0xf2, 0xf3, 0x48, 0x4f, 0x64, 0xf0];
const OPCODES: [&[u8]; 40] = [
    &[0x06],
    &[0x07],
    &[0x0f, 0x00],
    &[0x0f, 0x01],
    &[0x0f, 0x02],
    &[0x0f, 0x03],
    &[0x0f, 0x05],
    &[0x0f, 0x07],
    &[0x0f, 0x20],
    &[0x0f, 0x21],
    &[0x0f, 0x22],
    &[0x0f, 0x23],
    &[0x0f, 0x30],
    &[0x0f, 0x32],
    &[0x0f, 0x34],
    &[0x0f, 0x35],
    &[0x0f, 0xa1],
    &[0x0f, 0xae],
    &[0x0f, 0xb2],
    &[0x0f, 0xc7],
    &[0x0f, 0xf7],
    &[0x17],
    &[0x27],
    &[0x60],
    &[0x61],
    &[0x62],
    &[0x6c],
    &[0x6f],
    &[0x8e],
    &[0x9d],
    &[0xa4],
    &[0xa5],
    &[0xa7],
    &[0xab],
    &[0xc8],
    &[0xca],
    &[0xcd],
    &[0xcf],
    &[0xd9],
    &[0xff],
];

fn random_machine(random: &mut Random) -> Machine {
    let mut m = match random.next() % 5 {
        0 => Machine::real(),
        1 | 2 => Machine::kernel(),
        3 => Machine::user(),
        _ => Machine::user32(),
    };
    for register in &mut m.state.gpr {
        *register = random.pick(&EDGES);
    }
    if random.next().is_multiple_of(4) {
        // What LGDT, LIDT and LTR would take.
        let mut base = || loop {
            let base = random.pick(&EDGES);
            if paging::is_canonical(base) {
                return base;
            }
        };
        (m.state.gdtr.base, m.state.idtr.base, m.state.tr.base) = (base(), base(), base());
    }
    if random.next().is_multiple_of(4) {
        m.state.cr3 = random.pick(&EDGES) & 0xff_ffff_ffff;
    }
    m.state.rip = if m.state.code64() { random.pick(&EDGES) } else { random.pick(&EDGES) & 0xffff };
    m.state.rflags |= random.next() & (flags::DF | flags::IOPL | flags::AC | flags::NT | flags::STATUS);
    m.state.dr[7] |= random.next() & random.next() & 0xffff_03ff;
    m.state.dr[random.next() as usize % 4] = random.pick(&EDGES);
    m
}

#[test]
fn random_instructions_in_random_states_never_panic_and_leave_a_state_that_restores() {
    let seed = 0x1234_5678_9abc_def0;
    println!("seed {seed:#x}");
    let mut random = Random(seed);
    let mut retired = 0;
    for round in 0..4_000 {
        let mut m = random_machine(&mut random);
        for at in 0..64 {
            m.poke64(STACK + at * 8, random.pick(&EDGES) | (random.next() % 64));
        }
        for _ in 0..4 {
            let mut code = vec![];
            for _ in 0..random.next() % 3 {
                code.push(random.pick(&PREFIXES));
            }
            code.extend_from_slice(random.pick(&OPCODES));
            code.extend((0..8).map(|_| random.next() as u8));
            if !paging::is_canonical(m.state.rip) {
                m.state.rip = CODE; // nothing is ever fetched from there
            }
            let instr = m.decode(&code);
            let result = if crate::string::is_string(instr.code()) {
                let max = random.next() % 5000 + 1;
                crate::string::string(&mut m.core(), &instr, max).map(|_| ()).map_err(|f| f.exception)
            } else {
                system::execute(&mut m.core(), &instr).map(|_| ())
            };
            match result {
                Ok(()) => retired += 1,
                Err(e) => deliver::exception(&mut m.core(), e),
            }
            deliver::interrupt(&mut m.core(), random.next() as u8);
            let saved = m.state.save();
            assert_eq!(saved.restore(&m.model).err(), None, "round {round}: {instr:?}");
        }
    }
    assert!(retired > 1000, "only {retired} instructions got anywhere");
}
