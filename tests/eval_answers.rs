//! `eval` of written answers and behind few-shot examples, beside lm-evaluation-harness and transformers
//! (`fixtures/eval/make_answers.py`).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::Path;

use common::{fails, fixture, ok, output, path};
use hft_surgery::data::last_number;
use serde_json::{Value, json};

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(fixture("eval/answers.json")).unwrap()).unwrap()
}

/// The options of the tasks of the golden file.
const TASK: [&str; 6] = ["--max-new-tokens", "12", "--stop", "e ", "--stop", "\\n"];

fn eval(model: &Path, data: &Path, more: &[&str]) -> Value {
    let args = ["eval", "--device", "cpu", "--json", "--model", path(model), "--data", path(data)];
    serde_json::from_str(&ok(&[&args, more].concat())).unwrap()
}

fn lines(file: &Path) -> Vec<Value> {
    std::fs::read_to_string(file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn write(dir: &Path, name: &str, rows: &[Value]) -> std::path::PathBuf {
    let file = dir.join(name);
    std::fs::write(&file, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    file
}

/// For any number of rows at a time.
#[test]
fn texts_and_exact_matches_are_those_of_lm_evaluation_harness() {
    let dir = tempfile::tempdir().unwrap();
    let (golden, samples) = (golden(), dir.path().join("samples.jsonl"));
    let examples = fixture("eval/examples.jsonl");
    let few_shot = ["--few-shot", path(&examples), "--shots", "3", "--few-shot-sampler", "first"];
    for (name, more, sizes) in [("plain", &[][..], &["1", "8"][..]), ("few_shot", &few_shot[..], &["3"])] {
        let expected = &golden[name];
        for size in sizes {
            let options = [&TASK[..], more, &["--batch-size", size, "--samples", path(&samples)]].concat();
            let got = eval(&fixture("base"), &fixture("eval/prompts.jsonl"), &options);
            assert_eq!((&got["kind"], &got["rows"]), (&json!("generate"), &json!(40)));
            for (ours, theirs) in [("exact_match", "exact_match"), ("exact_match_stderr", "stderr")] {
                let (ours, theirs) = (got[ours].as_f64().unwrap(), expected[theirs].as_f64().unwrap());
                assert!((ours - theirs).abs() < 1e-12, "{name}: {ours} and {theirs}");
            }
            let samples = lines(&samples);
            let texts: Vec<&Value> = samples.iter().map(|sample| &sample["text"]).collect();
            assert_eq!(json!(texts), expected["texts"], "{name}, {size} at a time");
            let right = samples.iter().map(|sample| u8::from(sample["right"] == true)).collect::<Vec<_>>();
            assert_eq!(json!(right), expected["right"]);
            let tokens: u64 = samples.iter().map(|sample| sample["tokens"].as_u64().unwrap()).sum();
            assert_eq!(got["tokens"], tokens);
        }
    }
    assert!(golden["plain"]["exact_match"].as_f64().unwrap() > 0.3);
    assert_ne!(golden["plain"]["texts"], golden["few_shot"]["texts"]);
}

#[test]
fn choices_behind_examples_are_those_of_lm_evaluation_harness() {
    let dir = tempfile::tempdir().unwrap();
    let questions = lines(&fixture("eval/questions.jsonl"));
    let solved = write(dir.path(), "solved.jsonl", &questions[..2]);
    let asked = write(dir.path(), "asked.jsonl", &questions[2..]);
    let few_shot = ["--few-shot", path(&solved), "--shots", "2", "--few-shot-sampler", "first"];
    let (got, expected) = (eval(&fixture("base"), &asked, &few_shot), &golden()["choices"]);
    for (ours, theirs) in [("accuracy", "acc"), ("accuracy_norm", "acc_norm")] {
        let (ours, theirs) = (got[ours].as_f64().unwrap(), expected[theirs].as_f64().unwrap());
        assert!((ours - theirs).abs() < 1e-12, "{ours} and {theirs}");
    }
}

#[test]
fn chats_are_answered_through_the_template() {
    let dir = tempfile::tempdir().unwrap();
    let samples = dir.path().join("samples.jsonl");
    let golden = golden();
    let cases = golden["chats"].as_array().unwrap();
    let row = |case: &Value| json!({"messages": case["messages"], "answer": ["never", case["text"]]});
    let rows: Vec<Value> =
        cases.iter().filter(|case| !case["text"].as_str().unwrap().trim().is_empty()).map(row).collect();
    assert!(rows.len() >= 4);
    let data = write(dir.path(), "chats.jsonl", &rows);
    let got = eval(&fixture("base"), &data, &["--max-new-tokens", "12", "--samples", path(&samples)]);
    assert_eq!(got["exact_match"], 1.0);
    for (sample, row) in lines(&samples).iter().zip(&rows) {
        assert_eq!(sample["text"], row["answer"][1]);
    }
}

#[test]
fn numbers_are_found_where_lm_evaluation_harness_finds_them() {
    for case in golden()["numbers"].as_array().unwrap() {
        let expected = case[1].as_str().map(|number| {
            if number.contains('.') { number.trim_end_matches('0').to_owned() } else { number.to_owned() }
        });
        assert_eq!(last_number(case[0].as_str().unwrap()), expected, "{case}");
    }
}

/// The examples of a chat are the messages before it; those of text stand before it, each with two line feeds behind it.
#[test]
fn examples_are_as_if_written_into_the_rows() {
    let dir = tempfile::tempdir().unwrap();
    let samples = dir.path().join("samples.jsonl");
    let user = |text: &str| json!({"role": "user", "content": text});
    let assistant = |text: &str| json!({"role": "assistant", "content": text});
    let system = json!({"role": "system", "content": "Be brief."});
    let base = fixture("base");
    let same = |name: &str, example: Value, asked: Value, written: Value| {
        let example = write(dir.path(), "example.jsonl", &[example]);
        let (asked, written) =
            (write(dir.path(), "asked.jsonl", &[asked]), write(dir.path(), "written.jsonl", &[written]));
        let options = ["--max-new-tokens", "6", "--samples", path(&samples)];
        let few_shot = ["--few-shot", path(&example), "--shots", "1"];
        let (got, line) =
            (eval(&base, &asked, &[&options[..], &few_shot].concat()), lines(&samples).remove(0));
        let (expected, other) = (eval(&base, &written, &options), lines(&samples).remove(0));
        assert_eq!(got, expected, "{name}");
        assert_eq!((&line["text"], &line["loss"]), (&other["text"], &other["loss"]), "{name}");
    };
    same(
        "an answer to a chat",
        json!({"messages": [user("the quick"), assistant("fox")]}),
        json!({"messages": [system, user("lazy")], "answer": "dogs"}),
        json!({"messages": [system, user("the quick"), assistant("fox"), user("lazy")], "answer": "dogs"}),
    );
    same(
        "an answer to a text",
        json!({"prompt": "the quick", "answer": ["fox", "dog"]}),
        json!({"prompt": "lazy", "answer": "dogs"}),
        json!({"prompt": "the quick fox\n\nlazy", "answer": "dogs"}),
    );
    same(
        "the loss of a completion",
        json!({"prompt": "the quick", "completion": " fox"}),
        json!({"prompt": "lazy", "completion": " dogs"}),
        json!({"prompt": "the quick fox\n\nlazy", "completion": " dogs"}),
    );
    same(
        "the loss of a chat",
        json!({"prompt": [user("the quick")], "answer": "fox"}),
        json!({"messages": [user("lazy"), assistant("dogs")]}),
        json!({"messages": [user("the quick"), {"role": "assistant", "content": "fox", "weight": 0}, user("lazy"), assistant("dogs")]}),
    );
}

#[test]
fn random_examples_depend_on_seed_and_row_and_are_never_the_row() {
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<Value> =
        (0..6).map(|i| json!({"prompt": format!("the quick {i}"), "answer": format!("fox {i}")})).collect();
    let data = write(dir.path(), "rows.jsonl", &rows);
    let samples = dir.path().join("samples.jsonl");
    let of = |seed: &str, shots: &str| {
        let few_shot = ["--few-shot", path(&data), "--shots", shots, "--seed", seed];
        eval(
            &fixture("base"),
            &data,
            &[&few_shot[..], &["--max-new-tokens", "4", "--samples", path(&samples)]].concat(),
        );
        lines(&samples)
    };
    assert_eq!(of("0", "2"), of("0", "2"));
    assert_ne!(of("0", "2"), of("1", "2"));
    of("0", "5");
    let base = fixture("base");
    let refused = fails(&[
        "eval",
        "--device",
        "cpu",
        "--model",
        path(&base),
        "--data",
        path(&data),
        "--few-shot",
        path(&data),
        "--shots",
        "6",
    ]);
    assert!(
        refused.contains("rows.jsonl:1")
            && refused.contains("got 5 examples beside the row itself, expected 6"),
        "{refused}"
    );
}

#[test]
fn metrics_are_chosen_by_column_or_option() {
    let dir = tempfile::tempdir().unwrap();
    let prompts = golden();
    let text = prompts["plain"]["texts"][0].as_str().unwrap();
    let prompt = lines(&fixture("eval/prompts.jsonl"))[0]["prompt"].clone();
    let part: String = text.trim().chars().take(2).collect::<String>().to_uppercase();
    let data =
        write(dir.path(), "rows.jsonl", &[json!({"prompt": prompt, "answer": [part], "stop": ["e ", "\n"]})]);
    let of = |more: &[&str]| {
        eval(&fixture("base"), &data, &[&["--max-new-tokens", "12", "--metric", "contains"], more].concat())
    };
    assert_eq!(of(&["--ignore-case"])["contains"], 1.0);
    assert_eq!((of(&[])["contains"].clone(), of(&[]).get("exact_match")), (json!(0.0), None));
    let column =
        write(dir.path(), "column.jsonl", &[json!({"prompt": prompt, "answer": 3, "metric": "numeric"})]);
    assert_eq!(eval(&fixture("base"), &column, &["--max-new-tokens", "4"])["numeric_match"], 0.0);
}

#[test]
fn models_are_compared_on_their_answers() {
    let (base, tuned, data) = (fixture("base"), fixture("tuned"), fixture("eval/prompts.jsonl"));
    let args =
        ["eval", "--device", "cpu", "--model", path(&base), "--model", path(&tuned), "--data", path(&data)];
    let all: Value = serde_json::from_str(&ok(&[&args[..], &TASK, &["--json"]].concat())).unwrap();
    let difference = all[1]["exact_match"].as_f64().unwrap() - all[0]["exact_match"].as_f64().unwrap();
    assert!((all[1]["exact_match_difference"].as_f64().unwrap() - difference).abs() < 1e-12);
    assert!(all[0]["loss"].is_null() && all[1]["kind"] == "generate");
    let table = ok(&[&args[..], &TASK].concat());
    assert!(table.contains("exact_match") && table.lines().count() == 3, "{table}");
}

/// The page holds the document of `--json`, and replaces an earlier page only.
#[test]
fn a_page_shows_the_document() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("eval.html");
    let (base, tuned, data) = (fixture("base"), fixture("tuned"), fixture("eval/prompts.jsonl"));
    let args =
        ["eval", "--device", "cpu", "--model", path(&base), "--model", path(&tuned), "--data", path(&data)];
    let args = [&args[..], &TASK, &["--json", "--html", path(&page)]].concat();
    for _ in 0..2 {
        let json: Value = serde_json::from_str(&ok(&args)).unwrap();
        let text = std::fs::read_to_string(&page).unwrap();
        let start = text.find("id=\"data\">").unwrap() + "id=\"data\">".len();
        let end = start + text[start..].find("</script>").unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text[start..end]).unwrap(), json);
    }
    std::fs::write(&page, "mine").unwrap();
    assert!(fails(&args).contains("is not a report that this command wrote"));
    assert_eq!(std::fs::read_to_string(&page).unwrap(), "mine");
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (base, plain) = (fixture("base"), fixture("merge/a"));
    let row = json!({"prompt": "the quick", "answer": "fox"});
    let chat = json!({"messages": [{"role": "user", "content": "the quick"}], "answer": "fox"});
    let refused = |model: &Path, rows: &[Value], more: &[&str]| {
        let data = write(dir.path(), "rows.jsonl", rows);
        fails(&[&["eval", "--device", "cpu", "--model", path(model), "--data", path(&data)], more].concat())
    };
    assert!(
        refused(&plain, std::slice::from_ref(&row), &[])
            .contains("rows.jsonl:1: a row of text, but the model has no tokenizer")
    );
    let other = json!({"prompt": "a", "answer": "b", "metric": "contains"});
    assert!(
        refused(&base, &[row.clone(), other], &[])
            .contains("rows.jsonl:2: `metric`: got contains, expected exact_match")
    );
    let number = ["--metric", "numeric_match"];
    assert!(
        refused(&base, std::slice::from_ref(&row), &number)
            .contains("`answer`: expected a text with a number, for numeric_match, got the text `fox`")
    );
    let loss = json!({"prompt": "a", "completion": "b"});
    assert!(
        refused(&base, &[row.clone(), loss], &[])
            .contains("rows.jsonl:2: no answer of the model is asked for")
    );
    assert!(
        refused(&base, std::slice::from_ref(&row), &["--max-length", "10"])
            .contains("--max-length 10 leaves no prompt")
    );
    assert!(
        refused(&base, std::slice::from_ref(&row), &["--max-new-tokens", "0"])
            .contains("--max-new-tokens: got 0")
    );
    let text = write(dir.path(), "text.jsonl", &[json!({"prompt": "a", "answer": "b"})]);
    let few_shot = ["--few-shot", path(&text), "--shots", "1"];
    assert!(refused(&base, &[chat], &few_shot).contains("text.jsonl:1 is a text, and the row is a chat"));
    assert!(
        refused(&base, &[json!({"text": "a"})], &few_shot).contains("no few-shot examples can stand before")
    );
    assert!(
        refused(&base, std::slice::from_ref(&row), &["--few-shot", path(&text), "--shots", "2"])
            .contains("got 1 examples")
    );
    let samples = ["--max-new-tokens", "4", "--samples", path(&text)];
    assert!(
        refused(&base, std::slice::from_ref(&row), &samples)
            .contains("is not a report that this command wrote")
    );
    let rows = dir.path().join("rows.jsonl");
    let said = refused(&base, &[row], &["--max-new-tokens", "4", "--samples", path(&rows), "--force"]);
    assert!(said.contains("rows.jsonl"), "{said}");
    assert_eq!((lines(&text).len(), lines(&rows).len()), (1, 1));
}

#[test]
fn a_long_prompt_loses_its_beginning_and_that_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let data = write(
        dir.path(),
        "rows.jsonl",
        &[json!({"prompt": "the quick brown fox jumps over", "answer": "dogs"})],
    );
    let base = fixture("base");
    let said = output(&mut common::hft(&[
        "eval",
        "--device",
        "cpu",
        "--model",
        path(&base),
        "--data",
        path(&data),
        "--max-length",
        "14",
        "--max-new-tokens",
        "4",
    ]));
    let stderr = String::from_utf8(said.stderr).unwrap();
    assert!(
        stderr.contains("1 prompts lost their beginning, so that prompt and answer have 14 tokens"),
        "{stderr}"
    );
}
