//! See [`recording::probe::tail`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = recording::probe::tail(bytes);
});
