//! `diff` against PyTorch, and its laws.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{counted, fails, fixture, ok, path, plan_of, run, tensor, write_checkpoint};
use hft_surgery::checkpoint::{Access, Checkpoint};
use hft_surgery::diff::{Status, TensorDiff, diff};
use serde_json::Value;

fn compare(a: &std::path::Path, b: &std::path::Path, access: Access) -> Vec<TensorDiff> {
    let (a, b) = (Checkpoint::open(a, access).unwrap(), Checkpoint::open(b, access).unwrap());
    diff(&a, &b, &|_| true, &|_| {}).unwrap()
}

fn close(got: f64, expected: &Value) -> bool {
    let expected = expected.as_f64().unwrap();
    (got - expected).abs() <= 1e-6 * expected.abs().max(f64::MIN_POSITIVE)
}

fn maybe_close(got: Option<f64>, expected: &Value) -> bool {
    got.map_or(expected.is_null(), |got| !expected.is_null() && close(got, expected))
}

/// To six digits, also of a distance far below the rounding of a cosine: within 1e-7 of the square of the relative change.
fn distance_close(delta: &hft_surgery::diff::Delta, expected: &Value) -> bool {
    let (got, rel) = (delta.cosine_distance(), delta.rel_l2().unwrap_or(1.0));
    let Some(expected) = expected.as_f64() else { return got.is_none() };
    got.is_some_and(|got| (got - expected).abs() <= 1e-6 * expected + 1e-7 * rel * rel)
}

#[test]
fn agrees_with_pytorch() {
    let golden = std::fs::read(fixture("diff/expected.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    for access in [Access::Map, Access::Read] {
        let found = compare(&fixture("diff/a.safetensors"), &fixture("diff/b.safetensors"), access);
        assert_eq!(found.len(), golden.as_object().unwrap().len());
        let mut wrong = Vec::new();
        for tensor in &found {
            let (delta, expected) = (tensor.delta.as_ref().unwrap(), &golden[&tensor.name]);
            let bins: Vec<(f64, u64)> = serde_json::from_value(expected["histogram"].clone()).unwrap();
            let mut counts = delta.histogram.bins();
            counts.retain(|(_, n)| *n > 0);
            let checks = [
                ("elements", expected["elements"] == delta.elements),
                ("changed", expected["changed"] == delta.changed),
                ("sign_flips", expected["sign_flips"] == delta.sign_flips),
                ("nonfinite_a", expected["nonfinite_a"] == delta.nonfinite_a),
                ("nonfinite_b", expected["nonfinite_b"] == delta.nonfinite_b),
                ("l1", close(delta.l1, &expected["l1"])),
                ("l2", close(delta.l2(), &expected["l2"])),
                ("mean", close(delta.mean(), &expected["mean"])),
                ("max_abs", close(delta.max_abs(), &expected["max_abs"])),
                ("max_index", expected["max_index"].as_u64() == delta.largest.map(|(_, at)| at)),
                ("rel_l2", maybe_close(delta.rel_l2(), &expected["rel_l2"])),
                ("cosine", maybe_close(delta.cosine(), &expected["cosine"])),
                ("cosine_distance", distance_close(delta, &expected["cosine_distance"])),
                ("histogram", counts == bins),
            ];
            let failed = checks.iter().filter(|(_, right)| !right).map(|(what, _)| *what);
            wrong.extend(
                failed.map(|what| format!("{}: {what}: got {delta:?}, expected {expected}", tensor.name)),
            );
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

#[test]
fn a_checkpoint_is_identical_to_itself() {
    let found = compare(&fixture("base"), &fixture("base"), Access::Map);
    let same =
        |t: &TensorDiff| t.status == Status::Identical && t.delta.as_ref().is_some_and(|d| d.changed == 0);
    assert!(found.iter().all(same));
}

fn code(args: &[&str]) -> (Option<i32>, String) {
    let output = run(args);
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn the_exit_code_says_whether_they_differ() {
    let (base, tuned) = (fixture("base"), fixture("tuned"));
    let (same, out) = code(&["diff", path(&base), path(&base)]);
    assert_eq!((same, out.as_str()), (Some(0), "identical: 57 tensors, 86,432 elements\n"));
    let (differs, out) = code(&["diff", path(&base), path(&tuned), "--top", "3"]);
    assert_eq!(differs, Some(1));
    insta::assert_snapshot!("diff_fixture", out);
    // The same tensors in other shards are the same checkpoint.
    let index = base.join("model.safetensors.index.json");
    assert_eq!(code(&["diff", path(&index), path(&base)]).0, Some(0));
    assert!(
        fails(&["diff", path(&base), path(&tuned), "--only", "*.nothing"])
            .contains("--only `*.nothing` matches no tensor")
    );
}

#[test]
fn other_formats_say_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (base, tuned) = (fixture("base"), fixture("tuned"));
    let at = |name: &str| dir.path().join(name);
    let (html, svg) = (at("d.html"), at("d.svg"));
    let args = ["diff", path(&base), path(&tuned), "--html", path(&html), "--svg", path(&svg), "--json"];
    let json: Value = serde_json::from_str(&code(&args).1).unwrap();
    assert_eq!(
        (json["identical"].as_bool(), json["tensors"].as_array().map(Vec::len)),
        (Some(false), Some(57))
    );
    let (_, csv) = code(&["diff", path(&base), path(&tuned), "--csv"]);
    assert_eq!(csv.lines().count(), 58);
    for (row, line) in json["tensors"].as_array().unwrap().iter().zip(csv.lines().skip(1)) {
        let cells: Vec<&str> = line.split(',').collect();
        assert_eq!(row["name"], cells[0]);
        assert_eq!(row["l2"].as_f64(), cells[10].parse().ok());
    }
    assert!(std::fs::read_to_string(html).unwrap().contains("<!doctype html>"));
    assert!(std::fs::read_to_string(svg).unwrap().starts_with("<svg "));
    let (_, only) = code(&[
        "diff",
        path(&base),
        path(&tuned),
        "--csv",
        "--category",
        "lm_head",
        "--category",
        "embedding",
    ]);
    assert_eq!(only.lines().count(), 3);
}

/// A reset against its base: what the plan freezes is the same, what it trains is not.
#[test]
fn a_plan_is_proved_or_its_violations_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let (base, tuned, out) = (fixture("base"), fixture("tuned"), dir.path().join("out"));
    ok(&["reset", "--base", path(&base), "--tuned", path(&tuned), "--out", path(&out)]);
    let plan = dir.path().join("plan.json");
    std::fs::write(&plan, plan_of(&out).to_string()).unwrap();
    assert_eq!(code(&["diff", path(&base), path(&out), "--plan", path(&plan)]).0, Some(0));
    let (differs, text) = code(&["diff", path(&base), path(&tuned), "--plan", path(&plan), "--quiet"]);
    assert_eq!(differs, Some(1));
    let frozen = plan_of(&out)["frozen"].as_array().map(Vec::len);
    assert_eq!(Some(text.matches("frozen, but it moved").count()), frozen);
    assert!(text.lines().all(|line| line.starts_with("failed: tensor `")), "{text}");
    // Nothing moved at all: a proof of nothing is no proof.
    let (same, text) = code(&["diff", path(&base), path(&base), "--plan", path(&plan), "--json"]);
    let failed = serde_json::from_str::<Value>(&text).unwrap()["failed"].clone();
    let trainable = plan_of(&out)["trainable"].as_array().map(Vec::len);
    assert_eq!((same, failed.as_array().map(Vec::len)), (Some(1), trainable));
    assert_eq!(failed[0]["what"], "trainable, but it did not move");
}

/// bf16 rounds a small update of a norm away: that is no fault of the trainer.
#[test]
fn a_trainable_tensor_that_did_not_move_warns_and_fails_when_strict() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (a, b, plan) = (at("a"), at("b"), at("plan.json"));
    let names = ["frozen", "unmoved", "moved"].map(|part| format!("model.layers.0.{part}.weight"));
    let mut tensors: Vec<_> = names.iter().map(|name| counted(name, &[4], 7)).collect();
    write_checkpoint(&a, &tensors, 1, "{}");
    tensors[2].bytes[0] ^= 1;
    write_checkpoint(&b, &tensors, 1, "{}");
    let document = serde_json::json!({
        "format": "hft-surgery/plan", "version": 1, "frozen": [names[0]], "trainable": [names[1], names[2]],
    });
    std::fs::write(&plan, document.to_string()).unwrap();
    let args = ["diff", path(&a), path(&b), "--plan", path(&plan)];
    let output = run(&args);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{err}");
    assert!(
        out.starts_with("plan holds: 1 frozen tensors are bit-identical, 1 of 2 trainable tensors moved\n"),
        "{out}"
    );
    assert!(
        err.starts_with(&format!("warning: 1 of 2 trainable tensors did not move: `{}`;", names[1])),
        "{err}"
    );
    let strict = code(&[&args[..], &["--strict", "-q"]].concat());
    assert_eq!(strict, (Some(1), format!("failed: tensor `{}`: trainable, but it did not move\n", names[1])));
    let json: Value = serde_json::from_str(&code(&[&args[..], &["--json"]].concat()).1).unwrap();
    assert_eq!(
        (json["plan"]["holds"].as_bool(), &json["plan"]["unmoved"][0]),
        (Some(true), &Value::from(names[1].as_str()))
    );
    let only = code(&[&args[..], &["--only", "*.unmoved.*", "-q"]].concat());
    assert_eq!(only, (Some(0), String::new()), "of one of two trainable tensors it is a warning, too");
    // One bit of a frozen tensor.
    tensors[0].bytes[3] ^= 0x80;
    write_checkpoint(&b, &tensors, 1, "{}");
    let (failed, out) = code(&args);
    assert_eq!(failed, Some(1));
    let verdict = "plan violated: 1 of 1 frozen tensors moved, 1 of 2 trainable tensors moved\nfailed: tensor `model.layers.0.frozen.weight`: frozen, but it moved\n";
    assert!(out.starts_with(verdict), "{out}");
    // What is neither frozen nor trainable is counted apart: a tied head that was saved a second time.
    tensors[0].bytes[3] ^= 0x80;
    tensors.push(counted("lm_head.weight", &[4], 7));
    write_checkpoint(&b, &tensors, 1, "{}");
    let (failed, out) = code(&args);
    assert_eq!(failed, Some(1));
    let verdict = "plan violated: 0 of 1 frozen tensors moved, 1 of 2 trainable tensors moved, 1 tensor contradicts it otherwise\nfailed: tensor `lm_head.weight`: only in b\n";
    assert!(out.starts_with(verdict), "{out}");
}

/// What was not compared has no measure: `-`, never 0 or 1, and no limit passes for want of it.
#[test]
fn two_kinds_of_model_are_said_first() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let config = |architecture: &str| format!(r#"{{"architectures":["{architecture}"]}}"#);
    write_checkpoint(
        &at("a"),
        &[counted("model.layers.0.mlp.up_proj.weight", &[4], 7)],
        1,
        &config("LlamaForCausalLM"),
    );
    write_checkpoint(
        &at("b"),
        &[counted("transformer.h.0.mlp.c_fc.weight", &[4], 9)],
        1,
        &config("GPT2LMHeadModel"),
    );
    let (_, out) = code(&["diff", path(&at("a")), path(&at("b"))]);
    assert!(out.starts_with("different architectures: LlamaForCausalLM and GPT2LMHeadModel\nno tensor could be compared: 1 only in a, 1 only in b\n"), "{out}");
    let all = out.lines().find(|line| line.starts_with("all ")).unwrap_or_default();
    assert_eq!(
        all.split_whitespace().collect::<Vec<_>>(),
        ["all", "2", "2", "-", "-", "-", "-", "-"],
        "{out}"
    );
    let json: Value =
        serde_json::from_str(&code(&["diff", path(&at("a")), path(&at("b")), "--json"]).1).unwrap();
    assert_eq!((&json["summary"]["cosine"], &json["summary"]["rel_l2"]), (&Value::Null, &Value::Null));
    let limit = code(&["diff", path(&at("a")), path(&at("b")), "-q", "--fail-on", "rel_l2>0.1"]);
    assert_eq!(limit, (Some(1), "failed: rel_l2>0.1: no tensor was compared\n".to_owned()));
    let adapter = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight";
    write_checkpoint(&at("b"), &[counted(adapter, &[4], 9)], 1, "{}");
    let (_, out) = code(&["diff", path(&at("a")), path(&at("b"))]);
    assert!(out.starts_with("the second is an adapter, the first a whole model: merge"), "{out}");
}

#[test]
fn limits_decide_the_exit_code() {
    let (base, tuned) = (fixture("base"), fixture("tuned"));
    let with = |limit: &str| code(&["diff", path(&base), path(&tuned), "--fail-on", limit]);
    assert_eq!(with("rel_l2>1e9").0, Some(0));
    assert_eq!(with("nonfinite").0, Some(0));
    assert_eq!((with("changed<1%").0, with("changed>50%").0), (Some(0), Some(1)));
    let (failed, text) = with("changed>0");
    assert_eq!(failed, Some(1));
    assert!(
        text.starts_with("57 tensors meet `changed>0`\nfailed: tensor `lm_head.weight`: changed>0\n"),
        "{text}"
    );
    let output = run(&["diff", path(&base), path(&tuned), "--fail-on", "rell2>1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("`rell2` is not measured"));
    let specials = [fixture("diff/a.safetensors"), fixture("diff/b.safetensors")];
    let (failed, text) =
        code(&["diff", path(&specials[0]), path(&specials[1]), "--fail-on", "nonfinite", "--top", "0"]);
    assert_eq!((failed, text.matches("failed: tensor").count()), (Some(1), 6));
}

#[test]
fn renamed_tensors_are_found_by_their_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (one, two) = (counted("old.one", &[3, 4], 5), counted("old.two", &[3, 4], 99));
    write_checkpoint(&at("a"), &[one.clone(), two], 1, "{}");
    let other_shape = tensor("new.flat", "BF16", &[12], one.bytes.clone());
    write_checkpoint(&at("b"), &[tensor("new.one", "BF16", &[3, 4], one.bytes), other_shape], 1, "{}");
    let found = compare(&at("a"), &at("b"), Access::Map);
    let renamed = |name: &str| found.iter().find(|t| t.name == name).and_then(|t| t.renamed.clone());
    assert_eq!(renamed("old.one").as_deref(), Some("new.one"));
    assert_eq!(renamed("new.one").as_deref(), Some("old.one"));
    assert_eq!((renamed("old.two"), renamed("new.flat")), (None, None));
}

/// Sums over many pieces, by closed forms, and the same bits for every number of threads.
#[test]
fn large_tensors_are_summed_piece_by_piece() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let n = 2_500_001usize;
    let of = |value: &dyn Fn(usize) -> f32| (0..n).flat_map(|i| value(i).to_le_bytes()).collect::<Vec<u8>>();
    let size = [n as u64];
    write_checkpoint(&at("a"), &[tensor("w", "F32", &size, of(&|i| (i % 100) as f32))], 1, "{}");
    let b = |i: usize| (i % 100) as f32 + if i == 2_100_000 { -5.0 } else { 0.5 };
    write_checkpoint(&at("b"), &[tensor("w", "F32", &size, of(&b))], 1, "{}");
    let found = compare(&at("a"), &at("b"), Access::Map);
    let delta = found[0].delta.as_ref().unwrap();
    assert_eq!((delta.elements, delta.changed), (n as u64, n as u64));
    assert_eq!(delta.largest, Some((5.0, 2_100_000)));
    assert_eq!((delta.l1, delta.sum), (0.5 * (n - 1) as f64 + 5.0, 0.5 * (n - 1) as f64 - 5.0));
    assert_eq!(delta.squares, 0.25 * (n - 1) as f64 + 25.0);
    let with =
        |threads: &str| code(&["diff", path(&at("a")), path(&at("b")), "--json", "--threads", threads]).1;
    assert_eq!(with("1"), with("3"));
}

/// Two fine-tunes of one base, by hand: τ1 = (1, 1, 0, −2), τ2 = (1, −1, 3, −2).
#[test]
fn two_fine_tunes_agree_and_collide() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let of = |values: [f32; 4]| {
        vec![tensor("w", "F32", &[4], values.iter().flat_map(|x| x.to_le_bytes()).collect())]
    };
    write_checkpoint(&at("base"), &of([1.0, 2.0, 3.0, 4.0]), 1, "{}");
    write_checkpoint(&at("one"), &of([2.0, 3.0, 3.0, 2.0]), 1, "{}");
    write_checkpoint(&at("two"), &of([2.0, 1.0, 6.0, 2.0]), 1, "{}");
    let text = ok(&["diff", "--base", path(&at("base")), path(&at("one")), path(&at("two")), "--json"]);
    let row = serde_json::from_str::<Value>(&text).unwrap()["tensors"][0].clone();
    assert_eq!(
        (row["changed_1"].as_u64(), row["changed_2"].as_u64(), row["changed_both"].as_u64()),
        (Some(3), Some(4), Some(3))
    );
    assert_eq!((row["sign_agreement"].as_f64(), row["overlap"].as_f64()), (Some(2.0 / 3.0), Some(0.75)));
    // (1 − 1 + 0 + 4) / (√6 √15)
    assert!((row["cosine"].as_f64().unwrap() - 4.0 / 90f64.sqrt()).abs() < 1e-12);
    let table = ok(&["diff", "--base", path(&at("base")), path(&at("one")), path(&at("two"))]);
    assert!(table.contains("0.7500"), "{table}");
    write_checkpoint(&at("two"), &[tensor("v", "F32", &[1], vec![0; 4])], 1, "{}");
    let message = fails(&["diff", "--base", path(&at("base")), path(&at("one")), path(&at("two"))]);
    assert!(
        message.contains("tensor `w`: only in base") && message.contains("tensor `v`: only in a fine-tune"),
        "{message}"
    );
}

proptest::proptest! {
    /// Every type: the sums of one piece are those of a plain loop over decoded values.
    #[test]
    fn sums_are_those_of_a_plain_loop(pairs in proptest::collection::vec((proptest::prelude::any::<f32>(), proptest::prelude::any::<f32>()), 0..2500)) {
        let dir = tempfile::tempdir().unwrap();
        let side = |name: &str, of: &dyn Fn(&(f32, f32)) -> f32| {
            let bytes = pairs.iter().flat_map(|p| of(p).to_le_bytes()).collect();
            write_checkpoint(&dir.path().join(name), &[tensor("w", "F32", &[pairs.len() as u64], bytes)], 1, "{}");
        };
        side("a", &|p| p.0);
        side("b", &|p| p.1);
        let found = compare(&dir.path().join("a"), &dir.path().join("b"), Access::Map);
        let delta = found[0].delta.as_ref().unwrap();
        let finite: Vec<(f64, f64)> = pairs.iter().filter(|p| p.0.is_finite() && p.1.is_finite()).map(|p| (f64::from(p.0), f64::from(p.1))).collect();
        let l1: f64 = finite.iter().map(|(a, b)| (b - a).abs()).sum();
        proptest::prop_assert!((delta.l1 - l1).abs() <= 1e-12 * l1);
        let changed = pairs.iter().filter(|(a, b)| a != b && !(a.is_nan() && b.is_nan())).count();
        proptest::prop_assert_eq!(delta.changed, changed as u64);
        let flips = pairs.iter().filter(|(a, b)| *a < 0.0 && *b > 0.0 || *a > 0.0 && *b < 0.0).count();
        proptest::prop_assert_eq!(delta.sign_flips, flips as u64);
        let most = finite.iter().map(|(a, b)| (b - a).abs()).fold(0.0, f64::max);
        proptest::prop_assert!((delta.max_abs() - most).abs() <= 1e-7 * most);
    }
}

#[test]
fn an_empty_tensor_may_claim_rows_of_any_size() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (name, rows) in [("a", 0), ("b", 0)] {
        let shape = [rows, 1 << 40, 1 << 40];
        write_checkpoint(
            &at(name),
            &[tensor("model.layers.0.mlp.up_proj.weight", "F32", &shape, vec![])],
            1,
            "{}",
        );
    }
    assert_eq!(code(&["diff", path(&at("a")), path(&at("b"))]).0, Some(0));
    let (a, b, out) = (at("a"), at("b"), at("out"));
    let args = ["reset", "--base", path(&a), "--tuned", path(&b), "--out", path(&out)];
    ok(&[&args[..], &["--granularity", "row"]].concat());
}
