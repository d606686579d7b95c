//! `train --offload` on the CPU, on the bfloat16 model of `fixtures/base`. That of a GPU is tested in `tests/cuda_train.rs`.

use std::process::Stdio;

use serde_json::Value;

use super::Lab;
use super::optimizers::{CHOICES, args, refused, train, weights};
use crate::common::{hft, ok, run, wait_until};

const DISK: [&str; 2] = ["--offload", "disk"];
const NONE: [&str; 2] = ["--offload", "none"];

/// What a run logs, without its speed.
fn losses(lab: &Lab, out: &str) -> Vec<(Value, Value)> {
    lab.log(out).iter().map(|line| (line["loss"].clone(), line["grad_norm"].clone())).collect()
}

#[test]
fn moments_on_the_disk_give_the_same_bits() {
    for (name, choice) in CHOICES {
        let lab = Lab::new();
        let more = [choice, &["--max-steps", "4", "--rounds", "2"]].concat();
        train(&lab, "none", &[&more[..], &NONE].concat());
        train(&lab, "disk", &[&more[..], &DISK].concat());
        train(&lab, "auto", &more);
        assert!(losses(&lab, "disk").len() == 8 && losses(&lab, "disk") == losses(&lab, "none"), "{name}");
        assert!(weights(&lab, "disk") == weights(&lab, "none"), "{name}");
        assert!(weights(&lab, "auto") == weights(&lab, "none"), "{name}");
    }
}

/// A killed run leaves nothing of its file, and the state that it saved is read by a run that keeps moments elsewhere.
#[test]
fn a_killed_run_resumes_with_moments_in_another_place() {
    for (name, choice) in [CHOICES[0], CHOICES[1], CHOICES[2], CHOICES[4]] {
        let lab = Lab::new();
        let more = [choice, &["--max-steps", "40", "--save-steps", "3"]].concat();
        train(&lab, "whole", &more);
        for (out, first, then) in [("from-disk", DISK, NONE), ("from-memory", NONE, DISK)] {
            let begun = args(&lab, out, &[&more[..], &first].concat());
            let mut child = hft(&begun.iter().map(String::as_str).collect::<Vec<_>>());
            let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let reached = wait_until(&mut child, || lab.log(out).len() >= 8);
            assert!(reached, "{name}: the run ended before it was killed");
            child.kill().unwrap();
            child.wait().unwrap();
            for entry in std::fs::read_dir(lab.path(out).join("state")).unwrap() {
                let file = entry.unwrap().file_name().into_string().unwrap();
                let known = ["run.json", "lock"].contains(&file.as_str());
                assert!(known || file.trim_start_matches('.').starts_with("round-000"), "{name}: {file}");
            }
            let again = args(&lab, out, &[&more[..], &then, &["--resume"]].concat());
            let said = run(&again[1..].iter().map(String::as_str).collect::<Vec<_>>());
            let said = String::from_utf8_lossy(&said.stderr).into_owned();
            // The first word of `again` is --quiet. What is printed counts the steps before the kill.
            assert!(said.contains("step 40/40  loss"), "{name} {out}: {said}");
            assert!(weights(&lab, out) == weights(&lab, "whole"), "{name} {out}");
        }
    }
}

/// The moments are told apart from what is in memory, and a GPU's place is refused.
#[test]
fn the_place_of_moments_is_printed_and_checked() {
    let lab = Lab::new();
    let summary = |offload: &str| -> Value {
        let args = args(&lab, offload, &["--max-steps", "1", "--ratio", "1", "--json", "--offload", offload]);
        serde_json::from_str(&ok(&args.iter().map(String::as_str).collect::<Vec<_>>())).unwrap()
    };
    let (none, disk) = (&summary("none")["rounds"][0], &summary("disk")["rounds"][0]);
    let bytes = |round: &Value, key: &str| round["memory"][key].as_u64().unwrap();
    // Two moments in f32 of 86,432 parameters.
    assert_eq!([bytes(none, "moments"), bytes(none, "offloaded_moments")], [8 * 86_432, 0]);
    assert_eq!([bytes(disk, "moments"), bytes(disk, "offloaded_moments")], [0, 8 * 86_432]);
    let planned = |round: &Value| round["planned_bytes"].as_u64().unwrap();
    assert_eq!(planned(none) - planned(disk), 8 * 86_432);
    let args = args(&lab, "printed", &["--max-steps", "1", "--ratio", "1", "--offload", "disk"]);
    let said = run(&args[1..].iter().map(String::as_str).collect::<Vec<_>>());
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("for weights and gradients (4 + 4 bytes for each that is trained)"), "{said}");
    assert!(said.contains("moments: 691.46 kB in a mapped file on the disk"), "{said}");
    let host = refused(&lab, &["--offload", "host"]);
    assert!(host.contains("--offload host") && host.contains("on the CPU use --offload disk"), "{host}");
}

/// An estimate writes nothing: moments are in memory while steps are measured, and counted where the run puts them.
#[test]
fn an_estimate_counts_moments_on_the_disk() {
    let lab = Lab::new();
    let args = args(&lab, "out", &["--ratio", "1", "--offload", "disk", "--estimate", "--json"]);
    let estimate = ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(estimate.contains(&format!("\"offloaded_moments\": {}", 8 * 86_432)), "{estimate}");
    assert!(!lab.path("out").exists());
}
