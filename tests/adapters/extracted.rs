//! `lora extract`: errors against the singular values that PyTorch finds, ranks by energy and by threshold, and what
//! becomes of embeddings and norms.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::{json, values};
use crate::common::{fails, fixture, ok, path, run, tensor, write_checkpoint};

fn spectra() -> BTreeMap<String, Vec<f64>> {
    serde_json::from_value(json(&fixture("lora/spectra.json"))).unwrap()
}

fn squares(sigma: &[f64]) -> f64 {
    sigma.iter().map(|x| x * x).sum()
}

fn extract(out: &Path, more: &[&str]) -> Value {
    let (base, tuned) = (fixture("merge/base"), fixture("merge/a"));
    let args = ["lora", "extract", path(&base), path(&tuned), "--out", path(out), "--force", "--json"];
    serde_json::from_str(&ok(&[&args, more].concat())).unwrap()
}

fn modules(found: &Value) -> Vec<(String, usize, f64, f64)> {
    let read = |module: &Value| {
        (
            module["name"].as_str().unwrap().to_owned(),
            module["rank"].as_u64().unwrap() as usize,
            module["relative_error"].as_f64().unwrap(),
            module["energy"].as_f64().unwrap(),
        )
    };
    found["modules"].as_array().unwrap().iter().map(read).collect()
}

/// Eckart and Young: no factors of the rank lose less than the smallest singular values; ours lose as much.
#[test]
fn errors_are_the_best_of_their_rank() {
    let dir = tempfile::tempdir().unwrap();
    let spectra = spectra();
    for rank in [1usize, 3, 4, 8] {
        let rank_text = rank.to_string();
        let found = extract(&dir.path().join("out"), &["--rank", &rank_text, "--embeddings", "lora"]);
        let modules = modules(&found);
        assert_eq!(modules.len(), spectra.len());
        for (name, got, error, energy) in modules {
            let sigma = &spectra[&name];
            let kept = rank.min(sigma.len());
            let best = (squares(&sigma[kept..]) / squares(sigma)).sqrt();
            assert_eq!(got, kept, "{name}");
            assert!((error - best).abs() <= 0.01 * best + 1e-5, "{name}: {error}, best {best}");
            assert!((energy - (1.0 - best * best)).abs() < 1e-4, "{name}: {energy}");
        }
    }
}

#[test]
fn energy_and_threshold_choose_the_rank_of_each_module() {
    let dir = tempfile::tempdir().unwrap();
    let (out, spectra) = (dir.path().join("out"), spectra());
    let by_energy = |sigma: &[f64], share: f64| {
        (1..=sigma.len()).find(|r| squares(&sigma[..*r]) >= share * squares(sigma)).unwrap()
    };
    let found = extract(&out, &["--energy", "0.8"]);
    let mut ranks = Vec::new();
    for (name, rank, ..) in modules(&found) {
        assert_eq!(rank, by_energy(&spectra[&name], 0.8), "{name}");
        ranks.push(rank);
    }
    let config = json(&out.join("adapter_config.json"));
    let most = *ranks.iter().max().unwrap();
    assert_eq!(config["r"], most);
    let others = ranks.iter().filter(|rank| **rank != most).count();
    assert!(others > 0, "{ranks:?}");
    assert_eq!(config["rank_pattern"].as_object().unwrap().len(), others);
    assert_eq!(config["rank_pattern"], config["alpha_pattern"]);
    for (name, rank, ..) in modules(&extract(&out, &["--energy", "0.8", "--max-rank", "3"])) {
        assert_eq!(rank, by_energy(&spectra[&name], 0.8).min(3), "{name}");
    }
    for (name, rank, ..) in modules(&extract(&out, &["--threshold", "1.6"])) {
        assert_eq!(rank, spectra[&name].iter().filter(|x| **x > 1.6).count(), "{name}");
    }
    // What is extracted by energy is read again, and gives the error that was said.
    let found = extract(&out, &["--energy", "0.999", "--embeddings", "lora"]);
    let merged = dir.path().join("merged");
    let base = fixture("merge/base");
    ok(&["merge", "--base", path(&base), "--lora", path(&out), "--out", path(&merged)]);
    let (mut lost, mut all) = (0.0, 0.0);
    for (name, (_, got)) in values(&merged.join("model.safetensors")) {
        let of = |dir: &str| values(&fixture(dir).join("model.safetensors"))[&name].1.clone();
        for ((got, base), tuned) in got.iter().zip(of("merge/base")).zip(of("merge/a")) {
            lost += f64::from(got - tuned).powi(2);
            all += f64::from(tuned - base).powi(2);
        }
    }
    let said = found["total"]["relative_error"].as_f64().unwrap();
    let l2 = found["total"]["l2"].as_f64().unwrap();
    assert!(((lost / all).sqrt() - said).abs() < 1e-6, "{said} {lost} {all}");
    assert!((all.sqrt() - l2).abs() < 1e-4 * l2, "{l2} {all}");
}

#[test]
fn what_is_left_out_is_said_with_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let more = ["--rank", "4", "--embeddings", "skip", "--norms", "skip", "--exclude", "*.0.mlp.*"];
    let found = extract(&out, &more);
    let left_out: BTreeMap<String, (u64, String)> = found["left_out"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| {
            (
                t["name"].as_str().unwrap().to_owned(),
                (t["bytes"].as_u64().unwrap(), t["why"].as_str().unwrap().to_owned()),
            )
        })
        .collect();
    let tuned = values(&fixture("merge/a/model.safetensors"));
    assert_eq!(left_out.len() + modules(&found).len(), tuned.len());
    for (name, (bytes, why)) in &left_out {
        assert_eq!(*bytes, tuned[name].1.len() as u64 * 4, "{name}");
        let expected = if name.contains("norm") {
            "a norm, a bias"
        } else if name.contains("mlp") {
            "not chosen"
        } else {
            "an embedding or head"
        };
        assert!(why.contains(expected), "{name}: {why}");
    }
    assert_eq!(found["saved"].as_array().unwrap().len(), 0);
    let only = extract(&out, &["--rank", "4", "--include", "*q_proj*"]);
    assert!(modules(&only).iter().all(|(name, ..)| name.contains("q_proj")) && !modules(&only).is_empty());
    let (base, tuned) = (fixture("merge/base"), fixture("merge/a"));
    let refused = |more: &[&str]| {
        let none = dir.path().join("none");
        let args = ["lora", "extract", path(&base), path(&tuned), "--out", path(&none)];
        let stderr = fails(&[&args, more].concat());
        assert!(!none.exists());
        stderr
    };
    assert!(
        refused(&["--rank", "4", "--include", "*q_porj*"]).contains("--include `*q_porj*` matches no tensor")
    );
    assert!(refused(&["--energy", "1.5"]).contains("--energy: got 1.5"));
    assert!(refused(&["--threshold", "-1"]).contains("--threshold"));
    let nothing = refused(&["--threshold", "1e9", "--embeddings", "skip", "--norms", "skip"]);
    assert!(nothing.contains("nothing of what differs would be in the adapter"), "{nothing}");
    assert!(refused(&[]).contains("--rank"));
}

/// Rows that the tune added to its embedding: saved whole, and said.
#[test]
fn a_resized_vocabulary_is_saved_whole_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let floats =
        |n: usize, by: f32| (0..n).flat_map(|i| (i as f32 * by).sin().to_le_bytes()).collect::<Vec<u8>>();
    for (name, rows, by) in [("base", 10u64, 0.3), ("tuned", 12, 0.4)] {
        let tensors = [
            tensor("model.embed_tokens.weight", "F32", &[rows, 4], floats(rows as usize * 4, by)),
            tensor("model.layers.0.self_attn.q_proj.weight", "F32", &[6, 4], floats(24, by)),
            tensor("lm_head.weight", "F32", &[rows, 4], floats(rows as usize * 4, by)),
        ];
        write_checkpoint(
            &dir.join(name),
            &tensors,
            1,
            r#"{"architectures":["X"],"tie_word_embeddings":false}"#,
        );
    }
    for embeddings in ["save", "lora"] {
        let (base, tuned, out) = (dir.join("base"), dir.join("tuned"), dir.join(embeddings));
        let output = run(&[
            "lora",
            "extract",
            path(&base),
            path(&tuned),
            "--rank",
            "2",
            "--embeddings",
            embeddings,
            "--out",
            path(&out),
        ]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert!(
            stderr.contains("has another number of rows than in the base, and is saved whole"),
            "{stderr}"
        );
        let config = json(&out.join("adapter_config.json"));
        assert_eq!(config["modules_to_save"], serde_json::json!(["lm_head", "model.embed_tokens"]));
        let saved = values(&out.join("adapter_model.safetensors"));
        assert_eq!(saved["base_model.model.model.embed_tokens.weight"].0, [12, 4]);
    }
}
