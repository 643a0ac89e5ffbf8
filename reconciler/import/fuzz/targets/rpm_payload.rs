#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| strata_import_fuzz::rpm_payload(bytes));
