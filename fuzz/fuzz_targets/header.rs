//! Any bytes as a safetensors file: an error, or a header whose tensors cover the data exactly.
#![no_main]

use std::path::Path;

use hft_surgery::checkpoint::Header;

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    let path = Path::new("f");
    let Ok(n) = Header::json_len(path, &file[..file.len().min(8)], file.len() as u64) else { return };
    if let Ok(header) = Header::parse(path, &file[8..8 + n as usize], file.len() as u64) {
        let mut at = header.data_start();
        for tensor in header.tensors() {
            assert_eq!(tensor.bytes.start, at);
            at = tensor.bytes.end;
        }
        assert_eq!(at, file.len() as u64);
    }
});
