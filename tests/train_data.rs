//! Rows of training data against what transformers makes of them (`fixtures/data/make_data.py`), and
//! what is said of wrong ones.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::{Path, PathBuf};

use common::fixture;
use hft_surgery::data::{Dataset, IGNORED, Limits, Row, Tokenizer, load, load_preferences, preview};
use hft_surgery::{Error, Result};
use serde_json::{Value, json};

fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::open(&fixture("data").join(name)).unwrap()
}

fn limits(max_length: Option<usize>) -> Limits {
    Limits { max_length, vocab_size: 460 }
}

/// Loads a file of this text.
fn load_text(name: &str, text: &[u8], tokenizer: &Tokenizer, limits: Limits) -> Result<Dataset> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    load(&path, Some(tokenizer), limits)
}

fn load_rows(rows: &[Value], tokenizer: &Tokenizer, limits: Limits) -> Result<Dataset> {
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    load_text("rows.jsonl", lines.join("\n").as_bytes(), tokenizer, limits)
}

fn expected(name: &str) -> Vec<Value> {
    let text = std::fs::read(fixture("data").join("expected.json")).unwrap();
    let all: Value = serde_json::from_slice(&text).unwrap();
    all[name].as_array().unwrap().clone()
}

fn lines(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(fixture("data").join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ids_and_labels(rows: &[Row]) -> Value {
    rows.iter().map(|row| json!([row.input_ids, row.labels])).collect()
}

#[test]
fn chats_are_what_transformers_makes_of_them() {
    let mut compared = 0;
    for name in ["chatml", "llama3", "mistral", "gemma", "generation", "reasoning"] {
        let tokenizer = tokenizer(name);
        for (chat, expected) in lines("chat.jsonl").iter().zip(expected(name)) {
            let got = load_rows(std::slice::from_ref(chat), &tokenizer, limits(None));
            if let Some(fault) = expected["error"].as_str() {
                let message = got.unwrap_err().to_string();
                assert!(message.contains(fault) && message.contains("rows.jsonl:1"), "{name}: {message}");
                continue;
            }
            assert_eq!(ids_and_labels(&got.unwrap().rows), expected, "{name}: {chat}");
            compared += 1;
        }
    }
    assert!(compared >= 28, "{compared}");
}

#[test]
fn other_formats_follow_trl() {
    let tokenizer = tokenizer("llama3");
    let rows = lines("formats.jsonl");
    for (row, expected) in rows.iter().zip(expected("formats")) {
        let got = load_rows(std::slice::from_ref(row), &tokenizer, limits(None)).unwrap();
        assert_eq!(ids_and_labels(&got.rows), json!([expected]), "{row}");
    }
    let all = load_rows(&rows, &tokenizer, limits(None)).unwrap();
    assert_eq!((all.rows.len(), all.summary.read), (rows.len(), rows.len()));
    assert!(all.rows.iter().enumerate().all(|(i, row)| row.location.line == i as u64 + 1));
}

/// `fixtures/data/make_preferences.py`.
#[test]
fn preferences_are_what_trl_makes_of_them() {
    let tokenizer = tokenizer("chatml");
    let expected = std::fs::read(fixture("data").join("preferences.json")).unwrap();
    let expected: Vec<Value> = serde_json::from_slice(&expected).unwrap();
    let path = fixture("data").join("preferences.jsonl");
    let data = load_preferences(&path, Some(&tokenizer), limits(None)).unwrap();
    assert_eq!((data.rows.len(), data.summary.read), (2 * expected.len(), expected.len()));
    assert!(expected.len() >= 8);
    for (i, (pair, expected)) in data.rows.chunks(2).zip(&expected).enumerate() {
        for (row, answer) in pair.iter().zip(["chosen", "rejected"]) {
            let list = |name: &str| expected[name].as_array().unwrap().clone();
            let (prompt, answer) = (list("prompt"), list(answer));
            let labels: Vec<Value> = prompt.iter().map(|_| json!(IGNORED)).chain(answer.clone()).collect();
            let ids = [prompt, answer].concat();
            assert_eq!(json!([row.input_ids, row.labels]), json!([ids, labels]), "row {}", i + 1);
        }
    }
}

#[test]
fn a_pair_is_cut_or_left_out_as_one() {
    let tokenizer = tokenizer("chatml");
    let ids = |prompt: usize, chosen: usize, rejected: usize| {
        let list = |n| (3..3 + n).collect::<Vec<usize>>();
        json!({"prompt_input_ids": list(prompt), "chosen_input_ids": list(chosen),
               "rejected_input_ids": list(rejected)})
    };
    let dir = tempfile::tempdir().unwrap();
    let load = |rows: &[Value]| {
        let path = dir.path().join("pairs.jsonl");
        let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        load_preferences(&path, Some(&tokenizer), limits(Some(6)))
    };
    let data = load(&[ids(2, 3, 9), ids(6, 1, 2), ids(5, 4, 1)]).unwrap();
    let lengths: Vec<usize> = data.rows.iter().map(|row| row.input_ids.len()).collect();
    assert_eq!(lengths, [5, 6, 6, 6], "the prompt of the second pair alone has six tokens");
    let summary = data.summary;
    assert_eq!((summary.read, summary.truncated_rows, summary.dropped_rows), (3, 2, 1));
    assert_eq!((summary.tokens, summary.lost_tokens), (23, 5 + 15 + 3));
    for (row, words) in [
        (ids(2, 0, 1), "no target token"),
        (json!({"prompt": "a", "chosen": "b"}), "not a preference row: the columns are `prompt`, `chosen`"),
        (
            json!({"prompt": "a", "chosen": [{"role": "user", "content": "a"}], "rejected": "b"}),
            "`chosen` is not",
        ),
        (json!({"chosen": "a", "rejected": [{"role": "user", "content": "a"}]}), "are not two texts"),
        (
            json!({"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "b"}]}),
            "begin with different messages",
        ),
        (json!({"prompt_input_ids": [1], "chosen_input_ids": [2]}), "`rejected_input_ids`: expected a list"),
    ] {
        let said = load(&[row]).unwrap_err().to_string();
        assert!(said.contains(words) && said.contains("pairs.jsonl:1"), "{said}");
    }
}

#[test]
fn a_model_without_a_template_gets_the_alpaca_prompt() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("data/chatml/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    std::fs::write(dir.path().join("config.json"), r#"{"eos_token_id": [1, 3]}"#).unwrap();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(tokenizer.eos_token_id(), Some(1));
    let row = json!({"instruction": "Add.", "input": "1 2", "output": "3"});
    let data = load_rows(&[row], &tokenizer, limits(None)).unwrap();
    let sample = &preview(&data.rows, &tokenizer, 5).unwrap()[0];
    let text: Vec<_> = sample.spans.iter().map(|s| (s.text.as_str(), s.is_target)).collect();
    let prompt = "<s>Below is an instruction that describes a task, paired with an input that provides further \
                  context. Write a response that appropriately completes the request.\n\n### Instruction:\n\
                  Add.\n\n### Input:\n1 2\n\n### Response:\n";
    assert_eq!(text, [(prompt, false), ("3</s>", true)]);

    let chat = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
    let error = load_rows(&[chat], &tokenizer, limits(None)).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("tokenizer_config.json: the model has no chat template"), "{message}");
    assert!(error.hint().unwrap().contains("chat_template.jinja"));
}

#[test]
fn preview_shows_what_is_learnt() {
    let tokenizer = tokenizer("chatml");
    let data = load(&fixture("data/chat.jsonl"), Some(&tokenizer), limits(None)).unwrap();
    let samples = preview(&data.rows, &tokenizer, 3).unwrap();
    let text: Vec<_> = samples[1].spans.iter().map(|s| (s.text.as_str(), s.is_target)).collect();
    let expected = [
        (
            "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
             <|im_start|>assistant\n",
            false,
        ),
        ("Hello, the fox.<|im_end|>\n", true),
        ("<|im_start|>user\n  And the dog? <|im_end|>\n<|im_start|>assistant\n", false),
        ("lazy\n<|im_end|>\n", true),
    ];
    assert_eq!(text, expected);
    assert_eq!(samples[2].spans[1].text, "🦊 jumps 漢<|im_end|>\n");
    assert_eq!((samples.len(), samples[1].location.line), (3, 2));
}

#[test]
fn long_rows_lose_their_end_and_are_counted() {
    let tokenizer = tokenizer("chatml");
    let rows = [
        json!({"input_ids": [1, 2, 3, 4, 5, 6], "labels": [-100, -100, 3, 4, 5, 6]}),
        json!({"input_ids": [1, 2, 3, 4, 5, 6], "labels": [-100, -100, -100, -100, -100, 6]}),
        json!({"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}),
    ];
    let data = load_rows(&rows, &tokenizer, limits(Some(4))).unwrap();
    let summary = data.summary;
    assert_eq!(data.rows.len(), 2);
    assert_eq!(data.rows[0].labels, [IGNORED, IGNORED, 3, 4]);
    assert_eq!((summary.read, summary.truncated_rows, summary.dropped_rows), (3, 1, 1));
    assert_eq!((summary.tokens, summary.targets, summary.lost_tokens), (7, 4, 8));

    let error = load_rows(&rows[1..2], &tokenizer, limits(Some(4))).unwrap_err();
    assert!(error.to_string().contains("no row has a target token among its first 4 tokens"));
}

/// (row, what the message must contain)
fn wrong_rows() -> Vec<(&'static str, &'static str)> {
    vec![
        (r#"{"text": "#, "not valid JSON: EOF while parsing a value at column"),
        (r#"["text"]"#, "expected a JSON object"),
        (r#"{"question": "a", "answer": "b"}"#, "the columns are `question`, `answer`"),
        (r#"{"text": 3}"#, "`text`: expected a text, got 3"),
        (r#"{"input_ids": [1, 460]}"#, "token id 460 is outside of the vocabulary of 460 tokens"),
        (r#"{"input_ids": [1, -1]}"#, "expected a list of token ids, got -1"),
        (r#"{"input_ids": [1, 4294967295]}"#, "token id 4294967295 is outside"),
        (r#"{"input_ids": [1, 2], "labels": [1]}"#, "1 labels for 2 input_ids"),
        (r#"{"input_ids": [1, 2], "labels": [1, -100]}"#, "no target token"),
        (r#"{"input_ids": [], "labels": []}"#, "no target token"),
        (r#"{"messages": []}"#, "`messages`: expected a list of messages, got a list of 0"),
        (r#"{"messages": [{"content": "a"}]}"#, "`messages[0].role`: expected a text, got nothing"),
        (r#"{"messages": [{"role": "user"}]}"#, "`messages[0].content`: expected a text, got nothing"),
        (r#"{"messages": [{"role": "user", "content": "a"}]}"#, "no target token"),
        (
            r#"{"conversations": [{"from": "who", "value": "a"}]}"#,
            "`conversations[0].from`: expected human, gpt, system",
        ),
        (r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#, "a preference row"),
        (r#"{"prompt": "a", "chosen": "b"}"#, "a preference row"),
        (
            r#"{"prompt_input_ids": [1], "chosen_input_ids": [2], "rejected_input_ids": [3]}"#,
            "a preference row",
        ),
    ]
}

#[test]
fn wrong_rows_are_named_by_file_and_line() {
    let tokenizer = tokenizer("chatml");
    for (row, fault) in wrong_rows() {
        let text = format!("{{\"text\": \"fine\"}}\n\n{row}\n");
        let message =
            load_text("rows.jsonl", text.as_bytes(), &tokenizer, limits(None)).unwrap_err().to_string();
        assert!(message.contains("rows.jsonl:3: ") && message.contains(fault), "{row}: {message}");
    }
}

#[test]
fn all_faults_are_listed_up_to_a_bound() {
    let tokenizer = tokenizer("chatml");
    let rows: Vec<&str> = wrong_rows().iter().map(|(row, _)| *row).collect();
    let error = load_text("rows.jsonl", rows.join("\n").as_bytes(), &tokenizer, limits(None)).unwrap_err();
    assert!(matches!(&error, Error::Many(faults) if faults.first().len() == rows.len()), "{error}");
    let flood = "{}\n".repeat(10_000);
    let error = load_text("rows.jsonl", flood.as_bytes(), &tokenizer, limits(None)).unwrap_err();
    // Those of the first rows that are read at once.
    assert!(matches!(&error, Error::Many(faults) if (20..=1000).contains(&faults.first().len())), "{error}");
}

#[test]
fn an_empty_file_is_an_error() {
    let tokenizer = tokenizer("chatml");
    for text in ["", "\n\n", "[]"] {
        let error = load_text("rows.json", text.as_bytes(), &tokenizer, limits(None)).unwrap_err();
        assert!(error.to_string().ends_with("rows.json: no rows"), "{error}");
    }
    let error = load(Path::new("/no/such/file.jsonl"), Some(&tokenizer), limits(None)).unwrap_err();
    assert!(error.to_string().starts_with("open /no/such/file.jsonl: "), "{error}");
}

#[test]
fn a_directory_of_every_kind_gives_the_rows_of_its_files() {
    let tokenizer = tokenizer("llama3");
    let text = std::fs::read(fixture("data/chat.jsonl")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
    write("part-10.jsonl", &text);
    write("part-9.jsonl.zst", &zstd::encode_all(&text[..], 1).unwrap());
    let list = Value::from(lines("chat.jsonl")).to_string();
    write("part-1.json", list.as_bytes());
    let files = if cfg!(feature = "parquet") {
        write("part-11.parquet", &std::fs::read(fixture("data/chat.parquet")).unwrap());
        4
    } else {
        3
    };
    let data = load(dir.path(), Some(&tokenizer), limits(None)).unwrap();
    let one = load(&fixture("data/chat.jsonl"), Some(&tokenizer), limits(None)).unwrap();
    let tokens = |rows: &[Row]| ids_and_labels(rows);
    let per_file: Vec<_> = data.rows.chunks(one.rows.len()).map(tokens).collect();
    assert_eq!(per_file, vec![tokens(&one.rows); files]);
    let names: Vec<PathBuf> = data
        .rows
        .iter()
        .step_by(one.rows.len())
        .map(|row| PathBuf::from(row.location.path.file_name().unwrap()))
        .collect();
    assert_eq!(&names[..3], ["part-1.json", "part-9.jsonl.zst", "part-10.jsonl"].map(PathBuf::from));
}

#[test]
fn broken_tokenizer_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Tokenizer::open(dir.path()).unwrap_err().to_string();
    assert!(open().contains("tokenizer.json: no such file"));
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert!(open().contains("tokenizer.json: not a tokenizer"), "{}", open());
    std::fs::copy(fixture("data/chatml/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), "[]").unwrap();
    assert!(open().contains("tokenizer_config.json: expected a JSON object"));
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"eos_token": "<nope>"}"#).unwrap();
    assert!(open().contains("`eos_token` `<nope>` is not in the vocabulary"));
    let config = r#"{"eos_token": "</s>", "chat_template": "{% for %}"}"#;
    std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let chat = lines("chat.jsonl");
    let error = load_rows(&chat, &tokenizer, limits(None)).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json: the chat template does not compile"), "{error}");
}

#[test]
fn a_template_that_runs_on_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("data/chatml/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    let template = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}\
                    {% endfor %}{% endfor %}{% endfor %}";
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let error = load_rows(&lines("chat.jsonl")[..1], &tokenizer, limits(None)).unwrap_err().to_string();
    assert!(error.contains("rows.jsonl:1: the chat template: ") && error.contains("fuel"), "{error}");
}

/// As in DeepSeek-R1, whose generation prompt opens a reasoning that the chat does not hold.
#[test]
fn a_generation_prompt_may_say_more_than_the_chat() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixture("data/chatml/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    let template = "{% for m in messages %}{{ '[INST]' if m.role == 'user' else '[/INST]' }}{{ m.content }}\
                    {% endfor %}{% if add_generation_prompt %}[/INST]<think>{% endif %}";
    let write = |text: &str| std::fs::write(dir.path().join("chat_template.jinja"), text).unwrap();
    let chat =
        json!({"messages": [{"role": "user", "content": "is"}, {"role": "assistant", "content": "the"}]});
    write(template);
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let data = load_rows(std::slice::from_ref(&chat), &tokenizer, limits(None)).unwrap();
    let spans = &preview(&data.rows, &tokenizer, 1).unwrap()[0].spans;
    let text: Vec<_> = spans.iter().map(|s| (s.text.as_str(), s.is_target)).collect();
    assert_eq!(text, [("[INST]is[/INST]", false), ("the", true)]);

    // A template whose prompt shares nothing with the chat gives no mask.
    write(&template.replace("{% for", "{{ messages|length }}{% for"));
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let error = load_rows(&[chat], &tokenizer, limits(None)).unwrap_err().to_string();
    assert!(error.contains("renders what precedes message 2 differently"), "{error}");
}

/// The decoder panics on some of these files; the messages of those panics are caught with the test's output.
#[cfg(feature = "parquet")]
#[test]
fn damaged_parquet_is_an_error() {
    let tokenizer = tokenizer("chatml");
    let whole = std::fs::read(fixture("data/chat.parquet")).unwrap();
    let mut refused = 0;
    for at in (0..whole.len()).step_by(23) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        match load_text("rows.parquet", &bytes, &tokenizer, limits(None)) {
            Ok(_) => {}
            Err(error) => {
                assert!(error.to_string().contains("rows.parquet"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 50, "{refused}");
}
