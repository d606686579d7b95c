//! The recipe of an experiment on forgetting.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::checkpoint::read_named;
use crate::error::Escaped;
use crate::{Error, Faults, Result};

/// What is trained, in which order, on what it is measured, and by which methods. Paths are relative to the working
/// directory, as on a command line.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The checkpoint that every method starts from.
    pub base: String,
    /// The tasks in the order in which they are learnt.
    pub tasks: Vec<Task>,
    /// Rows that belong to no task, by name: what fine-tuning may take away.
    pub general: Map<String, Value>,
    /// Each method is run once with each: the seed of the draw and of the order of rows.
    pub seeds: Vec<u64>,
    /// Options of `train` for all methods, by the names of its flags.
    #[serde(default)]
    pub train: Map<String, Value>,
    /// What is compared; the first is the reference.
    pub methods: Vec<Method>,
}

/// One task.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Its name in the results.
    pub name: String,
    /// Rows to learn from.
    pub train: String,
    /// Rows to measure on.
    pub eval: String,
}

/// One method. Exactly one of `train`, `reset` and `interpolate` is there.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Method {
    /// Its name in the results.
    pub name: String,
    /// Options of `train` beside those of the recipe, which they replace.
    #[serde(default)]
    pub train: Option<Map<String, Value>>,
    /// The trained method whose result is worked on.
    #[serde(default)]
    pub after: Option<String>,
    /// Ratios of a half-reset of that result: shares that return to base.
    #[serde(default)]
    pub reset: Option<Vec<f64>>,
    /// Options of `reset`.
    #[serde(default)]
    pub options: Map<String, Value>,
    /// Weights α of that result in `(1 − α) · base + α · tuned`.
    #[serde(default)]
    pub interpolate: Option<Vec<f64>>,
}

/// What a method does.
#[derive(Debug, Clone, Copy)]
pub enum Procedure<'a> {
    /// Trains on the sequence of tasks.
    Train(&'a Map<String, Value>),
    /// Half-resets of the result of another method.
    Reset {
        /// The other method.
        after: &'a str,
        /// Shares that return to base.
        ratios: &'a [f64],
    },
    /// Interpolations between base and the result of another method.
    Interpolate {
        /// The other method.
        after: &'a str,
        /// Weights of that result.
        alphas: &'a [f64],
    },
}

/// Flags of `train` that the experiment gives itself.
const OWN_TRAIN: [&str; 12] = [
    "model",
    "data",
    "eval-data",
    "eval-steps",
    "out",
    "force",
    "seed",
    "json",
    "resume",
    "config",
    "preview",
    "objective",
];
/// Flags of `train` that hold for every measurement, so that no method may have its own.
const COMMON: [&str; 3] = ["max-length", "device", "compute-dtype"];
/// Flags of `reset` that the experiment gives itself.
const OWN_RESET: [&str; 16] = [
    "base",
    "tuned",
    "out",
    "force",
    "ratio",
    "sweep",
    "eval",
    "seed",
    "seeds",
    "json",
    "csv",
    "svg",
    "plan",
    "write-plan",
    "dry-run",
    "batch-size",
];

impl Method {
    /// What it does; `None` unless exactly one of the three is there, with the method that it comes after.
    pub fn procedure(&self) -> Option<Procedure<'_>> {
        match (&self.train, &self.reset, &self.interpolate, &self.after) {
            (Some(options), None, None, None) => Some(Procedure::Train(options)),
            (None, Some(ratios), None, Some(after)) => Some(Procedure::Reset { after, ratios }),
            (None, None, Some(alphas), Some(after)) => Some(Procedure::Interpolate { after, alphas }),
            _ => None,
        }
    }
}

impl Recipe {
    /// Reads a recipe.
    ///
    /// # Errors
    /// [`Error::Usage`] for what is no recipe, every fault of its contents at once; [`Error::Io`].
    pub fn read(path: &Path) -> Result<Self> {
        let fault = |what: String| Error::Usage { fault: format!("{}: {what}", Escaped(path)), hint: None };
        let text = String::from_utf8(read_named(path)?).map_err(|_| fault("not UTF-8".to_owned()))?;
        let value: Value = serde_saphyr::from_str(&text).map_err(|e| {
            // The lines after the first show the text around the fault.
            let said = e.to_string();
            let line = said.lines().next().unwrap_or_default();
            fault(format!("not valid YAML: {}", Escaped(line.trim_start_matches("error: "))))
        })?;
        if value.is_null() {
            let keys = "`base`, `tasks`, `general`, `seeds` and `methods`";
            return Err(fault(format!("the recipe is empty, expected {keys}")));
        }
        let recipe: Self = serde_path_to_error::deserialize(value).map_err(|e| {
            fault(format!("`{}`: {}", Escaped(&e.path().to_string()), Escaped(&e.inner().to_string())))
        })?;
        let mut faults = Faults::default();
        recipe.faults().into_iter().for_each(|what| faults.push(fault(what)));
        faults.into_result()?;
        Ok(recipe)
    }

    /// The files of the general set with their names.
    pub fn general(&self) -> impl Iterator<Item = (&str, &str)> {
        self.general.iter().filter_map(|(name, path)| Some((name.as_str(), path.as_str()?)))
    }

    /// The options of `train` of a method: those of the recipe, then its own, each by the name of its flag.
    pub fn options(&self, own: &Map<String, Value>) -> Map<String, Value> {
        let mut all: Map<String, Value> =
            self.train.iter().map(|(key, value)| (flag(key), value.clone())).collect();
        all.extend(own.iter().map(|(key, value)| (flag(key), value.clone())));
        all
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut check = |holds: bool, fault: String| {
            if !holds {
                faults.push(fault);
            }
        };
        check(
            self.tasks.len() > 1,
            format!("`tasks`: got {}, expected 2 or more: a sequence", self.tasks.len()),
        );
        check(!self.seeds.is_empty(), "`seeds`: got none, expected one or more".to_owned());
        check(
            self.seeds.iter().collect::<BTreeSet<_>>().len() == self.seeds.len(),
            "`seeds`: one seed twice".to_owned(),
        );
        check(!self.general.is_empty(), "`general`: got none, expected one file or more".to_owned());
        for (name, path) in &self.general {
            check(
                path.is_string(),
                format!("`general.{}`: got {path}, expected the path of a file", Escaped(name)),
            );
        }
        let mut names = BTreeSet::new();
        let files = self.tasks.iter().map(|task| &task.name).chain(self.general.keys());
        for name in files {
            check(is_name(name), format!("the name {name:?}: expected letters, digits, `-`, `_` and `.`"));
            check(names.insert(name), format!("two files have the name {}", Escaped(name)));
        }
        let mut methods = BTreeSet::new();
        for method in &self.methods {
            let name = &method.name;
            check(is_name(name), format!("the method {name:?}: expected letters, digits, `-`, `_` and `.`"));
            check(methods.insert(name), format!("two methods have the name {}", Escaped(name)));
        }
        check(!self.methods.is_empty(), "`methods`: got none, expected one or more".to_owned());
        for key in self.train.keys().filter(|key| OWN_TRAIN.contains(&flag(key).as_str())) {
            check(false, format!("`train.{}` is set by the experiment itself", Escaped(key)));
        }
        for method in &self.methods {
            faults.extend(self.faults_of(method));
        }
        faults
    }

    fn faults_of(&self, method: &Method) -> Vec<String> {
        let name = Escaped(&method.name).to_string();
        let Some(procedure) = method.procedure() else {
            return vec![format!(
                "method {name}: expected either `train`, or `after` with one of `reset` and `interpolate`"
            )];
        };
        let mut faults = Vec::new();
        let own: &[&str] = match procedure {
            Procedure::Train(_) => &[],
            _ => &OWN_RESET,
        };
        for key in method.options.keys().filter(|key| own.contains(&flag(key).as_str())) {
            faults.push(format!("method {name}: `options.{}` is set by the experiment itself", Escaped(key)));
        }
        if !matches!(procedure, Procedure::Reset { .. }) && !method.options.is_empty() {
            faults.push(format!("method {name}: `options` belong to `reset`"));
        }
        let numbers = match procedure {
            Procedure::Train(options) => {
                let taken = |key: &&String| {
                    let flag = flag(key);
                    OWN_TRAIN.contains(&flag.as_str()) || COMMON.contains(&flag.as_str())
                };
                for key in options.keys().filter(taken) {
                    faults
                        .push(format!("method {name}: `train.{}` is the same for all methods", Escaped(key)));
                }
                return faults;
            }
            Procedure::Reset { after, ratios } => (after, ratios),
            Procedure::Interpolate { after, alphas } => (after, alphas),
        };
        let (after, numbers) = numbers;
        let trained = |other: &Method| other.name == after && other.train.is_some();
        if !self.methods.iter().any(trained) {
            faults.push(format!("method {name}: `after: {}` is no method that trains", Escaped(after)));
        }
        if numbers.is_empty() || numbers.iter().any(|number| !(0.0..=1.0).contains(number)) {
            faults.push(format!("method {name}: expected one number or more from 0 to 1, got {numbers:?}"));
        }
        faults
    }
}

/// The name of the flag that a key stands for.
pub(super) fn flag(key: &str) -> String {
    key.replace('_', "-")
}

/// Appends flags with their values: `true` is a flag alone, `false` and null none, a list one flag for each value.
pub(super) fn push_flags(words: &mut Vec<String>, options: &Map<String, Value>) {
    for (key, value) in options {
        push_flag(words, &format!("--{}", flag(key)), value);
    }
}

fn push_flag(words: &mut Vec<String>, flag: &str, value: &Value) {
    match value {
        Value::Null | Value::Bool(false) => {}
        Value::Bool(true) => words.push(flag.to_owned()),
        Value::String(text) => words.extend([flag.to_owned(), text.clone()]),
        Value::Array(values) => values.iter().for_each(|value| push_flag(words, flag, value)),
        // A mapping has no flag; the command refuses the text.
        number => words.extend([flag.to_owned(), number.to_string()]),
    }
}

/// Whether a name can stand in `NAME=FILE` and be the name of a directory.
fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    !name.is_empty() && !name.starts_with('.') && name.len() <= 64 && name.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
base: base
tasks:
  - {name: a, train: a.jsonl, eval: a_eval.jsonl}
  - {name: b, train: b.jsonl, eval: b_eval.jsonl}
general: {text: text.jsonl}
seeds: [0, 1]
train: {learning_rate: 1e-4, max_steps: 3}
methods:
  - {name: full, train: {ratio: 1}}
  - {name: half-reset, after: full, reset: [0.5], options: {granularity: element}}
  - {name: wise-ft, after: full, interpolate: [0.5]}
";

    fn read(text: &str) -> Result<Recipe> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recipe.yml");
        std::fs::write(&path, text).unwrap();
        Recipe::read(&path)
    }

    #[test]
    fn options_of_a_method_replace_those_of_the_recipe() {
        let recipe = read(GOOD).unwrap();
        let own =
            serde_json::json!({"max-steps": 5, "packing": true, "plan": ["x", "y"], "tensorboard": false});
        let mut words = Vec::new();
        push_flags(&mut words, &recipe.options(own.as_object().unwrap()));
        let expected = "--learning-rate 0.0001 --max-steps 5 --packing --plan x --plan y";
        assert_eq!(words.join(" "), expected);
    }

    #[test]
    fn faults_are_named() {
        for (from, to, fault) in [
            ("seeds: [0, 1]", "seeds: [1, 1]", "one seed twice"),
            ("name: b,", "name: a,", "two files have the name a"),
            ("name: full", "name: ../full", "expected letters"),
            ("after: full, reset", "after: none, reset", "`after: none` is no method that trains"),
            ("interpolate: [0.5]", "interpolate: [1.5]", "from 0 to 1, got [1.5]"),
            ("{ratio: 1}", "{seed: 3}", "`train.seed` is the same for all methods"),
            ("{ratio: 1}", "{max_length: 3}", "`train.max_length` is the same for all methods"),
            ("granularity: element", "sweep: 1", "`options.sweep` is set by the experiment itself"),
            ("after: full, interpolate: [0.5]", "interpolate: [0.5]", "expected either `train`, or `after`"),
            ("base: base", "bse: base", "unknown field `bse`"),
            ("seeds: [0, 1]", "seeds: [a]", "`seeds[0]`: invalid type"),
            ("text: text.jsonl", "text: 3", "`general.text`: got 3, expected the path of a file"),
        ] {
            assert!(GOOD.contains(from));
            let error = read(&GOOD.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(fault), "{fault}: {error}");
        }
    }
}
