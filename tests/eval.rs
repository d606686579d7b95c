//! `eval` beside lm-evaluation-harness (`fixtures/eval/make_eval.py`), several models and files, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::Path;

use common::{fails, fixture, hft, ok, output, path};
use hft_surgery::backend::{Device, DeviceChoice};
use hft_surgery::checkpoint::{Checkpoint, ReadOptions};
use hft_surgery::data::{Batch, ChoiceRow, IGNORED, Limits, Location, Row, Tokenizer, load_choices};
use hft_surgery::eval::{EvalRows, RowScore, eval_checkpoint, score_checkpoint};
use serde_json::{Value, json};

fn expected() -> Value {
    serde_json::from_slice(&std::fs::read(fixture("eval/expected.json")).unwrap()).unwrap()
}

fn eval(args: &[&str]) -> String {
    ok(&[&["eval", "--device", "cpu"], args].concat())
}

fn parsed(args: &[&str]) -> Value {
    serde_json::from_str(&eval(&[args, &["--json"]].concat())).unwrap()
}

#[test]
fn a_choice_is_tokenized_as_in_lm_evaluation_harness() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rows.jsonl");
    let expected = expected();
    let cases = expected["encodings"].as_array().unwrap();
    assert!(cases.len() >= 60, "{}", cases.len());
    for case in cases {
        let question = |at: &str| case[at].as_str().unwrap();
        let row = json!({"question": question("context"), "choices": [question("continuation"), "x"], "answer": 0, "target_delimiter": ""});
        std::fs::write(&file, row.to_string()).unwrap();
        let tokenizer = Tokenizer::open(&fixture(question("tokenizer"))).unwrap();
        let limits = Limits { max_length: None, vocab_size: tokenizer.vocab_size() };
        let row = load_choices(&file, Some(&tokenizer), limits).unwrap().rows.remove(0).choices.remove(0);
        let start = row.labels.iter().position(|label| *label != IGNORED).unwrap();
        let (context, continuation) = row.input_ids.split_at(start);
        assert_eq!(json!([context, continuation]), case["encoded"], "{case}");
    }
}

#[test]
fn log_probabilities_are_those_of_lm_evaluation_harness() {
    let (model, expected) = (fixture("base"), expected());
    let tokenizer = Tokenizer::open(&model).unwrap();
    let limits = Limits { max_length: None, vocab_size: tokenizer.vocab_size() };
    let rows = load_choices(&fixture("eval/questions.jsonl"), Some(&tokenizer), limits).unwrap().rows;
    let batches: Vec<Batch> = rows.iter().map(|row| Batch::from_rows(&row.choices)).collect();
    let source = Checkpoint::open(&model, ReadOptions::default()).unwrap();
    let mut device = Device::open(DeviceChoice::Cpu, None).unwrap();
    let losses = eval_checkpoint(&mut device, &source, &batches, &mut |_| true).unwrap();
    let expected: Vec<f64> = expected["log_probs"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|row| row.as_array().unwrap())
        .map(|v| v.as_f64().unwrap())
        .collect();
    assert_eq!((rows.len(), losses.len()), (200, expected.len()));
    for (at, (loss, expected)) in losses.iter().zip(&expected).enumerate() {
        assert!((loss.nats + expected).abs() < 1e-4 * expected.abs(), "choice {at}: {loss:?} and {expected}");
    }
}

/// Questions with a common beginning, of 3 to 30 tokens, with choices of 1 to 6 tokens, of which two are equal.
fn questions(vocab_size: u32) -> Vec<ChoiceRow> {
    let mut state = 7u32;
    let mut next = |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % below
    };
    let mut ids = |count: u32| (0..count).map(|_| 3 + next(vocab_size - 3)).collect::<Vec<u32>>();
    let common = ids(3);
    let question = |at: u32| {
        let context = [common.clone(), ids(at * 3)].concat();
        let mut choices: Vec<Vec<u32>> = [1 + at % 6, 6 - at % 6, 3].into_iter().map(&mut ids).collect();
        choices.push(choices[0].clone());
        let row = |choice: &Vec<u32>| {
            let ignored = std::iter::repeat_n(IGNORED, context.len());
            let labels = ignored.chain(choice.iter().map(|id| id.cast_signed())).collect();
            let location = Location { path: Path::new("rows").into(), line: u64::from(at) };
            Row { input_ids: [context.clone(), choice.clone()].concat(), labels, location }
        };
        let choices: Vec<Row> = choices.iter().map(row).collect();
        ChoiceRow { lengths: vec![1; choices.len()], choices, answer: 0 }
    };
    (0..10).map(question).collect()
}

/// The question is computed once for its choices; each choice has the loss that it has alone, in every family, also where
/// attention has a window.
#[test]
fn choices_that_share_their_question_have_the_losses_of_each_alone() {
    for family in ["llama2", "llama3", "mistral", "qwen2-window", "qwen3"] {
        let source = Checkpoint::open(&fixture("llama").join(family), ReadOptions::default()).unwrap();
        let rows = questions(48);
        let alone: Vec<Batch> =
            rows.iter().flat_map(|row| &row.choices).map(|row| Batch::from_rows([row])).collect();
        let mut device = Device::open(DeviceChoice::Cpu, None).unwrap();
        let expected = eval_checkpoint(&mut device, &source, &alone, &mut |_| true).unwrap();
        let rows = EvalRows::Choice(rows);
        for batch_size in [1, 4, 10] {
            let mut tokens = 0;
            let mut count = |done| {
                tokens += done;
                true
            };
            let scores =
                score_checkpoint(&mut device, &source, &[&rows], batch_size, &mut count).unwrap().unwrap();
            assert_eq!(tokens, rows.tokens());
            let got = scores[0].row_scores.iter().flat_map(|score| match score {
                RowScore::Choice { log_probs, .. } => {
                    assert_eq!(log_probs[0].to_bits(), log_probs[3].to_bits());
                    log_probs.clone()
                }
                other => unreachable!("{other:?}"),
            });
            for (at, (got, expected)) in got.zip(&expected).enumerate() {
                let difference = (got + expected.nats).abs();
                assert!(difference < 1e-4, "{family}, choice {at}: {got} and {}", -expected.nats);
            }
        }
    }
}

#[test]
fn accuracies_and_their_errors_are_those_of_lm_evaluation_harness() {
    let (expected, questions) = (expected(), fixture("eval/questions.jsonl"));
    let got = parsed(&["--model", path(&fixture("base")), "--data", path(&questions)]);
    assert_eq!((&got["kind"], &got["rows"]), (&json!("choice"), &json!(200)));
    for (ours, theirs) in [
        ("accuracy", "acc"),
        ("accuracy_norm", "acc_norm"),
        ("accuracy_stderr", "acc_stderr"),
        ("accuracy_norm_stderr", "acc_norm_stderr"),
    ] {
        let (ours, theirs) = (got[ours].as_f64().unwrap(), expected[theirs].as_f64().unwrap());
        assert!((ours - theirs).abs() < 1e-12, "{ours} and {theirs}");
    }
    assert_ne!(got["accuracy"], got["accuracy_norm"]);
}

#[test]
fn models_are_compared_on_named_files() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text.jsonl");
    let rows: Vec<String> = (0..12)
        .map(|i| json!({"text": "the quick brown fox jumps ".repeat(i % 4 + 1)}).to_string())
        .collect();
    std::fs::write(&text, rows.join("\n")).unwrap();
    let questions = dir.path().join("questions.jsonl");
    let all = std::fs::read_to_string(fixture("eval/questions.jsonl")).unwrap();
    std::fs::write(&questions, all.lines().take(16).collect::<Vec<_>>().join("\n")).unwrap();
    let (base, tuned) = (fixture("base"), fixture("tuned"));
    let named = format!("text={}", path(&text));
    let args =
        ["--model", path(&base), "--model", path(&tuned), "--data", &named, "--data", path(&questions)];
    let all = parsed(&args);
    let all = all.as_array().unwrap();
    let keys: Vec<_> =
        all.iter().map(|one| (one["model"].as_str().unwrap(), one["data"].as_str().unwrap())).collect();
    let (base, tuned, questions) = (path(&base), path(&tuned), path(&questions));
    assert_eq!(keys, [(base, "text"), (base, questions), (tuned, "text"), (tuned, questions)]);
    for one in all {
        let alone = if one["data"] == "text" { path(&text) } else { questions };
        let alone = parsed(&["--model", one["model"].as_str().unwrap(), "--data", alone]);
        for (key, value) in alone.as_object().unwrap() {
            assert_eq!(one[key], *value, "{key}");
        }
    }
    let number = |at: usize, key: &str| all[at][key].as_f64().unwrap();
    let difference = number(2, "loss") - number(0, "loss");
    assert!((number(2, "loss_difference") - difference).abs() < 1e-12 && difference != 0.0);
    assert!(number(2, "loss_difference_low") < difference && difference < number(2, "loss_difference_high"));
    assert!(number(2, "loss_difference_stderr") < number(2, "loss_stderr") + number(0, "loss_stderr"));
    assert!(all[0]["loss_difference"].is_null() && all[2]["accuracy"].is_null() && all[3]["loss"].is_null());

    let table = eval(&args);
    assert_eq!(table.lines().count(), 1 + 2 * 2 + 2 * 2, "{table}");
    assert!(table.starts_with("DATA") && table.contains("95 % INTERVAL"), "{table}");
    let csv = eval(&[&args[..], &["--csv"]].concat());
    assert!(csv.starts_with("model,data,kind,rows,tokens,loss,") && csv.lines().count() == 5, "{csv}");
}

/// A single loss keeps its keys; a single row has no standard error.
#[test]
fn one_model_and_one_file_keep_their_keys() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("a=b.jsonl");
    std::fs::write(&text, json!({"text": "the quick fox"}).to_string()).unwrap();
    let base = fixture("base");
    let args = ["--model", path(&base), "--data", path(&text)];
    let got = parsed(&args);
    let keys: Vec<&String> = got.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["loss", "perplexity", "tokens", "rows"]);
    let shown = eval(&args);
    assert!(shown.starts_with("loss ") && !shown.contains('±') && shown.ends_with("rows 1\n"), "{shown}");
}

#[test]
fn what_cannot_be_scored_is_refused_before_anything_is_computed() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, rows: &[Value]| {
        let file = dir.path().join(name);
        let rows: Vec<String> = rows.iter().map(Value::to_string).collect();
        std::fs::write(&file, rows.join("\n")).unwrap();
        path(&file).to_owned()
    };
    let row = json!({"question": "the quick", "choices": ["fox", "lazy dog"], "answer": 1});
    let with = |key: &str, value: Value| {
        let mut row = row.clone();
        row[key] = value;
        row
    };
    let (base, no_tokenizer) = (fixture("base"), fixture("merge/a"));
    let refused = |model: &Path, data: &str, more: &[&str]| {
        fails(&[&["eval", "--model", path(&base), "--model", path(model), "--data", data], more].concat())
    };
    let good = write("good.jsonl", std::slice::from_ref(&row));
    assert!(
        refused(&no_tokenizer, &good, &[])
            .contains("good.jsonl:1: a row of text, but the model has no tokenizer")
    );
    let bad =
        write("bad.jsonl", &[row.clone(), with("answer", json!("cat")), with("choices", json!(["fox"]))]);
    let stderr = refused(&base, &bad, &[]);
    assert!(
        stderr.contains("bad.jsonl:2: `answer`: expected an index from 0 to 1") && stderr.contains("hint: "),
        "{stderr}"
    );
    assert!(stderr.contains("bad.jsonl:3: `choices`: expected a list of two texts or more"), "{stderr}");
    let mixed = write("mixed.jsonl", &[row.clone(), json!({"text": "fox"})]);
    assert!(refused(&base, &mixed, &[]).contains("mixed.jsonl:2: `question`: expected a text, got nothing"));
    let long = write(
        "long.jsonl",
        &[with("choices", json!(["fox", "the quick brown fox jumps over the lazy dog"]))],
    );
    assert!(refused(&base, &long, &["--max-length", "3"]).contains("more than --max-length 3"));
    let twice = format!("a={good}");
    assert!(refused(&base, &twice, &["--data", &twice]).contains("two files have the name a"));
}

/// A question over the length loses its beginning, as in lm-evaluation-harness; so its log-probability is that of its end.
#[test]
fn a_long_question_loses_its_beginning_and_that_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rows.jsonl");
    let row = json!({"question": "the quick brown fox jumps over", "choices": [" the", " lazy dog"], "answer": 1, "target_delimiter": ""});
    std::fs::write(&file, row.to_string()).unwrap();
    let tokenizer = Tokenizer::open(&fixture("base")).unwrap();
    let rows = |max_length| {
        let limits = Limits { max_length, vocab_size: tokenizer.vocab_size() };
        load_choices(&file, Some(&tokenizer), limits).unwrap().rows.remove(0).choices
    };
    let (whole, cut) = (rows(None), rows(Some(12)));
    for (whole, cut) in whole.iter().zip(&cut) {
        let lost = whole.input_ids.len() - cut.input_ids.len();
        assert_eq!(
            (cut.input_ids.len(), &whole.input_ids[lost..], &whole.labels[lost..]),
            (13, &*cut.input_ids, &*cut.labels)
        );
    }
    let base = fixture("base");
    let output = output(&mut hft(&[
        "eval",
        "--device",
        "cpu",
        "--model",
        path(&base),
        "--data",
        path(&file),
        "--max-length",
        "12",
    ]));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("rows.jsonl: 1 questions lost their beginning"), "{stderr}");
}
