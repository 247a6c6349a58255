#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| smcached::fuzzing::request(data));
