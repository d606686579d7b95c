//! `plan export` and `--write-model-card`: what other tools read.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{fails, fixture, ok, path, run};
use fancy_regex::Regex;
use serde_json::Value;

fn export(plan: &std::path::Path, trainer: &str) -> Value {
    serde_saphyr::from_str(&ok(&["plan", "export", path(plan), "--for", trainer])).unwrap()
}

fn names(plan: &Value, list: &str) -> Vec<String> {
    plan[list].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
}

fn drawn(dir: &std::path::Path, more: &[&str]) -> (std::path::PathBuf, Value) {
    let file = dir.join("plan.json");
    let base = fixture("base");
    let args = ["plan", path(&base), "--out", path(&file), "--force"];
    ok(&[&args[..], more].concat());
    let plan = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    (file, plan)
}

/// axolotl makes literal points of all points, ms-swift searches: both must find the trainable names and no other.
#[test]
fn patterns_match_the_trainable_names_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    for round in ["0", "1", "2", "3"] {
        let (file, plan) =
            drawn(dir.path(), &["--round", round, "--strategy", "random-tensor", "--norms", "select"]);
        let axolotl = export(&file, "axolotl");
        let patterns: Vec<Regex> = names(&axolotl, "unfrozen_parameters")
            .iter()
            .map(|pattern| Regex::new(&pattern.replace('.', r"\.")).unwrap())
            .collect();
        let swift = export(&file, "ms-swift");
        let regex = export(&file, "regex");
        let of = |value: &Value, key: &str| Regex::new(value[key].as_str().unwrap()).unwrap();
        let (trains, freezes) = (of(&swift, "trainable_parameters_regex"), of(&regex, "frozen_regex"));
        let hits = |regex: &Regex, name: &str| regex.is_match(name).unwrap();
        for (list, on) in [("trainable", true), ("frozen", false)] {
            for name in names(&plan, list) {
                assert_eq!(patterns.iter().any(|pattern| hits(pattern, &name)), on, "axolotl: {name}");
                assert_eq!(hits(&trains, &name), on, "ms-swift: {name}");
                assert_eq!(hits(&freezes, &name), !on, "regex: {name}");
                // Nothing longer is taken for it.
                for other in [format!("x.{name}"), format!("{name}.x"), name.replace(".weight", "_weight")] {
                    assert!(!hits(&trains, &other) && !patterns.iter().any(|p| hits(p, &other)), "{other}");
                }
            }
        }
    }
}

#[test]
fn llama_factory_takes_whole_modules_only() {
    let dir = tempfile::tempdir().unwrap();
    let (file, _) = drawn(dir.path(), &[]);
    let message = fails(&["plan", "export", path(&file), "--for", "llama-factory"]);
    assert!(message.contains("LLaMA-Factory freezes whole modules"), "{message}");
    let attention =
        ["--strategy", "explicit", "--train", "*.layers.[45].self_attn.*", "--train", "lm_head.weight"];
    let (file, _) = drawn(dir.path(), &attention);
    let terms = export(&file, "llama-factory");
    let expected = serde_json::json!({"finetuning_type": "freeze", "freeze_trainable_layers": 2,
        "freeze_trainable_modules": "self_attn", "freeze_extra_modules": "lm_head"});
    assert_eq!(terms, expected);
}

#[test]
fn what_cannot_be_exported_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (file, _) = drawn(dir.path(), &["--granularity", "row"]);
    let message = fails(&["plan", "export", path(&file), "--for", "axolotl"]);
    assert!(message.contains("a row or element mask cannot be exported"), "{message}");
    let (file, _) = drawn(dir.path(), &["--strategy", "explicit", "--freeze", "*"]);
    assert!(fails(&["plan", "export", path(&file), "--for", "regex"]).contains("no tensor is trainable"));
    let experts = dir.path().join("experts.json");
    let plan = r#"{"format": "hft-surgery/plan", "version": 1, "trainable": ["model.layers.0.mlp.experts.3.up_proj.weight"], "frozen": []}"#;
    std::fs::write(&experts, plan).unwrap();
    let output = run(&["plan", "export", path(&experts), "--for", "regex"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && stderr.contains("stacks experts"), "{stderr}");
    let message = fails(&["plan", "export", path(&experts), "--for", "torchtune"]);
    assert!(
        message.contains("`model.layers.0.mlp.experts.3.up_proj.weight`: no name in torchtune"),
        "{message}"
    );
    // The plan itself is no place to write to.
    let message =
        fails(&["plan", "export", path(&experts), "--for", "regex", "--out", path(&experts), "--force"]);
    assert_eq!(std::fs::read_to_string(&experts).unwrap(), plan, "{message}");
}

fn front_matter(directory: &std::path::Path) -> (Value, String) {
    let card = std::fs::read_to_string(directory.join("README.md")).unwrap();
    let yaml = card.strip_prefix("---\n").unwrap().split("\n---\n").next().unwrap();
    (serde_saphyr::from_str(yaml).unwrap(), card.clone())
}

/// A checkpoint in the layout of the Hugging Face cache, with a model card.
fn cached(dir: &std::path::Path, licence: &str) -> std::path::PathBuf {
    let snapshot = dir.join("models--org--base-7b/snapshots/0123abc");
    std::fs::create_dir_all(&snapshot).unwrap();
    for entry in std::fs::read_dir(fixture("base")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), snapshot.join(entry.file_name())).unwrap();
    }
    let card = format!("---\nlicense: {licence}\nlanguage:\n- en\n---\n# Base\n");
    std::fs::write(snapshot.join("README.md"), card).unwrap();
    snapshot
}

#[test]
fn a_reset_has_a_card_with_its_base_and_licence() {
    let dir = tempfile::tempdir().unwrap();
    let base = cached(dir.path(), "apache-2.0");
    let out = dir.path().join("out");
    let tuned = fixture("tuned");
    let sides = ["reset", "--base", path(&base), "--tuned", path(&tuned)];
    ok(&[&sides[..], &["--out", path(&out), "--write-model-card", "--seed", "3"]].concat());
    let (yaml, card) = front_matter(&out);
    assert_eq!(yaml["base_model"], serde_json::json!(["org/base-7b"]));
    assert_eq!(yaml["base_model_relation"], "finetune");
    assert_eq!(yaml["license"], "apache-2.0");
    assert_eq!(yaml["language"], serde_json::json!(["en"]));
    assert!(card.contains("| plan: seed | 3 |") && card.contains("hft-surgery diff org/base-7b"), "{card}");
    assert!(!card.contains(path(dir.path())), "{card}");
    // Without the option there is no card: that of a base describes the base.
    let plain = dir.path().join("plain");
    ok(&[&sides[..], &["--out", path(&plain)]].concat());
    assert!(!plain.join("README.md").exists());
}

#[test]
fn a_merge_and_a_training_run_have_cards() {
    let dir = tempfile::tempdir().unwrap();
    let merged = dir.path().join("merged");
    ok(&["merge", path(&fixture("merge/recipes/ties.yml")), "--out", path(&merged), "--write-model-card"]);
    let (yaml, card) = front_matter(&merged);
    assert_eq!(yaml["base_model_relation"], "merge");
    assert!(yaml.get("base_model").is_none() && card.contains("merge_method: ties"), "{card}");
    let rows = dir.path().join("rows.jsonl");
    std::fs::write(&rows, "{\"prompt\": \"a\", \"completion\": \" b\"}\n").unwrap();
    let run = dir.path().join("run");
    let base = fixture("base");
    let args =
        ["train", "--model", path(&base), "--data", path(&rows), "--out", path(&run), "--max-steps", "1"];
    ok(&[&args[..], &["--rounds", "2", "--write-model-card"]].concat());
    let (yaml, card) = front_matter(&run);
    assert_eq!(yaml["tags"], serde_json::json!(["half-fine-tuning", "hft", "sft", "hft-surgery"]));
    assert!(card.contains("rounds/1/delta.hftpatch --out after-1"), "{card}");
}
