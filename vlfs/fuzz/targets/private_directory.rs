#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| strata_vlfs_fuzz::private_directory(input));
