//! Chat templates and tokenizers that would overflow the stack, take all memory or never end: the command
//! names the limit and the file, with exit code 2.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use assert_cmd::cargo::cargo_bin;
use common::{fixture, ok, path, tensor, write_checkpoint};
use serde_json::{Value, json};

/// A model whose vocabulary is that of the tokenizers in `fixtures/data`, and a chat.
fn model(tokenizer: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let llama = fixture("llama/llama2");
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(llama.join("config.json")).unwrap()).unwrap();
    config["vocab_size"] = json!(460);
    config["num_hidden_layers"] = json!(1);
    let weight = |name: &str, shape: &[u64]| {
        tensor(name, "F32", shape, vec![0; 4 * shape.iter().product::<u64>() as usize])
    };
    let weights = [weight("model.embed_tokens.weight", &[460, 8]), weight("model.norm.weight", &[8])];
    write_checkpoint(dir.path(), &weights, 1, &config.to_string());
    for entry in std::fs::read_dir(fixture("data").join(tokenizer)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    let row = json!({"messages": [message("user", "Hello"), message("assistant", "is the answer")]});
    std::fs::write(dir.path().join("rows.jsonl"), format!("{row}\n{row}\n{row}\n")).unwrap();
    dir
}

fn preview<'a>(model: &'a Path, rows: &'a str) -> [&'a str; 7] {
    ["train", "--model", path(model), "--data", rows, "--preview", "3"]
}

/// Runs the command with 512 MiB of memory: what it says with exit code 2, else how it ended.
fn refusal(model: &Path) -> String {
    let rows = model.join("rows.jsonl");
    let start = Instant::now();
    let output = Command::new("sh")
        .args(["-c", "ulimit -d 524288; exec \"$0\" \"$@\""])
        .arg(cargo_bin("hft-surgery"))
        .args(preview(model, path(&rows)))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code() != Some(2) || !stderr.starts_with("error: ") || stderr.contains("panicked at") {
        return format!("{}: {stderr}", output.status);
    }
    // The limit is processor time; a busy machine needs longer.
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    stderr
}

/// (name, template, what the message must contain; one of several between bars)
fn templates() -> Vec<(&'static str, String, &'static str)> {
    let loops = |body: &str| {
        format!("{{% set ns = namespace(x='ab') %}}{{% for i in range(99999) %}}{body}{{% endfor %}}")
    };
    let (stack, memory, time) = ("the stack allows", "MiB of memory", "ms of processor time");
    // A slow machine may come to the limit of time first.
    let nested = "the stack allows|ms of processor time";
    // A limit of one operation, said for each row.
    let any = "the chat template";
    vec![
        ("operators", format!("{{{{ {}1 }}}}", "1 + a + ".repeat(100_000)), any),
        ("not", format!("{{{{ {}1 }}}}", "not ".repeat(100_000)), stack),
        ("elif", format!("{{% if a %}}{}{{% endif %}}", "{% elif b %}".repeat(60_000)), stack),
        ("list", loops("{% set ns.x = [ns.x] %}") + "{{ ns.x }}", nested),
        ("dictionary", loops("{% set ns.x = {'a': ns.x} %}") + "{{ ns.x | tojson }}", nested),
        ("itself", "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}".to_owned(), any),
        ("doubling", loops("{% set ns.x = ns.x ~ ns.x %}"), "takes more than"),
        ("replace", loops("{% set ns.x = ns.x | replace('a', 'aaaaaaaa') %}"), "takes more than"),
        ("indent", "{{ ('a\n' * 1000000) | indent(100000) }}".to_owned(), memory),
        ("batch", "{{ [1] | batch(100000000000, 0) }}".to_owned(), any),
        ("repetition", "{{ ([0] * 10000000000) ~ '' }}".to_owned(), any),
        ("join", "{{ range(99999) | join('a' * 100000) }}".to_owned(), memory),
        (
            "upper",
            "{% set x = 'a' * 1000000 %}{% for i in range(99999) %}{% set y = x | upper %}{% endfor %}"
                .to_owned(),
            time,
        ),
        (
            "slices",
            "{% set x = 'a' * 1000000 %}{% for i in range(99999) %}{% set y = x[1:] == x %}{% endfor %}"
                .to_owned(),
            time,
        ),
        ("precision", "{{ '%.999999999f' | format(1.0) }}".to_owned(), any),
        ("width", "{{ '%999999999d' | format(1) }}".to_owned(), any),
        ("length", format!("{{# {} #}}", "a".repeat(1 << 20)), "expected at most 1048576"),
    ]
}

#[test]
fn hostile_templates_end_at_a_limit() {
    let dir = model("chatml");
    let file = dir.path().join("chat_template.jinja");
    let mut wrong = Vec::new();
    for (name, template, fault) in templates() {
        std::fs::write(&file, template).unwrap();
        let stderr = refusal(dir.path());
        let once = fault == "the chat template" || stderr.matches("error: ").count() == 1;
        if !(once
            && stderr.starts_with("error: ")
            && fault.split('|').any(|fault| stderr.contains(fault))
            && stderr.contains("chat_template.jinja"))
        {
            wrong.push(format!("{name}: {stderr}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The same samples as where the template is rendered inside the process of the caller.
#[test]
fn templates_render_apart_as_they_do_here() {
    use hft_surgery::data::{Limits, Tokenizer, load, preview as samples};

    for name in ["chatml", "llama3", "gemma", "generation", "reasoning"] {
        let dir = model(name);
        let rows = dir.path().join("rows.jsonl");
        let shown = ok(&preview(dir.path(), path(&rows)));
        let tokenizer = Tokenizer::open(dir.path()).unwrap();
        let data = load(&rows, Some(&tokenizer), Limits { max_length: None, vocab_size: 460 }).unwrap();
        let here = samples(&data.rows, &tokenizer, 3).unwrap();
        assert_eq!(here.len(), 3);
        for span in here[0].spans.iter().filter(|span| span.is_target) {
            assert!(shown.contains(span.text.trim()), "{name}: {shown}");
        }
    }
}

/// (place in tokenizer.json, value)
fn tokenizers() -> Vec<(&'static str, Value)> {
    let replace =
        |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let nested =
        (0..100).fold(json!({"type": "NFC"}), |inner, _| json!({"type": "Sequence", "normalizers": [inner]}));
    vec![
        ("decoder", json!({"type": "Strip", "content": "Ċ", "start": 0, "stop": 2})),
        ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": ""})),
        ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="})),
        ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="})),
        ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="})),
        ("normalizer", json!({"type": "Sequence", "normalizers": vec![replace("a", "aa"); 40]})),
        ("normalizer", json!({"type": "Sequence", "normalizers": [nested, replace("", &"b".repeat(5000))]})),
        ("pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
        ("model", json!({"type": "Unigram", "unk_id": 0, "vocab": [["a".repeat(1_000_000), -1.0]]})),
        ("model", json!({"type": "Unigram", "unk_id": 7, "vocab": [["a", -1.0]]})),
        (
            "model",
            json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]],
                         "continuing_subword_prefix": "####"}),
        ),
        ("model", json!({"type": "BPE", "vocab": {"a": 0}, "merges": [["aaaa", "b"]]})),
    ]
}

#[test]
fn hostile_tokenizers_are_refused() {
    let dir = model("chatml");
    let file = dir.path().join("tokenizer.json");
    let whole: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let mut wrong = Vec::new();
    for (place, value) in tokenizers() {
        let mut tokenizer = whole.clone();
        tokenizer[place] = value.clone();
        std::fs::write(&file, tokenizer.to_string()).unwrap();
        let stderr = refusal(dir.path());
        if !(stderr.starts_with("error: ") && stderr.contains("tokenizer.json")) {
            let value: String = value.to_string().chars().take(100).collect();
            wrong.push(format!("{place}: {value}: {stderr}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
