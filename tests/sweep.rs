//! `reset --sweep`: scores are those of `eval` on the checkpoints that `reset` writes, to the last digit.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::Path;

use common::{fails, files, fixture, ok, path};
use serde_json::{Value, json};

/// Rows with a loss, and questions.
fn rows(dir: &Path) -> [String; 2] {
    let text = dir.join("text.jsonl");
    let lines: Vec<String> =
        (0..9).map(|i| json!({"text": "the quick brown fox ".repeat(i % 4 + 1)}).to_string()).collect();
    std::fs::write(&text, lines.join("\n")).unwrap();
    let questions = dir.join("questions.jsonl");
    let all = std::fs::read_to_string(fixture("eval/questions.jsonl")).unwrap();
    std::fs::write(&questions, all.lines().take(12).collect::<Vec<_>>().join("\n")).unwrap();
    [format!("text={}", path(&text)), format!("questions={}", path(&questions))]
}

fn sweep(rows: &[String; 2], more: &[&str]) -> String {
    let (base, tuned) = (fixture("base"), fixture("tuned"));
    let args = ["reset", "--base", path(&base), "--tuned", path(&tuned), "--device", "cpu"];
    ok(&[&args[..], &["--eval", &rows[0], "--eval", &rows[1]], more].concat())
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// The scores that `eval` prints for a checkpoint, without its name.
fn evaluated(model: &Path, rows: &[String; 2]) -> Vec<Value> {
    let args =
        ["eval", "--device", "cpu", "--model", path(model), "--data", &rows[0], "--data", &rows[1], "--json"];
    without_model(&parsed(&ok(&args)))
}

fn without_model(scores: &Value) -> Vec<Value> {
    let mut scores = scores.as_array().unwrap().clone();
    scores.iter_mut().for_each(|one| drop(one.as_object_mut().unwrap().remove("model")));
    scores
}

#[test]
fn scores_are_those_of_the_written_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let rows = rows(dir.path());
    let ways: [&[&str]; 4] = [
        &[],
        &["--strategy", "layer", "--embeddings", "select"],
        &["--granularity", "element"],
        &["--granularity", "row", "--selector", "top-magnitude"],
    ];
    for (at, way) in ways.iter().enumerate() {
        let swept = parsed(&sweep(
            &rows,
            &[&["--sweep", "0,0.5,1", "--seed", "3", "--seeds", "2", "--json"], *way].concat(),
        ));
        let draws = swept["draws"].as_array().unwrap();
        // Tuned, ratio 0, ratio 0.5 twice, ratio 1, base.
        assert_eq!(draws.len(), 6, "{draws:?}");
        for (number, draw) in draws.iter().enumerate() {
            let out = dir.path().join(format!("{at}-{number}"));
            let model = match draw["place"].as_str().unwrap() {
                "base" => fixture("base"),
                "tuned" => fixture("tuned"),
                _ => {
                    let (ratio, seed) =
                        (draw["ratio"].to_string(), draw["seed"].as_u64().unwrap_or(3).to_string());
                    let (base, tuned) = (fixture("base"), fixture("tuned"));
                    let args = ["reset", "--base", path(&base), "--tuned", path(&tuned), "--out", path(&out)];
                    ok(&[&args[..], &["--ratio", &ratio, "--seed", &seed], *way].concat());
                    out
                }
            };
            assert_eq!(without_model(&draw["scores"]), evaluated(&model, &rows), "{way:?} {draw}");
        }
        let loss = |at: usize| draws[at]["scores"][0]["loss"].as_f64().unwrap();
        assert_eq!(loss(0), loss(1), "ratio 0 is tuned");
        assert!(loss(2) != loss(0) && loss(4) != loss(5), "{way:?}");
        // The largest changes are the same whatever the seed.
        assert_eq!(loss(2) == loss(3), way.contains(&"top-magnitude"), "{way:?}");
        let share = |at: usize| draws[at]["returned_parameters"].as_u64().unwrap();
        assert!(share(1) == 0 && share(2) > 0 && share(4) > share(2) && share(5) >= share(4), "{way:?}");
    }
}

#[test]
fn a_curve_is_printed_and_drawn_and_nothing_else_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let rows = rows(dir.path());
    let svg = dir.path().join("curve.svg");
    let before = files(dir.path()).len();
    let options = ["--sweep", "1,0,0.5", "--seeds", "3", "--svg", path(&svg)];
    let table = sweep(&rows, &options);
    // Two files, the second with two metrics, at five places each.
    assert_eq!(table.lines().count(), 1 + 3 * 5, "{table}");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let places: Vec<String> = table.lines().skip(1).take(5).map(|line| words(line)[2].clone()).collect();
    assert_eq!(places, ["tuned", "0", "0.5", "1", "base"]);
    let drawn = std::fs::read_to_string(&svg).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.matches("<g ").count() == 3, "{drawn}");
    assert_eq!(files(dir.path()).len(), before + 1);
    // Its own picture is replaced, another file is not.
    sweep(&rows, &options);
    std::fs::write(&svg, "mine").unwrap();
    let (base, tuned) = (fixture("base"), fixture("tuned"));
    let args = ["reset", "--base", path(&base), "--tuned", path(&tuned), "--eval", &rows[0]];
    let message = fails(&[&args[..], &options].concat());
    assert!(message.contains("not a report that this command wrote"), "{message}");
    let csv = sweep(&rows, &["--sweep", "0.5", "--csv"]);
    assert_eq!(csv.lines().count(), 1 + 3 * 3, "{csv}");
}

#[test]
fn what_cannot_be_swept_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let rows = rows(dir.path());
    let (base, tuned) = (fixture("base"), fixture("tuned"));
    let refused = |more: &[&str]| {
        let args = ["reset", "--base", path(&base), "--tuned", path(&tuned)];
        fails(&[&args[..], more].concat())
    };
    let eval = ["--eval", rows[0].as_str()];
    for (more, fault) in [
        (&["--sweep", "0.5,1.5"][..], "--sweep out of range: got 1.5"),
        (&["--sweep", "-0.5"], "--sweep out of range: got -0.5"),
        (&["--sweep", "NaN"], "--sweep out of range: got NaN"),
        (&["--sweep", "0.5", "--strategy", "explicit", "--train", "*"], "--strategy explicit has no ratio"),
        (&["--sweep", "0.5", "--out", "x"], "cannot be used with"),
        (&["--sweep", "0.5", "--ratio", "0.5"], "cannot be used with"),
        (&["--out", "x"], "cannot be used with"),
        (&["--dry-run"], "cannot be used with"),
        (&["--sweep", "0.5", "--batch-size", "0"], "--batch-size: got 0"),
    ] {
        let message = refused(&[more, &eval[..]].concat());
        assert!(message.contains(fault), "{fault}: {message}");
    }
    assert!(refused(&["--sweep", "0.5"]).contains("--eval"));
}
