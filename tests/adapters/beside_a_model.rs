//! `BASE+ADAPTER` where a model may stand: against PEFT's losses and tokens, computed without merging.

use hft_surgery::checkpoint::{Access, Checkpoint};
use hft_surgery::generate::{Generator, Options};
use hft_surgery::lora::{Adapter, WeightedAdapter, merged_in_memory};
use hft_surgery::model::ModelConfig;
use serde_json::{Value, json};

use super::{adapter, texts};
use crate::common::{fails, fixture, ok, path, read_tensors, run};

fn golden() -> Value {
    super::json(&fixture("lora/adapted.json"))
}

fn base(model: &Value) -> std::path::PathBuf {
    fixture("..").join(model["base"].as_str().unwrap())
}

/// `BASE+ADAPTER+…` as it is typed.
fn typed(model: &Value) -> String {
    let adapters = texts(&model["adapters"]);
    adapters.iter().fold(path(&base(model)).to_owned(), |all, name| format!("{all}+{}", path(&adapter(name))))
}

#[test]
fn losses_are_those_of_peft() {
    let dir = tempfile::tempdir().unwrap();
    let golden = golden();
    let rows: String = golden["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|ids| format!("{}\n", json!({"input_ids": ids, "labels": ids})))
        .collect();
    let data = dir.path().join("rows.jsonl");
    std::fs::write(&data, rows).unwrap();
    for model in golden["models"].as_array().unwrap() {
        let text =
            ok(&["eval", "--device", "cpu", "--model", &typed(model), "--data", path(&data), "--json"]);
        let got: Value = serde_json::from_str(&text).unwrap();
        let (got, expected) = (got["loss"].as_f64().unwrap(), model["loss"].as_f64().unwrap());
        assert!((got - expected).abs() < 1e-4, "{}: {got}, PEFT {expected}", model["adapters"]);
    }
}

#[test]
fn generated_tokens_are_those_of_peft() {
    let golden = golden();
    let prompt: Vec<u32> = serde_json::from_value(golden["rows"][0].clone()).unwrap();
    for model in golden["models"].as_array().unwrap() {
        let names = texts(&model["adapters"]);
        let adapters: Vec<Adapter> =
            names.iter().map(|name| Adapter::open(&adapter(name), Access::Map).unwrap()).collect();
        let weighted: Vec<WeightedAdapter<'_>> =
            adapters.iter().map(|adapter| WeightedAdapter { adapter, weight: 1.0 }).collect();
        let base = Checkpoint::open(&base(model), Access::Map).unwrap();
        let (source, _) = merged_in_memory(base, &weighted, "model".into()).unwrap();
        let config = ModelConfig::read(&source).unwrap();
        let mut generator = Generator::open(&source, config, true).unwrap();
        let options = Options { sampling: None, repetition_penalty: 1.0, max_new_tokens: 12 };
        let ids = generator.generate(&prompt, &options, &[], |_| Ok(())).unwrap();
        let expected: Vec<u32> = serde_json::from_value(model["ids"].clone()).unwrap();
        assert_eq!(ids, expected, "{names:?}");
    }
}

/// In memory and on disk, a merge is the same; what embedding and head share is untied in both.
#[test]
fn a_model_in_memory_is_the_merged_one() {
    let dir = tempfile::tempdir().unwrap();
    for (base, names) in [
        ("untied", vec!["plain", "embedding"]),
        ("tied", vec!["saved-embedding-tied"]),
        ("gpt2", vec!["dora-conv1d"]),
    ] {
        let base = fixture("lora/base").join(base);
        let out = dir.path().join(names[0]);
        let mut args = vec!["merge", "--base", path(&base), "--out", path(&out)];
        let adapters: Vec<_> = names.iter().map(|name| adapter(name)).collect();
        adapters.iter().for_each(|adapter| args.extend(["--lora", path(adapter)]));
        ok(&args);
        let typed =
            adapters.iter().fold(path(&base).to_owned(), |all, adapter| format!("{all}+{}", path(adapter)));
        ok(&["diff", path(&out), &typed]);
        assert_eq!(run(&["diff", path(&base), &typed]).status.code(), Some(1));
    }
}

/// Half of an adapter's change returns to the base; the adapter is read, so it is no place for the output.
#[test]
fn a_reset_takes_a_base_with_its_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let (base, plain) = (fixture("lora/base/untied"), adapter("plain"));
    let (merged, kept, half) = (dir.path().join("merged"), dir.path().join("kept"), dir.path().join("half"));
    ok(&["merge", "--base", path(&base), "--lora", path(&plain), "--out", path(&merged)]);
    let typed = format!("{}+{}", path(&base), path(&plain));
    for (ratio, out) in [("0", &kept), ("0.5", &half)] {
        for link in ["copy", "reflink"] {
            ok(&[
                "reset",
                "--base",
                path(&base),
                "--tuned",
                &typed,
                "--ratio",
                ratio,
                "--link",
                link,
                "--out",
                path(out),
                "--force",
            ]);
            let merged = if ratio == "0" { Some(read_tensors(&merged)) } else { None };
            assert!(merged.is_none_or(|merged| merged == read_tensors(out)), "--link {link}");
        }
    }
    let (half, merged, base_tensors) = (read_tensors(&half), read_tensors(&merged), read_tensors(&base));
    let of_base =
        half.iter().filter(|(name, bytes)| merged[*name] != **bytes && base_tensors[*name] == **bytes);
    assert!(of_base.count() > 0);
    assert!(half.iter().any(|(name, bytes)| merged[name] == *bytes && base_tensors[name] != *bytes));
    let tied = fixture("lora/base/tied");
    let typed = format!("{}+{}", path(&tied), path(&adapter("saved-tied")));
    let none = dir.path().join("none");
    let output = run(&["reset", "--base", path(&tied), "--tuned", &typed, "--out", path(&none), "--quiet"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("embedding and head are no longer one weight") && !none.exists(), "{stderr}");
}

#[test]
fn an_adapter_that_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("rows.jsonl");
    std::fs::write(&data, "{\"input_ids\": [1, 2, 3]}\n").unwrap();
    let eval = |model: &str| fails(&["eval", "--device", "cpu", "--model", model, "--data", path(&data)]);
    let base = fixture("lora/base/untied");
    let stderr = eval(&format!("{}+{}", path(&base), path(&adapter("conv1d"))));
    assert!(stderr.contains("has no `transformer.h.0.attn.c_attn.weight`"), "{stderr}");
    let stderr = eval(&format!("{}+{}", path(&base), path(&adapter("pissa"))));
    assert!(stderr.contains("`init_lora_weights` is"), "{stderr}");
    let stderr = eval(&format!("{}+{}", path(&base), path(&dir.path().join("none"))));
    assert!(stderr.contains("adapter_config.json: no such file: not a LoRA adapter"), "{stderr}");
}
