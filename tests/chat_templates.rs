//! Chats under the chat templates that TRL ships and some more, against ids and labels of transformers
//! (`fixtures/data/jinja/make_templates.py`).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::Path;

use common::fixture;
use hft_surgery::Result;
use hft_surgery::data::{Dataset, IGNORED, Limits, Row, Tokenizer, load};
use serde_json::{Value, json};

/// (template, chat, why ours differs)
const DIFFERENT: [(&str, u64, &str); 3] = [
    // `<｜end▁of▁sentence｜>` is no token of the tokenizer, and its first character is also that of the prompt's `<think>`.
    ("deepseek_r1_distill", 4, "the answer begins inside a token of the generation prompt"),
    // The template moves a reasoning to another place when a user's message follows.
    ("diffusion_gemma", 5, "refused: what precedes message 6 is rendered differently without it"),
    ("gemma4_v5", 5, "refused: what precedes message 6 is rendered differently without it"),
];

fn golden() -> Value {
    let compressed = std::fs::read(fixture("data/jinja/templates.json.zst")).unwrap();
    serde_json::from_slice(&zstd::decode_all(&compressed[..]).unwrap()).unwrap()
}

/// A tokenizer in `dir` with this chat template.
fn tokenizer(dir: &Path, template: &str) -> Tokenizer {
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixture("data/chatml").join(name), dir.join(name)).unwrap();
    }
    std::fs::write(dir.join("chat_template.jinja"), template).unwrap();
    Tokenizer::open(dir).unwrap()
}

fn load_row(dir: &Path, row: &Value, tokenizer: &Tokenizer) -> Result<Dataset> {
    let path = dir.join("rows.jsonl");
    std::fs::write(&path, row.to_string()).unwrap();
    load(&path, Some(tokenizer), Limits { max_length: None, vocab_size: 460 })
}

/// The text of a row and the ranges of tokens that are learnt.
fn text_and_targets(row: &Row, tokenizer: &Tokenizer) -> Value {
    let mut ranges: Vec<[usize; 2]> = Vec::new();
    for (at, _) in row.labels.iter().enumerate().filter(|(_, label)| **label != IGNORED) {
        match ranges.last_mut().filter(|range| range[1] == at) {
            Some(range) => range[1] += 1,
            None => ranges.push([at, at + 1]),
        }
    }
    json!([tokenizer.decode(&row.input_ids).unwrap(), ranges])
}

#[test]
fn chats_under_known_templates_are_what_transformers_makes_of_them() {
    let golden = golden();
    let dir = tempfile::tempdir().unwrap();
    let (mut compared, mut refused, mut differ) = (0, 0, Vec::new());
    for (name, template) in golden["templates"].as_object().unwrap() {
        let tokenizer = tokenizer(dir.path(), template.as_str().unwrap());
        for case in golden["cases"].as_array().unwrap().iter().filter(|case| case[0] == name.as_str()) {
            let (chat, expected) = (case[1].as_u64().unwrap(), &case[2]);
            if DIFFERENT.iter().any(|(template, at, _)| (*template, *at) == (name.as_str(), chat)) {
                continue;
            }
            let loaded = load_row(dir.path(), &golden["chats"][chat as usize], &tokenizer);
            match (expected.is_null(), loaded) {
                (true, Err(_)) => refused += 1,
                (true, Ok(_)) => differ.push(format!("{name} {chat}: Python refuses the chat")),
                (false, Err(e)) => differ.push(format!("{name} {chat}: {e}")),
                (false, Ok(data)) => {
                    let rows: Value = data.rows.iter().map(|row| text_and_targets(row, &tokenizer)).collect();
                    if rows != *expected {
                        differ.push(format!("{name} {chat}:\n  got  {rows}\n  want {expected}"));
                    }
                    compared += 1;
                }
            }
        }
    }
    assert!(differ.is_empty(), "{} differ\n{}", differ.len(), differ.join("\n"));
    assert!(compared > 500 && refused > 50, "{compared} compared, {refused} refused");
}

/// The list in `tokenizer_config.json`, `chat_template.jinja` and `additional_chat_templates/`: `tool_use` is taken
/// when a row has tools.
#[test]
fn named_templates_are_chosen_as_transformers_chooses() {
    let golden = golden();
    let (mut rendered, mut refused) = (0, 0);
    for case in golden["named"].as_array().unwrap() {
        let (files, tools, expected) = (case[0].as_object().unwrap(), &case[1], &case[2]);
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(fixture("data/chatml/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
        let config = json!({"eos_token": "<|im_end|>", "chat_template": files.get("chat_template")});
        std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        for (name, text) in files.iter().filter(|(name, _)| name.ends_with(".jinja")) {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text.as_str().unwrap()).unwrap();
        }
        let tokenizer = Tokenizer::open(dir.path()).unwrap();
        let mut row =
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
        if !tools.is_null() {
            row["tools"] = tools.clone();
        }
        match (expected.as_str(), load_row(dir.path(), &row, &tokenizer)) {
            (Some(text), Ok(data)) => {
                assert_eq!(tokenizer.decode(&data.rows[0].input_ids).unwrap(), text, "{case}");
                rendered += 1;
            }
            (None, Err(error)) => {
                let message = error.to_string();
                assert!(message.contains("the only chat template is named `tool_use`"), "{case}: {message}");
                refused += 1;
            }
            (_, loaded) => panic!("{case}: {:?}", loaded.map(|data| data.rows.len())),
        }
    }
    assert_eq!((rendered, refused), (16, 2));
}
