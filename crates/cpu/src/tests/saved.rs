use super::*;
use crate::SavedCpu;

/// The state as text, for comparison.
fn encoded(m: &Machine) -> SavedCpu {
    m.state.save()
}

#[test]
fn a_saved_state_restores_to_itself() {
    for m in [Machine::real(), Machine::kernel(), Machine::user(), Machine::user32()] {
        let saved = encoded(&m);
        let back = saved.restore(&m.model).unwrap();
        assert_eq!(back.save(), saved);
        assert_eq!(back.fpu.x87, m.state.fpu.x87);
    }
}

#[test]
fn an_over_shadow_is_not_told_apart_from_none() {
    let mut m = Machine::kernel();
    m.state.retired = 10;
    m.state.shadow_at = 9;
    let old = encoded(&m);
    m.state.shadow_at = u64::MAX;
    assert_eq!(encoded(&m), old);
    m.state.event_at = 9;
    assert_eq!(encoded(&m), old, "nor is an exception that instructions have followed");
    m.state.event_at = 10;
    assert_ne!(encoded(&m), old);
}

#[test]
fn impossible_states_are_refused_by_name() {
    type Spoil = fn(&mut CpuState);
    let cases: [(&str, Spoil); 14] = [
        ("RFLAGS", |s| s.rflags = 0),
        ("RFLAGS", |s| s.rflags |= flags::VM),
        ("RIP", |s| s.rip = 1 << 62),
        ("MXCSR", |s| s.fpu.mxcsr = 0x1_0000),
        ("CR0", |s| s.cr0 &= !cr0::PE),
        ("CR3", |s| s.cr3 = 1 << 50),
        ("CR4", |s| s.cr4 |= cr4::VME),
        ("IA32_EFER", |s| s.efer &= !efer::LMA),
        ("XCR0", |s| s.xcr0 = 5),
        ("DR7", |s| s.dr[7] = 0),
        ("privilege level", |s| s.cpl = 4),
        ("segment base", |s| s.seg[4].base = 1 << 47),
        ("IA32_LSTAR", |s| s.msr.lstar = 1 << 47),
        ("x87 status word", |s| s.fpu.set_status(0x80)),
    ];
    for (name, spoil) in cases {
        let mut m = Machine::kernel();
        spoil(&mut m.state);
        let error = encoded(&m).restore(&m.model).err().unwrap_or_else(|| panic!("{name} was accepted"));
        assert!(error.to_string().contains(name), "{error} should name {name}");
    }
}

#[test]
fn another_version_is_refused() {
    let m = Machine::kernel();
    let mut saved = encoded(&m);
    saved.version = 99;
    assert!(saved.restore(&m.model).err().unwrap().to_string().contains("99"));
}
