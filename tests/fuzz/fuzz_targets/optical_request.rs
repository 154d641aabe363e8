#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| netbus_fuzz::optical_request(bytes));
