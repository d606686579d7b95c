//! Checks a comparison against a training plan: frozen tensors must be unchanged, trainable ones should have changed.

use std::collections::HashSet;

use crate::diff::{Status, TensorDiff};
use crate::plan::{Plan, is_buffer};

const UNMOVED: &str = "trainable, but it did not move";

/// A tensor that violates the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The tensor.
    pub name: String,
    /// What is wrong with it.
    pub what: &'static str,
}

/// What a comparison of a, before training, with b, after it, says of a plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlanCheck {
    /// Frozen tensors that are on both sides.
    pub frozen: u64,
    /// Trainable tensors that are on both sides and have elements.
    pub trainable: u64,
    /// Trainable tensors whose bytes are those of before: an update can be too small for the type, or a tensor got no
    /// gradient.
    pub unmoved: Vec<String>,
    /// What contradicts the plan.
    pub violations: Vec<Violation>,
}

impl PlanCheck {
    /// Checks the tensors that `wanted` chooses: [`violations`]. That a trainable tensor did not move is a violation where `strict` is set,
    /// and where all were chosen and none moved. For a tensor with a row or element mask, only whether it differs is
    /// checked, not where.
    pub fn new(tensors: &[TensorDiff], plan: &Plan, wanted: &dyn Fn(&str) -> bool, strict: bool) -> Self {
        let mut check = Self::default();
        for tensor in tensors.iter().filter(|t| wanted(&t.name)) {
            let trainable = planned(tensor, plan);
            if tensor.a.is_some() && tensor.b.is_some() {
                check.frozen += u64::from(trainable == Some(false));
                check.trainable += u64::from(trainable == Some(true) && !is_empty(tensor));
            }
            if trainable == Some(true) && tensor.status == Status::Identical && !is_empty(tensor) {
                check.unmoved.push(tensor.name.clone());
            }
        }
        check.violations = violations(tensors, plan).into_iter().filter(|v| wanted(&v.name)).collect();
        // Of a part of the trainable tensors, that none moved says nothing of the others.
        let all = plan.trainable().iter().all(|name| wanted(name));
        if strict || all && check.unmoved.len() as u64 == check.trainable {
            let unmoved = check.unmoved.iter().map(|name| Violation { name: name.clone(), what: UNMOVED });
            check.violations.extend(unmoved);
        }
        check
    }

    /// Whether nothing contradicts the plan.
    pub fn holds(&self) -> bool {
        self.violations.is_empty()
    }
}

/// The violations of `plan` in the comparison of a, before training, with b, after it: frozen tensors must be
/// bit-identical. Tensors that the plan lists by neither spelling of their name, or that one side lacks, are violations.
/// A buffer, which no plan decides on, may differ, and one side may lack it.
pub fn violations(tensors: &[TensorDiff], plan: &Plan) -> Vec<Violation> {
    let mut compared: HashSet<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    compared.extend(tensors.iter().filter_map(spelling_of_a));
    // A `bias` beside a `weight` is no buffer.
    let has_weight = |module: &str| {
        let weight = format!("{module}.weight");
        compared.contains(weight.as_str()) || plan.is_trainable(&weight).is_some()
    };
    let is_buffer = |name: &str| is_buffer(name) && !name.strip_suffix(".bias").is_some_and(has_weight);
    let mut out = Vec::new();
    for tensor in tensors {
        let planned = planned(tensor, plan);
        if is_buffer(&tensor.name) && planned != Some(true) {
            continue;
        }
        let what = match (planned, tensor.status) {
            (_, Status::OnlyInA) => "only in a",
            (_, Status::OnlyInB) => "only in b",
            (None, _) => "not in the plan",
            (Some(_), Status::ShapeDiffers) => "its shape differs",
            (Some(_), Status::DtypeDiffers) => "its type differs",
            (Some(false), Status::Changed) => "frozen, but it moved",
            (Some(_), Status::Identical | Status::Changed) => continue,
        };
        out.push(Violation { name: tensor.name.clone(), what });
    }
    let names = plan.trainable().iter().chain(plan.frozen());
    let absent = names.filter(|name| !compared.contains(name.as_str()));
    out.extend(absent.map(|name| Violation { name: name.clone(), what: "in the plan, but on neither side" }));
    out
}

/// The name of a, where it is another spelling of the name of b.
fn spelling_of_a(tensor: &TensorDiff) -> Option<&str> {
    tensor.renamed.as_deref().filter(|_| tensor.a.is_some() && tensor.b.is_some())
}

/// Whether the plan trains the tensor, which it lists by its name of b or of a.
fn planned(tensor: &TensorDiff, plan: &Plan) -> Option<bool> {
    let of_a = || plan.is_trainable(spelling_of_a(tensor)?);
    plan.is_trainable(&tensor.name).or_else(of_a)
}

fn is_empty(tensor: &TensorDiff) -> bool {
    tensor.a.as_ref().is_some_and(|a| a.shape.contains(&0))
}
