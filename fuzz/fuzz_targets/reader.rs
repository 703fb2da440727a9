//! One target a reader: the binary's name says which.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ctune_dist_fuzz::read(env!("CARGO_BIN_NAME"), data);
});
