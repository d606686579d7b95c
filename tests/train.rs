//! `train` and `eval` as commands, on the tiny models of `fixtures/llama`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "train/compute_dtype.rs"]
mod compute_dtype;
#[path = "train/config_variants.rs"]
mod config_variants;
#[path = "train/continual.rs"]
mod continual;
#[path = "train/estimate.rs"]
mod estimate;
#[path = "train/frozen_dtype.rs"]
mod frozen_dtype;
#[path = "train/offload.rs"]
mod offload;
#[path = "train/optimizers.rs"]
mod optimizers;
#[path = "train/preference.rs"]
mod preference;
#[path = "train/run_dir.rs"]
mod run_dir;
#[path = "train/towers.rs"]
mod towers;

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{fails, fixture, hft, ok, run};
use serde_json::{Value, json};

/// Rows of random ids, which need no tokenizer.
fn rows(path: &Path, n: usize) {
    let mut state = 7u64;
    let mut next = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let row = |next: &mut dyn FnMut(u64) -> u64| {
        let len = 4 + next(12) as usize;
        let ids: Vec<u64> = (0..len).map(|_| next(48)).collect();
        json!({ "input_ids": ids }).to_string()
    };
    let lines: Vec<String> = (0..n).map(|_| row(&mut next)).collect();
    std::fs::write(path, lines.join("\n")).unwrap();
}

struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let lab = Self { dir: tempfile::tempdir().unwrap() };
        rows(&lab.path("rows.jsonl"), 20);
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn args(&self, family: &str, out: &str, more: &[&str]) -> Vec<String> {
        let model = fixture("llama").join(family).join("model.safetensors");
        // A directory with nothing but the model, as the fixture also holds what PyTorch says of it.
        let dir = self.path(family);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::copy(&model, dir.join("model.safetensors")).unwrap();
        std::fs::copy(model.with_file_name("config.json"), dir.join("config.json")).unwrap();
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let mut args = vec!["--quiet".into(), "train".into(), "--model".into(), text(dir), "--data".into()];
        args.extend([text(self.path("rows.jsonl")), "--out".into(), text(self.path(out))]);
        args.extend(["--batch-size", "2", "--learning-rate", "1e-2", "--device", "cpu"].map(str::to_owned));
        args.extend(more.iter().map(|s| (*s).to_owned()));
        args
    }

    fn train(&self, family: &str, out: &str, more: &[&str]) -> String {
        let args = self.args(family, out, more);
        ok(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn refused(&self, family: &str, out: &str, more: &[&str]) -> String {
        let args = self.args(family, out, more);
        fails(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn weights(&self, out: &str) -> Vec<u8> {
        std::fs::read(self.path(out).join("model.safetensors")).unwrap()
    }

    fn log(&self, out: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(out).join("train_log.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }
}

#[test]
fn half_training_moves_what_the_plan_trains_and_nothing_else() {
    let lab = Lab::new();
    lab.train("llama2", "out", &["--max-steps", "3", "--ratio", "0.5"]);
    let plan = lab.text("out/rounds/0/plan.json");
    let proof = run(&["diff", &lab.text("llama2"), &lab.text("out"), "--plan", &plan]);
    assert_eq!(proof.status.code(), Some(0), "{}", String::from_utf8_lossy(&proof.stdout));
    let log = lab.log("out");
    assert_eq!(log.len(), 3);
    for (i, line) in log.iter().enumerate() {
        assert_eq!((line["step"].as_u64(), line["round"].as_u64()), (Some(i as u64 + 1), Some(0)));
        for key in ["loss", "grad_norm", "learning_rate", "tokens", "tokens_per_second", "epoch"] {
            assert!(line[key].as_f64().unwrap() > 0.0, "{key}: {line}");
        }
    }
    for name in ["config.json", "hft_surgery.json", "loss.svg", "rounds/0/delta.hftpatch"] {
        assert!(lab.path("out").join(name).is_file(), "{name}");
    }
    assert!(!lab.path("out/state").exists(), "a finished run needs no state");
    // The delta is a patch from the model to the result.
    let delta = lab.text("out/rounds/0/delta.hftpatch");
    ok(&["patch", "apply", &lab.text("llama2"), &delta, "--out", &lab.text("again")]);
    assert_eq!(lab.weights("again"), lab.weights("out"));
}

#[test]
fn the_loss_falls_on_what_is_learnt() {
    let lab = Lab::new();
    lab.train("qwen3", "out", &["--epochs", "12", "--ratio", "1.0", "--packing", "--max-length", "32"]);
    let log = lab.log("out");
    let (first, last) = (log[0]["loss"].as_f64().unwrap(), log[log.len() - 1]["loss"].as_f64().unwrap());
    assert!(last < 0.8 * first, "{first} to {last}");
    let eval = |model: &str| -> f64 {
        let found = ok(&[
            "eval",
            "--model",
            &lab.text(model),
            "--data",
            &lab.text("rows.jsonl"),
            "--json",
            "--device",
            "cpu",
        ]);
        let found: Value = serde_json::from_str(&found).unwrap();
        let loss = found["loss"].as_f64().unwrap();
        assert!((found["perplexity"].as_f64().unwrap().ln() - loss).abs() < 1e-9);
        assert_eq!(found["rows"], 20);
        loss
    };
    assert!(eval("out") < 0.8 * eval("qwen3"));
}

#[test]
fn the_bits_do_not_depend_on_threads_recomputation_or_repetition() {
    let lab = Lab::new();
    let base = ["--max-steps", "4", "--gradient-accumulation-steps", "2"];
    let with = |more: &[&'static str]| [&base[..], more].concat();
    lab.train("llama3", "a", &with(&[]));
    lab.train("llama3", "b", &with(&["--threads", "1"]));
    lab.train("llama3", "c", &with(&["--threads", "3", "--recompute", "block"]));
    lab.train("llama3", "d", &with(&["--recompute", "none"]));
    for other in ["b", "c", "d"] {
        assert_eq!(lab.weights("a"), lab.weights(other), "{other}");
    }
}

#[test]
fn a_killed_run_resumes_to_the_same_bits() {
    let lab = Lab::new();
    let more = [
        "--max-steps",
        "60",
        "--rounds",
        "2",
        "--save-steps",
        "7",
        "--ratio",
        "0.5",
        "--granularity",
        "element",
    ];
    lab.train("mistral", "whole", &more);
    let args = lab.args("mistral", "killed", &more);
    let mut kills = 0;
    for attempt in 0.. {
        let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
        if attempt > 0 {
            args.push("--resume");
        }
        let before = lab.log("killed").len();
        let mut child = hft(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let start = Instant::now();
        let ended = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            let text = std::fs::read_to_string(lab.path("killed/train_log.jsonl")).unwrap_or_default();
            // Past the next saved state, so that something is saved and something is lost.
            if kills < 4 && text.lines().count() > before / 7 * 7 + 16 {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            assert!(start.elapsed() < Duration::from_secs(120), "stuck");
            std::thread::sleep(Duration::from_micros(300));
        };
        match ended {
            Some(status) => {
                assert!(status.success());
                break;
            }
            None => kills += 1,
        }
    }
    assert!(kills >= 2, "only {kills} kills: the test tests little");
    assert_eq!(lab.weights("killed"), lab.weights("whole"));
    let strip = |mut lines: Vec<Value>| {
        lines.iter_mut().for_each(|line| line["tokens_per_second"] = Value::Null);
        lines
    };
    assert_eq!(strip(lab.log("killed")), strip(lab.log("whole")));
}

#[test]
fn rounds_draw_anew_and_go_on_from_each_other() {
    let lab = Lab::new();
    lab.train("qwen2", "out", &["--rounds", "3", "--max-steps", "2", "--seed", "5"]);
    let plan = |round: u32| std::fs::read(lab.path(&format!("out/rounds/{round}/plan.json"))).unwrap();
    assert!(plan(0) != plan(1) && plan(1) != plan(2));
    let rounds: Vec<u64> = lab.log("out").iter().map(|line| line["round"].as_u64().unwrap()).collect();
    assert_eq!(rounds, [0, 0, 1, 1, 2, 2]);
    // Each delta goes on from the checkpoint before it, and the last one ends at the result.
    let mut from = lab.text("qwen2");
    for round in 0..3 {
        let (delta, out) =
            (lab.text(&format!("out/rounds/{round}/delta.hftpatch")), lab.text(&format!("r{round}")));
        ok(&["patch", "apply", &from, &delta, "--out", &out]);
        let plan = lab.text(&format!("out/rounds/{round}/plan.json"));
        let proof = run(&["diff", &from, &out, "--plan", &plan]);
        assert_eq!(proof.status.code(), Some(0), "{}", String::from_utf8_lossy(&proof.stdout));
        from = out;
    }
    assert_eq!(lab.weights("r2"), lab.weights("out"));
}

#[test]
fn wrong_input_is_named_and_nothing_is_written() {
    let lab = Lab::new();
    let bad = |text: &str, words: &[&str]| {
        let rows = lab.path("bad.jsonl");
        std::fs::write(&rows, text).unwrap();
        let model = lab.text("llama2");
        let error =
            fails(&["train", "--model", &model, "--data", &lab.text("bad.jsonl"), "--out", &lab.text("no")]);
        words.iter().for_each(|word| assert!(error.contains(word), "{word} in {error}"));
        assert!(!lab.path("no").exists());
    };
    lab.train("llama2", "out", &["--max-steps", "1"]);
    bad("{\"input_ids\": [1, 2]}\n{oops\n", &["bad.jsonl:2"]);
    bad("{\"input_ids\": [1, 48]}\n", &["bad.jsonl:1", "48", "vocabulary"]);
    bad("{\"input_ids\": [1, 2], \"labels\": [-100, -100]}\n", &["bad.jsonl:1", "no target token"]);
    bad("{\"question\": \"?\"}\n", &["bad.jsonl:1", "question"]);
    bad("{\"text\": \"a\"}\n", &["bad.jsonl:1", "no tokenizer.json"]);
    bad("", &["no rows"]);
    assert!(lab.refused("llama2", "out", &[]).contains("already exists"));
    assert!(lab.refused("llama2", "x", &["--ratio", "1.5"]).contains("--ratio out of range"));
    assert!(
        lab.refused(
            "llama2",
            "x",
            &["--ratio", "0", "--embeddings", "freeze", "--lm-head", "freeze", "--norms", "freeze"]
        )
        .contains("nothing is trainable")
    );
    assert!(lab.refused("llama2", "x", &["--resume"]).contains("no run to resume"));
    assert!(lab.refused("llama2", "x", &["--max-steps", "0"]).contains("--max-steps out of range"));
    assert!(lab.refused("llama2", "llama2/in", &[]).contains("lies inside the input"));
    assert!(!lab.path("x").exists());
}

#[test]
fn a_place_that_another_run_is_about_to_take_is_refused() {
    let lab = Lab::new();
    lab.train("llama2", "out", &["--max-steps", "1"]);
    // As a run holds it between its first look at the target and the exchange.
    let turn = lab.path(".out.replacing");
    std::fs::DirBuilder::new().mode(0o700).create(&turn).unwrap();
    let marker = std::fs::File::create(turn.join("made-by-hft-surgery")).unwrap();
    marker.lock().unwrap();
    let weights = lab.weights("out");
    let said = lab.refused("llama2", "out", &["--max-steps", "1", "--force"]);
    assert!(said.contains("another run is writing to it"), "{said}");
    assert_eq!(lab.weights("out"), weights);
    drop(marker);
    lab.train("llama2", "out", &["--max-steps", "1", "--force"]);
    assert!(!turn.exists(), "what a killed run left is cleared");
}

#[test]
fn a_loss_that_is_not_finite_stops_with_the_last_good_state() {
    let lab = Lab::new();
    let args =
        lab.args("llama2", "out", &["--max-steps", "3", "--learning-rate", "1e37", "--max-grad-norm", "0"]);
    // The later flag wins in neither spelling, so the rate is given once.
    let args: Vec<&str> = args.iter().map(String::as_str).filter(|a| *a != "1e-2").collect();
    let at = args.iter().position(|a| *a == "--learning-rate").unwrap();
    let args = [&args[..at], &args[at + 1..]].concat();
    let error = fails(&args);
    assert!(error.contains("training stopped: step"), "{error}");
    let states = std::fs::read_dir(lab.path("out/state")).unwrap();
    assert!(states.flatten().any(|e| e.path().extension().is_some_and(|x| x == "safetensors")));
    assert!(!lab.path("out/config.json").exists(), "there is no result");
}

#[test]
fn a_run_with_other_options_is_not_resumed() {
    let lab = Lab::new();
    let args = lab.args("llama2", "out", &["--max-steps", "100000", "--save-steps", "1"]);
    let mut child =
        hft(&args.iter().map(String::as_str).collect::<Vec<_>>()).stdout(Stdio::null()).spawn().unwrap();
    while lab.log("out").len() < 3 {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let error = lab.refused("llama2", "out", &["--max-steps", "5", "--save-steps", "1", "--resume"]);
    assert!(error.contains("`max_steps`") && error.contains("got 5, expected 100000"), "{error}");
    // --force begins again.
    lab.train("llama2", "out", &["--max-steps", "2", "--force"]);
    assert_eq!(lab.log("out").len(), 2);
}

#[test]
fn a_configuration_file_gives_flags_and_the_command_line_wins() {
    let lab = Lab::new();
    let config = lab.path("train.yml");
    std::fs::write(&config, "max_steps: 5\nratio: 1.0\npacking: true\nmax-length: 24\nwarmup_steps: 1\n")
        .unwrap();
    lab.train("llama2", "out", &["--config", &config.to_string_lossy(), "--max-steps", "2"]);
    assert_eq!(lab.log("out").len(), 2);
    let made: Value =
        serde_json::from_slice(&std::fs::read(lab.path("out/hft_surgery.json")).unwrap()).unwrap();
    assert_eq!((&made["options"]["packing"], &made["options"]["max_length"]), (&json!(true), &json!(24)));
    std::fs::write(&config, "max_steps: [1").unwrap();
    let error = lab.refused("llama2", "x", &["--config", &config.to_string_lossy()]);
    assert!(error.contains("train.yml: not valid YAML: line 1 column 12: "), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    std::fs::write(&config, "max_stepz: 5\n").unwrap();
    let error = lab.refused("llama2", "x", &["--config", &config.to_string_lossy()]);
    assert!(error.contains("train.yml: `max_stepz` is no option of train"), "{error}");
    assert!(error.contains("hint: did you mean `max_steps`?"), "{error}");
}

/// Where files cannot be mapped they are read: the same loss, the same weights, also of a run that goes on.
#[test]
fn reading_instead_of_mapping_changes_nothing() {
    let lab = Lab::new();
    let steps = ["--epochs", "1"];
    lab.train("qwen3", "mapped", &steps);
    lab.train("qwen3", "read", &[&steps[..], &["--no-mmap"]].concat());
    assert!(lab.weights("mapped") == lab.weights("read"));
    let (model, data) = (lab.text("mapped"), lab.text("rows.jsonl"));
    let args = ["eval", "--model", &model, "--data", &data, "--device", "cpu", "--json"];
    assert_eq!(ok(&args), ok(&[&args[..], &["--no-mmap"]].concat()));
}
