//! The methods: one row of constants each.

use crate::merge::recipe::parameter::{Parameter, ParameterType};

/// Which rule combines the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// `y = [b +] Σ c_i z_i`.
    Combination(CombinationRule),
    /// Sparsify every task vector, elect signs, add.
    Task {
        sparsify: Sparsify,
        elect: bool,
    },
    Sce,
    Ram {
        plus: bool,
    },
    NearSwap,
    Fusion,
    Mask,
}

/// How the coefficients of a combination are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CombinationRule {
    Linear,
    Passthrough,
    Slerp,
    NuSlerp,
    MultiSlerp,
    Karcher,
    ModelStock,
}

/// Which elements of a task vector stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sparsify {
    None,
    Magnitude,
    Bernoulli,
    Outlier,
    MagPrune,
}

/// Whether a base is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    /// Refused without one.
    Required,
    /// Deltas are taken from it where it is given.
    Optional,
    /// It is one input among others.
    Input,
}

/// A method of merging.
#[derive(Debug)]
pub(crate) struct Method {
    pub(crate) name: &'static str,
    pub(crate) rule: Rule,
    pub(crate) base: Base,
    /// How many models besides the base: least and most.
    pub(crate) models: (usize, usize),
    pub(crate) parameters: &'static [Parameter],
    pub(crate) paper: &'static str,
}

const ANY: (f64, f64) = (f64::NEG_INFINITY, f64::INFINITY);
const SHARE: (f64, f64) = (0.0, 1.0);
const POSITIVE: (f64, f64) = (0.0, f64::INFINITY);

const fn shared(name: &'static str, kind: ParameterType) -> Parameter {
    Parameter { name, per_model: false, kind }
}

const fn each(name: &'static str, kind: ParameterType) -> Parameter {
    Parameter { name, per_model: true, kind }
}

const fn number(default: f64, (least, greatest): (f64, f64)) -> ParameterType {
    ParameterType::Number { least, greatest, default: Some(default) }
}

const fn required((least, greatest): (f64, f64)) -> ParameterType {
    ParameterType::Number { least, greatest, default: None }
}

const fn flag(default: bool) -> ParameterType {
    ParameterType::Flag { default }
}

const fn word(words: &'static [&'static str], default: &'static str) -> ParameterType {
    ParameterType::Word { words, default }
}

const fn normalize(default: bool) -> Parameter {
    shared("normalize", flag(default))
}

/// `true` is `l1`, `false` is `none`.
const fn rescale(default: &'static str) -> Parameter {
    shared("rescale", word(&["none", "l1", "inverse-density", "true", "false"], default))
}

const WEIGHT: Parameter = each("weight", required(ANY));
const DENSITY: Parameter = each("density", number(1.0, SHARE));
const GAMMA: Parameter = each("gamma", number(0.01, SHARE));
const EPSILON: Parameter = each("epsilon", number(0.15, SHARE));
const SCALE: Parameter = each("scale", number(1.0, ANY));
const LAMBDA: Parameter = shared("lambda", number(1.0, ANY));
const ELECT: Parameter = shared("elect", word(&["weighted", "unweighted"], "weighted"));
const TRIM: Parameter = shared("trim", word(&["tensor", "global"], "tensor"));
/// Of mergekit, where it makes masks smaller; without effect here.
const INT8: Parameter = shared("int8_mask", flag(false));
const RAM_EPSILON: Parameter = shared("epsilon", number(1e-5, POSITIVE));
const MANY: usize = usize::MAX;

const fn task(
    name: &'static str,
    sparsify: Sparsify,
    elect: bool,
    parameters: &'static [Parameter],
    paper: &'static str,
) -> Method {
    let rule = Rule::Task { sparsify, elect };
    Method { name, rule, base: Base::Required, models: (1, MANY), parameters, paper }
}

/// All methods, by name. Rows of task arithmetic say whether signs are elected.
#[rustfmt::skip]
pub(crate) const METHODS: &[Method] = &[
    Method { name: "arcee_fusion", rule: Rule::Fusion, base: Base::Required, models: (1, 1), parameters: &[], paper: "https://arcee.ai" },
    task("breadcrumbs", Sparsify::Outlier, false, &[WEIGHT, DENSITY, GAMMA, LAMBDA, normalize(false), rescale("none"), ELECT, INT8], "arXiv:2312.06795"),
    task("breadcrumbs_ties", Sparsify::Outlier, true, &[WEIGHT, DENSITY, GAMMA, LAMBDA, normalize(false), rescale("none"), ELECT, INT8], "arXiv:2312.06795"),
    task("dare_linear", Sparsify::Bernoulli, false, &[WEIGHT, DENSITY, LAMBDA, normalize(false), rescale("l1"), ELECT, INT8], "arXiv:2311.03099"),
    task("dare_ties", Sparsify::Bernoulli, true, &[WEIGHT, DENSITY, LAMBDA, normalize(false), rescale("l1"), ELECT, INT8], "arXiv:2311.03099"),
    task("della", Sparsify::MagPrune, true, &[WEIGHT, DENSITY, EPSILON, LAMBDA, normalize(true), rescale("l1"), ELECT, INT8], "arXiv:2406.11617"),
    task("della_linear", Sparsify::MagPrune, false, &[WEIGHT, DENSITY, EPSILON, LAMBDA, normalize(false), rescale("l1"), ELECT, INT8], "arXiv:2406.11617"),
    Method { name: "karcher", rule: Rule::Combination(CombinationRule::Karcher), base: Base::Input, models: (1, MANY), parameters: &[
        shared("max_iter", number(10.0, (0.0, 1e6))), shared("tol", number(1e-5, POSITIVE))], paper: "arXiv:2603.04972" },
    Method { name: "linear", rule: Rule::Combination(CombinationRule::Linear), base: Base::Input, models: (1, MANY), parameters: &[
        WEIGHT, shared("normalize", flag(true))], paper: "arXiv:2203.05482" },
    Method { name: "mask", rule: Rule::Mask, base: Base::Required, models: (1, MANY), parameters: &[
        SCALE, DENSITY, each("mask", ParameterType::Text),
        each("select", word(&["bernoulli", "top-magnitude"], "bernoulli")),
        each("complement", flag(false))], paper: "half fine-tuning, arXiv:2404.18466" },
    Method { name: "model_stock", rule: Rule::Combination(CombinationRule::ModelStock), base: Base::Required, models: (2, MANY), parameters: &[
        shared("filter_wise", flag(false))], paper: "arXiv:2403.19522" },
    Method { name: "multislerp", rule: Rule::Combination(CombinationRule::MultiSlerp), base: Base::Optional, models: (1, MANY), parameters: &[
        WEIGHT, shared("normalize_weights", flag(true)), shared("eps", number(1e-8, POSITIVE))], paper: "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea" },
    Method { name: "nearswap", rule: Rule::NearSwap, base: Base::Required, models: (1, 1), parameters: &[
        shared("t", required(POSITIVE))], paper: "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001" },
    Method { name: "nuslerp", rule: Rule::Combination(CombinationRule::NuSlerp), base: Base::Optional, models: (2, 2), parameters: &[
        WEIGHT, shared("nuslerp_row_wise", flag(false)), shared("nuslerp_flatten", flag(true))], paper: "Shoemake 1985, doi:10.1145/325165.325242" },
    Method { name: "passthrough", rule: Rule::Combination(CombinationRule::Passthrough), base: Base::Input, models: (1, 1), parameters: &[
        SCALE], paper: "" },
    Method { name: "ram", rule: Rule::Ram { plus: false }, base: Base::Required, models: (1, MANY), parameters: &[RAM_EPSILON], paper: "arXiv:2601.13572" },
    Method { name: "ramplus_tl", rule: Rule::Ram { plus: true }, base: Base::Required, models: (1, MANY), parameters: &[
        RAM_EPSILON, shared("r", number(0.1, ANY)), shared("alpha", number(0.2, POSITIVE))], paper: "arXiv:2601.13572" },
    Method { name: "sce", rule: Rule::Sce, base: Base::Required, models: (1, MANY), parameters: &[
        shared("select_topk", number(1.0, SHARE)), INT8], paper: "arXiv:2408.07990" },
    Method { name: "slerp", rule: Rule::Combination(CombinationRule::Slerp), base: Base::Required, models: (1, 1), parameters: &[
        shared("t", required(ANY))], paper: "Shoemake 1985, doi:10.1145/325165.325242" },
    task("task_arithmetic", Sparsify::None, false, &[WEIGHT, DENSITY, LAMBDA, normalize(false), rescale("none"), ELECT, INT8], "arXiv:2212.04089"),
    task("ties", Sparsify::Magnitude, true, &[WEIGHT, DENSITY, LAMBDA, normalize(true), rescale("none"), ELECT, TRIM, INT8], "arXiv:2306.01708"),
];

impl Method {
    /// The method of that name.
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        METHODS.iter().find(|method| method.name == name)
    }

    pub(crate) fn parameter(&self, name: &str) -> Option<&'static Parameter> {
        self.parameters.iter().find(|p| p.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_found() {
        assert!(METHODS.windows(2).all(|pair| pair[0].name < pair[1].name));
        assert!(METHODS.iter().all(|m| Method::find(m.name).is_some_and(|f| f.name == m.name)));
    }
}
