//! Any bytes as a shard index: an error, or shard names that stay in their directory.
#![no_main]

use std::path::Path;

use hft_surgery::checkpoint::Index;

libfuzzer_sys::fuzz_target!(|json: &[u8]| {
    if let Ok(index) = Index::parse(Path::new("i"), json) {
        for shard in index.shards() {
            assert_eq!(Path::new("/dir").join(shard).parent(), Some(Path::new("/dir")));
        }
    }
});
