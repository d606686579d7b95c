//! `reset` gives exactly the bytes of the plan, for every granularity, policy and way of writing.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "reset/buffers.rs"]
mod buffers;
mod common;
#[path = "reset/messages.rs"]
mod messages;
#[path = "reset/spelling.rs"]
mod spelling;

use std::path::Path;

use common::{
    Tensor, counted, fails, files, fixture, ok, path, plan_of, read_tensors, run, tensor, write_checkpoint,
    write_file,
};
use serde_json::Value;

const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": false}"#;
const TIED: &str = r#"{"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": true}"#;

fn reset(base: &Path, tuned: &Path, out: &Path, more: &[&str]) -> String {
    let args = ["reset", "--base", path(base), "--tuned", path(tuned), "--out", path(out)];
    ok(&[&args[..], more].concat())
}

fn refused(base: &Path, tuned: &Path, out: &Path, more: &[&str]) -> String {
    let args = ["reset", "--base", path(base), "--tuned", path(tuned), "--out", path(out)];
    let message = fails(&[&args[..], more].concat());
    assert!(!out.exists());
    message
}

fn names(plan: &Value, list: &str) -> Vec<String> {
    plan[list].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
}

/// A pair of two shards whose every element tells its side.
fn pair(dir: &Path, config: &str) -> (Vec<Tensor>, Vec<Tensor>) {
    let shapes: [(&str, &[u64]); 7] = [
        ("lm_head.weight", &[8, 4]),
        ("model.embed_tokens.weight", &[8, 4]),
        ("model.layers.0.input_layernorm.weight", &[4]),
        ("model.layers.0.mlp.down_proj.weight", &[4, 12]),
        ("model.layers.0.self_attn.k_proj.weight", &[2, 4]),
        ("model.layers.0.self_attn.q_proj.weight", &[4, 4]),
        ("model.norm.weight", &[4]),
    ];
    let side = |first: u16| -> Vec<Tensor> { shapes.iter().map(|(n, s)| counted(n, s, first)).collect() };
    let (mut base, mut tuned) = (side(0x3c00), side(0x4000));
    if config == TIED {
        base.remove(0);
        tuned.remove(0);
    }
    write_checkpoint(&dir.join("base"), &base, 2, config);
    write_checkpoint(&dir.join("tuned"), &tuned, 2, config);
    (base, tuned)
}

#[test]
fn frozen_tensors_are_base_bytes_and_the_others_tuned_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let (base, tuned) = (fixture("base"), fixture("tuned"));
    let table = reset(&base, &tuned, &out, &["--ratio", "0.5"]);
    insta::assert_snapshot!("fixture_table", table);
    let (b, t, o) = (read_tensors(&base), read_tensors(&tuned), read_tensors(&out));
    let plan = plan_of(&out);
    let (frozen, trainable) = (names(&plan, "frozen"), names(&plan, "trainable"));
    assert_eq!((frozen.len() + trainable.len(), o.len()), (57, 57));
    assert!(frozen.iter().all(|n| o[n] == b[n] && o[n] != t[n]));
    assert!(trainable.iter().all(|n| o[n] == t[n] && o[n] != b[n]));
    // Half of the matrices of each category: 2 of 4, 1.5 of 3, 1 of 2 in each of six blocks.
    let count = |word: &str| frozen.iter().filter(|n| n.contains("layers.") && n.contains(word)).count();
    assert_eq!([count("self_attn"), count("mlp"), count("layernorm")], [12, 9, 6]);
    // Everything beside the weights is that of the tuned side, and there is nothing else but the provenance.
    let (mut tuned_files, out_files) = (files(&tuned), files(&out));
    tuned_files.insert("hft_surgery.json".into(), out_files[Path::new("hft_surgery.json")].clone());
    assert!(tuned_files.keys().eq(out_files.keys()));
    let beside = |p: &&std::path::PathBuf| p.extension().is_none_or(|e| e != "safetensors");
    assert!(tuned_files.keys().filter(beside).all(|p| tuned_files[p] == out_files[p]));
}

#[test]
fn keeping_everything_gives_the_tuned_files_and_resetting_everything_the_base_data() {
    let dir = tempfile::tempdir().unwrap();
    let (base, tuned) = (fixture("base"), fixture("tuned"));
    let keep = dir.path().join("keep");
    reset(&base, &tuned, &keep, &["--ratio", "0"]);
    let mut kept = files(&keep);
    kept.remove(Path::new("hft_surgery.json"));
    assert_eq!(kept, files(&tuned));
    let back = dir.path().join("back");
    reset(&base, &tuned, &back, &["--ratio", "1", "--embeddings", "select", "--lm-head", "select"]);
    assert_eq!(read_tensors(&back), read_tensors(&base));
    // Twice is once.
    let (once, twice) = (dir.path().join("once"), dir.path().join("twice"));
    reset(&base, &tuned, &once, &["--seed", "7"]);
    reset(&base, &once, &twice, &["--seed", "7"]);
    assert_eq!(read_tensors(&once), read_tensors(&twice));
}

#[test]
fn bytes_do_not_depend_on_threads_mapping_links_or_syncing() {
    let dir = tempfile::tempdir().unwrap();
    let (base, tuned) = (fixture("base"), fixture("tuned"));
    for granularity in ["tensor", "row", "element"] {
        let first = dir.path().join(format!("{granularity}-first"));
        reset(&base, &tuned, &first, &["--granularity", granularity, "--threads", "1"]);
        let ways: [&[&str]; 5] =
            [&["--threads", "2"], &["--threads", "7"], &["--no-mmap"], &["--no-sync"], &["--link", "copy"]];
        for (i, way) in ways.iter().enumerate() {
            let out = dir.path().join(format!("{granularity}-{i}"));
            reset(&base, &tuned, &out, &[&["--granularity", granularity], *way].concat());
            assert!(files(&out) == files(&first), "{granularity} {way:?}");
        }
    }
}

#[test]
fn sharding_does_not_change_the_result() {
    let dir = tempfile::tempdir().unwrap();
    let (base, tuned) = pair(dir.path(), LLAMA);
    write_checkpoint(&dir.path().join("base1"), &base, 1, LLAMA);
    write_checkpoint(&dir.path().join("tuned3"), &tuned, 3, LLAMA);
    let at = |name: &str| dir.path().join(name);
    reset(&at("base"), &at("tuned"), &at("a"), &["--granularity", "element"]);
    reset(&at("base1"), &at("tuned3"), &at("b"), &["--granularity", "element"]);
    assert_eq!(read_tensors(&at("a")), read_tensors(&at("b")));
    let digest = |name: &str| {
        ok(&["verify", path(&at(name))]).lines().find(|l| l.contains("any sharding")).unwrap().to_owned()
    };
    assert_eq!(digest("a"), digest("b"));
    assert_ne!(digest("a"), digest("tuned"));
}

/// Every element is base or tuned; the shares are those asked for; the complement is the rest.
#[test]
fn element_and_row_masks_mix_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let shape = [64u64, 50];
    let name = "model.layers.0.mlp.up_proj.weight";
    let value = |i: u64| (i as f32 * 0.37).sin();
    let floats = |of: &dyn Fn(u64) -> f32| (0..3200).flat_map(|i| of(i).to_le_bytes()).collect::<Vec<u8>>();
    // τ of element i is the i-th of a shuffled ramp, so the largest are known.
    let rank = |i: u64| (i * 1223 + 17) % 3200;
    write_checkpoint(&at("base"), &[tensor(name, "F32", &shape, floats(&|_| 0.0))], 1, LLAMA);
    write_checkpoint(
        &at("tuned"),
        &[tensor(name, "F32", &shape, floats(&|i| (rank(i) + 1) as f32 * value(i).signum()))],
        1,
        LLAMA,
    );
    let tuned = read_tensors(&at("tuned"))[name].clone();
    let kept = |out: &str| -> Vec<bool> {
        let bytes = read_tensors(&at(out))[name].clone();
        let element = |(i, b): (usize, &[u8])| {
            assert!(b == [0; 4] || *b == tuned[4 * i..4 * i + 4]);
            b != [0; 4]
        };
        bytes.chunks_exact(4).enumerate().map(element).collect()
    };
    reset(&at("base"), &at("tuned"), &at("e"), &["--granularity", "element", "--ratio", "0.25"]);
    let elements = kept("e");
    let share = elements.iter().filter(|k| **k).count() as f64 / 3200.0;
    assert!((share - 0.75).abs() < 5.0 * (0.75f64 * 0.25 / 3200.0).sqrt(), "{share}");
    std::fs::write(at("plan.json"), plan_of(&at("e")).to_string()).unwrap();
    ok(&["plan", "complement", path(&at("plan.json")), "--out", path(&at("other.json"))]);
    reset(&at("base"), &at("tuned"), &at("c"), &["--plan", path(&at("other.json"))]);
    assert!(kept("c").iter().zip(&elements).all(|(a, b)| a != b));
    reset(
        &at("base"),
        &at("tuned"),
        &at("t"),
        &["--granularity", "element", "--selector", "top-magnitude", "--ratio", "0.9"],
    );
    assert!(kept("t").iter().enumerate().all(|(i, k)| *k == (rank(i as u64) >= 3200 - 320)));
    reset(&at("base"), &at("tuned"), &at("r"), &["--granularity", "row", "--ratio", "0.5"]);
    let rows: Vec<Vec<bool>> = kept("r").chunks(50).map(<[bool]>::to_vec).collect();
    assert!(rows.iter().all(|row| row.iter().all(|k| *k == row[0])));
    assert!((16..=48).contains(&rows.iter().filter(|row| row[0]).count()));
    reset(
        &at("base"),
        &at("tuned"),
        &at("rt"),
        &["--granularity", "row", "--selector", "top-magnitude", "--ratio", "0.75"],
    );
    let norm = |row: u64| (0..50).map(|j| ((rank(row * 50 + j) + 1) as f64).powi(2)).sum::<f64>();
    let mut order: Vec<u64> = (0..64).collect();
    order.sort_by(|a, b| norm(*b).total_cmp(&norm(*a)));
    let got: Vec<bool> = kept("rt").chunks(50).map(|row| row[0]).collect();
    assert!((0..64u64).all(|row| got[row as usize] == order[..16].contains(&row)));
}

#[test]
fn a_plan_file_decides() {
    let dir = tempfile::tempdir().unwrap();
    let (base, tuned) = pair(dir.path(), LLAMA);
    let at = |name: &str| dir.path().join(name);
    let plan = at("plan.json");
    ok(&[
        "plan",
        path(&at("tuned")),
        "--strategy",
        "explicit",
        "--freeze",
        "*.self_attn.*",
        "--out",
        path(&plan),
    ]);
    reset(&at("base"), &at("tuned"), &at("out"), &["--plan", path(&plan)]);
    let out = read_tensors(&at("out"));
    for (b, t) in base.iter().zip(&tuned) {
        let expected = if b.name.contains("self_attn") { b } else { t };
        assert_eq!(out[&b.name], expected.bytes, "{}", b.name);
    }
    let text = std::fs::read_to_string(&plan).unwrap().replace("q_proj", "z_proj");
    std::fs::write(&plan, text).unwrap();
    let message = refused(&at("base"), &at("tuned"), &at("no"), &["--plan", path(&plan)]);
    assert!(
        message.contains("q_proj.weight`: in the checkpoint")
            && message.contains("z_proj.weight`: in the plan"),
        "{message}"
    );
}

#[test]
fn vocabularies_of_different_size_need_a_policy() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (base, mut tuned) = pair(dir.path(), LLAMA);
    for t in &mut tuned[..2] {
        *t = counted(&t.name, &[10, 4], 0x4000);
    }
    write_checkpoint(&at("tuned"), &tuned, 2, LLAMA);
    let message = refused(&at("base"), &at("tuned"), &at("out"), &[]);
    assert!(
        message.contains("base has [8, 4], tuned has [10, 4]") && message.contains("--vocab common"),
        "{message}"
    );
    assert!(
        message.contains("`lm_head.weight`") && message.contains("`model.embed_tokens.weight`"),
        "{message}"
    );
    for granularity in ["tensor", "element"] {
        let out = at(granularity);
        reset(
            &at("base"),
            &at("tuned"),
            &out,
            &["--vocab", "common", "--ratio", "1", "--embeddings", "select", "--granularity", granularity],
        );
        let embedding = &read_tensors(&out)["model.embed_tokens.weight"];
        assert_eq!(embedding[..64], base[1].bytes[..]);
        assert_eq!(embedding[64..], tuned[1].bytes[64..]);
    }
    // Any other difference in shape is no matter of vocabulary.
    tuned[3] = counted(&tuned[3].name, &[5, 12], 0);
    write_checkpoint(&at("tuned"), &tuned, 2, LLAMA);
    assert!(refused(&at("base"), &at("tuned"), &at("no"), &["--vocab", "common"]).contains("down_proj"));
}

#[test]
fn types_that_differ_need_a_cast() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (_, tuned) = pair(dir.path(), LLAMA);
    // 1 + 2⁻⁸ + 2⁻²³ lies just above the middle of two bf16 values: rounding once gives 1 + 2⁻⁷.
    let value = (1.0f32 + 2f32.powi(-8) + 2f32.powi(-23)).to_le_bytes();
    let wide: Vec<Tensor> =
        tuned.iter().map(|t| tensor(&t.name, "F32", &t.shape, value.repeat(t.bytes.len() / 2))).collect();
    write_checkpoint(&at("base"), &wide, 1, LLAMA);
    let message = refused(&at("base"), &at("tuned"), &at("no"), &[]);
    assert!(message.contains("base has F32, tuned has BF16") && message.contains("--cast"), "{message}");
    reset(&at("base"), &at("tuned"), &at("out"), &["--cast", "--ratio", "1"]);
    let q = &read_tensors(&at("out"))["model.layers.0.self_attn.q_proj.weight"];
    assert!(q.chunks_exact(2).all(|b| b == [0x81, 0x3f]), "{q:?}");
}

#[test]
fn tensors_on_one_side_only_need_a_policy() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (mut base, mut tuned) = pair(dir.path(), LLAMA);
    base.push(counted("model.layers.0.self_attn.gone.weight", &[2, 2], 1));
    tuned.push(counted("model.layers.0.self_attn.new.weight", &[2, 2], 2));
    write_checkpoint(&at("base"), &base, 1, LLAMA);
    write_checkpoint(&at("tuned"), &tuned, 1, LLAMA);
    let message = refused(&at("base"), &at("tuned"), &at("no"), &[]);
    assert!(
        message.contains("gone.weight`: only in base") && message.contains("new.weight`: only in tuned"),
        "{message}"
    );
    reset(&at("base"), &at("tuned"), &at("out"), &["--on-missing", "keep-tuned", "--ratio", "1"]);
    let out = read_tensors(&at("out"));
    assert_eq!(out["model.layers.0.self_attn.new.weight"], tuned[7].bytes);
    assert!(!out.contains_key("model.layers.0.self_attn.gone.weight"));
}

#[test]
fn tied_heads_move_with_their_embedding() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (base, mut tuned) = pair(dir.path(), TIED);
    reset(&at("base"), &at("tuned"), &at("a"), &["--ratio", "1", "--embeddings", "select"]);
    assert_eq!(read_tensors(&at("a"))["model.embed_tokens.weight"], base[0].bytes);
    // A tied base is the base of an untied head through its embedding.
    tuned.insert(0, counted("lm_head.weight", &[8, 4], 0x4100));
    write_checkpoint(&at("untied"), &tuned, 2, LLAMA);
    reset(&at("base"), &at("untied"), &at("b"), &["--ratio", "1", "--lm-head", "select"]);
    let out = read_tensors(&at("b"));
    assert_eq!(out["lm_head.weight"], base[0].bytes);
    assert_eq!(out["model.embed_tokens.weight"], tuned[1].bytes);
    // A head that differs while the configuration says tied is a contradiction.
    write_checkpoint(&at("torn"), &tuned, 2, TIED);
    assert!(
        refused(&at("base"), &at("torn"), &at("no"), &[])
            .contains("differs from `model.embed_tokens.weight`")
    );
    // A redundant copy of the embedding stays one.
    tuned[0].bytes = tuned[1].bytes.clone();
    write_checkpoint(&at("copy"), &tuned, 2, TIED);
    for granularity in ["tensor", "element"] {
        let out = at(granularity);
        reset(&at("base"), &at("copy"), &out, &["--embeddings", "select", "--granularity", granularity]);
        let out = read_tensors(&out);
        assert_eq!(out["lm_head.weight"], out["model.embed_tokens.weight"]);
    }
}

#[test]
fn unknown_types_and_names_are_copied_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(at("b")).unwrap();
    std::fs::create_dir_all(at("t")).unwrap();
    let odd = |first: u8| {
        vec![
            tensor("blob.strange", "U3", &[8], vec![first; 3]),
            tensor("four", "F4", &[2, 2], vec![first; 2]),
        ]
    };
    write_file(&at("b/x.safetensors"), &odd(1), "{}");
    write_file(&at("t/x.safetensors"), &odd(2), "{}");
    let output = run(&[
        "reset",
        "--base",
        path(&at("b")),
        "--tuned",
        path(&at("t")),
        "--out",
        path(&at("o")),
        "--ratio",
        "1",
    ]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("blob.strange, four"));
    assert_eq!(std::fs::read(at("o/x.safetensors")).unwrap(), std::fs::read(at("b/x.safetensors")).unwrap());
    let message = refused(&at("b"), &at("t"), &at("no"), &["--granularity", "element"]);
    assert!(message.contains("`blob.strange`: no element mask over a tensor of type U3"), "{message}");
}

#[test]
fn a_dry_run_prints_the_same_table_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let (base, tuned) = (fixture("base"), fixture("tuned"));
    let dry = ok(&["reset", "--base", path(&base), "--tuned", path(&tuned), "--dry-run", "--json"]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    assert_eq!(reset(&base, &tuned, &out, &["--json"]), dry);
    let json: Value = serde_json::from_str(&dry).unwrap();
    assert_eq!(json["plan"], plan_of(&out));
    assert_eq!(json["categories"]["attention"]["matrices_chosen"], 12);
}

#[test]
fn hard_links_share_whole_shards() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    pair(dir.path(), LLAMA);
    reset(
        &at("base"),
        &at("tuned"),
        &at("o"),
        &["--ratio", "1", "--link", "hard", "--freeze", "model.layers.0.*", "--freeze", "model.norm.*"],
    );
    let inode = |path: std::path::PathBuf| std::fs::metadata(path).unwrap().ino();
    let shard = "model-00002-of-00002.safetensors";
    assert_eq!(inode(at("o").join(shard)), inode(at("base").join(shard)));
    let shard = "model-00001-of-00002.safetensors";
    assert_ne!(inode(at("o").join(shard)), inode(at("tuned").join(shard)));
}

#[test]
fn ratios_out_of_range_are_refused() {
    let out = Path::new("/nonexistent/out");
    for ratio in ["-0.1", "1.1", "nan", "inf"] {
        assert!(
            refused(&fixture("base"), &fixture("tuned"), out, &["--ratio", ratio])
                .contains("expected 0 to 1")
        );
    }
}
