//! `merge --lora A --lora B`: against PEFT's `merge_and_unload` of several adapters with scales.

use std::path::{Path, PathBuf};

use super::{adapter, assert_near, changed_adapter, golden, texts, values};
use crate::common::{Tensor, fails, fixture, ok, path, read_tensors, run};

fn arguments(base: &Path, adapters: &[PathBuf], weights: &[f64], out: &Path) -> Vec<String> {
    let mut args = vec!["merge".to_owned(), "--base".to_owned(), path(base).to_owned()];
    for adapter in adapters {
        args.extend(["--lora".to_owned(), path(adapter).to_owned()]);
    }
    for weight in weights {
        args.extend(["--lora-weight".to_owned(), weight.to_string()]);
    }
    args.extend(["--out".to_owned(), path(out).to_owned(), "--force".to_owned()]);
    args
}

fn refused(base: &str, adapters: &[PathBuf], weights: &[f64]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("none");
    let args = arguments(&fixture("lora/base").join(base), adapters, weights, &out);
    let stderr = fails(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(!out.exists());
    stderr
}

#[test]
fn merged_weights_are_those_of_peft() {
    let dir = tempfile::tempdir().unwrap();
    let mut count = 0;
    for entry in std::fs::read_dir(fixture("lora/several")).unwrap() {
        let file = entry.unwrap().path();
        let golden = golden(&file);
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join(golden["base"].as_str().unwrap());
        let adapters: Vec<PathBuf> = texts(&golden["adapters"]).iter().map(|name| adapter(name)).collect();
        let weights: Vec<f64> = serde_json::from_value(golden["weights"].clone()).unwrap();
        let out = dir.path().join("out");
        ok(&arguments(&base, &adapters, &weights, &out).iter().map(String::as_str).collect::<Vec<_>>());
        let changed = values(&file);
        let (got, before) = (read_tensors(&out), read_tensors(&base));
        let merged = values(&out.join("model.safetensors"));
        assert!(got.keys().eq(before.keys()), "{file:?}");
        for (name, bytes) in &got {
            match changed.get(name) {
                Some((_, expected)) => assert_near(&format!("{file:?} {name}"), &merged[name].1, expected),
                None => assert!(*bytes == before[name], "{file:?}: {name} changed"),
            }
        }
        count += 1;
    }
    assert_eq!(count, 7);
}

#[test]
fn what_would_depend_on_the_order_is_refused() {
    let two = |a: &str, b: &str| [adapter(a), adapter(b)];
    let stderr = refused("untied", &two("dora", "plain"), &[]);
    assert!(stderr.contains("two adapters change it: two updates of one weight, with norms"), "{stderr}");
    let stderr = refused("tied", &two("saved-tied", "tied-embedding"), &[]);
    assert!(stderr.contains("unties it from `lm_head.weight`"), "{stderr}");
    let stderr = refused("untied", &two("tokens", "tokens"), &[]);
    assert!(stderr.contains("both have a new row of token id 3"), "{stderr}");
    let stderr = refused("untied", &two("embedding", "saved-untied"), &[]);
    assert!(stderr.contains("embed_tokens.weight"), "{stderr}");
    let stderr = refused("untied", &[adapter("dora")], &[0.5]);
    assert!(stderr.contains("the weight 0.5 for factors with norms (DoRA) is not defined"), "{stderr}");
}

/// Two adapters that save one module: equal values pass, others are refused by name.
#[test]
fn a_module_saved_twice_must_be_equal() {
    let dir = tempfile::tempdir().unwrap();
    let saved = adapter("saved-norm");
    let out = dir.path().join("out");
    let args = arguments(&fixture("lora/base/untied"), &[saved.clone(), saved.clone()], &[], &out);
    ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let change = |tensors: &mut Vec<Tensor>| {
        let norm = tensors.iter_mut().find(|t| t.name.ends_with("norm.weight")).unwrap();
        norm.bytes[0] ^= 1;
    };
    let other = changed_adapter(dir.path(), "saved-norm", |_| {}, change);
    let stderr = refused("untied", &[saved, other], &[]);
    assert!(stderr.contains("two adapters change it: both save it whole, with other values"), "{stderr}");
}

#[test]
fn weights_are_checked_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let stderr = refused("untied", &[adapter("plain"), adapter("rslora")], &[1.0]);
    assert!(stderr.contains("--lora-weight: got 1 weights, expected one for each adapter: 2"), "{stderr}");
    let stderr = refused("untied", &[adapter("plain")], &[f64::NAN]);
    assert!(stderr.contains("--lora-weight: got NaN, expected a finite number"), "{stderr}");
    let stderr = refused("untied", &[adapter("plain")], &[1e300]);
    assert!(stderr.contains("is not finite"), "{stderr}");
    let out = dir.path().join("out");
    let args = arguments(&fixture("lora/base/untied"), &[adapter("saved-norm")], &[0.5], &out);
    let output = run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("does not apply to the 5 tensors that it saves whole, as in PEFT"), "{stderr}");
    let provenance = super::json(&out.join("hft_surgery.json"));
    assert_eq!(provenance["options"]["lora_weight"], serde_json::json!([0.5]));
    assert_eq!(provenance["inputs"].as_array().unwrap().len(), 2);
}
