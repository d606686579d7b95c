//! `train --optimizer`, `--master none` and `--optimizer-in-backward` as commands, on the bfloat16 model of `fixtures/base`.

use std::process::Stdio;

use serde_json::Value;

use super::Lab;
use crate::common::{fails, files, fixture, hft, ok, run, wait_until};

/// Each optimizer with what it needs, and other ways to keep weights and gradients.
pub(super) const CHOICES: [(&str, &[&str]); 8] = [
    ("adamw", &["--master", "none"]),
    ("adamw8bit", &["--optimizer", "adamw8bit"]),
    ("adamw8bit-none", &["--optimizer", "adamw8bit", "--master", "none", "--granularity", "element"]),
    ("adafactor", &["--optimizer", "adafactor", "--master", "none"]),
    ("lion", &["--optimizer", "lion", "--optimizer-in-backward", "--max-grad-norm", "0"]),
    ("adamw-bf16", &["--gradient-dtype", "bfloat16", "--gradient-accumulation-steps", "2", "--mofo", "0.5"]),
    (
        "adamw8bit-bf16",
        &[
            "--optimizer",
            "adamw8bit",
            "--master",
            "none",
            "--gradient-dtype",
            "bfloat16",
            "--granularity",
            "element",
        ],
    ),
    ("sgd", &["--optimizer", "sgd", "--momentum", "0.9", "--granularity", "element", "--l2-sp", "0.1"]),
];

pub(super) fn args(lab: &Lab, out: &str, more: &[&str]) -> Vec<String> {
    let mut args: Vec<String> = vec!["--quiet".into(), "train".into(), "--model".into()];
    args.push(fixture("base").to_string_lossy().into_owned());
    args.extend(["--data".into(), lab.text("rows.jsonl"), "--out".into(), lab.text(out)]);
    args.extend(["--batch-size", "2", "--learning-rate", "1e-2", "--device", "cpu"].map(str::to_owned));
    args.extend(more.iter().map(|s| (*s).to_owned()));
    args
}

pub(super) fn train(lab: &Lab, out: &str, more: &[&str]) -> String {
    let args = args(lab, out, more);
    ok(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

pub(super) fn refused(lab: &Lab, more: &[&str]) -> String {
    let args = args(lab, "refused", more);
    let said = fails(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(!lab.path("refused").exists());
    said
}

/// The tensors of a result.
pub(super) fn weights(lab: &Lab, out: &str) -> Vec<(String, Vec<u8>)> {
    let shards = |(path, bytes): (String, Vec<u8>)| path.ends_with(".safetensors").then_some((path, bytes));
    let all = files(&lab.path(out)).into_iter();
    all.map(|(path, bytes)| (path.display().to_string(), bytes)).filter_map(shards).collect()
}

#[test]
fn a_killed_run_of_any_optimizer_resumes_to_the_same_bits() {
    for (name, choice) in CHOICES {
        let lab = Lab::new();
        let more = [choice, &["--max-steps", "40", "--save-steps", "3"]].concat();
        train(&lab, "whole", &more);
        let args = args(&lab, "killed", &more);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut child = hft(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let reached = wait_until(&mut child, || lab.log("killed").len() >= 8);
        assert!(reached, "{name}: the run ended before it was killed");
        child.kill().unwrap();
        child.wait().unwrap();
        ok(&[&args[..], &["--resume"]].concat());
        assert!(
            weights(&lab, "killed") == weights(&lab, "whole") && weights(&lab, "whole").len() == 3,
            "{name}"
        );
        let (first, last) = (&lab.log("whole")[0], &lab.log("whole")[39]);
        assert!(last["loss"].as_f64() < first["loss"].as_f64(), "{name}: {first} {last}");
    }
}

#[test]
fn the_bits_of_any_optimizer_do_not_depend_on_threads_and_what_is_frozen_stays() {
    for (name, choice) in CHOICES {
        let lab = Lab::new();
        let more = [choice, &["--max-steps", "4", "--ratio", "0.5"]].concat();
        train(&lab, "a", &more);
        train(&lab, "b", &[&more[..], &["--threads", "1"]].concat());
        assert!(weights(&lab, "a") == weights(&lab, "b"), "{name}");
        let (base, plan) = (fixture("base"), lab.text("a/rounds/0/plan.json"));
        let proof = run(&["diff", base.to_str().unwrap(), &lab.text("a"), "--plan", &plan]);
        assert_eq!(proof.status.code(), Some(0), "{name}: {}", String::from_utf8_lossy(&proof.stdout));
    }
}

/// The same weights as with all gradients at once, where nothing clips.
#[test]
fn updates_in_the_backward_pass_are_those_after_it() {
    for optimizer in [&["--optimizer", "adamw"][..], &["--optimizer", "adafactor", "--master", "none"]] {
        for ratio in ["0.5", "1"] {
            let lab = Lab::new();
            let more = [optimizer, &["--max-grad-norm", "0", "--max-steps", "6", "--ratio", ratio]].concat();
            train(&lab, "after", &more);
            train(&lab, "within", &[&more[..], &["--optimizer-in-backward"]].concat());
            assert!(weights(&lab, "after") == weights(&lab, "within"), "{optimizer:?} {ratio}");
            for (after, within) in lab.log("after").iter().zip(lab.log("within")) {
                assert_eq!(after["loss"], within["loss"]);
                let norm = |line: &Value| line["grad_norm"].as_f64().unwrap();
                assert!((norm(after) - norm(&within)).abs() < 1e-9 * norm(after));
            }
        }
    }
}

/// ‖a − b‖ / ‖b − start‖ over all tensors, in bfloat16.
fn distance(lab: &Lab, a: &str, b: &str) -> f64 {
    let values = |dir: &std::path::Path| -> Vec<f64> {
        let widen = |b: &[u8]| f64::from(half::bf16::from_le_bytes([b[0], b[1]]).to_f32());
        let tensors = crate::common::read_tensors(dir).into_iter();
        tensors.flat_map(|(_, bytes)| bytes.chunks(2).map(widen).collect::<Vec<_>>()).collect()
    };
    let squares = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    let [a, b, start] = [lab.path(a), lab.path(b), fixture("base")].map(|dir| values(&dir));
    (squares(&a, &b) / squares(&b, &start)).sqrt()
}

/// Ten steps with gradients in bfloat16 against those in `f32`: with accumulation, clipping, element masks, a pull and
/// pairs. The first loss, before any update, is the same.
#[test]
fn gradients_in_bfloat16_follow_those_in_f32() {
    for more in [
        &["--gradient-accumulation-steps", "3"][..],
        &["--max-grad-norm", "0.1", "--granularity", "element", "--l2-sp", "0.1"],
        &["--optimizer", "adafactor", "--ratio", "1"],
    ] {
        let lab = Lab::new();
        let more = [more, &["--max-steps", "10"]].concat();
        let run = |out: &str, more: &[&str]| {
            let args = args(&lab, out, more);
            let args: Vec<&str> =
                args.iter().map(|arg| if arg == "1e-2" { "1e-3" } else { arg.as_str() }).collect();
            ok(&args);
            lab.log(out)
        };
        let f32 = run("f32", &more);
        let bf16 = run("bf16", &[&more[..], &["--gradient-dtype", "bfloat16"]].concat());
        assert_eq!((f32.len(), &f32[0]["loss"]), (10, &bf16[0]["loss"]), "{more:?}");
        let off = |step: usize, what: &str| {
            let [f32, bf16] = [&f32, &bf16].map(|log| log[step][what].as_f64().unwrap());
            (f32 - bf16).abs() / f32
        };
        assert!(off(0, "grad_norm") < 1e-3, "{more:?}: {} {}", f32[0], bf16[0]);
        for step in 1..10 {
            assert!(off(step, "loss") < 1e-3, "{more:?}: {} {}", f32[step], bf16[step]);
        }
        assert_ne!(f32[0]["grad_norm"], bf16[0]["grad_norm"], "{more:?}: nothing was rounded");
        let e = distance(&lab, "bf16", "f32");
        println!("{more:?}: off by {e:.3} of the update, loss of step 10 by {:.1e}", off(9, "loss"));
        assert!(e > 0.0 && e < 0.1, "{more:?}: off by {e} of the update");
    }
}

/// A tied embedding, whose gradient is that of the head and that of the tokens, is rounded once for a pass.
#[test]
fn a_tied_embedding_has_one_gradient_in_bfloat16() {
    let lab = Lab::new();
    let more = ["--max-steps", "4", "--ratio", "1", "--optimizer", "sgd"];
    lab.train("qwen3", "f32", &more);
    lab.train("qwen3", "bf16", &[&more[..], &["--gradient-dtype", "bfloat16"]].concat());
    for (f32, bf16) in lab.log("f32").iter().zip(lab.log("bf16")) {
        let [f32, bf16] = [f32, &bf16].map(|line| line["grad_norm"].as_f64().unwrap());
        assert!(f32 != bf16 && (f32 - bf16).abs() < 2e-3 * f32, "{bf16}, in f32 {f32}");
    }
}

/// Tied embeddings get their gradient from the head and from the tokens.
#[test]
fn a_tied_embedding_is_updated_in_the_backward_pass_once() {
    let lab = Lab::new();
    let more = ["--max-grad-norm", "0", "--max-steps", "4", "--ratio", "1"];
    lab.train("qwen3", "after", &more);
    lab.train("qwen3", "within", &[&more[..], &["--optimizer-in-backward"]].concat());
    assert!(lab.weights("after") == lab.weights("within"));
}

/// What is planned for weights, gradients and moments of the trained parameters.
#[test]
fn memory_is_told_by_part() {
    let lab = Lab::new();
    let memory = |more: &[&str]| -> [f64; 3] {
        let args =
            args(&lab, "out", &[more, &["--force", "--max-steps", "1", "--ratio", "1", "--json"]].concat());
        let found = ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let found: Value = serde_json::from_str(&found).unwrap();
        let each = &found["rounds"][0]["memory"]["bytes_per_trained_parameter"];
        ["weights", "gradients", "moments"].map(|part| each[part].as_f64().unwrap())
    };
    assert_eq!(memory(&[]), [4.0, 4.0, 8.0]);
    assert_eq!(memory(&["--master", "none", "--optimizer", "lion"]), [2.0, 4.0, 4.0]);
    assert_eq!(memory(&["--optimizer", "sgd"]), [4.0, 4.0, 0.0]);
    // Of 86,432 parameters 2 · 8,448 are in tensors of 4,096 or more, with 33 blocks each.
    let of_codes = 2.0 * 2.0 * (8448.0 + 4.0 * 33.0);
    let expected = (of_codes + 8.0 * (86_432.0 - 2.0 * 8448.0)) / 86_432.0;
    let [_, _, moments] = memory(&["--optimizer", "adamw8bit"]);
    assert!((moments - expected).abs() < 1e-9, "{moments}, expected {expected}");
    let within = ["--optimizer-in-backward", "--max-grad-norm", "0"];
    let [_, gradients, _] = memory(&within);
    assert!(gradients < 1.5, "{gradients}");
    // Beside the sums in bfloat16 those of one block.
    let [_, sums, _] = memory(&["--gradient-dtype", "bfloat16"]);
    assert!((sums - gradients - 2.0).abs() < 1e-9, "{sums}");
}

#[test]
fn what_does_not_go_together_is_refused_by_name() {
    let lab = Lab::new();
    for (more, words) in [
        (&["--momentum", "0.9"][..], &["--momentum is no constant of --optimizer adamw"][..]),
        (
            &["--optimizer", "lion", "--adafactor-d", "2"],
            &["--adafactor-d is no constant of --optimizer lion"],
        ),
        (&["--optimizer", "sgd", "--momentum", "1"], &["--momentum out of range", "0 to below 1"]),
        (&["--optimizer", "adafactor", "--mofo", "0.1"], &["--mofo", "--optimizer adafactor keeps none"]),
        (&["--optimizer", "sgd", "--mofo", "0.1"], &["--mofo", "--optimizer sgd keeps none"]),
        (&["--optimizer-in-backward"], &["--optimizer-in-backward takes --max-grad-norm 0"]),
        (
            &["--optimizer-in-backward", "--max-grad-norm", "0", "--gradient-accumulation-steps", "2"],
            &["takes --gradient-accumulation-steps 1"],
        ),
        (
            &["--optimizer-in-backward", "--max-grad-norm", "0", "--gradient-dtype", "bfloat16"],
            &["--optimizer-in-backward keeps no gradients", "leave out one of them"],
        ),
        (&["--optimizer", "adamax"], &["invalid value 'adamax'"]),
    ] {
        let said = refused(&lab, more);
        words.iter().for_each(|word| assert!(said.contains(word), "{word} in {said}"));
    }
    // A rate is not the default of another optimizer.
    let args = args(&lab, "refused", &["--optimizer", "lion"]);
    let at = args.iter().position(|arg| arg == "--learning-rate").unwrap();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let said = fails(&[&args[..at], &args[at + 2..]].concat());
    assert!(said.contains("--optimizer lion needs --learning-rate"), "{said}");
    // Tensors that bfloat16 does not hold.
    let said = lab.refused("llama2", "refused", &["--master", "none", "--ratio", "1"]);
    assert!(
        said.contains("values are trained in BF16, and these are F32") && said.contains("--master none"),
        "{said}"
    );
}

/// The loss is known before the first update of a step: what it stops on is the state before.
#[test]
fn a_loss_that_is_not_finite_changes_nothing_in_the_backward_pass() {
    let lab = Lab::new();
    let rate = ["--max-steps", "3", "--max-grad-norm", "0", "--optimizer", "sgd", "--optimizer-in-backward"];
    let args = args(&lab, "out", &rate);
    let args: Vec<&str> = args.iter().map(|arg| if arg == "1e-2" { "1e30" } else { arg.as_str() }).collect();
    let said = fails(&args);
    assert!(said.contains("training stopped: step") && said.contains("the state is saved in"), "{said}");
    assert!(!lab.path("out/config.json").exists(), "there is no result");
}

/// A run is not gone on with by another optimizer.
#[test]
fn another_optimizer_is_another_run() {
    let lab = Lab::new();
    let long = ["--max-steps", "100000", "--save-steps", "1"];
    let first = args(&lab, "out", &long);
    let first: Vec<&str> = first.iter().map(String::as_str).collect();
    let mut child = hft(&first).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    assert!(wait_until(&mut child, || lab.log("out").len() >= 3));
    child.kill().unwrap();
    child.wait().unwrap();
    let said = fails(&[&first[..], &["--resume", "--optimizer", "adamw8bit"]].concat());
    assert!(said.contains("started with another `optimizer`: got \"adamw8bit\", expected null"), "{said}");
    let said = fails(&[&first[..], &["--resume", "--master", "none"]].concat());
    assert!(said.contains("started with another `master`"), "{said}");
}
