//! `generate`, against transformers: `fixtures/generate`, made by `make_generate.py` there.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod common;

use std::path::{Path, PathBuf};

use common::{fails, fixture, ok, output, path};
use hft_surgery::backend::CpuPrecision;
use hft_surgery::checkpoint::{Access, Checkpoint};
use hft_surgery::generate::{Generator, Options, Sampling, probabilities};
use hft_surgery::model::ModelConfig;
use serde_json::Value;

fn golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/generate/golden.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// One generator per model answers all its prompts: what the cache holds of one does not change the next.
#[test]
fn greedy_tokens_are_those_of_transformers_with_and_without_a_cache() {
    let golden = golden();
    let cases = golden["models"].as_array().unwrap();
    let mut compared = 0;
    for cases in cases.chunk_by(|a, b| a["model"] == b["model"]) {
        let name = cases[0]["model"].as_str().unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/llama").join(name);
        let source = Checkpoint::open(&root.join("model.safetensors"), Access::Map).unwrap();
        for cache in [true, false] {
            let config = ModelConfig::read(&source).unwrap();
            let mut generator = Generator::open(&source, config, cache, CpuPrecision::F32).unwrap();
            for case in cases {
                let repetition_penalty = case["penalty"].as_f64().unwrap() as f32;
                let options = Options { sampling: None, repetition_penalty, max_new_tokens: 24 };
                let mut streamed = Vec::new();
                let prompt = ids(&case["prompt"]);
                let new = generator.generate(&prompt, &options, &[2], |id| {
                    streamed.push(id);
                    Ok(())
                });
                assert_eq!(new.unwrap(), ids(&case["ids"]), "{name}, cache {cache}: {case}");
                assert_eq!(streamed, ids(&case["ids"]));
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 2 * 9 * 6);
}

#[test]
fn probabilities_are_those_that_transformers_samples_from() {
    let golden = golden();
    let golden = &golden["probabilities"];
    let logits: Vec<f32> = serde_json::from_value(golden["logits"].clone()).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let sampling = Sampling {
            temperature: case["temperature"].as_f64().unwrap() as f32,
            top_k: case["top_k"].as_u64().map(|k| k as usize),
            top_p: case["top_p"].as_f64().map(|p| p as f32),
            seed: 0,
        };
        let expected: Vec<(u32, f64)> = serde_json::from_value(case["kept"].clone()).unwrap();
        let got = probabilities(&logits, &sampling);
        let ids = |list: &[(u32, f64)]| list.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        assert_eq!(ids(&got), ids(&expected), "{sampling:?}");
        for ((id, got), (_, expected)) in got.iter().zip(&expected) {
            assert!((got - expected).abs() < 1e-6, "{sampling:?}: token {id}: {got}, expected {expected}");
        }
    }
}

/// The arguments of `generate` on a fixture.
fn generate<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["generate", "--model", model, "--max-new-tokens", "24"], more].concat()
}

#[test]
fn the_command_writes_what_transformers_writes() {
    let base = fixture("base");
    let golden = golden();
    for case in golden["command"].as_array().unwrap() {
        let prompt = case["prompt"].as_str().unwrap();
        let raw: &[&str] = if case["raw"] == true { &["--raw"] } else { &[] };
        let arguments = generate(path(&base), &[&["--prompt", prompt], raw].concat());
        for cache in [&[][..], &["--no-kv-cache"]] {
            let json: Value = serde_json::from_str(&ok(&[&arguments, cache, &["--json"]].concat())).unwrap();
            assert_eq!((&json["ids"], &json["text"]), (&case["ids"], &case["text"]), "{arguments:?}");
            assert_eq!(json["model"], path(&base));
        }
        assert_eq!(ok(&arguments), format!("{}\n", case["text"].as_str().unwrap()));
    }
}

#[test]
fn each_model_has_its_line_of_json_and_its_heading() {
    let (base, tuned) = (fixture("base"), fixture("tuned"));
    let both = generate(path(&base), &["--model", path(&tuned), "--prompt", "Hello"]);
    let lines = ok(&[&both[..], &["--json"]].concat());
    let models: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(models.len(), 2);
    let text = |at: usize| models[at]["text"].as_str().unwrap();
    let expected = format!("== {} ==\n{}\n\n== {} ==\n{}\n", path(&base), text(0), path(&tuned), text(1));
    assert_eq!(ok(&both), expected);
}

#[test]
fn a_seed_gives_one_text_on_any_number_of_threads() {
    let base = fixture("base");
    let of = |seed: &str, threads: &str| {
        let sampled = ["--prompt", "Hello", "--temperature", "1.2", "--top-k", "50", "--top-p", "0.95"];
        ok(&[&generate(path(&base), &sampled)[..], &["--json", "--seed", seed, "--threads", threads]]
            .concat())
    };
    let one = of("7", "1");
    assert_eq!(one, of("7", "3"));
    assert_ne!(one, of("8", "1"));
}

/// A copy of `fixtures/base` with other files.
fn changed(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(fixture("base")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    for (name, text) in files {
        std::fs::write(model.join(name), text).unwrap();
    }
    (dir, model)
}

#[test]
fn a_stop_token_of_the_files_ends_the_text() {
    let golden = golden();
    let case = &golden["command"][0];
    let expected = ids(&case["ids"]);
    // A token that stands late in the greedy text, and nowhere before.
    let at = (0..expected.len()).rfind(|at| !expected[..*at].contains(&expected[*at])).unwrap();
    let files = [
        ("generation_config.json", format!("{{\"eos_token_id\": [2, {}]}}", expected[at])),
        ("generation_config.json", format!("{{\"eos_token_id\": {}}}", expected[at])),
    ];
    for (name, text) in files {
        let (_dir, model) = changed(&[(name, &text)]);
        let arguments = generate(path(&model), &["--prompt", case["prompt"].as_str().unwrap(), "--json"]);
        let json: Value = serde_json::from_str(&ok(&arguments)).unwrap();
        assert_eq!(ids(&json["ids"]), expected[..=at]);
        assert_eq!(json["finish_reason"], "stop");
    }
}

#[test]
fn what_the_generation_config_asks_for_and_is_not_done_is_said() {
    let config = r#"{"eos_token_id": 2, "do_sample": true, "temperature": 0.6, "top_p": 1.0, "num_beams": 1,
        "repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "bos_token_id": 1, "length_penalty": 1.0}"#;
    let (_dir, model) = changed(&[("generation_config.json", config)]);
    let said = |more: &[&str]| {
        let arguments = generate(path(&model), &[&["--prompt", "Hello"], more].concat());
        let output = output(&mut common::hft(&arguments));
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let greedy = said(&[]);
    assert!(
        greedy.contains("asks for do_sample true, repetition_penalty 1.1, no_repeat_ngram_size 3;"),
        "{greedy}"
    );
    let sampled = said(&["--top-k", "9", "--repetition-penalty", "1.1"]);
    assert!(sampled.contains("asks for temperature 0.6, no_repeat_ngram_size 3;"), "{sampled}");
    let (_dir, model) = changed(&[("generation_config.json", "{}")]);
    let output = output(&mut common::hft(&generate(path(&model), &["--prompt", "Hello"])));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("no `eos_token_id` in") && stderr.contains("--max-new-tokens"), "{stderr}");
}

#[test]
fn a_file_of_messages_is_a_chat() {
    let base = fixture("base");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("chat.json");
    let of = |text: &str| {
        std::fs::write(&file, text).unwrap();
        generate(path(&base), &["--messages", path(&file)])
    };
    let prompt = ok(&generate(path(&base), &["--prompt", "Hello"]));
    assert_eq!(ok(&of(r#"[{"role": "user", "content": "Hello"}]"#)), prompt);
    assert_eq!(ok(&of(r#"{"messages": [{"role": "user", "content": "Hello"}]}"#)), prompt);
    let two = r#"{"system": "Be brief.", "messages": [{"role": "user", "content": "Hello"}]}"#;
    assert_ne!(ok(&of(two)), prompt);
    for (text, fault) in [
        (r#"[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]"#, "the assistant's"),
        ("[]", "`messages`: expected a list of messages, got a list of 0"),
        ("{\"messages\": [", "not valid JSON"),
        ("3", "expected a list of messages, or an object"),
    ] {
        let said = fails(&of(text));
        assert!(said.contains("chat.json: ") && said.contains(fault), "{said}");
    }
}

#[test]
fn what_cannot_be_done_is_refused() {
    let base = fixture("base");
    let no_template = r#"{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}"#;
    let (_dir, plain) = changed(&[("tokenizer_config.json", no_template)]);
    let (_other, wrong) = changed(&[("generation_config.json", r#"{"eos_token_id": 264}"#)]);
    let (base, plain, wrong) = (path(&base), path(&plain), path(&wrong));
    for (arguments, fault) in [
        (
            generate(base, &["--prompt", "a", "--temperature", "0"]),
            "--temperature: got 0, expected a number above 0",
        ),
        (generate(base, &["--prompt", "a", "--top-k", "0"]), "--top-k: got 0, expected 1 or more"),
        (generate(base, &["--prompt", "a", "--top-p", "1.5"]), "--top-p: got 1.5, expected a number above 0"),
        (generate(base, &["--prompt", "a", "--repetition-penalty", "0"]), "--repetition-penalty: got 0"),
        (
            vec!["generate", "--model", base, "--prompt", "a", "--max-new-tokens", "0"],
            "--max-new-tokens: got 0",
        ),
        (generate(base, &["--prompt", "", "--raw"]), "the prompt has no tokens"),
        (generate(plain, &["--prompt", "a"]), "the model has no chat template"),
        (
            generate(wrong, &["--prompt", "a"]),
            "`eos_token_id`: got `264`, expected a token id below vocab_size = 264",
        ),
    ] {
        let said = fails(&arguments);
        assert!(said.contains(fault), "{said}");
    }
    assert!(fails(&generate(plain, &["--prompt", "a"])).contains("--raw"));
    ok(&generate(plain, &["--prompt", "a", "--raw"]));
}

/// Runs `generate` with these lines as stdin.
fn piped(arguments: &[&str], lines: &str) -> std::process::Output {
    use std::io::Write;
    use std::process::Stdio;
    let mut command = common::hft(arguments);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    common::wait(child)
}

/// Each turn answers the whole chat so far; of an earlier turn nothing is computed again but what the template renders
/// otherwise.
#[test]
fn a_chat_answers_line_by_line_with_its_history() {
    let base = fixture("base");
    let chat = |more: &[&str], lines: &str| {
        let arguments =
            [&["generate", "--model", path(&base), "--max-new-tokens", "6", "--chat", "--verbose"], more]
                .concat();
        let output = piped(&arguments, lines);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("chat.json");
    let of_file = |messages: &Value| {
        std::fs::write(&file, messages.to_string()).unwrap();
        let arguments = [
            "generate",
            "--model",
            path(&base),
            "--max-new-tokens",
            "6",
            "--messages",
            path(&file),
            "--json",
        ];
        let answer: Value = serde_json::from_str(&ok(&arguments)).unwrap();
        answer["text"].as_str().unwrap().to_owned()
    };
    let mut messages =
        serde_json::json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]);
    let first = of_file(&messages);
    let list = messages.as_array_mut().unwrap();
    list.push(serde_json::json!({"role": "assistant", "content": first}));
    list.push(serde_json::json!({"role": "user", "content": "the quick fox"}));
    let second = of_file(&messages);
    let (text, said) = chat(&["--system", "Be brief."], "Hello\n\nthe quick fox\n");
    assert_eq!(text, format!("{first}\n{second}\n"));
    let computed: Vec<Vec<u64>> = said
        .lines()
        .filter(|line| line.contains("prompt tokens computed"))
        .map(|line| line.split_whitespace().filter_map(|word| word.parse().ok()).collect())
        .collect();
    assert_eq!(computed.len(), 2, "{said}");
    assert_eq!(computed[0][0], computed[0][1]);
    assert!(computed[1][0] < computed[1][1] - computed[0][1] + 8, "{said}");
    let (text, _) = chat(&["--system", "Be brief."], "the quick fox\n/reset\nHello\n/exit\nHello\n");
    assert!(text.ends_with(&format!("\n{first}\n")), "{text}");
}

#[test]
fn models_answer_a_chat_in_turn_and_a_chat_without_lines_is_refused() {
    let (base, tuned) = (fixture("base"), fixture("tuned"));
    let arguments =
        ["generate", "--model", path(&base), "--model", path(&tuned), "--max-new-tokens", "4", "--chat"];
    let text = String::from_utf8(piped(&arguments, "Hello\n").stdout).unwrap();
    let alone = |model: &Path| {
        ok(&["generate", "--model", path(model), "--max-new-tokens", "4", "--prompt", "Hello"])
    };
    let expected =
        format!("== {} ==\n{}\n== {} ==\n{}", path(&base), alone(&base), path(&tuned), alone(&tuned));
    assert_eq!(text, expected);
    for lines in ["", "\n\n"] {
        let output = piped(&arguments, lines);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && stderr.contains("has no line to answer"), "{stderr}");
    }
    let output = piped(&arguments, "a\u{e9}\n\n");
    assert_eq!(output.status.code(), Some(0));
}

/// A template that raises an exception on a message of the system, and one that leaves it out.
#[test]
fn a_template_without_a_system_message_is_refused_by_name() {
    let raises = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{{ m.content }}{% endfor %}";
    let silent = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}";
    for (template, fault) in [(raises, "System role not supported"), (silent, "leaves it out")] {
        let config = serde_json::json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "chat_template": template});
        let (_dir, model) = changed(&[("tokenizer_config.json", &config.to_string())]);
        for more in [&["--chat"][..], &["--prompt", "Hello"]] {
            let said = fails(&[&generate(path(&model), more)[..], &["--system", "Be brief."]].concat());
            assert!(said.contains("--system: the chat template of") && said.contains(fault), "{said}");
        }
    }
}

/// A signal stops the answer; the chat goes on with the next line.
#[test]
fn a_signal_stops_the_answer_and_not_the_chat() {
    use std::io::{Read, Write};
    use std::process::Stdio;
    let base = fixture("base");
    let config = serde_json::json!({"eos_token_id": null}).to_string();
    let (_dir, model) = changed(&[("generation_config.json", &config)]);
    drop(base);
    let arguments = ["generate", "--model", path(&model), "--max-new-tokens", "1000000", "--chat"];
    let mut command = common::hft(&arguments);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"Hello\n").unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut byte = [0];
    for _ in 0..2 {
        stdout.read_exact(&mut byte).unwrap();
        let id = child.id().to_string();
        assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
        // The line after the answer tells that it has ended.
        while byte != *b"\n" {
            stdout.read_exact(&mut byte).unwrap();
        }
        stdin.write_all(b"once more\n").unwrap();
    }
    assert!(child.try_wait().unwrap().is_none());
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    assert!(!common::wait(child).status.success());
}
