//! Every view, of tensors with hostile names.

use super::*;
use crate::checkpoint::Dtype;
use crate::diff::{Delta, Status, StoredAs, TensorDiff};

const HOSTILE: &str =
    "model.layers.0.mlp.</script><img src=x onerror=alert(1)>\u{1b}[31m\n\"=cmd,\u{202e}.weight";

fn tensor(name: &str, status: Status, delta: Option<Delta>) -> TensorDiff {
    let form =
        || StoredAs { dtype: Dtype::parse("BF16"), shape: vec![2, 3], shard: "a.safetensors".to_owned() };
    let a = (status != Status::OnlyInB).then(form);
    let b = (status != Status::OnlyInA).then(form);
    TensorDiff { name: name.to_owned(), status, a, b, delta, renamed: None }
}

fn moved() -> Delta {
    let squares = (9.0, 25.0, 16.0, 16.0);
    Delta {
        elements: 6,
        finite: 6,
        changed: 1,
        l1: 3.0,
        sum: 3.0,
        squares: squares.0,
        squares_a: squares.1,
        squares_b: squares.2,
        dot: squares.3,
        largest: Some((3.0, 4)),
        ..Delta::default()
    }
}

fn report() -> DiffReport {
    let same =
        Delta { elements: 6, finite: 6, squares_a: 11.0, squares_b: 11.0, dot: 11.0, ..Delta::default() };
    let tensors = vec![
        tensor(HOSTILE, Status::Changed, Some(moved())),
        tensor("model.layers.0.self_attn.q_proj.weight", Status::Identical, Some(same)),
        tensor("model.layers.1.self_attn.q_proj.weight", Status::Changed, Some(moved())),
        tensor("model.norm.weight", Status::OnlyInB, None),
    ];
    DiffReport::new("a <&> b".to_owned(), "b".to_owned(), tensors, Checks::default())
}

#[test]
fn the_document_has_its_keys_and_numbers() {
    let json = report().json();
    assert_eq!(json["identical"], false);
    let keys: Vec<&String> = json["tensors"][2].as_object().map(|o| o.keys().collect()).unwrap_or_default();
    let promised = "name status dtype shape elements changed l2 rel_l2 max_abs mean cosine sign_flips nonfinite_a nonfinite_b";
    assert_eq!(keys[..14].iter().map(|k| k.as_str()).collect::<Vec<_>>().join(" "), promised);
    let row = &json["tensors"][2];
    assert_eq!(
        (row["l2"].as_f64(), row["rel_l2"].as_f64(), row["mean"].as_f64()),
        (Some(3.0), Some(0.6), Some(0.5))
    );
    assert_eq!((row["cosine"].as_f64(), row["max_index"].as_u64()), (Some(0.8), Some(4)));
    assert_eq!(json["tensors"][3]["l2"], serde_json::Value::Null);
    assert_eq!(json["summary"]["statuses"]["only_in_b"], 1);
    // Two tensors of attention: ‖δ‖² = 9, ‖a‖² = 11 + 25.
    assert_eq!(json["summary"]["categories"]["attention"]["rel_l2"], 0.5);
}

#[test]
fn a_name_cannot_leave_its_place_in_a_page_or_picture() {
    let html = report().html();
    assert!(!html.contains("</script><img") && html.contains("\\u003c/script"));
    assert_eq!(html.matches("</script>").count(), 2);
    let svg = report().svg();
    assert!(!svg.contains("<img") && !svg.contains('\u{1b}') && svg.contains("a &lt;&amp;&gt; b"));
}

#[test]
fn a_name_cannot_break_a_line_or_paint_a_terminal() {
    let csv = report().csv();
    assert!(csv.contains("\"\"=cmd,") && csv.starts_with("name,status,category,"));
    for (color, escapes) in [(false, false), (true, true)] {
        let table = report().table(10, SortBy::RelL2, color);
        assert_eq!(table.contains('\u{1b}'), escapes);
        assert!(table.contains("\\u{1b}[31m\\u{a}") && !table.contains('\u{202e}'));
        assert!(table.contains("tensor `model.norm.weight`: only in b"));
    }
}

#[test]
fn many_tensors_of_another_shape_are_told_together() {
    let mut tensors: Vec<TensorDiff> = (0..30)
        .map(|i| {
            let mut tensor =
                tensor(&format!("model.layers.{i}.mlp.up_proj.weight"), Status::ShapeDiffers, None);
            tensor.a.iter_mut().for_each(|a| a.shape = vec![i + 3, 3]);
            tensor
        })
        .collect();
    tensors.push(tensor("model.norm.weight", Status::OnlyInB, None));
    let report = DiffReport::new("a".to_owned(), "b".to_owned(), tensors, Checks::default());
    let table = report.table(0, SortBy::RelL2, false);
    let (_, list) = table.split_at(table.find("30 tensors: ").unwrap_or_default());
    assert_eq!(
        list,
        "30 tensors: shapes differ\n    \
         `model.layers.0.mlp.up_proj.weight`: [3, 3] in a, [2, 3] in b, not compared\n    \
         `model.layers.1.mlp.up_proj.weight`: [4, 3] in a, [2, 3] in b, not compared\n    \
         `model.layers.2.mlp.up_proj.weight`: [5, 3] in a, [2, 3] in b, not compared\n    …\n\
         tensor `model.norm.weight`: only in b\n\
         --json lists them all\n"
    );
}

#[test]
fn columns_stand_in_the_order_of_a_forward_pass() {
    let names = [
        "mlp.down_proj",
        "mlp.up_proj",
        "self_attn.v_proj",
        "mlp.gate_proj",
        "self_attn.o_proj",
        "self_attn.q_proj",
    ];
    let named =
        |name: &&str| tensor(&format!("model.layers.0.{name}.weight"), Status::Changed, Some(moved()));
    let tensors = names.iter().map(named).collect();
    let report = DiffReport::new(String::new(), String::new(), tensors, Checks::default());
    let table = report.table(0, SortBy::Name, false);
    let head = table.lines().find(|line| line.starts_with("LAYER")).unwrap_or_default();
    let expected = "LAYER q_proj v_proj o_proj gate_proj up_proj down_proj";
    assert_eq!(head.split_whitespace().collect::<Vec<_>>().join(" "), expected);
}

#[test]
fn a_small_share_is_not_none() {
    let mut one = moved();
    (one.elements, one.changed) = (1_000_000, 1);
    let tensors = vec![tensor("x", Status::Changed, Some(one))];
    let report = DiffReport::new(String::new(), String::new(), tensors, Checks::default());
    let table = report.table(0, SortBy::Name, false);
    assert!(table.starts_with("1 of 1 tensors differ, <0.1 % of 1,000,000 elements changed"), "{table}");
}

#[test]
fn lists_are_sorted_by_what_is_asked() {
    let at = |table: &str, name: &str| table.find(name).unwrap_or(usize::MAX);
    let mut small = moved();
    (small.squares, small.largest) = (1.0, Some((9.0, 0)));
    let tensors =
        vec![tensor("x", Status::Changed, Some(moved())), tensor("y", Status::Changed, Some(small))];
    let report = DiffReport::new(String::new(), String::new(), tensors, Checks::default());
    for (sort, first, second) in [(SortBy::RelL2, "\nx ", "\ny "), (SortBy::MaxAbs, "\ny ", "\nx ")] {
        let table = report.table(10, sort, false);
        assert!(at(&table, first) < at(&table, second), "{sort:?}\n{table}");
    }
}
