//! `lora combine`, against PEFT's `add_weighted_adapter`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Values, adapter, assert_near, changed_adapter, golden, texts, values};
use crate::common::{Tensor, fails, fixture, ok, path, read_tensors, run};

/// The arguments for adapters of the fixtures.
fn arguments(adapters: &[PathBuf], weights: &str, more: &[&str], out: &Path) -> Vec<String> {
    let mut args = vec!["lora".to_owned(), "combine".to_owned()];
    args.extend(adapters.iter().map(|adapter| path(adapter).to_owned()));
    args.extend(["--weights".to_owned(), weights.to_owned()]);
    args.extend(more.iter().map(|text| (*text).to_owned()));
    args.extend(["--out".to_owned(), path(out).to_owned(), "--force".to_owned()]);
    args
}

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// The flags of a golden case.
fn flags(golden: &Value) -> Vec<String> {
    let mut flags = vec!["--seed".to_owned(), "7".to_owned()];
    for (key, flag) in [
        ("combination_type", "--combination-type"),
        ("density", "--density"),
        ("majority_sign_method", "--majority-sign-method"),
        ("svd_rank", "--rank"),
    ] {
        if let Some(value) = golden.get(key) {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            flags.extend([flag.to_owned(), text]);
        }
    }
    flags
}

/// B A of every module.
fn products(factors: &Values) -> BTreeMap<String, Vec<f32>> {
    let mut all = BTreeMap::new();
    for (name, (shape, a)) in factors.iter().filter(|(name, _)| name.contains("_A")) {
        let (_, b) = &factors[&name.replace("_A", "_B")];
        let (r, n) = (shape[0], shape[1]);
        let entry = |i: usize, j: usize| (0..r).map(|k| b[i * r + k] * a[k * n + j]).sum::<f32>();
        let product = (0..b.len() / r * n).map(|at| entry(at / n, at % n)).collect();
        all.insert(name.clone(), product);
    }
    all
}

fn factors(file: &Path) -> Values {
    values(file).into_iter().filter(|(name, _)| name.contains("lora_")).collect()
}

/// Factors are PEFT's where they are defined, products where the signs of singular vectors are not.
#[test]
fn combined_factors_are_those_of_peft() {
    let dir = tempfile::tempdir().unwrap();
    let mut count = 0;
    for entry in std::fs::read_dir(fixture("lora/combined")).unwrap() {
        let file = entry.unwrap().path();
        let golden = golden(&file);
        let adapters: Vec<PathBuf> = texts(&golden["adapters"]).iter().map(|name| adapter(name)).collect();
        let weights: Vec<f64> = serde_json::from_value(golden["weights"].clone()).unwrap();
        let weights: Vec<String> = weights.iter().map(f64::to_string).collect();
        let out = dir.path().join("out");
        let flags = flags(&golden);
        ok(&strs(&arguments(&adapters, &weights.join(","), &strs(&flags), &out)));
        let (got, expected) = (factors(&out.join("adapter_model.safetensors")), factors(&file));
        assert!(got.keys().eq(expected.keys()), "{file:?}: {:?}", got.keys());
        let decomposed = golden["combination_type"].as_str().unwrap().ends_with("svd") && adapters.len() > 1;
        for (name, (shape, values)) in &expected {
            assert_eq!(got[name].0, *shape, "{file:?} {name}");
            if !decomposed {
                assert_near(&format!("{file:?} {name}"), &got[name].1, values);
            }
        }
        let got = products(&got);
        for (name, product) in products(&expected) {
            assert_near(&format!("{file:?} {name}"), &got[&name], &product);
        }
        let config = super::json(&out.join("adapter_config.json"));
        assert_eq!(config["r"], config["lora_alpha"], "{file:?}: the scale is 1");
        count += 1;
    }
    assert_eq!(count, 18);
}

/// `cat` loses nothing: merged, it is what the adapters are together.
#[test]
fn a_concatenation_is_the_sum() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two, together) = (dir.path().join("one"), dir.path().join("two"), dir.path().join("together"));
    let adapters = [adapter("rank-pattern"), adapter("all-linear"), adapter("embedding")];
    ok(&strs(&arguments(&adapters, "0.5,-1.5,2", &["--combination-type", "cat"], &one)));
    let base = fixture("lora/base/untied");
    ok(&["merge", "--base", path(&base), "--lora", path(&one), "--out", path(&two)]);
    let mut args = vec!["merge", "--base", path(&base), "--out", path(&together)];
    for (adapter, weight) in adapters.iter().zip(["0.5", "-1.5", "2"]) {
        args.extend(["--lora", path(adapter), "--lora-weight", weight]);
    }
    ok(&args);
    let (a, b) = (values(&two.join("model.safetensors")), values(&together.join("model.safetensors")));
    for (name, (_, expected)) in &b {
        assert_near(name, &a[name].1, expected);
    }
}

#[test]
fn draws_follow_the_seed_and_not_the_threads() {
    let dir = tempfile::tempdir().unwrap();
    let adapters = [adapter("plain"), adapter("rslora")];
    let made = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let all = [&["--combination-type", "dare_ties", "--density", "0.5"], more].concat();
        ok(&strs(&arguments(&adapters, "1,1", &all, &out)));
        read_tensors(&out)
    };
    let first = made("first", &["--threads", "1"]);
    assert!(first == made("second", &["--threads", "4"]));
    assert!(first != made("third", &["--seed", "1"]));
}

fn refused(adapters: &[PathBuf], weights: &str, more: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("none");
    let stderr = fails(&strs(&arguments(adapters, weights, more, &out)));
    assert!(!out.exists());
    stderr
}

/// What PEFT refuses, and what it would leave out or compute otherwise without a word.
#[test]
fn what_cannot_be_combined_is_refused() {
    let pair = |a: &str, b: &str| [adapter(a), adapter(b)];
    for name in ["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"] {
        let density: &[&str] = if name == "linear" { &[] } else { &["--density", "0.5"] };
        let more = [&["--combination-type", name], density].concat();
        let stderr = refused(&pair("plain", "all-linear"), "1,1", &more);
        assert!(stderr.contains("the adapters have the ranks [2, 1]"), "{stderr}");
    }
    let cases = [
        (pair("plain", "regex-targets"), "target_modules is a regular expression in one adapter"),
        (pair("saved-untied", "saved-untied"), "two adapters save it whole"),
        (pair("plain", "dora"), "norms (DoRA) cannot be combined"),
        (pair("lora-bias", "lora-bias"), "the bias of a lora_B cannot be combined"),
        (pair("tokens", "plain"), "new rows of trainable_token_indices cannot be combined"),
        (pair("plain", "pissa"), "`init_lora_weights` is"),
    ];
    for (adapters, words) in cases {
        let stderr = refused(&adapters, "1,1", &["--combination-type", "cat"]);
        assert!(stderr.contains(words), "{words}: {stderr}");
    }
    let plain = pair("plain", "rslora");
    let cases: [(&str, &[&str], &str); 6] = [
        ("1", &["--combination-type", "cat"], "--weights: got 1 weights, expected one for each adapter: 2"),
        ("1,1", &["--combination-type", "ties"], "--combination-type ties needs --density"),
        ("1,1", &["--combination-type", "ties", "--density", "-0.5"], "--density: got -0.5"),
        ("1,1", &["--combination-type", "dare_ties", "--density", "0"], "--density: got 0, expected more"),
        ("1,inf", &["--combination-type", "cat"], "expected a finite number"),
        ("1,1", &["--combination-type", "sum"], "invalid value 'sum'"),
    ];
    for (weights, more, words) in cases {
        let stderr = refused(&plain, weights, more);
        assert!(stderr.contains(words), "{words}: {stderr}");
    }
}

/// Adapters of other bases, and ranks that only some modules have.
#[test]
fn modules_must_fit_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let wide = changed_adapter(
        dir.path(),
        "plain",
        |_| {},
        |tensors: &mut Vec<Tensor>| {
            for t in tensors.iter_mut().filter(|t| t.name.contains("lora_A")) {
                t.shape[1] -= 1;
                t.bytes.truncate((t.shape[0] * t.shape[1] * 4) as usize);
            }
        },
    );
    let stderr = refused(&[adapter("plain"), wide], "1,1", &["--combination-type", "cat"]);
    assert!(stderr.contains("updates of the shapes [16, 16] and [16, 15]: not of one base"), "{stderr}");
    let ranks = changed_adapter(
        dir.path(),
        "rank-pattern",
        |config| config["r"] = 4.into(),
        |tensors| tensors.retain(|t| t.name.contains("layers.0.self_attn.q_proj")),
    );
    let stderr = refused(&[adapter("rank-pattern"), ranks.clone()], "1", &["--combination-type", "cat"]);
    assert!(stderr.contains("got 1 weights"), "{stderr}");
    let nan = changed_adapter(
        dir.path(),
        "rslora",
        |_| {},
        |tensors| {
            tensors[0].bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        },
    );
    let stderr = refused(&[adapter("plain"), nan], "1,1", &["--combination-type", "svd"]);
    assert!(stderr.contains("infinite or NaN values: 1"), "{stderr}");
}

/// What differs from PEFT, and options that change nothing, are said.
#[test]
fn what_a_reader_should_know_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let said = |adapters: &[PathBuf], weights: &str, more: &[&str]| {
        let output = run(&strs(&arguments(adapters, weights, more, &out)));
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        stderr
    };
    let stderr = said(&[adapter("rslora")], "1", &["--combination-type", "ties", "--density", "0.3"]);
    assert!(stderr.contains("one adapter: combined as `linear`, not as `ties`, as in PEFT"), "{stderr}");
    assert!(stderr.contains("PEFT keeps use_rslora of the first adapter"), "{stderr}");
    let cat = ["--combination-type", "cat", "--rank", "3", "--density", "0.5"];
    let stderr = said(&[adapter("saved-norm"), adapter("plain")], "0.5,1", &cat);
    assert!(stderr.contains("5 tensors that one adapter saves whole are taken as they are"), "{stderr}");
    assert!(stderr.contains("--rank changes nothing") && stderr.contains("--density changes nothing"));
    let config = super::json(&out.join("adapter_config.json"));
    let saved = texts(&config["modules_to_save"]);
    assert!(saved.len() == 5 && saved.contains(&"model.norm".to_owned()), "{saved:?}");
    let base = fixture("lora/base/untied");
    ok(&["merge", "--base", path(&base), "--lora", path(&out), "--out", path(&dir.path().join("merged"))]);
    let stderr = said(&[adapter("plain"), adapter("tied-head")], "1,1", &["--combination-type", "cat"]);
    assert!(stderr.contains("the adapters name other bases"), "{stderr}");
}
