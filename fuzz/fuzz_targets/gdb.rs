//! See [`gdb::probe::conversation`]. The target is the machine of that crate's tests.
#![no_main]

#[path = "../../crates/gdb/tests/toy/mod.rs"]
mod toy;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut machine = toy::Toy::new(64);
    machine.branch = bytes.first().is_some_and(|byte| byte.is_ascii_uppercase());
    let _ = gdb::probe::conversation(bytes, &mut machine);
});
