//! Adapters: several into a base, several into one, out of a fine-tune, and beside a model; against PEFT and PyTorch
//! (`fixtures/lora/make_combine.py`, `make_spectra.py`).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

#[path = "adapters/beside_a_model.rs"]
mod beside_a_model;
#[path = "adapters/combined.rs"]
mod combined;
mod common;
#[path = "adapters/extracted.rs"]
mod extracted;
#[path = "adapters/several.rs"]
mod several;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{Tensor, fixture, tensor, write_file};
use serde_json::Value;

fn adapter(name: &str) -> PathBuf {
    fixture("lora/adapters").join(name)
}

/// The values of a tensor with its shape.
type Values = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn values(file: &Path) -> Values {
    let bytes = std::fs::read(file).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let floats = |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    all.tensors()
        .into_iter()
        .map(|(name, view)| (name, (view.shape().to_vec(), floats(view.data()))))
        .collect()
}

/// The metadata of a golden file.
fn golden(file: &Path) -> Value {
    let bytes = std::fs::read(file).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    serde_json::from_str(&header.metadata().as_ref().unwrap()["golden"]).unwrap()
}

fn json(file: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn assert_near(name: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{name}");
    let most = got.iter().zip(expected).fold(0f32, |most, (g, e)| most.max((g - e).abs()));
    assert!(most < 1e-5, "{name}: {most}");
}

/// A copy of a fixture's adapter with another configuration and other tensors.
fn changed_adapter(
    dir: &Path,
    from: &str,
    config: impl Fn(&mut Value),
    change: impl Fn(&mut Vec<Tensor>),
) -> PathBuf {
    let to = dir.join(format!("changed-{from}"));
    std::fs::create_dir_all(&to).unwrap();
    let mut value = json(&adapter(from).join("adapter_config.json"));
    config(&mut value);
    std::fs::write(to.join("adapter_config.json"), value.to_string()).unwrap();
    let mut tensors: Vec<Tensor> = values(&adapter(from).join("adapter_model.safetensors"))
        .into_iter()
        .map(|(name, (shape, values))| {
            let shape: Vec<u64> = shape.iter().map(|n| *n as u64).collect();
            tensor(&name, "F32", &shape, values.iter().flat_map(|x| x.to_le_bytes()).collect())
        })
        .collect();
    change(&mut tensors);
    write_file(&to.join("adapter_model.safetensors"), &tensors, r#"{"format":"pt"}"#);
    to
}
