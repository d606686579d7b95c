//! `merge` against mergekit's own output, the laws of merging, and refusals.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "merge/adapted.rs"]
mod adapted;
#[path = "merge/architectures.rs"]
mod architectures;
mod common;
#[path = "merge/composites.rs"]
mod composites;
#[path = "merge/drop_in.rs"]
mod drop_in;
#[path = "merge/laws.rs"]
mod laws;
#[path = "merge/properties.rs"]
mod properties;
#[path = "merge/refused.rs"]
mod refused;
#[path = "merge/stages.rs"]
mod stages;
#[path = "merge/statistics.rs"]
mod statistics;
#[path = "merge/tied_head.rs"]
mod tied_head;
#[path = "merge/union.rs"]
mod union;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{fixture, hft, path, read_tensors};

/// The values of every tensor of a directory or file.
fn values(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let floats = |bytes: &Vec<u8>| bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    if path.is_dir() {
        return read_tensors(path).iter().map(|(k, v)| (k.clone(), floats(v))).collect();
    }
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(name, view)| (name, floats(&view.data().to_vec()))).collect()
}

/// The command, run from the root of the repository: recipes name models from there.
fn at_root(args: &[&str]) -> Command {
    let mut command = hft(args);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

/// Merges and expects success.
fn merge(args: &[&str], out: &Path) {
    let all = [&["merge", "--no-sync", "--force", "--out", path(out)], args].concat();
    let output = at_root(&all).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn recipes() -> Vec<PathBuf> {
    let dir = std::fs::read_dir(fixture("merge/recipes")).unwrap();
    let mut all: Vec<PathBuf> = dir.map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

/// fixtures/merge/make_merge.py made the golden outputs with mergekit 0.1.5, in f32.
#[test]
fn every_deterministic_method_is_mergekits() {
    let dir = tempfile::tempdir().unwrap();
    let mut worst = Vec::new();
    for recipe in recipes() {
        let name = recipe.file_stem().unwrap().to_str().unwrap().to_owned();
        let out = dir.path().join(&name);
        merge(&[path(&recipe)], &out);
        let (ours, theirs) = (values(&out), values(&fixture(&format!("merge/golden/{name}.safetensors"))));
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{name}");
        for (tensor, theirs) in &theirs {
            let ours = &ours[tensor];
            assert_eq!(ours.len(), theirs.len(), "{name} {tensor}");
            let largest = theirs.iter().fold(0f32, |m, x| m.max(x.abs())).max(1e-30);
            let most = ours.iter().zip(theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            if most > 1e-6 * largest {
                worst.push(format!("{name} {tensor}: {most} of {largest}"));
            }
        }
    }
    assert!(worst.is_empty(), "{} tensors differ:\n{}", worst.len(), worst.join("\n"));
}

/// `num_hidden_layers` follows the slices.
#[test]
fn stacked_layers_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    merge(&["fixtures/merge/recipes/slices_passthrough.yml"], &out);
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["num_hidden_layers"], 4);
    let a = read_tensors(&fixture("merge/a"));
    let b = read_tensors(&fixture("merge/b"));
    let merged = read_tensors(&out);
    let of = |i: u32| format!("model.layers.{i}.self_attn.q_proj.weight");
    assert_eq!(merged[&of(1)], a[&of(1)]);
    assert_eq!(merged[&of(3)], b[&of(2)]);
}
