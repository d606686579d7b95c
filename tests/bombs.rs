//! Small files that stand for a lot: each is refused, in bounded memory, without a panic.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use assert_cmd::cargo::cargo_bin;
use common::{fixture, path};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// KiB of address space that a command may take, the files that it maps included: a build without optimization
/// needs about a third of it for itself.
const ADDRESS_SPACE: u64 = 1_500_000;

/// Runs the command in bounded memory; expects exit code 2 and gives stderr.
fn refused(args: &[&str]) -> String {
    let begin = Instant::now();
    let limited = format!("ulimit -v {ADDRESS_SPACE}; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    let output = command.args(["-c", &limited]).arg(cargo_bin("hft-surgery")).args(args).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    assert!(!stderr.contains("panicked") && stderr.len() < 2000, "{args:?}: {stderr}");
    // Two seconds is the aim of a release build.
    assert!(begin.elapsed() < Duration::from_secs(60), "{args:?}: {:?}", begin.elapsed());
    stderr
}

/// A directory for what a test makes.
fn dir(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// A copy of a fixture.
fn model(dir: &Path, name: &str) -> PathBuf {
    let to = dir.join("model");
    let _ = fs::remove_dir_all(&to);
    fs::create_dir_all(&to).unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, to.join(from.file_name().unwrap())).unwrap();
    }
    to
}

fn safetensors(path: &Path, json: &str) {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_header_of_a_million_empty_tensors() {
    let dir = dir("header");
    let entry = |i: u32| format!(r#""t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#);
    let all: Vec<String> = (0..1_000_000).map(entry).collect();
    let file = dir.join("model.safetensors");
    safetensors(&file, &format!("{{{}}}", all.join(",")));
    for args in [&["inspect"][..], &["plan"], &["verify"]] {
        let stderr = refused(&[args, &[path(&file)]].concat());
        assert!(stderr.contains("too many tensors: expected at most 300000"), "{stderr}");
    }
    // Two halves of it in two shards.
    fs::remove_file(&file).unwrap();
    safetensors(&dir.join("model-1-of-2.safetensors"), &format!("{{{}}}", all[..200_000].join(",")));
    safetensors(&dir.join("model-2-of-2.safetensors"), &format!("{{{}}}", all[200_000..400_000].join(",")));
    let stderr = refused(&["inspect", path(&dir)]);
    assert!(stderr.contains("too many tensors: got 400000, expected at most 300000"), "{stderr}");
}

#[test]
fn an_index_of_a_million_tensors() {
    let dir = dir("index");
    let entry = |i: u32| format!(r#""t{i}":"m.safetensors""#);
    let all: Vec<String> = (0..1_000_000).map(entry).collect();
    let file = dir.join("model.safetensors.index.json");
    fs::write(&file, format!(r#"{{"weight_map":{{{}}}}}"#, all.join(","))).unwrap();
    let stderr = refused(&["inspect", path(&dir)]);
    assert!(stderr.contains("too many tensors: expected at most 300000"), "{stderr}");
}

#[test]
fn a_plan_of_a_million_names() {
    let dir = dir("plan");
    let names: Vec<String> = (0..1_000_000).map(|i| format!("t{i}")).collect();
    let plan = json!({"format": "hft-surgery/plan", "version": 1, "trainable": names, "frozen": []});
    let file = dir.join("plan.json");
    fs::write(&file, plan.to_string()).unwrap();
    let stderr = refused(&["plan", "show", path(&file)]);
    assert!(
        stderr.contains("plan.json: not a valid plan: `trainable") && stderr.contains("at most 300000"),
        "{stderr}"
    );
}

#[test]
fn a_patch_of_half_a_million_files() {
    let dir = dir("patch");
    let zeros = "0".repeat(64);
    let file = |i: u32| json!({"path": format!("f{i}.json"), "bytes": 0, "sha256": zeros});
    let files: Vec<Value> = (0..500_000).map(file).collect();
    let tensors = "{\"new\":{\"chunks\":[]}},".repeat(3_000_000);
    let many = format!(r#"{{"base":"{zeros}","tuned":"{zeros}","files":[{{"tensors":[{tensors}"#);
    let toc = json!({"base": zeros, "tuned": zeros, "files": [], "sidecars": files}).to_string();
    for (toc, expected) in [
        (toc, "table of contents: `sidecars`: too many items: expected at most 10000"),
        (many, "table of contents: too many objects: got 6000002, expected at most 1200000"),
    ] {
        let patch = dir.join("x.hftpatch");
        fs::write(&patch, patch_of(toc.as_bytes())).unwrap();
        let stderr = refused(&["patch", "inspect", path(&patch)]);
        assert!(stderr.contains(expected), "{stderr}");
    }
}

/// A patch without chunks around this table of contents.
fn patch_of(toc: &[u8]) -> Vec<u8> {
    let stored = zstd::encode_all(toc, 1).unwrap();
    let mut patch = b"HFTPATCH".to_vec();
    for number in [1, 104, stored.len() as u64, toc.len() as u64] {
        patch.extend_from_slice(&number.to_le_bytes());
    }
    patch.extend_from_slice(&Sha256::digest(&stored));
    let sum = Sha256::digest(&patch);
    patch.extend_from_slice(&sum);
    patch.extend_from_slice(&stored);
    patch
}

#[test]
fn brackets_in_a_config() {
    let dir = dir("brackets");
    let model = model(&dir, "llama/llama2");
    let rows = dir.join("rows.jsonl");
    fs::write(&rows, r#"{"input_ids": [1, 2, 3]}"#).unwrap();
    let config = model.join("config.json");
    for (text, expected) in [
        (
            format!("{{\"a\":[{}0]}}", "[],".repeat(20_000_000)),
            "config.json: too many values: its JSON takes about",
        ),
        ("[".repeat(60_000_000), "config.json: too many values"),
        ("[".repeat(100_000), "config.json: nested too deeply"),
        ("{\"\":".repeat(1000) + "0", "config.json: nested too deeply"),
    ] {
        fs::write(&config, text).unwrap();
        for args in [
            &["inspect", path(&model)][..],
            &["plan", path(&model)],
            &["eval", "--model", path(&model), "--data", path(&rows)],
        ] {
            let stderr = refused(args);
            assert!(stderr.contains(expected), "{args:?}: {stderr}");
        }
    }
}

#[test]
fn sizes_in_a_config_that_the_weights_do_not_have() {
    let dir = dir("sizes");
    let rows = dir.join("rows.jsonl");
    fs::write(&rows, r#"{"input_ids": [1, 2, 3]}"#).unwrap();
    for (key, value, expected) in [
        (
            "num_hidden_layers",
            json!(1_000_000_000),
            "`num_hidden_layers`: got `1000000000`, expected at most",
        ),
        ("vocab_size", json!(2_000_000_000), "`vocab_size`: asks for a dimension of 2000000000"),
        ("hidden_size", json!(1 << 30), "`hidden_size`: asks for"),
        ("intermediate_size", json!(1 << 30), "`intermediate_size`: asks for"),
        ("head_dim", json!(1 << 30), "`num_attention_heads`: asks for"),
        ("num_hidden_layers", json!(u64::MAX), "`num_hidden_layers`: got `18446744073709551615`"),
    ] {
        let model = model(&dir, "llama/qwen3");
        let config = model.join("config.json");
        let mut text: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        text[key] = value;
        fs::write(&config, text.to_string()).unwrap();
        let out = dir.join("out");
        let (model, rows) = (path(&model), path(&rows));
        for args in [
            &["eval", "--model", model, "--data", rows][..],
            &["train", "--model", model, "--data", rows, "--out", path(&out)],
        ] {
            let stderr = refused(args);
            assert!(stderr.contains(expected), "{args:?}: {stderr}");
        }
        assert!(!out.exists());
    }
}

#[test]
fn pipes_in_place_of_files_are_not_opened() {
    let dir = dir("pipes");
    let rows = dir.join("rows.jsonl");
    fs::write(&rows, r#"{"text": "a"}"#).unwrap();
    let pipe = |at: &Path| {
        let _ = fs::remove_file(at);
        assert!(Command::new("mkfifo").arg(at).status().unwrap().success());
    };
    for name in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    ] {
        let model = model(&dir, "llama/llama2");
        for entry in fs::read_dir(fixture("data/chatml")).unwrap() {
            let from = entry.unwrap().path();
            fs::copy(&from, model.join(from.file_name().unwrap())).unwrap();
        }
        pipe(&model.join(name));
        let stderr = refused(&["eval", "--model", path(&model), "--data", path(&rows)]);
        assert!(stderr.contains(&format!("{name}: not a regular file")), "{stderr}");
    }
    let index = dir.join("model.safetensors.index.json");
    pipe(&index);
    assert!(refused(&["inspect", path(&index)]).contains("not a regular file"));
    let adapter = dir.join("adapter");
    fs::create_dir_all(&adapter).unwrap();
    pipe(&adapter.join("adapter_config.json"));
    let (base, out) = (fixture("base"), dir.join("out"));
    let stderr = refused(&["merge", "--base", path(&base), "--lora", path(&adapter), "--out", path(&out)]);
    assert!(stderr.contains("adapter_config.json: not a regular file"), "{stderr}");
    let model = model(&dir, "llama/llama2");
    let data = dir.join("data");
    fs::create_dir_all(&data).unwrap();
    pipe(&data.join("rows.jsonl"));
    for rows in [data.join("rows.jsonl"), data] {
        assert!(
            refused(&["eval", "--model", path(&model), "--data", path(&rows)])
                .contains("rows.jsonl: not a regular file")
        );
    }
}

/// Evaluates on rows of this file; stderr of the refusal.
fn rows_refused(rows: &Path) -> String {
    refused(&["eval", "--model", path(&fixture("llama/llama2")), "--data", path(rows)])
}

#[test]
fn rows_of_json() {
    let dir = dir("json");
    let long = format!("{{\"text\":\"{}\"}}\n", "x".repeat(100_000_000));
    let values = format!("{{\"input_ids\":[{}0]}}\n", "0,".repeat(5_000_000));
    for (name, text, expected) in [
        ("long.jsonl", long.as_str(), "long.jsonl:1: the line is too long"),
        ("long.json", &format!("[{long}]"), "long.json:1: the row is too long"),
        ("values.jsonl", &values, "values.jsonl:1: the row has too many values"),
    ] {
        let file = dir.join(name);
        fs::write(&file, text).unwrap();
        assert!(rows_refused(&file).contains(expected));
    }
    let packed = dir.join("lines.jsonl.zst");
    fs::write(&packed, zstd::encode_all(long.repeat(2).as_bytes(), 1).unwrap()).unwrap();
    assert!(fs::metadata(&packed).unwrap().len() < 200_000);
    assert!(rows_refused(&packed).contains("lines.jsonl.zst:1: the line is too long"));
}

#[cfg(feature = "parquet")]
mod parquet_files {
    use std::sync::Arc;

    use parquet::basic::{Compression, ZstdLevel};
    use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;

    /// Values, and levels of definition and of repetition.
    type Batch<V> = (Vec<V>, Vec<[i16; 2]>);

    /// A file of one column, in one row group; without levels, each row has one value.
    fn write<T: DataType>(file: &Path, schema: &str, batches: &[Batch<T::T>]) {
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let zstd = Compression::ZSTD(ZstdLevel::try_new(1).unwrap());
        let properties = WriterProperties::builder().set_compression(zstd);
        let properties = properties.set_dictionary_page_size_limit(8 << 20).build();
        let file = fs::File::create(file).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        for (values, levels) in batches {
            let [definition, repetition] = [0, 1].map(|i| levels.iter().map(|l| l[i]).collect::<Vec<i16>>());
            let levels = |of| if levels.is_empty() { None } else { Some(of) };
            let typed = column.typed::<T>();
            typed.write_batch(values, levels(&definition[..]), levels(&repetition[..])).unwrap();
        }
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
    }

    const IDS: &str =
        "message m { required group input_ids (LIST) { repeated group list { required int32 element; } } }";
    const TEXTS: &str = "message m { required group messages (LIST) { repeated group list { required binary element (UTF8); } } }";

    fn list<V: Clone>(rows: usize, length: usize, value: V) -> Batch<V> {
        let levels = (0..rows * length).map(|i| [1, i16::from(i % length > 0)]);
        (vec![value; rows * length], levels.collect())
    }

    #[test]
    fn lists_of_many_values() {
        let dir = dir("parquet-lists");
        let (ids, texts) = (dir.join("ids.parquet"), dir.join("texts.parquet"));
        let batches = [list(3, 4, 7), list(1, 20_000_000, 7)];
        write::<Int32Type>(&ids, IDS, &batches);
        assert!(fs::metadata(&ids).unwrap().len() < 4000);
        let stderr = rows_refused(&ids);
        assert!(
            stderr.contains("ids.parquet:4: the row has too many values: expected at most 4194304"),
            "{stderr}"
        );
        write::<ByteArrayType>(&texts, TEXTS, &[list(1, 5000, ByteArray::from(vec![b'x'; 1 << 20]))]);
        assert!(fs::metadata(&texts).unwrap().len() < 4000);
        let stderr = rows_refused(&texts);
        assert!(stderr.contains("texts.parquet:1: the row is too long: "), "{stderr}");
    }

    #[test]
    fn rows_below_the_limit_are_read() {
        let dir = dir("parquet-rows");
        let file = dir.join("ids.parquet");
        write::<Int32Type>(&file, IDS, &[list(3, 1_000_000, 7)]);
        let limits = hft_surgery::data::Limits { max_length: None, vocab_size: 8 };
        let rows = hft_surgery::data::load(&file, None, limits).unwrap().rows;
        assert!(rows.len() == 3 && rows.iter().all(|row| row.input_ids == vec![7; 1_000_000]));
    }

    #[test]
    fn a_page_of_zeros() {
        let dir = dir("parquet-page");
        let file = dir.join("text.parquet");
        let text = ByteArray::from(vec![b'x'; 150 << 20]);
        write::<ByteArrayType>(&file, "message m { required binary text (UTF8); }", &[(vec![text], vec![])]);
        assert!(fs::metadata(&file).unwrap().len() < 40_000);
        let stderr = rows_refused(&file);
        assert!(stderr.contains("text.parquet: pages too large: got 15728640"), "{stderr}");
        let text = ByteArray::from(vec![b'x'; 30 << 20]);
        write::<ByteArrayType>(&file, "message m { required binary text (UTF8); }", &[(vec![text], vec![])]);
        assert!(rows_refused(&file).contains("text.parquet:1: the row is too long"));
    }

    #[test]
    fn dates_at_the_ends_of_their_range() {
        let dir = dir("parquet-dates");
        let file = dir.join("dates.parquet");
        for at in [i32::MIN, i32::MAX] {
            write::<Int32Type>(&file, "message m { required int32 text (DATE); }", &[(vec![at], vec![])]);
            let stderr = rows_refused(&file);
            assert!(
                stderr.contains("dates.parquet:1: a date, time or decimal is out of its range"),
                "{stderr}"
            );
        }
        for kind in ["TIMESTAMP_MILLIS", "TIMESTAMP_MICROS", "TIME_MICROS"] {
            let schema = format!("message m {{ required int64 text ({kind}); }}");
            for at in [i64::MIN, i64::MAX] {
                write::<Int64Type>(&file, &schema, &[(vec![at], vec![])]);
                let stderr = rows_refused(&file);
                assert!(stderr.contains("dates.parquet:1: "), "{stderr}");
            }
        }
    }
}
