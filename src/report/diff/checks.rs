//! What was asked of a comparison: a plan, limits. The verdict comes before everything else.

use serde_json::{Map, Value, json};

use crate::diff::{Limit, PlanCheck, TensorDiff};
use crate::error::Escaped;
use crate::plan::Plan;
use crate::report::number::grouped;

/// A plan and what the comparison says of it.
#[derive(Debug)]
pub struct CheckedPlan {
    /// The plan.
    pub plan: Plan,
    /// What was found.
    pub check: PlanCheck,
}

/// A limit and the tensors that it was held against.
#[derive(Debug)]
pub struct CheckedLimit {
    /// As it was typed.
    text: String,
    /// The tensors that meet it.
    failing: Vec<String>,
    /// Tensors that were not compared, and so have no measure to hold against a bound.
    unmeasured: u64,
    /// Whether no tensor at all was compared.
    nothing: bool,
}

impl CheckedLimit {
    /// Holds `limit` against every tensor.
    pub fn new(limit: &Limit, tensors: &[TensorDiff]) -> Self {
        let failing = tensors.iter().filter(|tensor| limit.fails(tensor)).map(|tensor| tensor.name.clone());
        let measured = |tensor: &&TensorDiff| tensor.delta.is_some() || tensor.renamed.is_some();
        let measured = tensors.iter().filter(measured).count();
        let unmeasured = if limit.measures() { tensors.len() - measured } else { 0 };
        Self {
            text: limit.text().to_owned(),
            failing: failing.collect(),
            unmeasured: unmeasured as u64,
            nothing: unmeasured == tensors.len(),
        }
    }
}

/// A tensor, or all of them, that failed a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The tensor; `None` for the whole comparison.
    pub name: Option<String>,
    /// What is wrong.
    pub what: String,
}

/// The checks of a comparison.
#[derive(Debug, Default)]
pub struct Checks {
    /// `--plan`.
    pub plan: Option<CheckedPlan>,
    /// `--fail-on`.
    pub limits: Vec<CheckedLimit>,
    /// Why the two sides are not of one kind, where they are not.
    pub unlike: Option<String>,
}

impl Checks {
    /// Whether there is anything to pass or to fail.
    pub fn any(&self) -> bool {
        self.plan.is_some() || !self.limits.is_empty()
    }

    /// Everything that failed, in the order of checks and tensors.
    pub fn failures(&self) -> Vec<Failure> {
        let of_plan = self.plan.iter().flat_map(|plan| &plan.check.violations);
        let of_plan = of_plan.map(|v| Failure { name: Some(v.name.clone()), what: v.what.to_owned() });
        let limits = self.limits.iter().flat_map(|limit| {
            let of = |name: &String| Failure { name: Some(name.clone()), what: limit.text.clone() };
            let nothing = format!("{}: no tensor was compared", limit.text);
            let nothing = limit.nothing.then_some(Failure { name: None, what: nothing });
            limit.failing.iter().map(of).chain(nothing)
        });
        of_plan.chain(limits).collect()
    }

    /// What was not checked or did not happen, though nothing failed by it.
    pub fn warnings(&self) -> Vec<String> {
        let mut out = Vec::new();
        if let Some(CheckedPlan { check, .. }) = &self.plan
            && check.holds()
            && !check.unmoved.is_empty()
        {
            out.push(format!(
                "{} of {} trainable tensors did not move: {}; an update can be too small for the type, or a tensor got no gradient; --strict makes this a failure",
                grouped(check.unmoved.len() as u64),
                grouped(check.trainable),
                some_names(&check.unmoved, 3)
            ));
        }
        let unmeasured = self.limits.iter().filter(|l| l.unmeasured > 0 && !l.nothing);
        out.extend(unmeasured.map(|limit| {
            let (n, text) = (grouped(limit.unmeasured), Escaped(&limit.text).to_string());
            format!("{n} tensors were not compared, so `{text}` was not checked for them; --fail-on missing and --fail-on shape check for those")
        }));
        out
    }

    /// One line for the plan and one for each limit; empty without any.
    pub(super) fn verdict(&self) -> Vec<String> {
        let plan = self.plan.iter().map(|plan| plan_verdict(&plan.check));
        let limits = self.limits.iter().map(|limit| {
            let text = Escaped(&limit.text);
            match limit.failing.len() as u64 {
                _ if limit.nothing => format!("`{text}` was not checked: no tensor was compared"),
                0 => format!("no tensor meets `{text}`"),
                1 => format!("1 tensor meets `{text}`"),
                n => format!("{} tensors meet `{text}`", grouped(n)),
            }
        });
        plan.chain(limits).collect()
    }

    /// The keys that checks add to the document.
    pub(super) fn json(&self) -> Map<String, Value> {
        let mut out = Map::new();
        if let Some(CheckedPlan { check, .. }) = &self.plan {
            let plan = json!({
                "holds": check.holds(),
                "frozen": check.frozen,
                "trainable": check.trainable,
                "unmoved": check.unmoved,
            });
            out.insert("plan".to_owned(), plan);
        }
        if self.any() {
            let row = |failure: &Failure| json!({"name": failure.name, "what": failure.what});
            out.insert("failed".to_owned(), self.failures().iter().map(row).collect());
        }
        out.insert("unlike".to_owned(), json!(self.unlike));
        out.insert("verdict".to_owned(), json!(self.verdict()));
        out
    }
}

fn plan_verdict(check: &PlanCheck) -> String {
    let moved = check.trainable - check.unmoved.len() as u64;
    let trainable = format!("{} of {} trainable tensors moved", grouped(moved), grouped(check.trainable));
    if check.holds() {
        return format!(
            "plan holds: {} frozen tensors are bit-identical, {trainable}",
            grouped(check.frozen)
        );
    }
    let of = |kind: &str| check.violations.iter().filter(|v| v.what.starts_with(kind)).count();
    let moved = of("frozen");
    let others = match check.violations.len() - moved - of("trainable") {
        0 => String::new(),
        1 => ", 1 tensor contradicts it otherwise".to_owned(),
        n => format!(", {} tensors contradict it otherwise", grouped(n as u64)),
    };
    format!(
        "plan violated: {} of {} frozen tensors moved, {trainable}{others}",
        grouped(moved as u64),
        grouped(check.frozen)
    )
}

/// The first `most` names, and how many more there are.
fn some_names(names: &[String], most: usize) -> String {
    let shown: Vec<String> = names.iter().take(most).map(|name| format!("`{}`", Escaped(name))).collect();
    let rest = names.len().saturating_sub(most);
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    shown.join(", ") + &more
}

/// `failed:` lines, at most `most` of them and then how many more.
pub(super) fn failed_lines(failures: &[Failure], most: usize) -> String {
    let line = |failure: &Failure| match &failure.name {
        Some(name) => format!("failed: tensor `{}`: {}\n", Escaped(name), Escaped(&failure.what)),
        None => format!("failed: {}\n", Escaped(&failure.what)),
    };
    let mut out: String = failures.iter().take(most).map(line).collect();
    let rest = failures.len().saturating_sub(most) as u64;
    if rest > 0 {
        out += &format!("… and {} more; -q lists all\n", grouped(rest));
    }
    out
}
