//! Checks a comparison against a training plan: frozen tensors must be unchanged, trainable ones must have changed.

use crate::diff::{Status, TensorDiff};
use crate::plan::{Plan, is_buffer};

/// A tensor that violates the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The tensor.
    pub name: String,
    /// What is wrong with it.
    pub what: &'static str,
}

/// The violations of `plan` in the comparison of a, before training, with b, after it: frozen tensors must be
/// bit-identical, trainable ones must differ, unless they have no elements. Tensors that the plan does not list, or that
/// one side lacks, are violations. A buffer, which no plan decides on, may differ. For a tensor with a row or element mask, only that it differs is checked, not where.
pub fn violations(tensors: &[TensorDiff], plan: &Plan) -> Vec<Violation> {
    let mut out = Vec::new();
    for tensor in tensors {
        let empty = tensor.a.as_ref().is_some_and(|a| a.shape.contains(&0));
        let what = match (plan.is_trainable(&tensor.name), tensor.status) {
            (_, Status::OnlyInA) => "only in a",
            (_, Status::OnlyInB) => "only in b",
            (None, _) => "not in the plan",
            (Some(_), Status::ShapeDiffers) => "its shape differs",
            (Some(_), Status::DtypeDiffers) => "its type differs",
            (Some(false), Status::Changed) if is_buffer_of(&tensor.name, plan) => continue,
            (Some(false), Status::Changed) => "frozen, but it moved",
            (Some(true), Status::Identical) if !empty => "trainable, but it did not move",
            (Some(_), Status::Identical | Status::Changed) => continue,
        };
        out.push(Violation { name: tensor.name.clone(), what });
    }
    let compared: std::collections::HashSet<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    let planned = plan.trainable().iter().chain(plan.frozen());
    let absent = planned.filter(|name| !compared.contains(name.as_str()));
    out.extend(absent.map(|name| Violation { name: name.clone(), what: "in the plan, but on neither side" }));
    out
}

/// Whether a tensor is a buffer: a `bias` beside a `weight` is none.
fn is_buffer_of(name: &str, plan: &Plan) -> bool {
    let has_weight = |module: &str| plan.is_trainable(&format!("{module}.weight")).is_some();
    is_buffer(name) && !name.strip_suffix(".bias").is_some_and(has_weight)
}
