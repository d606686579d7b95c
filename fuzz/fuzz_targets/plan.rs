//! Any bytes as a plan: an error, or a plan that its own text gives again.
#![no_main]

use std::path::Path;

use hft_surgery::plan::Plan;

libfuzzer_sys::fuzz_target!(|json: &[u8]| {
    if let Ok(plan) = Plan::parse(json, Path::new("p")) {
        let again = Plan::parse(plan.to_json().as_bytes(), Path::new("p"));
        assert_eq!(again.ok(), Some(plan));
    }
});
