//! A patch makes the tuned checkpoint from its base, byte for byte, or says why it does not.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "patch/refused.rs"]
mod refusals;

use std::path::{Path, PathBuf};

use common::{
    Tensor, counted, fails, files, fixture, ok, path, plan_of, read_tensors, run, tensor, write_checkpoint,
    write_file,
};
use serde_json::Value;

fn create(base: &Path, tuned: &Path, patch: &Path, more: &[&str]) -> Value {
    let args = ["--quiet", "patch", "create", path(base), path(tuned), "--out", path(patch), "--json"];
    serde_json::from_str(&ok(&[&args[..], more].concat())).unwrap()
}

fn apply(base: &Path, patch: &Path, out: &Path, more: &[&str]) {
    ok(&[&["patch", "apply", path(base), path(patch), "--out", path(out)], more].concat());
}

/// Applies, expects a refusal, and that nothing was left beside the target or in its place.
fn refused(base: &Path, patch: &Path, out: &Path) -> String {
    let there = || std::fs::read_dir(out.parent().unwrap()).unwrap().count();
    let before = there();
    let message = fails(&["patch", "apply", path(base), path(patch), "--out", path(out)]);
    assert!(!out.exists() && there() == before, "{message}");
    message
}

/// Creates and applies; the result is `tuned`, file by file.
fn round_trip(base: &Path, tuned: &Path) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let (patch, out) = (dir.path().join("p"), dir.path().join("out"));
    let inspection = create(base, tuned, &patch, &[]);
    apply(base, &patch, &out, &[]);
    assert!(files(&out) == files(tuned), "{} from {}", tuned.display(), base.display());
    inspection
}

fn names(inspection: &Value, patch: &Path, status: &str) -> Vec<String> {
    let all: Value =
        serde_json::from_str(&ok(&["patch", "inspect", path(patch), "--json", "--tensors"])).unwrap();
    assert_eq!(all["tensors"], inspection["tensors"]);
    let rows = all["tensor_list"].as_array().unwrap().iter().filter(|row| row["status"] == status);
    let mut names: Vec<String> = rows.map(|row| row["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// Every width that elements can have, whole bytes or not, and tensors of no and of one element.
fn odd_tensors(first: u8) -> Vec<Tensor> {
    let bytes = |n: usize| (0..n).map(|i| first.wrapping_mul(i as u8 | 1)).collect::<Vec<u8>>();
    let of = |name: &str, dtype, shape: &[u64], n| tensor(name, dtype, shape, bytes(n));
    vec![
        of("a.bf16", "BF16", &[3, 5], 30),
        of("b.f32", "F32", &[7], 28),
        of("c.f64", "F64", &[3], 24),
        of("d.c64", "C64", &[2, 1], 16),
        of("e.u8", "U8", &[13], 13),
        of("f.f8", "F8_E4M3", &[9], 9),
        of("g.f4", "F4", &[6], 3),
        of("h.f6", "F6_E2M3", &[4], 3),
        of("i.unknown", "U3", &[8], 3),
        of("j.empty", "F32", &[0, 4], 0),
        of("k.scalar", "F32", &[], 4),
        of("l.bool", "BOOL", &[5], 5),
        of("m.i64", "I64", &[2], 16),
        of("n.f16", "F16", &[1], 2),
    ]
}

/// Two and a half chunks of BF16 that differ from `first` in some low bits.
fn large(name: &str, first: u16) -> Tensor {
    let value = |i: u32| (i.wrapping_mul(2_654_435_761) >> 16) as u16 ^ (first & (i >> 3) as u16 & 7);
    let bytes = (0..1_310_721u32).flat_map(|i| value(i).to_le_bytes());
    tensor(name, "BF16", &[1_310_721], bytes.collect())
}

#[test]
fn the_fixture_pair_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (base, tuned, patch) = (fixture("base"), fixture("tuned"), dir.path().join("p"));
    let inspection = round_trip(&base, &tuned);
    let text = ok(&["patch", "create", path(&base), path(&tuned), "--out", path(&patch)]);
    assert_eq!(ok(&["patch", "inspect", path(&patch)]), text);
    insta::assert_snapshot!("inspect_fixture_patch", text);
    // Both digests are those that `verify` prints.
    for (side, key) in [("base", "base_sha256"), ("tuned", "tuned_sha256")] {
        assert!(ok(&["verify", path(&fixture(side))]).contains(inspection[key].as_str().unwrap()));
    }
    let list = ok(&["patch", "inspect", path(&patch), "--tensors"]);
    assert!(read_tensors(&tuned).keys().all(|name| list.contains(name)));
    round_trip(&tuned, &base);
}

#[test]
fn sharding_of_either_side_does_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (base, mut tuned) = (odd_tensors(3), odd_tensors(7));
    for (name, shards) in [("base1", 1), ("base2", 2), ("base5", 5)] {
        write_checkpoint(&at(name), &base, shards, "{}");
    }
    tuned.reverse();
    write_checkpoint(&at("tuned1"), &tuned, 1, r#"{"a": 1}"#);
    write_checkpoint(&at("tuned3"), &tuned, 3, r#"{"a": 1}"#);
    for tuned in ["tuned1", "tuned3"] {
        for base in ["base1", "base2", "base5"] {
            let inspection = round_trip(&at(base), &at(tuned));
            assert_eq!(inspection["changed"]["tensors"], 13);
            assert_eq!(inspection["identical"]["tensors"], 1, "the empty one");
        }
        // A patch made against one sharding applies to every other.
        let patch = at(&format!("{tuned}.patch"));
        create(&at("base2"), &at(tuned), &patch, &[]);
        let out = at(&format!("{tuned}.out"));
        apply(&at("base5"), &patch, &out, &["--no-mmap", "--no-sync"]);
        assert!(files(&out) == files(&at(tuned)));
    }
}

#[test]
fn added_removed_resized_and_renamed_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let base = [
        counted("same", &[4, 4], 1),
        counted("changed", &[4, 4], 100),
        counted("grown", &[4, 4], 200),
        tensor("retyped", "F16", &[2], vec![1, 2, 3, 4]),
        counted("old.name", &[8], 300),
        counted("removed", &[4], 400),
    ];
    let tuned = [
        counted("grown", &[6, 4], 200),
        counted("same", &[4, 4], 1),
        tensor("retyped", "BF16", &[2], vec![1, 2, 3, 5]),
        counted("changed", &[4, 4], 101),
        counted("new.name", &[8], 300),
        counted("added", &[3], 500),
    ];
    write_checkpoint(&at("base"), &base, 2, "{}");
    write_checkpoint(&at("tuned"), &tuned, 3, "{}");
    let inspection = round_trip(&at("base"), &at("tuned"));
    create(&at("base"), &at("tuned"), &at("p"), &[]);
    let of = |status: &str| names(&inspection, &at("p"), status);
    assert_eq!(of("identical"), ["new.name", "same"]);
    assert_eq!(of("changed"), ["changed"]);
    assert_eq!(of("reshaped"), ["grown", "retyped"]);
    assert_eq!(of("new"), ["added"]);
    // What the patch does not refer to need not be there.
    write_checkpoint(&at("less"), &base[..5], 1, "{}");
    apply(&at("less"), &at("p"), &at("out"), &[]);
    assert!(files(&at("out")) == files(&at("tuned")));
}

/// Headers are kept byte for byte: order, white space, padding, metadata.
#[test]
fn headers_and_sidecars_come_back_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write_checkpoint(&at("base"), &[counted("b", &[2], 1), counted("a", &[2], 9)], 1, "{}");
    write_checkpoint(&at("tuned"), &[], 1, r#"{"x": [1, 2]}"#);
    let json = r#"  {"a": {"shape":[2], "dtype":"BF16", "data_offsets":[4,8]},
        "__metadata__": {"é": "\n", "format": "pt"}, "b":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}     "#;
    let data = [1, 0, 2, 0, 9, 0, 77, 0];
    let bytes = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &data].concat();
    std::fs::write(at("tuned/model.safetensors"), bytes).unwrap();
    std::fs::create_dir(at("tuned/1_Pooling")).unwrap();
    for (name, text) in [
        ("1_Pooling/config.json", "{}"),
        ("empty.txt", ""),
        ("LICENSE", "free"),
        ("hft_surgery.json", "{}"),
        ("README.md", "#"),
        ("optimizer.pt", "state"),
    ] {
        std::fs::write(at("tuned").join(name), text).unwrap();
    }
    write_file(&at("tuned/other.safetensors"), &[], "{}");
    let output = run(&["patch", "create", path(&at("base")), path(&at("tuned")), "--out", path(&at("p"))]);
    let said = String::from_utf8_lossy(&output.stderr);
    for left in ["README.md", "optimizer.pt", "other.safetensors"] {
        assert!(said.contains(&format!("not in the patch: {left}")), "{said}");
    }
    apply(&at("base"), &at("p"), &at("out"), &[]);
    let mut expected = files(&at("tuned"));
    for left in ["README.md", "optimizer.pt", "other.safetensors"] {
        expected.remove(Path::new(left));
    }
    assert_eq!(files(&at("out")), expected);
    // A single file has nothing beside it, on either side.
    let (file, other) = (at("tuned/model.safetensors"), at("base/model.safetensors"));
    create(&other, &file, &at("q"), &[]);
    apply(&other, &at("q"), &at("single"), &[]);
    assert_eq!(files(&at("single")).into_keys().collect::<Vec<_>>(), [PathBuf::from("model.safetensors")]);
}

#[test]
fn nothing_changed_takes_next_to_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write_checkpoint(&at("a"), &[large("w", 1)], 1, "{}");
    let inspection = round_trip(&at("a"), &at("a"));
    assert_eq!(inspection["identical"]["tensors"], 1);
    assert!(inspection["bytes"].as_u64().unwrap() < 700, "{inspection}");
    assert_eq!(round_trip(&fixture("base"), &fixture("base"))["changed"]["tensors"], 0);
}

#[test]
fn the_patch_of_a_half_reset_holds_only_its_half() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (base, tuned) = (fixture("base"), fixture("tuned"));
    ok(&["reset", "--base", path(&base), "--tuned", path(&tuned), "--out", path(&at("half"))]);
    let plan = plan_of(&at("half"));
    let (b, t) = (read_tensors(&base), read_tensors(&tuned));
    for (from, list) in [(&base, "trainable"), (&tuned, "frozen")] {
        let inspection = round_trip(from, &at("half"));
        create(from, &at("half"), &at("p"), &["--force"]);
        let listed = plan[list].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
        let mut expected: Vec<&str> = listed.filter(|name| b[*name] != t[*name]).collect();
        expected.sort_unstable();
        assert_eq!(names(&inspection, &at("p"), "changed"), expected, "{list}");
    }
}

#[test]
fn bytes_do_not_depend_on_threads_mapping_or_syncing() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let side = |first: u16| {
        let mut all: Vec<Tensor> = (0..3).map(|i| large(&format!("w{i}"), first * (i + 1))).collect();
        all.extend((0..40).map(|i| counted(&format!("small{i}"), &[7], first * (i + 1))));
        all.push(tensor("f32", "F32", &[300_000], large("", first).bytes[..1_200_000].to_vec()));
        all
    };
    write_checkpoint(&at("base"), &side(0), 1, "{}");
    write_checkpoint(&at("tuned"), &side(5), 2, "{}");
    let first = at("first");
    create(&at("base"), &at("tuned"), &first, &["--threads", "1"]);
    let ways: [&[&str]; 5] =
        [&["--threads", "2"], &["--threads", "4"], &["--threads", "7"], &["--no-mmap"], &["--no-sync"]];
    for (i, way) in ways.iter().enumerate() {
        let patch = at(&format!("p{i}"));
        create(&at("base"), &at("tuned"), &patch, way);
        assert!(std::fs::read(&patch).unwrap() == std::fs::read(&first).unwrap(), "{way:?}");
        let out = at(&format!("o{i}"));
        apply(&at("base"), &patch, &out, way);
        assert!(files(&out) == files(&at("tuned")), "{way:?}");
    }
    let sizes = [1, 3, 12].map(|level| {
        let patch = at(&format!("l{level}"));
        create(&at("base"), &at("tuned"), &patch, &["--level", &level.to_string()]);
        std::fs::metadata(&patch).unwrap().len()
    });
    assert!(sizes[2] <= sizes[1], "{sizes:?}");
    let limit = files(&at("tuned")).values().map(|bytes| bytes.len() as u64).sum::<u64>() / 4;
    assert!(sizes[1] < limit, "{sizes:?} of {limit}");
}

#[test]
fn existing_files_and_inputs_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for side in ["base", "tuned"] {
        write_checkpoint(&at(side), &[counted("w", &[4], side.len() as u16)], 1, "{}");
    }
    let before = (files(&at("base")), files(&at("tuned")));
    let (base, tuned, patch) = (at("base"), at("tuned"), at("p"));
    let refuse = |args: [&str; 4], out: &Path, more: &[&str], expected: &str| {
        let message = fails(&[&args[..], &["--out", path(out)], more].concat());
        assert!(message.contains(expected), "{message}");
    };
    let creating = ["patch", "create", path(&base), path(&tuned)];
    let applying = ["patch", "apply", path(&base), path(&patch)];
    for force in [&[][..], &["--force"]] {
        refuse(creating, &at("tuned/model.safetensors"), force, "lies inside the input");
        refuse(creating, &at("base/p"), force, "lies inside the input");
        refuse(creating, &at("tuned"), force, "is the input");
        refuse(creating, &at("no/p"), force, "No such file");
    }
    std::fs::write(at("thesis"), "years of work").unwrap();
    refuse(creating, &at("thesis"), &[], "already exists");
    refuse(creating, &at("thesis"), &["--force"], "not a file of this kind");
    // A file that is named like the staging directory, but that nothing proves ours, is left alone.
    std::fs::write(at(".p.hft-surgery"), "mine").unwrap();
    create(&at("base"), &at("tuned"), &at("p"), &[]);
    refuse(creating, &at("p"), &[], "already exists");
    create(&at("base"), &at("tuned"), &at("p"), &["--force"]);
    apply(&at("base"), &at("p"), &at("out"), &[]);
    refuse(applying, &at("out"), &[], "already exists");
    refuse(applying, &at("base"), &["--force"], "is the input");
    refuse(applying, &at("base/x"), &[], "lies inside the input");
    refuse(applying, &at("p"), &["--force"], "is the input");
    refuse(applying, &at("thesis"), &["--force"], "not a directory");
    apply(&at("base"), &at("p"), &at("out"), &["--force"]);
    // --force does not remove the patch along with what it replaces.
    std::fs::copy(at("p"), at("out/p")).unwrap();
    let inside = at("out/p");
    refuse(["patch", "apply", path(&base), path(&inside)], &at("out"), &["--force"], "contains the input");
    assert!((files(&at("base")), files(&at("tuned"))) == before);
    assert_eq!(std::fs::read_to_string(at(".p.hft-surgery")).unwrap(), "mine");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 6, "nothing is left behind");
}

/// Anonymous memory does not grow with the checkpoint: 31 MB a side under a limit of 40.
#[test]
fn memory_is_bounded_without_a_map() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (side, first) in [("base", 0), ("tuned", 5)] {
        let tensors: Vec<Tensor> = (0..12).map(|i| large(&format!("w{i}"), first)).collect();
        write_checkpoint(&at(side), &tensors, 2, "{}");
    }
    let (base, tuned, patch, out) = (at("base"), at("tuned"), at("p"), at("out"));
    let program = assert_cmd::cargo::cargo_bin("hft-surgery");
    for command in [
        ["create", path(&base), path(&tuned), "--out", path(&patch)],
        ["apply", path(&base), path(&patch), "--out", path(&out)],
    ] {
        let line = format!("{} --threads 2 patch {} --no-mmap", path(&program), command.join(" "));
        let script = format!("ulimit -d 40960; exec {line}");
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(files(&out) == files(&tuned));
}
