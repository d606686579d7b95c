//! Models `BASE+ADAPTER` of a recipe, against what PEFT makes of the adapters (`fixtures/lora/make_lora.py`).

use std::path::Path;

use super::{at_root, fixture, path, values};
use crate::common::read_tensors;

const BASE: &str = "fixtures/lora/base/untied";

fn run(dir: &Path, recipe: &str, flags: &[&str]) -> (Option<i32>, String) {
    let (file, out) = (dir.join("r.yml"), dir.join("out"));
    std::fs::write(&file, recipe).unwrap();
    let args = [&["merge", "--no-sync", "--force", path(&file), "--out", path(&out)], flags].concat();
    let output = at_root(&args).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// One model as `BASE+ADAPTER`, one as mergekit writes it with its parts.
fn recipe() -> String {
    format!(
        "merge_method: linear\nmodels:\n  - model: {BASE}+fixtures/lora/adapters/plain\n    parameters: {{weight: 0.25}}\n  - model: {{model: {{path: {BASE}}}, lora: {{path: fixtures/lora/adapters/rslora, revision: null}}}}\n    parameters: {{weight: 0.75}}\n"
    )
}

#[test]
fn adapters_of_a_recipe_are_merged_as_by_peft() {
    let dir = tempfile::tempdir().unwrap();
    let (code, stderr) = run(dir.path(), &recipe(), &[]);
    assert_eq!(code, Some(0), "{stderr}");
    let base = values(&fixture("lora/base/untied"));
    let of = |name: &str| {
        let mut all = base.clone();
        all.extend(values(&fixture(&format!("lora/adapters/{name}/merged.safetensors"))));
        all
    };
    let (plain, rslora) = (of("plain"), of("rslora"));
    let got = values(&dir.path().join("out"));
    assert!(got.keys().eq(base.keys()));
    let mut changed = 0;
    for (name, got) in &got {
        changed += usize::from(got != &base[name]);
        for (i, x) in got.iter().enumerate() {
            let expected = 0.25 * plain[name][i] + 0.75 * rslora[name][i];
            assert!((x - expected).abs() < 1e-5, "{name}: {x}, PEFT {expected}");
        }
    }
    assert!(changed > 0);
    // Nothing is left, and the provenance names what was given.
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "the recipe and the output: {left:?}");
    let record = std::fs::read_to_string(dir.path().join("out/hft_surgery.json")).unwrap();
    for given in
        ["fixtures/lora/adapters/plain", "fixtures/lora/adapters/rslora", "\"fixtures/lora/base/untied\""]
    {
        assert!(record.contains(given), "{given}: {record}");
    }
    assert!(!record.contains("hft-surgery-adapters"), "{record}");
}

/// As when the adapter is merged by a command of its own.
#[test]
fn an_adapted_model_is_that_of_two_commands() {
    let dir = tempfile::tempdir().unwrap();
    let folded = dir.path().join("folded");
    let adapter = "fixtures/lora/adapters/plain";
    let args = ["merge", "--base", BASE, "--lora", adapter, "--out", path(&folded)];
    assert!(at_root(&args).output().unwrap().status.success());
    let merged = |model: &str| {
        let out = dir.path().join("out");
        let model = format!("{model}:weight=1,density=0.5");
        let args = [
            "merge",
            "--method",
            "dare_ties",
            "--base",
            BASE,
            "--model",
            &model,
            "--force",
            "--out",
            path(&out),
        ];
        let output = at_root(&args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        read_tensors(&out)
    };
    assert!(merged(path(&folded)) == merged(&format!("{BASE}+{adapter}")));
}

#[test]
fn a_dry_run_checks_the_adapters_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for flag in ["--dry-run", "--explain"] {
        let (code, stderr) = run(dir.path(), &recipe(), &[flag]);
        assert_eq!(code, Some(0), "{stderr}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "{flag}");
        let (code, stderr) = run(dir.path(), &recipe().replace("adapters/plain", "adapters/conv1d"), &[flag]);
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains("fixtures/lora/adapters/conv1d"), "{stderr}");
        let (code, stderr) = run(dir.path(), &recipe().replace("adapters/plain", "adapters/plian"), &[flag]);
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains("fixtures/lora/adapters/plian"), "{stderr}");
    }
}

#[test]
fn an_output_that_may_not_be_written_is_refused_before_anything_is_computed() {
    let dir = tempfile::tempdir().unwrap();
    let (file, out) = (dir.path().join("r.yml"), dir.path().join("out"));
    std::fs::write(&file, recipe()).unwrap();
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("keep"), "").unwrap();
    for target in [path(&out), "fixtures/lora/adapters/plain", BASE] {
        let output = at_root(&["merge", path(&file), "--out", target]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{target}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

/// Of several adapters, each is merged into the result of those before it.
#[test]
fn several_adapters_are_those_of_several_commands() {
    let dir = tempfile::tempdir().unwrap();
    let adapters = ["fixtures/lora/adapters/plain", "fixtures/lora/adapters/rslora"];
    let mut base = BASE.to_owned();
    for (i, adapter) in adapters.iter().enumerate() {
        let out = dir.path().join(format!("by-hand-{i}"));
        let args = ["merge", "--base", &base, "--lora", adapter, "--out", path(&out)];
        assert!(at_root(&args).output().unwrap().status.success());
        base = path(&out).to_owned();
    }
    let recipe = |model: &str| {
        format!("merge_method: linear\nparameters: {{weight: 1}}\nmodels:\n  - model: {model}\n")
    };
    let list = format!("{{model: {BASE}, lora: [{}, {{path: {}}}]}}", adapters[0], adapters[1]);
    for model in [format!("{BASE}+{}", adapters.join("+")), list] {
        let (code, stderr) = run(dir.path(), &recipe(&model), &[]);
        assert_eq!(code, Some(0), "{stderr}");
        let (ours, by_hand) = (values(&dir.path().join("out")), values(Path::new(&base)));
        assert!(ours.keys().eq(by_hand.keys()));
        for (name, ours) in &ours {
            let near = ours.iter().zip(&by_hand[name]).all(|(a, b)| (a - b).abs() < 1e-6);
            assert!(near, "{name}");
        }
    }
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 4, "both by hand, the recipe and the output");
}

/// A revision of a model on this disk changes nothing, as in mergekit, and is named.
#[test]
fn a_revision_of_a_local_model_is_warned_about() {
    let dir = tempfile::tempdir().unwrap();
    for model in [format!("{BASE}@main"), format!("{{model: {{path: {BASE}, revision: main}}}}")] {
        let recipe = format!("merge_method: passthrough\nmodels:\n  - model: {model}\n");
        let (code, stderr) = run(dir.path(), &recipe, &[]);
        assert_eq!(code, Some(0), "{stderr}");
        assert!(stderr.contains("its revision `main` changes nothing"), "{stderr}");
        assert!(read_tensors(&dir.path().join("out")) == read_tensors(&fixture("lora/base/untied")));
    }
}
