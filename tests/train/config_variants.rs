//! Variants of `config.json`: the loss of transformers, or a refusal that names the key. `fixtures/config`, made by
//! `make_config.py` there.

use std::path::Path;

use hft_surgery::checkpoint::{Access, Checkpoint, decode_f64};
use serde_json::{Value, json};

use crate::common::{fails, fixture, ok, run};

/// The name of the output head.
const HEAD: &str = "lm_head.weight";

/// Name, shape and values of every tensor of a file.
fn tensors(path: &Path) -> Vec<(String, Vec<u64>, Vec<f64>)> {
    let file = Checkpoint::open(path, Access::Map).unwrap();
    let read = |tensor: hft_surgery::checkpoint::Tensor<'_>| {
        let bytes = file.shards()[0].mapped(tensor.info.bytes.clone()).unwrap();
        let mut values = vec![0.0; tensor.info.elements() as usize];
        decode_f64(&tensor.info.dtype, bytes, &mut values).unwrap();
        (tensor.info.name.clone(), tensor.info.shape.clone(), values)
    };
    file.tensors().map(read).collect()
}

/// Writes tensors in f32.
fn write(path: &Path, tensors: &[(String, Vec<u64>, Vec<f64>)]) {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, shape, values) in tensors {
        let start = data.len();
        data.extend(values.iter().flat_map(|x| (*x as f32).to_le_bytes()));
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend(data);
    std::fs::write(path, bytes).unwrap();
}

/// The model of a variant, in `dir`.
fn model(variant: &Value, dir: &Path) {
    let source = fixture("llama").join(variant["model"].as_str().unwrap());
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(source.join("config.json")).unwrap()).unwrap();
    let config = config.as_object_mut().unwrap();
    config.extend(variant["set"].as_object().unwrap().clone());
    for key in variant["drop"].as_array().unwrap() {
        config.remove(key.as_str().unwrap());
    }
    std::fs::write(dir.join("config.json"), serde_json::to_vec(config).unwrap()).unwrap();
    let mut tensors = tensors(&source.join("model.safetensors"));
    if let Some(head) = variant["head"].as_str() {
        let embedding = tensors.iter().find(|(name, ..)| name == "model.embed_tokens.weight").unwrap();
        let (_, shape, values) = embedding.clone();
        let rows = values.chunks(shape[1] as usize);
        let values = if head == "same" { values } else { rows.rev().flatten().copied().collect() };
        tensors.push((HEAD.to_owned(), shape, values));
    }
    write(&dir.join("model.safetensors"), &tensors);
}

/// The rows of the golden file of a variant, with their labels.
fn rows(variant: &Value, path: &Path) {
    let golden = fixture("llama").join(variant["model"].as_str().unwrap()).join("golden.safetensors");
    let tensors = tensors(&golden);
    let of = |name: &str| -> Vec<i64> {
        let (.., values) = tensors.iter().find(|(found, ..)| found == name).unwrap();
        values.iter().map(|x| *x as i64).collect()
    };
    let (ids, labels) = (of("ids"), of("labels"));
    let mut start = 0;
    let mut lines = Vec::new();
    for length in of("lengths") {
        let range = start..start + length as usize;
        lines.push(json!({"input_ids": ids[range.clone()], "labels": labels[range.clone()]}).to_string());
        start = range.end;
    }
    std::fs::write(path, lines.join("\n")).unwrap();
}

#[test]
fn every_variant_has_the_loss_of_transformers_or_is_refused_by_key() {
    let text = std::fs::read(fixture("config").join("variants.json")).unwrap();
    let variants: Vec<Value> = serde_json::from_slice(&text).unwrap();
    assert!(variants.len() > 40);
    let mut wrong = Vec::new();
    for variant in &variants {
        let dir = tempfile::tempdir().unwrap();
        let (model_dir, data) = (dir.path().join("model"), dir.path().join("rows.jsonl"));
        std::fs::create_dir(&model_dir).unwrap();
        model(variant, &model_dir);
        rows(variant, &data);
        let (model_dir, data) = (model_dir.to_string_lossy(), data.to_string_lossy());
        let args = ["eval", "--model", &*model_dir, "--data", &*data, "--json", "--device", "cpu"];
        let output = run(&args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let right = match variant["refused"].as_str() {
            Some(key) => output.status.code() == Some(2) && said.contains(&format!("`{key}`")),
            None => {
                let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
                let loss = variant["loss"].as_f64().unwrap();
                found["loss"].as_f64().is_some_and(|got| (got - loss).abs() < 1e-5 * loss)
            }
        };
        if !right {
            let out = String::from_utf8_lossy(&output.stdout).into_owned();
            wrong.push(format!("{variant}\n  {} {out}{said}", output.status));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// transformers names tensors that it does not load in a warning, and loads no compiled model's.
#[test]
fn tensors_that_are_not_computed_with_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (from, data) = (dir.path().join("model"), dir.path().join("rows.jsonl"));
    std::fs::create_dir(&from).unwrap();
    let variant = json!({"model": "llama2", "set": {}, "drop": [], "head": null});
    model(&variant, &from);
    rows(&variant, &data);
    let weights = from.join("model.safetensors");
    let plain = tensors(&weights);
    let (model_dir, data) = (from.to_string_lossy(), data.to_string_lossy());
    let args = ["eval", "--model", &*model_dir, "--data", &*data, "--device", "cpu"];
    let with = |more: &[&str]| {
        let more = more.iter().map(|name| ((*name).to_owned(), vec![1], vec![1.0]));
        write(&weights, &plain.iter().cloned().chain(more).collect::<Vec<_>>());
        let found = run(&args);
        assert!(found.status.success());
        String::from_utf8_lossy(&found.stderr).into_owned()
    };
    assert_eq!(with(&["model.layers.0.self_attn.rotary_emb.inv_freq"]), "");
    let said = with(&["model.layers.0.self_attn.q_norm.weight", "score.weight"]);
    assert!(
        said.contains("does not compute with 2 tensors, of which `model.layers.0.self_attn.q_norm.weight`")
    );
    let compiled: Vec<_> = plain
        .iter()
        .map(|(name, shape, x)| (format!("_orig_mod.{name}"), shape.clone(), x.clone()))
        .collect();
    write(&weights, &compiled);
    let said = fails(&args);
    assert!(said.contains("`model.embed_tokens.weight`: missing"), "{said}");
    assert!(said.contains("`_orig_mod.model.embed_tokens.weight` is to be renamed to it"), "{said}");
}

/// What headers tell is refused before the directory of the run is made.
#[test]
fn tensors_that_do_not_fit_the_configuration_leave_no_run() {
    let dir = tempfile::tempdir().unwrap();
    let (from, data, out) = (dir.path().join("model"), dir.path().join("rows.jsonl"), dir.path().join("out"));
    std::fs::create_dir(&from).unwrap();
    let variant = json!({"model": "qwen2", "set": {"num_key_value_heads": 1}, "drop": []});
    model(&variant, &from);
    rows(&variant, &data);
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let [model, data, to] = [&from, &data, &out].map(|path| text(path));
    let said = fails(&["train", "-q", "--model", &model, "--data", &data, "--out", &to]);
    let expected =
        "`model.layers.0.self_attn.k_proj.weight`: got shape [8, 16], expected [4, 16] by config.json";
    assert!(said.contains(expected) && said.matches("error: ").count() == 1, "{said}");
    assert!(!out.exists());
}

/// `tie_word_embeddings` with a stored head of other values: both are trained, each from its own values.
#[test]
fn another_head_under_tied_embeddings_is_trained_as_its_own_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let (from, data, out) = (dir.path().join("model"), dir.path().join("rows.jsonl"), dir.path().join("out"));
    std::fs::create_dir(&from).unwrap();
    let variant = json!({"model": "llama3", "set": {}, "drop": [], "head": "other"});
    model(&variant, &from);
    rows(&variant, &data);
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let (model_dir, data, out_dir) = (text(&from), text(&data), text(&out));
    let args = ["train", "--model", &model_dir, "--data", &data, "--out", &out_dir, "--ratio", "1.0"];
    ok(&[&args[..], &["--max-steps", "1", "--learning-rate", "1e-3", "--device", "cpu"]].concat());
    let (before, after) = (tensors(&from.join("model.safetensors")), tensors(&out.join("model.safetensors")));
    for ((name, _, before), (_, _, after)) in before.iter().zip(&after) {
        let moved = before.iter().zip(after).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
        assert!(moved > 0.0 && moved < 2e-3, "{name} moved by {moved}");
    }
    // `reset` cannot know which of the two counts.
    let reset = fails(&["reset", "--base", &model_dir, "--tuned", &out_dir, "--dry-run"]);
    assert!(reset.contains(HEAD) && reset.contains("tie_word_embeddings"), "{reset}");
}
