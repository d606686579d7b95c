//! Checkpoints as they are found: half-downloaded, with a stale or partial index, adapters in place of models.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::Path;

use common::{counted, fails, fixture, ok, path, read_tensors, write_checkpoint, write_file};
use serde_json::{Value, json};

fn index_of(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("model.safetensors.index.json")).unwrap()).unwrap()
}

/// A checkpoint of two shards whose first has a tensor that the index does not list.
fn with_unlisted(dir: &Path, first: u16) {
    let names =
        ["model.layers.0.mlp.down_proj", "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"];
    let tensors: Vec<_> =
        names.iter().map(|name| counted(&format!("{name}.weight"), &[4, 4], first)).collect();
    write_checkpoint(dir, &tensors, 2, "{}");
    let mut index = index_of(dir);
    index["weight_map"].as_object_mut().unwrap().remove("model.layers.0.mlp.gate_proj.weight").unwrap();
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// transformers loads every tensor of the shards that the index names.
#[test]
fn tensors_that_the_index_does_not_list_are_taken_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b, out) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("out"));
    with_unlisted(&a, 0x3c00);
    with_unlisted(&b, 0x4000);
    let message = fails(&["inspect", path(&a)]);
    let file = "model-00001-of-00002.safetensors";
    let tensor = "model.layers.0.mlp.gate_proj.weight";
    assert!(
        message.contains(&format!("tensor `{tensor}` is in `{file}`, but not listed in the index")),
        "{message}"
    );
    assert!(message.contains("--allow-unindexed"), "{message}");
    assert!(ok(&["inspect", path(&a), "--allow-unindexed"]).contains("3 tensors"));
    // The index of an output lists what it holds.
    let reset = ["reset", "--base", path(&a), "--tuned", path(&b), "--out", path(&out), "--freeze", tensor];
    ok(&[&reset[..], &["--allow-unindexed"]].concat());
    assert_eq!(index_of(&out)["weight_map"][tensor], file);
    assert_eq!(index_of(&out)["metadata"]["total_size"], 3 * 32);
    assert_eq!(read_tensors(&out)[tensor], read_tensors(&a)[tensor]);
    ok(&["inspect", path(&out)]);
    let merged = dir.path().join("merged");
    let merge = ["merge", "--method", "linear", "--set", "weight=0.5", "--out", path(&merged)];
    let merge = [&merge[..], &["--model", path(&a), "--model", path(&b)]].concat();
    fails(&merge);
    ok(&[&merge[..], &["--allow-unindexed"]].concat());
    assert_eq!(read_tensors(&merged).len(), 3);
}

#[test]
fn an_index_says_which_shards_there_are_whatever_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let mut map = serde_json::Map::new();
    for i in [1, 2] {
        let file = format!("model-0000{i}-of-00030.safetensors");
        write_file(&dir.path().join(&file), &[counted(&format!("t{i}"), &[2], 0)], "{}");
        map.insert(format!("t{i}"), file.into());
    }
    let index = json!({"metadata": {}, "weight_map": map});
    std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    assert!(ok(&["inspect", path(dir.path())]).contains("2 tensors"));
}

#[test]
fn a_stale_index_names_the_file_beside_it() {
    let corrupt = fixture("corrupt/index_stale_beside_single_file");
    let message = fails(&["inspect", path(&corrupt)]);
    assert!(message.contains("2 of its shards are missing"), "{message}");
    let hint = message.lines().find(|line| line.starts_with("hint: ")).unwrap();
    let file = hint.strip_prefix("hint: give ").and_then(|rest| rest.split_once(" itself")).unwrap().0;
    ok(&["inspect", file]);
}

#[test]
fn an_adapter_in_place_of_a_model_is_sent_to_merge_lora() {
    let dir = tempfile::tempdir().unwrap();
    let (adapter, model, out) = (dir.path().join("adapter"), fixture("llama/llama2"), dir.path().join("out"));
    std::fs::create_dir(&adapter).unwrap();
    std::fs::write(adapter.join("adapter_config.json"), r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 2}"#)
        .unwrap();
    write_file(
        &adapter.join("adapter_model.safetensors"),
        &[
            counted("base_model.model.x.lora_A.weight", &[2, 4], 0),
            counted("base_model.model.x.lora_B.weight", &[4, 2], 8),
        ],
        "{}",
    );
    let (a, m, o) = (path(&adapter), path(&model), path(&out));
    let rows = dir.path().join("rows.jsonl");
    std::fs::write(&rows, "{\"input_ids\": [1, 2]}\n").unwrap();
    for args in [
        &["merge", "--method", "linear", "--model", a, "--model", a, "--out", o][..],
        &["merge", "--base", a, "--lora", a, "--out", o],
        &["reset", "--base", m, "--tuned", a, "--out", o],
        &["lora", "extract", m, a, "--rank", "1", "--out", o],
        &["eval", "--model", a, "--data", path(&rows)],
        &["train", "--model", a, "--data", path(&rows), "--out", o],
    ] {
        let message = fails(args);
        assert!(message.contains("an adapter, where a model is expected"), "{args:?}: {message}");
        assert!(message.contains("--lora <DIR>"), "{args:?}: {message}");
    }
    std::fs::remove_file(adapter.join("adapter_model.safetensors")).unwrap();
    let message = fails(&["inspect", a]);
    assert!(message.contains("no safetensors weights") && message.contains("merge --lora"), "{message}");
}

#[test]
fn a_revision_that_the_cache_lacks_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repository = dir.path().join("models--org--name");
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::create_dir_all(repository.join("snapshots").join(commit)).unwrap();
    std::fs::write(repository.join("refs/main"), commit).unwrap();
    let inspect = |name: &str| {
        let output = common::output(common::hft(&["inspect", name]).env("HF_HUB_CACHE", dir.path()));
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let message = inspect("org/name@v2");
    assert!(message.contains("has `org/name`, but not its revision `v2`"), "{message}");
    assert!(message.contains(&format!("--revision v2`, or take one of: main, {commit}")), "{message}");
    let message = inspect("org/other@v2");
    assert!(message.contains("`org/other` is not in the local Hugging Face cache either"), "{message}");
}

/// What stands in place of an index or a configuration is named too.
#[test]
fn pointers_and_pages_in_place_of_small_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    write_checkpoint(
        dir.path(),
        &[counted("t", &[2], 0)],
        1,
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    );
    let message = fails(&["inspect", path(dir.path())]);
    assert!(message.contains("config.json: a Git LFS pointer in place of"), "{message}");
    assert!(message.contains("git lfs pull"), "{message}");
}
