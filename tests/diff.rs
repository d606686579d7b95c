//! `diff` against PyTorch, and its laws.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{fixture, path};
use hft_surgery::checkpoint::{Access, Checkpoint};
use hft_surgery::surgery::{Status, TensorDiff, diff};
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
    assert!(
        found
            .iter()
            .all(|t| t.status == Status::Identical && t.delta.as_ref().is_some_and(|d| d.changed == 0))
    );
    let _ = path;
}
