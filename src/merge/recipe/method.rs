//! The methods: one row of constants each.

/// Which rule combines the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    Linear,
    Passthrough,
    Slerp,
    NuSlerp,
    MultiSlerp,
    Karcher,
    Stock,
    /// Sparsify every task vector, elect signs, add.
    Task {
        sparsify: Sparsify,
        elect: bool,
        normalize: bool,
        rescale: bool,
    },
    Sce,
    Ram {
        plus: bool,
    },
    NearSwap,
    Fusion,
    Mask,
}

/// How a task vector is thinned.
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

/// What values a parameter takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Number,
    Flag,
    Word(&'static [&'static str]),
    Text,
}

/// A parameter of a method.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parameter {
    pub(crate) name: &'static str,
    /// One value per model, not one for all.
    pub(crate) per_model: bool,
    pub(crate) kind: Kind,
    /// The value where the recipe gives none; NaN for one that must be given.
    pub(crate) default: f64,
    /// Least and greatest number allowed.
    pub(crate) range: (f64, f64),
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

const fn shared(name: &'static str, kind: Kind, default: f64, range: (f64, f64)) -> Parameter {
    Parameter { name, per_model: false, kind, default, range }
}

const fn each(name: &'static str, kind: Kind, default: f64, range: (f64, f64)) -> Parameter {
    Parameter { name, per_model: true, kind, default, range }
}

const WEIGHT: Parameter = each("weight", Kind::Number, f64::NAN, ANY);
const DENSITY: Parameter = each("density", Kind::Number, 1.0, SHARE);
const LAMBDA: Parameter = shared("lambda", Kind::Number, 1.0, ANY);
const INT8: Parameter = shared("int8_mask", Kind::Flag, 0.0, ANY);
/// The default of a flag that depends on the row: see [`Rule::Task`].
const BY_ROW: f64 = -1.0;
const NORMALIZE: Parameter = shared("normalize", Kind::Flag, BY_ROW, ANY);
/// `true` is `l1`, `false` is `none`.
pub(crate) const RESCALES: &[&str] = &["none", "l1", "inverse-density", "true", "false"];
const RESCALE: Parameter = shared("rescale", Kind::Word(RESCALES), BY_ROW, ANY);
const ELECT: Parameter = shared("elect", Kind::Word(&["weighted", "unweighted"]), 0.0, ANY);
const TRIM: Parameter = shared("trim", Kind::Word(&["tensor", "global"]), 0.0, ANY);
const GAMMA: Parameter = each("gamma", Kind::Number, 0.01, SHARE);
const EPSILON: Parameter = each("epsilon", Kind::Number, 0.15, SHARE);

const TASK: &[Parameter] = &[WEIGHT, DENSITY, LAMBDA, NORMALIZE, RESCALE, ELECT, INT8];
const TIES: &[Parameter] = &[WEIGHT, DENSITY, LAMBDA, NORMALIZE, RESCALE, ELECT, TRIM, INT8];
const BREADCRUMBS: &[Parameter] = &[WEIGHT, DENSITY, GAMMA, LAMBDA, NORMALIZE, RESCALE, ELECT, INT8];
const DELLA: &[Parameter] = &[WEIGHT, DENSITY, EPSILON, LAMBDA, NORMALIZE, RESCALE, ELECT, INT8];
const RAM_EPSILON: Parameter = shared("epsilon", Kind::Number, 1e-5, POSITIVE);
const MANY: usize = usize::MAX;

const fn task(
    name: &'static str,
    sparsify: Sparsify,
    [elect, normalize, rescale]: [bool; 3],
    parameters: &'static [Parameter],
    paper: &'static str,
) -> Method {
    let rule = Rule::Task { sparsify, elect, normalize, rescale };
    Method { name, rule, base: Base::Required, models: (1, MANY), parameters, paper }
}

/// All methods, by name. Columns of the task rows: sign election, normalize, rescale.
#[rustfmt::skip]
pub(crate) const METHODS: &[Method] = &[
    Method { name: "arcee_fusion", rule: Rule::Fusion, base: Base::Required, models: (1, 1), parameters: &[], paper: "https://arcee.ai" },
    task("breadcrumbs", Sparsify::Outlier, [false, false, false], BREADCRUMBS, "arXiv:2312.06795"),
    task("breadcrumbs_ties", Sparsify::Outlier, [true, false, false], BREADCRUMBS, "arXiv:2312.06795"),
    task("dare_linear", Sparsify::Bernoulli, [false, false, true], TASK, "arXiv:2311.03099"),
    task("dare_ties", Sparsify::Bernoulli, [true, false, true], TASK, "arXiv:2311.03099"),
    task("della", Sparsify::MagPrune, [true, true, true], DELLA, "arXiv:2406.11617"),
    task("della_linear", Sparsify::MagPrune, [false, false, true], DELLA, "arXiv:2406.11617"),
    Method { name: "karcher", rule: Rule::Karcher, base: Base::Input, models: (1, MANY), parameters: &[
        shared("max_iter", Kind::Number, 10.0, (0.0, 1e6)), shared("tol", Kind::Number, 1e-5, POSITIVE)], paper: "arXiv:2603.04972" },
    Method { name: "linear", rule: Rule::Linear, base: Base::Input, models: (1, MANY), parameters: &[
        WEIGHT, shared("normalize", Kind::Flag, 1.0, ANY)], paper: "arXiv:2203.05482" },
    Method { name: "mask", rule: Rule::Mask, base: Base::Required, models: (1, MANY), parameters: &[
        each("scale", Kind::Number, 1.0, ANY), DENSITY, each("mask", Kind::Text, 0.0, ANY),
        each("select", Kind::Word(&["bernoulli", "top-magnitude"]), 0.0, ANY),
        each("complement", Kind::Flag, 0.0, ANY)], paper: "half fine-tuning, arXiv:2404.18466" },
    Method { name: "model_stock", rule: Rule::Stock, base: Base::Required, models: (2, MANY), parameters: &[
        shared("filter_wise", Kind::Flag, 0.0, ANY)], paper: "arXiv:2403.19522" },
    Method { name: "multislerp", rule: Rule::MultiSlerp, base: Base::Optional, models: (1, MANY), parameters: &[
        WEIGHT, shared("normalize_weights", Kind::Flag, 1.0, ANY), shared("eps", Kind::Number, 1e-8, POSITIVE)], paper: "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea" },
    Method { name: "nearswap", rule: Rule::NearSwap, base: Base::Required, models: (1, 1), parameters: &[
        shared("t", Kind::Number, f64::NAN, POSITIVE)], paper: "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001" },
    Method { name: "nuslerp", rule: Rule::NuSlerp, base: Base::Optional, models: (2, 2), parameters: &[
        WEIGHT, shared("nuslerp_row_wise", Kind::Flag, 0.0, ANY), shared("nuslerp_flatten", Kind::Flag, 1.0, ANY)], paper: "Shoemake 1985, doi:10.1145/325165.325242" },
    Method { name: "passthrough", rule: Rule::Passthrough, base: Base::Input, models: (1, 1), parameters: &[
        each("scale", Kind::Number, 1.0, ANY)], paper: "" },
    Method { name: "ram", rule: Rule::Ram { plus: false }, base: Base::Required, models: (1, MANY), parameters: &[RAM_EPSILON], paper: "arXiv:2601.13572" },
    Method { name: "ramplus_tl", rule: Rule::Ram { plus: true }, base: Base::Required, models: (1, MANY), parameters: &[
        RAM_EPSILON, shared("r", Kind::Number, 0.1, ANY), shared("alpha", Kind::Number, 0.2, POSITIVE)], paper: "arXiv:2601.13572" },
    Method { name: "sce", rule: Rule::Sce, base: Base::Required, models: (1, MANY), parameters: &[
        shared("select_topk", Kind::Number, 1.0, SHARE), INT8], paper: "arXiv:2408.07990" },
    Method { name: "slerp", rule: Rule::Slerp, base: Base::Required, models: (1, 1), parameters: &[
        shared("t", Kind::Number, f64::NAN, ANY)], paper: "Shoemake 1985, doi:10.1145/325165.325242" },
    task("task_arithmetic", Sparsify::None, [false, false, false], TASK, "arXiv:2212.04089"),
    task("ties", Sparsify::Magnitude, [true, true, false], TIES, "arXiv:2306.01708"),
];

impl Method {
    /// The method of that name.
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        METHODS.iter().find(|method| method.name == name)
    }

    pub(crate) fn parameter(&self, name: &str) -> Option<&'static Parameter> {
        self.parameters.iter().find(|p| p.name == name)
    }

    /// The default of a parameter in this row.
    pub(crate) fn default_of(&self, parameter: &Parameter) -> Option<f64> {
        let Rule::Task { normalize, rescale, .. } = self.rule else {
            return (!parameter.default.is_nan()).then_some(parameter.default);
        };
        match parameter.name {
            "normalize" => Some(f64::from(u8::from(normalize))),
            "rescale" => Some(f64::from(u8::from(rescale))),
            _ => (!parameter.default.is_nan()).then_some(parameter.default),
        }
    }
}

impl Kind {
    /// The number that stands for a value of this kind: a flag is 0 or 1, a word its place in the list; `None`
    /// for a value of another kind.
    pub(crate) fn read(self, value: &serde_json::Value) -> Option<f64> {
        use serde_json::Value;
        let flag = |text: &str| match text {
            "true" => Some(1.0),
            "false" => Some(0.0),
            _ => None,
        };
        match (self, value) {
            (Self::Number, value) => crate::merge::recipe::setting::number(value),
            (Self::Flag, Value::Bool(on)) => Some(f64::from(u8::from(*on))),
            (Self::Flag, Value::Number(n)) => n.as_f64().filter(|x| *x == 0.0 || *x == 1.0),
            (Self::Flag, Value::String(text)) => flag(text),
            (Self::Word(words), Value::String(text)) => {
                words.iter().position(|w| w == text).map(|i| i as f64)
            }
            (Self::Word(words), Value::Bool(on)) => {
                words.iter().position(|w| *w == if *on { "true" } else { "false" }).map(|i| i as f64)
            }
            (Self::Text, Value::String(_)) => Some(0.0),
            _ => None,
        }
    }

    /// What it takes, for messages.
    pub(crate) fn expected(self) -> String {
        match self {
            Self::Number => "a number".to_owned(),
            Self::Flag => "true or false".to_owned(),
            Self::Word(words) => words.join(", "),
            Self::Text => "a path".to_owned(),
        }
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
