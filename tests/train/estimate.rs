//! `train --estimate` and `train --profile` as a command.

use serde_json::Value;

use super::Lab;
use crate::common::{fails, ok};

fn args(lab: &Lab, more: &[&str]) -> Vec<String> {
    // As `Lab::args`, without what a run is written to.
    let mut args = lab.args("llama3", "out", more);
    let out = args.iter().position(|word| word == "--out").unwrap();
    args.drain(out..out + 2);
    args
}

fn json(lab: &Lab, more: &[&str]) -> Value {
    let args = args(lab, &[more, &["--json"]].concat());
    serde_json::from_str(&ok(&args.iter().map(String::as_str).collect::<Vec<_>>())).unwrap()
}

fn files(lab: &Lab) -> Vec<String> {
    let entries = std::fs::read_dir(lab.dir.path()).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn an_estimate_adds_up_and_writes_nothing() {
    let lab = Lab::new();
    let found = json(&lab, &["--estimate", "--epochs", "2", "--ratio", "0.5"]);
    assert_eq!(files(&lab), ["llama3", "rows.jsonl"]);
    let runs = found["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2, "{found}");
    assert_eq!((&runs[0]["name"], &runs[1]["name"]), (&"full".into(), &"this plan".into()));
    for run in runs {
        // 20 rows in micro-batches of two, twice.
        assert_eq!(run["steps"], 20, "{run}");
        let number = |name: &str| run[name].as_f64().unwrap();
        let parts = run["seconds_per_step"].as_object().unwrap();
        let sum: f64 = parts.values().map(|seconds| seconds.as_f64().unwrap()).sum();
        assert!((sum - number("step_seconds")).abs() < 1e-9 * sum, "{run}");
        assert!((number("seconds") - 20.0 * sum).abs() < 1e-6 * sum, "{run}");
        for part in ["forward", "gradients_of_activations", "gradients_of_weights", "optimizer"] {
            assert!(parts[part].as_f64().unwrap() > 0.0, "{part}: {run}");
        }
        assert!(number("memory_bytes") > 0.0);
    }
    let trainable = |run: &Value| run["trainable_parameters"].as_u64().unwrap();
    assert_eq!(trainable(&runs[0]), runs[0]["parameters"].as_u64().unwrap());
    assert!(trainable(&runs[1]) < trainable(&runs[0]));
    assert!(runs[1]["memory_bytes"].as_u64() < runs[0]["memory_bytes"].as_u64());
}

/// The memory of the options that were chosen, by part.
#[test]
fn an_estimate_tells_the_memory_of_the_optimizer() {
    let lab = Lab::new();
    let memory = |more: &[&str]| -> Value {
        let found = json(&lab, &[&["--estimate", "--ratio", "1"], more].concat());
        found["runs"][0]["memory"].clone()
    };
    let usual = memory(&[]);
    let each = &usual["bytes_per_trained_parameter"];
    assert_eq!((&each["weights"], &each["moments"]), (&4.0.into(), &8.0.into()), "{usual}");
    let little = ["--optimizer", "sgd", "--optimizer-in-backward", "--max-grad-norm", "0"];
    let little = memory(&little);
    assert_eq!(little["moments"], 0, "{little}");
    let gradients = |memory: &Value| memory["gradients"].as_u64().unwrap();
    assert!(gradients(&little) * 2 < gradients(&usual) && gradients(&little) > 0, "{little} {usual}");
}

/// One run where the plan trains everything; the objective is that of the run.
#[test]
fn a_full_run_is_measured_once() {
    let lab = Lab::new();
    let found = json(&lab, &["--estimate", "--ratio", "1", "--label-smoothing", "0.1"]);
    assert_eq!(found["runs"].as_array().unwrap().len(), 1, "{found}");
    assert_eq!(found["saved_share"], Value::Null);
}

/// Each product of a block forward, and twice backward.
#[test]
fn a_profile_names_every_product() {
    let lab = Lab::new();
    let found = json(&lab, &["--profile", "--ratio", "1"]);
    assert_eq!(files(&lab), ["llama3", "rows.jsonl"]);
    let operations = found["operations"].as_array().unwrap();
    let micro_batches = found["micro_batches"].as_u64().unwrap();
    let calls = |part: &str, name: &str| -> u64 {
        let of = |operation: &&Value| {
            operation["part"] == part && operation["operation"].as_str().unwrap().starts_with(name)
        };
        operations.iter().filter(of).map(|operation| operation["calls"].as_u64().unwrap()).sum()
    };
    // Three blocks of seven matrices.
    for part in ["forward", "gradients of activations", "gradients of weights"] {
        assert_eq!(calls(part, "product"), 21 * micro_batches, "{part}: {found}");
    }
    assert_eq!(calls("optimizer", "adamw"), micro_batches);
    assert_eq!(calls("head", "products and cross-entropy"), micro_batches);
    assert!(calls("forward", "product gate_proj, up_proj [28, 16]") > 0, "{found}");
    let seconds: f64 = operations.iter().map(|operation| operation["seconds"].as_f64().unwrap()).sum();
    assert!(seconds <= found["seconds"].as_f64().unwrap());
}

#[test]
fn what_is_only_measured_is_not_resumed_or_shown() {
    let lab = Lab::new();
    for more in
        [&["--estimate", "--resume"][..], &["--estimate", "--profile"], &["--profile", "--preview", "1"]]
    {
        let args = args(&lab, more);
        let said = fails(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(said.contains("cannot be used with"), "{more:?}: {said}");
    }
}
