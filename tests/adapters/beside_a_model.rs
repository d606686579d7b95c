//! `BASE+ADAPTER` where a model may stand: against PEFT's losses and tokens, computed without merging.

use std::path::{Path, PathBuf};

use hft_surgery::backend::CpuPrecision;
use hft_surgery::checkpoint::{Access, Checkpoint};
use hft_surgery::generate::{Generator, Options};
use hft_surgery::lora::{Adapter, adapted};
use hft_surgery::model::ModelConfig;
use serde_json::{Value, json};

use super::{adapter, assert_near, changed_adapter, texts, values};
use crate::common::{Tensor, fails, fixture, ok, path, read_tensors, run};

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

/// The base with its adapters, its tensors computed when they are read.
fn opened(model: &Value) -> Checkpoint {
    let open = |name: &String| (Adapter::open(&adapter(name), Access::Map).unwrap(), 1.0);
    let adapters = texts(&model["adapters"]).iter().map(open).collect();
    let base = Checkpoint::open(&base(model), Access::Map).unwrap();
    adapted(base, adapters, "model".into()).unwrap().0
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
        let source = opened(model).computed_in_memory().unwrap();
        let config = ModelConfig::read(&source).unwrap();
        let mut generator = Generator::open(&source, config, true, CpuPrecision::F32).unwrap();
        let options = Options { sampling: None, repetition_penalty: 1.0, max_new_tokens: 12 };
        let ids = generator.generate(&prompt, &options, &[], |_| Ok(())).unwrap();
        let expected: Vec<u32> = serde_json::from_value(model["ids"].clone()).unwrap();
        assert_eq!(ids, expected, "{names:?}");
    }
}

/// A range of bytes is that of the whole, wherever it begins and ends in a row or a number.
#[test]
fn any_range_can_be_read() {
    for model in golden()["models"].as_array().unwrap() {
        let (computed, whole) = (opened(model), opened(model).computed_in_memory().unwrap());
        let mut changed = 0;
        for (shard, whole) in computed.shards().iter().zip(whole.shards()) {
            let mut scratch = Vec::new();
            let bytes = whole.bytes(0..whole.file_len(), &mut scratch).unwrap().to_vec();
            assert_eq!(shard.file_len(), whole.file_len());
            changed += usize::from(shard.mapped(0..8).is_none());
            for (i, len) in
                [1u64, 2, 3, 7, 8, 31, 32, 33, 200, 1000].into_iter().cycle().take(400).enumerate()
            {
                let start = (i as u64 * 7919) % bytes.len() as u64;
                let end = (start + len).min(bytes.len() as u64);
                let got = shard.bytes(start..end, &mut scratch).unwrap();
                assert!(got == &bytes[start as usize..end as usize], "{} {start}..{end}", model["adapters"]);
            }
        }
        assert!(changed > 0, "{}", model["adapters"]);
    }
}

/// Merged when they are read and on disk, weights are the same; what embedding and head share is untied in both.
#[test]
fn a_model_merged_when_it_is_read_is_the_merged_one() {
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

/// `untied` with the adapter `plain`: as it is typed, merged by a command of its own, and merged by PEFT.
struct Plain {
    base: PathBuf,
    typed: String,
    merged: PathBuf,
}

impl Plain {
    fn new(dir: &Path) -> Self {
        let (base, plain, merged) = (fixture("lora/base/untied"), adapter("plain"), dir.join("merged"));
        ok(&["merge", "--base", path(&base), "--lora", path(&plain), "--out", path(&merged)]);
        Self { typed: format!("{}+{}", path(&base), path(&plain)), base, merged }
    }
}

#[test]
fn inspect_verify_and_plan_tell_of_the_merged_model() {
    let dir = tempfile::tempdir().unwrap();
    let Plain { base, typed, merged } = Plain::new(dir.path());
    let inspect = |model: &str| -> Value {
        let mut all: Value = serde_json::from_str(&ok(&["inspect", model, "--json", "--tensors"])).unwrap();
        all["path"] = Value::Null;
        all["shards"] = Value::Null;
        all
    };
    let offsets = |mut all: Value| {
        all["tensor_list"].as_array_mut().unwrap().iter_mut().for_each(|row| row["offset"] = Value::Null);
        all
    };
    assert_eq!(offsets(inspect(&typed)), offsets(inspect(path(&merged))));
    let digest = |model: &str| {
        let text = ok(&["verify", model]);
        text.lines().find(|line| line.contains("any sharding")).unwrap().to_owned()
    };
    assert_eq!(digest(&typed), digest(path(&merged)));
    assert_ne!(digest(&typed), digest(path(&base)));
    assert_eq!(ok(&["plan", &typed, "--seed", "3"]), ok(&["plan", path(&merged), "--seed", "3"]));
}

/// A patch to a base with its adapter gives what PEFT merges; one from it fits the merged model too.
#[test]
fn a_patch_has_a_base_with_its_adapter_on_either_side() {
    let dir = tempfile::tempdir().unwrap();
    let Plain { base, typed, merged } = Plain::new(dir.path());
    let at = |name: &str| dir.path().join(name);
    let (to, from, tuned) = (at("to.hftp"), at("from.hftp"), fixture("lora/base/tied"));
    ok(&["patch", "create", path(&base), &typed, "--out", path(&to)]);
    ok(&["patch", "apply", path(&base), path(&to), "--out", path(&at("applied"))]);
    assert!(read_tensors(&at("applied")) == read_tensors(&merged));
    let (got, peft) =
        (values(&at("applied/model.safetensors")), values(&adapter("plain").join("merged.safetensors")));
    peft.iter().for_each(|(name, (_, expected))| assert_near(name, &got[name].1, expected));
    ok(&["patch", "create", &typed, path(&tuned), "--out", path(&from)]);
    for (i, base) in [typed.as_str(), path(&merged)].into_iter().enumerate() {
        let out = at(&format!("tuned-{i}"));
        ok(&["patch", "apply", base, path(&from), "--out", path(&out)]);
        assert!(read_tensors(&out) == read_tensors(&tuned), "{base}");
    }
    let stderr = fails(&["patch", "apply", path(&base), path(&from), "--out", path(&at("none"))]);
    assert!(stderr.contains("base"), "{stderr}");
}

/// On the side of the base, the reset returns to the merged weights; spectra read parts of rows.
#[test]
fn a_reset_and_spectra_have_a_base_with_its_adapter_as_base() {
    let dir = tempfile::tempdir().unwrap();
    let Plain { base, typed, merged } = Plain::new(dir.path());
    let reset = |returns_to: &str, name: &str| {
        let out = dir.path().join(name);
        ok(&["reset", "--base", returns_to, "--tuned", path(&base), "--seed", "5", "--out", path(&out)]);
        read_tensors(&out)
    };
    let got = reset(&typed, "typed");
    assert!(got == reset(path(&merged), "written") && got != read_tensors(&base));
    let spectra = |tuned: &str| -> Value {
        let text = ok(&["diff", path(&base), tuned, "--spectrum", "--json"]);
        let mut all: Value = serde_json::from_str(&text).unwrap();
        all["b"] = Value::Null;
        all
    };
    assert_eq!(spectra(&typed)["tensors"], spectra(path(&merged))["tensors"]);
}

/// A path that exists is that path, whatever `+` it has.
#[test]
fn a_plus_in_a_path_is_no_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let Plain { merged, .. } = Plain::new(dir.path());
    let odd = dir.path().join("a+b+c");
    std::fs::rename(&merged, &odd).unwrap();
    ok(&["verify", path(&odd)]);
    let typed = format!("{}+{}", path(&odd), path(&adapter("rslora")));
    assert_eq!(run(&["diff", path(&odd), &typed]).status.code(), Some(1));
}

#[test]
fn what_takes_no_adapter_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let Plain { base, typed, .. } = Plain::new(dir.path());
    let out = dir.path().join("out");
    let rows = dir.path().join("rows.jsonl");
    std::fs::write(&rows, "{\"input_ids\": [1, 2, 3]}\n").unwrap();
    let train = ["train", "--model", &typed, "--data", path(&rows), "--out", path(&out), "--device", "cpu"];
    let extract = ["lora", "extract", &typed, path(&base), "--rank", "1", "--out", path(&out)];
    for args in [&train[..], &extract] {
        let stderr = fails(args);
        assert!(stderr.contains("takes no base with adapters"), "{stderr}");
        assert!(stderr.contains("hint: write the merged model first: merge --base"), "{stderr}");
    }
    let tied = format!("{}+{}", path(&fixture("lora/base/tied")), path(&adapter("saved-tied")));
    let tied_base = fixture("lora/base/tied");
    let stderr = fails(&["patch", "create", path(&tied_base), &tied, "--out", path(&out), "--quiet"]);
    assert!(stderr.contains("embedding and head are no longer one weight") && !out.exists(), "{stderr}");
}

/// Factors whose product no f32 holds: finite themselves, so that only reading the tensor tells.
#[test]
fn a_merge_that_is_not_finite_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let huge = |tensors: &mut Vec<Tensor>| {
        for tensor in tensors {
            tensor.bytes = 1e30f32.to_le_bytes().repeat(tensor.bytes.len() / 4);
        }
    };
    let broken = changed_adapter(dir.path(), "plain", |_| {}, huge);
    let stderr = fails(&["verify", &format!("{}+{}", path(&fixture("lora/base/untied")), path(&broken))]);
    assert!(stderr.contains("are infinite or NaN as") && stderr.contains("tensor `"), "{stderr}");
    assert!(stderr.contains("hint: the training that made the adapter diverged"), "{stderr}");
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
