//! `train --objective` dpo, simpo and orpo as a command, and what else an objective may say.

use std::process::Stdio;

use serde_json::{Value, json};

use super::Lab;
use crate::common::{fixture, hft, ok, output, wait_until};

const METRICS: [&str; 6] = [
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
];

/// Pairs of uneven length in token ids, in place of the rows.
fn pairs(lab: &Lab) {
    let ids = |n: u64, step: u64| -> Vec<u64> { (0..n).map(|i| 3 + (i * step + n) % 45).collect() };
    let row = |i: u64| {
        json!({
            "prompt_input_ids": ids(2 + i % 4, 7),
            "chosen_input_ids": ids(1 + (5 * i) % 9, 11 + i),
            "rejected_input_ids": ids(1 + (7 * i) % 11, 5 + i),
        })
        .to_string()
    };
    let lines: Vec<String> = (0..10).map(row).collect();
    std::fs::write(lab.path("rows.jsonl"), lines.join("\n")).unwrap();
}

fn number(line: &Value, name: &str) -> f64 {
    line[name].as_f64().unwrap()
}

#[test]
fn margins_rise_from_zero_and_the_reference_stays_that_of_the_start() {
    let lab = Lab::new();
    pairs(&lab);
    let options = ["--objective", "dpo", "--rounds", "2", "--max-steps", "20"];
    lab.train("qwen3", "out", &[&options[..], &["--tensorboard"]].concat());
    let log = lab.log("out");
    assert_eq!(log.len(), 40);
    // Before the first step the model is its own reference: a margin of 0 and a loss of log 2.
    assert!(number(&log[0], "rewards/margins").abs() < 1e-5, "{}", log[0]);
    assert!((number(&log[0], "loss") - std::f64::consts::LN_2).abs() < 1e-5, "{}", log[0]);
    // The second round measures from the start too, not from the end of the first.
    for line in [&log[19], &log[20], &log[39]] {
        assert!(number(line, "rewards/margins") > 0.3 && number(line, "loss") < 0.6, "{line}");
    }
    for line in &log {
        let [chosen, rejected, accuracy, margin, ..] = METRICS.map(|name| number(line, name));
        assert!((chosen - rejected - margin).abs() < 1e-9 && (0.0..=1.0).contains(&accuracy), "{line}");
    }
    let files = std::fs::read_dir(lab.path("out")).unwrap().map(|entry| entry.unwrap().path());
    let events: Vec<_> = files.filter(|path| path.to_string_lossy().contains("tfevents")).collect();
    let bytes: Vec<u8> = events.iter().flat_map(|path| std::fs::read(path).unwrap()).collect();
    for name in METRICS {
        let tag = format!("train/{name}");
        assert!(bytes.windows(tag.len()).any(|window| window == tag.as_bytes()), "{tag}");
    }
    let options: Value =
        serde_json::from_slice(&std::fs::read(lab.path("out/hft_surgery.json")).unwrap()).unwrap();
    assert_eq!(options["options"]["objective"], "dpo");
    assert_eq!(options["options"]["loss_type"], "sigmoid");
    assert_eq!(options["options"]["beta"], 0.1);
}

#[test]
fn what_the_plan_freezes_stays_and_threads_change_no_bit() {
    let lab = Lab::new();
    pairs(&lab);
    let base = [
        "--objective",
        "dpo",
        "--loss-type",
        "ipo",
        "--max-steps",
        "4",
        "--gradient-accumulation-steps",
        "2",
    ];
    lab.train("llama3", "a", &base);
    lab.train("llama3", "b", &[&base[..], &["--threads", "1", "--recompute", "full"]].concat());
    assert_eq!(lab.weights("a"), lab.weights("b"));
    ok(&["diff", &lab.text("llama3"), &lab.text("a"), "--plan", &lab.text("a/rounds/0/plan.json"), "--json"]);
}

/// No pass of a reference model: rewards are log-probabilities per token, times beta.
#[test]
fn losses_without_a_reference_learn_too() {
    for (objective, of_orpo) in [("simpo", false), ("orpo", true)] {
        let lab = Lab::new();
        pairs(&lab);
        lab.train("llama3", "out", &["--objective", objective, "--max-steps", "20", "--beta", "2"]);
        let log = lab.log("out");
        for line in &log {
            let reward = 2.0 * number(line, "logps/chosen");
            assert!((number(line, "rewards/chosen") - reward).abs() < 1e-9, "{line}");
            for name in ["nll_loss", "log_odds_ratio", "log_odds_chosen"] {
                assert_eq!(line.get(name).is_some(), of_orpo, "{objective}: {line}");
            }
        }
        assert!(number(&log[19], "loss") < 0.7 * number(&log[0], "loss"), "{} {}", log[0], log[19]);
        assert!(number(&log[19], "rewards/margins") > number(&log[0], "rewards/margins"));
        let said: Value =
            serde_json::from_slice(&std::fs::read(lab.path("out/hft_surgery.json")).unwrap()).unwrap();
        assert_eq!(said["options"]["objective"], objective);
        assert_eq!(said["options"].get("simpo_gamma").is_some(), !of_orpo);
        // Threads and what is computed again change no bit.
        let again = ["--objective", objective, "--max-steps", "20", "--beta", "2", "--threads", "1"];
        lab.train("llama3", "again", &[&again[..], &["--recompute", "full"]].concat());
        assert_eq!(lab.weights("out"), lab.weights("again"));
    }
}

#[test]
fn label_smoothing_is_part_of_a_run_and_of_its_evaluation() {
    let lab = Lab::new();
    let rows = lab.text("rows.jsonl");
    let options = ["--max-steps", "3", "--eval-data", &rows, "--eval-steps", "1"];
    lab.train("llama3", "plain", &options);
    lab.train("llama3", "smooth", &[&options[..], &["--label-smoothing", "0.2"]].concat());
    let (plain, smooth) = (lab.log("plain"), lab.log("smooth"));
    assert!((number(&plain[0], "loss") - number(&smooth[0], "loss")).abs() > 1e-3);
    assert!((number(&plain[2], "eval_loss") - number(&smooth[2], "eval_loss")).abs() > 1e-3);
    let said: Value =
        serde_json::from_slice(&std::fs::read(lab.path("smooth/hft_surgery.json")).unwrap()).unwrap();
    assert_eq!(said["options"]["label_smoothing"], 0.2);
    // 0 is none.
    lab.train("llama3", "zero", &[&options[..], &["--label-smoothing", "0"]].concat());
    assert_eq!(lab.weights("zero"), lab.weights("plain"));
}

#[test]
fn options_of_another_objective_are_refused_by_name() {
    let lab = Lab::new();
    let refused = |more: &[&str], words: &str| {
        let said = lab.refused("llama2", "out", more);
        assert!(said.contains(words), "{more:?}: {said}");
        assert!(!lab.path("out").exists());
    };
    refused(&["--beta", "0.1"], "--beta is an option of --objective dpo");
    refused(&["--loss-type", "ipo"], "--loss-type is an option of --objective dpo");
    refused(&["--simpo-gamma", "1"], "--simpo-gamma is an option of --objective simpo");
    refused(&["--label-smoothing", "1"], "--label-smoothing out of range: got 1, expected 0 to below 1");
    refused(&["--label-smoothing", "-0.1"], "got -0.1, expected 0 to below 1");
    refused(&["--objective", "dpo"], "20 rows: not a preference row: the columns are `input_ids`");
    pairs(&lab);
    refused(&[], "10 rows: a preference row (`prompt`, `chosen`, `rejected`) in supervised fine-tuning");
    let dpo = |more: &[&'static str]| [&["--objective", "dpo"], more].concat();
    refused(&dpo(&["--beta", "0"]), "--beta out of range: got 0, expected above 0");
    refused(&dpo(&["--label-smoothing", "0.1"]), "only --loss-type robust has it");
    refused(&dpo(&["--loss-type", "robust", "--label-smoothing", "0.5"]), "got 0.5, expected 0 to below 0.5");
    let of = |name: &'static str, more: &[&'static str]| [&["--objective", name], more].concat();
    refused(&of("simpo", &["--simpo-gamma", "-1"]), "--simpo-gamma out of range: got -1, expected 0 or more");
    refused(&of("simpo", &["--loss-type", "ipo"]), "--loss-type is an option of --objective dpo");
    refused(&of("simpo", &["--label-smoothing", "0.5"]), "got 0.5, expected 0 to below 0.5");
    refused(&of("orpo", &["--label-smoothing", "0.1"]), "got --objective orpo");
    refused(&of("orpo", &["--simpo-gamma", "0.1"]), "--simpo-gamma is an option of --objective simpo");
    refused(&of("orpo", &["--beta", "nan"]), "--beta out of range");
    refused(&of("orpo", &["--packing"]), "--packing cannot be used with --objective orpo");
    refused(&dpo(&["--packing"]), "--packing cannot be used with --objective dpo");
    refused(&dpo(&["--group-by-length"]), "--group-by-length cannot be used with --objective dpo");
}

/// Against TRL's `DPOTrainer`: `fixtures/dpo_eval`, made by `make_eval.py` there.
#[test]
fn held_out_pairs_are_measured_as_trl_measures_them() {
    let lab = Lab::new();
    let golden = std::fs::read(fixture("dpo_eval/trl.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    for (split, file) in [("train", "rows.jsonl"), ("eval", "held_out.jsonl")] {
        let lines: Vec<String> = golden[split].as_array().unwrap().iter().map(Value::to_string).collect();
        std::fs::write(lab.path(file), lines.join("\n")).unwrap();
    }
    let held_out = lab.text("held_out.jsonl");
    let args = lab.args("llama3", "out", &["--objective", "dpo", "--eval-data", &held_out, "--tensorboard"]);
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    let rate = args.iter().position(|arg| *arg == "1e-2").unwrap();
    args[rate] = "3e-3";
    let more = "--beta 0.5 --eval-steps 5 --max-steps 10 --gradient-accumulation-steps 2 --no-shuffle --ratio 1 \
                --weight-decay 0.1 --adam-epsilon 1e-5 --lr-scheduler constant";
    ok(&args.into_iter().chain(more.split_whitespace()).collect::<Vec<_>>());
    let log = lab.log("out");
    for (step, expected) in golden["steps"].as_object().unwrap() {
        let line = &log[step.parse::<usize>().unwrap() - 1];
        for (name, expected) in expected.as_object().unwrap() {
            let (got, expected) = (number(line, name), expected.as_f64().unwrap());
            let off = (got - expected).abs() / expected.abs().max(1.0);
            assert!(off < 1e-4, "step {step}: {name}: {got}, expected {expected}");
        }
    }
    let evaluated = log.iter().filter(|line| line["eval_loss"].is_f64()).count();
    assert_eq!((evaluated, golden["steps"].as_object().unwrap().len()), (2, 2));
    let files = std::fs::read_dir(lab.path("out")).unwrap().map(|entry| entry.unwrap().path());
    let events: Vec<_> = files.filter(|path| path.to_string_lossy().contains("tfevents")).collect();
    let bytes: Vec<u8> = events.iter().flat_map(|path| std::fs::read(path).unwrap()).collect();
    assert!(bytes.windows(20).any(|window| window == b"eval/rewards/margins"));
}

/// Two rounds, with held-out pairs measured on the way.
#[test]
fn a_killed_run_resumes_to_the_same_bits() {
    let lab = Lab::new();
    pairs(&lab);
    let held_out = lab.text("held_out.jsonl");
    std::fs::copy(lab.path("rows.jsonl"), &held_out).unwrap();
    let options = ["--objective", "dpo", "--rounds", "2", "--max-steps", "40", "--save-steps", "6"];
    let options = [&options[..], &["--eval-data", &held_out, "--eval-steps", "5"]].concat();
    lab.train("mistral", "whole", &options);
    let args = lab.args("mistral", "killed", &options);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut kills = 0;
    for (at, resume) in [(10, false), (43, true), (63, true)] {
        let all = [&args[..], if resume { &["--resume"] } else { &[] }].concat();
        let mut child = hft(&all).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        if wait_until(&mut child, || lab.log("killed").len() > at) {
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
        }
    }
    assert!(kills >= 2, "only {kills} kills: the test tests little");
    if !lab.path("killed/config.json").is_file() {
        ok(&[&args[..], &["--resume"]].concat());
    }
    assert_eq!(lab.weights("killed"), lab.weights("whole"));
    let strip = |mut lines: Vec<Value>| {
        lines.iter_mut().for_each(|line| line["tokens_per_second"] = Value::Null);
        lines
    };
    assert_eq!(strip(lab.log("killed")), strip(lab.log("whole")));
}

/// Weights that do not move: what is measured is what is learnt from.
#[test]
fn an_evaluation_has_the_numbers_of_training() {
    for objective in ["dpo", "simpo", "orpo"] {
        let lab = Lab::new();
        pairs(&lab);
        let args = lab.args("qwen3", "out", &[]);
        // Without the rate and the batch size of the others.
        let mut args: Vec<String> = args;
        for (flag, value) in [("--learning-rate", "0"), ("--batch-size", "10")] {
            let at = args.iter().position(|arg| arg == flag).unwrap();
            args[at + 1] = value.to_owned();
        }
        let rows = lab.text("rows.jsonl");
        args.extend(["--objective", objective, "--max-steps", "1", "--eval-data", &rows].map(str::to_owned));
        ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let log = lab.log("out");
        let line = log.last().unwrap();
        let names = METRICS.into_iter().chain(["loss", "nll_loss"]).filter(|name| !line[*name].is_null());
        let names: Vec<&str> = names.collect();
        assert!(names.len() >= 7, "{line}");
        for name in names {
            let (trained, measured) = (number(line, name), number(line, &format!("eval_{name}")));
            assert!(
                (trained - measured).abs() < 1e-6,
                "{objective}: {name}: {trained}, evaluated {measured}"
            );
        }
    }
}

#[test]
fn pairs_of_equal_answers_are_warned_of() {
    let lab = Lab::new();
    let row = |chosen: [u64; 2], rejected: [u64; 2]| {
        json!({"prompt_input_ids": [3, 4], "chosen_input_ids": chosen, "rejected_input_ids": rejected})
            .to_string()
    };
    let rows = [row([5, 6], [5, 6]), row([5, 6], [5, 7]), row([8, 9], [8, 9])].join("\n");
    std::fs::write(lab.path("rows.jsonl"), rows).unwrap();
    let args = lab.args("qwen3", "out", &["--objective", "dpo", "--max-steps", "1"]);
    let args: Vec<&str> = args.iter().map(String::as_str).filter(|arg| *arg != "--quiet").collect();
    let output = output(&mut hft(&args));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("rows.jsonl: in 2 of 3 pairs both answers are the same tokens"), "{said}");
}

/// Rounding gradients to bfloat16 leaves the losses of pairs where they were, to three digits.
#[test]
fn pairs_are_learnt_from_with_gradients_in_bfloat16() {
    let lab = Lab::new();
    pairs(&lab);
    let options = ["--objective", "dpo", "--max-steps", "10", "--gradient-accumulation-steps", "2"];
    lab.train("qwen3", "f32", &options);
    lab.train("qwen3", "bf16", &[&options[..], &["--gradient-dtype", "bfloat16"]].concat());
    let (f32, bf16) = (lab.log("f32"), lab.log("bf16"));
    assert_eq!(f32.len(), 10);
    for (a, b) in f32.iter().zip(&bf16) {
        let [a, b] = [a, b].map(|line| number(line, "loss"));
        assert!((a - b).abs() < 1e-3 * a.max(1e-2), "{a} {b}");
    }
    assert_ne!(lab.weights("f32"), lab.weights("bf16"));
}
