//! What is learnt of a row, against TRL's own data preparation (`fixtures/data/make_rows.py`), and what is said of
//! rows, columns and files that are left out.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::Path;

use common::{fixture, hft, output};
use hft_surgery::Result;
use hft_surgery::data::{Dataset, IGNORED, Limits, Tokenizer, load, preview};
use serde_json::{Value, json};

fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::open(&fixture("data").join(name)).unwrap()
}

fn load_text(text: &[u8], tokenizer: &Tokenizer) -> Result<Dataset> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    std::fs::write(&path, text).unwrap();
    load(&path, Some(tokenizer), Limits { max_length: None, vocab_size: 460 })
}

fn load_row(row: &Value, tokenizer: &Tokenizer) -> Result<Dataset> {
    load_text(row.to_string().as_bytes(), tokenizer)
}

/// The text that is learnt of a row, target by target.
fn learnt(row: &Value, tokenizer: &Tokenizer) -> Vec<String> {
    let data = load_row(row, tokenizer).unwrap();
    let samples = preview(&data.rows, tokenizer, usize::MAX).unwrap();
    let spans = samples.into_iter().flat_map(|sample| sample.spans);
    spans.filter(|span| span.is_target).map(|span| span.text).collect()
}

#[test]
fn ids_and_labels_are_those_of_trl() {
    let text = std::fs::read_to_string(fixture("data/trl_rows.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(cases.len() >= 34, "{}", cases.len());
    for case in cases {
        let tokenizer = tokenizer(case["tokenizer"].as_str().unwrap());
        let data = load_row(&case["row"], &tokenizer).unwrap();
        let got: Vec<Value> = data.rows.iter().map(|row| json!([row.input_ids, row.labels])).collect();
        assert_eq!(Value::from(got), case["expected"], "{}", case["row"]);
    }
}

#[test]
fn a_token_that_spans_the_end_of_a_prompt_is_counted() {
    let merged = |row: Value, name: &str| load_row(&row, &tokenizer(name)).unwrap().summary.merged_rows;
    assert_eq!(merged(json!({"prompt": "fox ", "completion": "the"}), "llama3"), 1);
    assert_eq!(merged(json!({"prompt": "fox", "completion": " the"}), "llama3"), 0);
    let chat = |answer: &str| json!({"messages": [{"role": "user", "content": "fox"}, {"role": "assistant", "content": answer}]});
    assert_eq!(merged(chat("\n\nthe"), "newlines"), 1);
    assert_eq!(merged(chat("the"), "newlines"), 0);
    // The first token of the answer is learnt, with the line break of the prompt that it holds.
    assert_eq!(learnt(&chat("\n\nthe"), &tokenizer("newlines")), ["\n\n\nthe<|im_end|>\n"]);
}

/// Templates with and without generation blocks, with and without a system prompt of their own.
#[test]
fn weights_and_the_first_message_are_obeyed_under_every_template() {
    for (name, end) in
        [("generation", "<|im_end|>"), ("newlines", "<|im_end|>\n"), ("chatml", "<|im_end|>\n")]
    {
        let tokenizer = tokenizer(name);
        let chat = |weight: Value, column: &str, role: &str, text: &str| {
            let message = |from: &str, content: &str| json!({ role: from, text: content });
            let mut messages =
                [message("assistant", "fox"), message("user", "dog"), message("assistant", "lazy")];
            for (name, value) in weight.as_object().unwrap() {
                messages[0][name] = value.clone();
            }
            json!({ column: messages })
        };
        let both = [format!("fox{end}"), format!("lazy{end}")];
        for (column, role, text) in [("messages", "role", "content"), ("conversations", "from", "value")] {
            for weight in [json!({}), json!({"weight": 1}), json!({"train": true, "loss": null})] {
                assert_eq!(learnt(&chat(weight, column, role, text), &tokenizer), both, "{name}");
            }
            for weight in [
                json!({"weight": 0}),
                json!({"train": false}),
                json!({"loss": false}),
                json!({"weight": 0.0}),
            ] {
                assert_eq!(learnt(&chat(weight, column, role, text), &tokenizer), both[1..], "{name}");
            }
        }
    }
    // A template that adds nothing before an answer does not tell where a first one begins.
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("data/chatml/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    let row = json!({"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]});
    let error = load_row(&row, &Tokenizer::open(dir.path()).unwrap()).unwrap_err();
    assert!(error.to_string().contains("rows.jsonl:1: the chat opens with the assistant"), "{error}");
    assert!(error.hint().unwrap().contains("`weight` 0"));
}

#[test]
fn a_system_column_does_not_move_the_end_of_a_prompt() {
    let row = json!({
        "system": "quick",
        "prompt": [{"role": "user", "content": "fox"}],
        "completion": [{"role": "assistant", "content": "lazy"}],
    });
    assert_eq!(learnt(&row, &tokenizer("chatml")), ["lazy<|im_end|>\n"]);
}

#[test]
fn packed_sequences_without_a_target_are_left_out() {
    let row = json!({"input_ids": [20, 21, 22, 23], "labels": [20, -100, -100, 23], "seq_lengths": [2, 2]});
    let data = load_row(&row, &tokenizer("llama3")).unwrap();
    let rows: Vec<_> = data.rows.iter().map(|row| (row.input_ids.clone(), row.labels.clone())).collect();
    assert_eq!(rows, [(vec![22, 23], vec![IGNORED, 23])]);
}

/// (row, what the message must contain)
fn refused_rows() -> Vec<(&'static str, &'static str)> {
    vec![
        (r#"{"prompt": "a", "completion": "b", "label": false}"#, "an undesirable answer (`label` is false"),
        (r#"{"prompt": "a", "completion": "b", "label": 0}"#, "an undesirable answer (`label` is false"),
        (
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "kto_tag": false}"#,
            "an undesirable answer (`kto_tag` is false",
        ),
        (r#"{"text": "a b", "label": false}"#, "an undesirable answer"),
        (
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5}]}"#,
            "`messages[1].weight`: expected 0 or 1, false or true, got 0.5",
        ),
        (
            r#"{"messages": [{"role": "user", "content": "a", "train": true}, {"role": "assistant", "content": "b"}]}"#,
            "`messages[0]`: a weight of 1 on a message that is not learnt",
        ),
        (
            r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 2}]}"#,
            "`conversations[1].weight`: expected 0 or 1",
        ),
        (
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train_detail": [{"begin_offset": 0}]}]}"#,
            "`messages[1].train_detail`: parts of a message",
        ),
        (
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}"#,
            "no target token: every message of the assistant has a weight of 0",
        ),
        (
            r#"{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b", "weight": 0}]}"#,
            "`completion[0]`: a weight of 0 in what is to be learnt",
        ),
        (
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "critic", "content": "b"}]}"#,
            "no message of the assistant; the roles are `critic`, `user`",
        ),
        (
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "function_call", "content": "{}"}]}"#,
            "`messages[1].role`: got `function_call`",
        ),
        (
            r#"{"instruction": "a", "output": "b", "history": [["a"]]}"#,
            "`history[0]`: expected a pair of texts",
        ),
        (
            r#"{"input_ids": [1, 2], "completion_mask": [1]}"#,
            "`completion_mask` has 1 entries for 2 input_ids",
        ),
        (
            r#"{"input_ids": [1, 2], "assistant_masks": [0, 0.5]}"#,
            "`assistant_masks`: expected a list of 0 and 1",
        ),
        (r#"{"input_ids": [1, 2], "completion_mask": [0, 0]}"#, "no target token"),
        (
            r#"{"input_ids": [1, 2], "attention_mask": [1, 2]}"#,
            "`attention_mask`: expected a list of 0 and 1, got 2",
        ),
        (r#"{"input_ids": [1, 2, 3], "attention_mask": [1, 0, 1]}"#, "`attention_mask`: 0 between tokens"),
        (
            r#"{"input_ids": [1, 2, 3], "labels": [1, 2, 3], "attention_mask": [1, 1, 0]}"#,
            "padding (0 in `attention_mask`) has labels",
        ),
        (r#"{"input_ids": [1, 2, 3], "seq_lengths": [1, 1]}"#, "`seq_lengths`: 2 tokens in all, expected 3"),
        (
            r#"{"input_ids": [1, 2, 3], "position_ids": [0, 1, 3]}"#,
            "`position_ids[2]`: expected 2, or 0 for a new sequence, got 3",
        ),
        (r#"{"input_ids": [1, 2, 3], "position_ids": [5, 6, 7]}"#, "`position_ids[0]`: expected 0, got 5"),
        (
            r#"{"input_ids": [1, 2, 3], "position_ids": [0, 0, 1], "seq_lengths": [2, 1]}"#,
            "`seq_lengths` and `position_ids` divide the row differently",
        ),
        (r#"{"input_ids": [1, 2], "loss_mask": [0, 1]}"#, "`loss_mask` beside `input_ids`"),
        (r#"{"input_ids": [1, 2], "cu_seqlens": [0, 2]}"#, "`cu_seqlens` beside `input_ids`"),
        (r#"{"input_ids": [1, NaN]}"#, "`input_ids`: expected a list of token ids, got nothing"),
    ]
}

#[test]
fn what_cannot_be_obeyed_is_refused_by_name() {
    let tokenizer = tokenizer("chatml");
    for (row, fault) in refused_rows() {
        let error = load_text(row.as_bytes(), &tokenizer).unwrap_err().to_string();
        assert!(error.contains("rows.jsonl:1: ") && error.contains(fault), "{row}: {error}");
    }
}

#[test]
fn history_needs_a_template() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("data/chatml/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let row = json!({"instruction": "a", "output": "b", "history": [["c", "d"]]});
    let error = load_row(&row, &tokenizer).unwrap_err().to_string();
    assert!(error.contains("`history` needs a chat template"), "{error}");
}

#[test]
fn numbers_that_are_not_finite_are_missing_values() {
    let row = br#"{"text": "the NaN dog", "score": NaN, "x": [Infinity, -Infinity], "y": "\"NaN"}"#;
    let data = load_text(row, &tokenizer("llama3")).unwrap();
    let samples = preview(&data.rows, &tokenizer("llama3"), 1).unwrap();
    assert_eq!(samples[0].spans[0].text, "<s>the NaN dog<|eot_id|>");
}

#[test]
fn text_that_is_not_utf_8_is_named() {
    let tokenizer = tokenizer("llama3");
    let text = "{\"text\": \"a b\"}\n";
    let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let wide: Vec<u8> = text.chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
    for (bytes, encoding) in [
        ([b"\xFF\xFE", little.as_slice()].concat(), "UTF-16"),
        ([b"\xFE\xFF", big.as_slice()].concat(), "UTF-16"),
        (little, "UTF-16LE"),
        (big, "UTF-16BE"),
        ([b"\xFF\xFE\0\0", wide.as_slice()].concat(), "UTF-32"),
        (wide, "UTF-32LE"),
    ] {
        let error = load_text(&bytes, &tokenizer).unwrap_err();
        assert!(
            error.to_string().ends_with(&format!("rows.jsonl: {encoding} text, expected UTF-8")),
            "{error}"
        );
        assert!(error.hint().unwrap().contains(&format!("iconv -f {encoding} ")));
    }
}

fn run(args: &[&str], dir: &Path) -> (Option<i32>, String, String) {
    let out = output(hft(args).current_dir(dir));
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (out.status.code(), text(out.stdout), text(out.stderr))
}

#[test]
fn train_and_eval_say_what_they_leave_out() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    std::fs::create_dir(dir.path().join("rows")).unwrap();
    write("rows/train.jsonl", "{\"text\": \"\"}\n{\"text\": \"fox\"}\n");
    write("rows/test.jsonl", "{\"text\": \"dog\"}\n");
    write("rows/train-2.jsonl.gz", "");
    write(
        "odd.jsonl",
        "{\"text\": null}\n{\"text\": \"the quick brown fox\", \"loss_weight\": 0.5, \"id\": 1}\n\
         {\"prompt\": \"the lazy dog\", \"completion\": \"x\"}\n{\"prompt\": \"fox\", \"completion\": \"the\"}\n",
    );
    let model = fixture("base");
    let model = model.to_str().unwrap();

    let (code, shown, said) =
        run(&["train", "--model", model, "--data", "rows", "--preview", "9"], dir.path());
    assert_eq!(
        (code, shown.contains("rows/train.jsonl:2: "), shown.contains("test")),
        (Some(0), true, false)
    );
    assert!(said.contains("warning: rows: only the training split is read; left out: test.jsonl"), "{said}");
    assert!(
        said.contains("warning: rows: files of a format that is not read are left out: train-2.jsonl.gz"),
        "{said}"
    );
    assert!(said.contains("warning: rows: 1 rows with an empty `text` left out"), "{said}");

    let (code, shown, said) = run(&["eval", "--model", model, "--data", "rows"], dir.path());
    assert_eq!((code, shown.as_str()), (Some(2), ""));
    assert!(said.starts_with("error: rows: more than one split: test.jsonl and others"), "{said}");

    let (code, shown, said) =
        run(&["eval", "--model", model, "--data", "odd.jsonl", "--max-length", "10"], dir.path());
    assert_eq!(code, Some(0), "{said}");
    assert!(shown.contains("rows 2\n"), "{shown}");
    for expected in [
        "warning: odd.jsonl: 1 rows cut to 10 tokens, 1 left out as no target was left;",
        "warning: odd.jsonl: 1 rows with an empty `text` left out",
        "warning: odd.jsonl: columns that look like a mask or weight are not read: `loss_weight`",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
}
