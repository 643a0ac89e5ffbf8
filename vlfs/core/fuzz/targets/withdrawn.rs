#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| strata_core_fuzz::withdrawn(text));
