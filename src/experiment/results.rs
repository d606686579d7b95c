//! The scores of every method and seed, from what the steps printed.

use std::collections::BTreeMap;

use serde_json::Value;

use super::outcome::{Entry, GeneralScore, Origin, Outcome};
use super::recipe::{Method, Procedure, Recipe, push_flags};
use super::run::Runner;
use super::steps::{Kind, Step};
use super::store::Record;
use crate::{Error, Result};

/// Everything that was measured.
#[derive(Debug, Clone)]
pub struct Results {
    /// Names of the tasks, in the order of training.
    pub tasks: Vec<String>,
    /// What a score of a task is.
    pub metric: String,
    /// Whether a higher one is better.
    pub higher_is_better: bool,
    /// Name and metric of each file of the general set, and whether a higher score is better.
    pub general: Vec<(String, String, bool)>,
    /// The methods, those with several numbers once for each.
    pub entries: Vec<Entry>,
}

/// A step with what it left.
struct Done<'a> {
    step: &'a Step,
    record: Record,
}

impl Results {
    /// The results of all steps of `runner`, which have finished.
    ///
    /// # Errors
    /// [`Error::Training`] for a step that has not finished or whose result is not as expected; for tasks of several metrics.
    pub fn of(recipe: &Recipe, runner: &Runner<'_>) -> Result<Self> {
        let mut results: Option<Self> = None;
        let mut entries: BTreeMap<(usize, usize), Entry> = BTreeMap::new();
        for (at, chain) in runner.chains().iter().enumerate() {
            let done = |number: usize| {
                let step = &chain.steps[number];
                let record = runner.record(at, number).ok_or_else(|| fault(step, "has not finished"))?;
                Ok(Done { step, record })
            };
            let trained = done(0)?;
            let (head, outcome) = trained.trained()?;
            let head = results.get_or_insert(head);
            let train = &recipe.methods[trained.step.method];
            let (origin, label) = (Origin::Trained(share(recipe, train)), train.name.clone());
            put(&mut entries, (trained.step.method, 0), (train, label, origin), outcome.clone());
            for (number, step) in chain.steps.iter().enumerate().skip(1) {
                let method = &recipe.methods[step.method];
                match step.kind {
                    Kind::Train | Kind::Merge(_) => {}
                    Kind::Sweep => {
                        for (place, (ratio, scores)) in done(number)?.draws()?.into_iter().enumerate() {
                            let own = outcome.with(head, &scores, step)?;
                            let label = format!("{} {ratio}", method.name);
                            let key = (step.method, place);
                            put(&mut entries, key, (method, label, Origin::HalfReset(ratio)), own);
                        }
                    }
                    Kind::Eval(alpha) => {
                        let own = outcome.with(head, &done(number)?.record.result, step)?;
                        let label = format!("{} {alpha}", method.name);
                        put(
                            &mut entries,
                            (step.method, number),
                            (method, label, Origin::Interpolated(alpha)),
                            own,
                        );
                    }
                }
            }
        }
        let results = results.ok_or_else(|| Error::usage("no method of the recipe trains", ""))?;
        Ok(Self { entries: entries.into_values().collect(), ..results })
    }
}

fn put(
    entries: &mut BTreeMap<(usize, usize), Entry>,
    key: (usize, usize),
    (method, label, origin): (&Method, String, Origin),
    outcome: Outcome,
) {
    let family = family(method);
    let new = || Entry {
        label,
        method: method.name.clone(),
        origin,
        after: method.after.clone(),
        family,
        outcomes: Vec::new(),
    };
    entries.entry(key).or_insert_with(new).outcomes.push(outcome);
}

/// The options of a method but for the share that is trained; the name of one that does not train.
fn family(method: &Method) -> String {
    let Some(Procedure::Train(own)) = method.procedure() else { return method.name.clone() };
    let mut words = Vec::new();
    let own = own.iter().filter(|(key, _)| *key != "ratio");
    push_flags(&mut words, &own.map(|(key, value)| (key.clone(), value.clone())).collect());
    if words.is_empty() { "train".to_owned() } else { format!("train {}", words.join(" ")) }
}

/// The share that a method trains.
fn share(recipe: &Recipe, method: &Method) -> Option<f64> {
    let Some(Procedure::Train(own)) = method.procedure() else { return None };
    let options = recipe.options(own);
    if options.contains_key("plan") || options.contains_key("complement-of") {
        return None;
    }
    options.get("ratio").map_or(Some(0.5), Value::as_f64)
}

fn fault(step: &Step, what: &str) -> Error {
    Error::Training { fault: format!("step {}: {what}", step.id), hint: None }
}

impl Done<'_> {
    /// What `continual.json` says.
    fn trained(&self) -> Result<(Results, Outcome)> {
        let value = &self.record.result;
        let fault = |what: &str| fault(self.step, what);
        let numbers =
            |value: &Value| -> Option<Vec<f64>> { value.as_array()?.iter().map(Value::as_f64).collect() };
        let matrix =
            value["R"].as_array().and_then(|rows| rows.iter().map(numbers).collect::<Option<Vec<_>>>());
        let (Some(matrix), Some(base)) = (matrix, numbers(&value["base"])) else {
            return Err(fault("continual.json has scores that are no numbers"));
        };
        let tasks: Vec<String> = value["tasks"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        let n = tasks.len();
        if n == 0 || matrix.len() != n || base.len() != n || matrix.iter().any(|row| row.len() != n) {
            return Err(fault("continual.json has no matrix of one score for each task after each stage"));
        }
        let (Some(metric), Some(higher_is_better)) =
            (value["metric"].as_str(), value["higher_is_better"].as_bool())
        else {
            return Err(fault(
                "the tasks are scored by more than one metric, so that there is no mean over them",
            ));
        };
        let mut general = Vec::new();
        let mut scores = Vec::new();
        for other in value["others"].as_array().into_iter().flatten() {
            let last = other["after"].as_array().and_then(|all| all.last()).and_then(Value::as_f64);
            let (Some(name), Some(metric), Some(base), Some(last)) =
                (other["name"].as_str(), other["metric"].as_str(), other["base"].as_f64(), last)
            else {
                return Err(fault("continual.json has scores of the general set that are no numbers"));
            };
            let better = other["higher_is_better"].as_bool().unwrap_or(metric != "loss");
            general.push((name.to_owned(), metric.to_owned(), better));
            scores.push(GeneralScore { base, last });
        }
        let outcome = Outcome {
            seed: self.step.seed,
            last: matrix[n - 1].clone(),
            learnt: (0..n).map(|task| matrix[task][task]).collect(),
            matrix,
            base,
            general: scores,
            measured: Some(self.record.measured),
        };
        for (key, own) in [("OP", outcome.op()), ("BWT", outcome.bwt())] {
            let theirs = value[key].as_f64();
            if theirs.is_none_or(|theirs| (theirs - own).abs() > 1e-9 * own.abs().max(1.0)) {
                return Err(fault(&format!(
                    "{key} of continual.json: got {theirs:?}, expected {own} by its matrix"
                )));
            }
        }
        let metric = metric.to_owned();
        Ok((Results { tasks, metric, higher_is_better, general, entries: Vec::new() }, outcome))
    }

    /// The scores of each ratio of `reset --sweep`.
    fn draws(&self) -> Result<Vec<(f64, Value)>> {
        let draws = self.record.result["draws"].as_array().into_iter().flatten();
        let found = draws.filter_map(|draw| Some((draw["ratio"].as_f64()?, draw["scores"].clone())));
        let found: Vec<(f64, Value)> = found.collect();
        if found.is_empty() { Err(fault(self.step, "printed no half-reset")) } else { Ok(found) }
    }
}

impl Outcome {
    /// The outcome of a model that was made of this trained one and has these scores under the keys of `eval`.
    fn with(&self, head: &Results, scores: &Value, step: &Step) -> Result<Self> {
        let find = |name: &str, metric: &str| {
            let all = scores.as_array().into_iter().flatten();
            let found = all.into_iter().find(|one| one["data"] == name).and_then(|one| one[metric].as_f64());
            found.ok_or_else(|| fault(step, &format!("printed no {metric} of {name}")))
        };
        let last = head.tasks.iter().map(|task| find(task, &head.metric)).collect::<Result<_>>()?;
        let general = head.general.iter().zip(&self.general).map(|((name, metric, _), before)| {
            Ok(GeneralScore { base: before.base, last: find(name, metric)? })
        });
        let general = general.collect::<Result<_>>()?;
        Ok(Self { matrix: Vec::new(), last, general, measured: None, ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::checkpoint::CommandInputs;
    use crate::experiment::{Conditions, Measured, Store};

    const RECIPE: &str = "
base: base
tasks:
  - {name: a, train: TRAIN, eval: EVAL}
  - {name: b, train: TRAIN, eval: EVAL}
general: {text: EVAL}
seeds: [0, 1]
methods:
  - {name: full, train: {ratio: 1}}
  - {name: half, train: {}}
  - {name: half-reset, after: full, reset: [0.25, 0.75]}
  - {name: wise-ft, after: full, interpolate: [0.5]}
";

    /// What the command of a step prints or writes; losses rise with the seed.
    fn printed(step: &Step) -> Value {
        let seed = step.seed as f64;
        let scores = |a: f64| {
            let one = |name: &str, loss: f64| json!({"data": name, "kind": "loss", "loss": loss});
            json!([one("text", 9.0 + a), one("a", a), one("b", a + 1.0)])
        };
        match step.kind {
            Kind::Train => json!({
                "tasks": ["a", "b"], "metric": "loss", "higher_is_better": false, "base": [4.0, 5.0],
                "R": [[1.0, 4.5], [2.0 + seed, 1.5]], "OP": (3.5 + seed) / 2.0, "BWT": (1.0 + seed) / 2.0,
                "others": [{"name": "text", "metric": "loss", "higher_is_better": false, "base": 8.0, "after": [8.5, 9.0]}],
            }),
            Kind::Merge(_) => Value::Null,
            Kind::Eval(_) => scores(3.0 + seed),
            Kind::Sweep => json!({"draws": [
                {"place": "tuned", "ratio": null, "scores": scores(0.0)},
                {"place": "half-reset", "ratio": 0.25, "scores": scores(2.0)},
                {"place": "half-reset", "ratio": 0.75, "scores": scores(3.0)},
            ]}),
        }
    }

    /// An experiment of which each step in `finished` has its record.
    fn with_experiment(finished: impl Fn(&Step) -> Option<Value>, check: impl Fn(&Recipe, &mut Runner<'_>)) {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, name).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let text = RECIPE.replace("TRAIN", &file("train.jsonl")).replace("EVAL", &file("eval.jsonl"));
        let path = dir.path().join("recipe.yml");
        std::fs::write(&path, text).unwrap();
        let recipe = Recipe::read(&path).unwrap();
        let store = Store::open(&dir.path().join("out"), &CommandInputs::default()).unwrap();
        let conditions = Conditions { program: "none".into(), jobs: 1, threads: 1, keep: false };
        let mut runner = Runner::new(&recipe, "base", &store, conditions).unwrap();
        for (at, chain) in runner.chains().iter().enumerate() {
            for (number, step) in chain.steps.iter().enumerate() {
                let measured = Measured { seconds: 1.5, peak_resident_bytes: 7 };
                let fingerprint = runner.fingerprint(at, number).to_owned();
                if let Some(result) = finished(step) {
                    store.keep(&step.id, &step.args, &Record { fingerprint, result, measured }).unwrap();
                }
            }
        }
        check(&recipe, &mut runner);
    }

    #[test]
    fn scores_are_gathered_by_method_and_seed() {
        with_experiment(
            |step| Some(printed(step)),
            |recipe, runner| {
                assert!(runner.pending().is_empty());
                let results = Results::of(recipe, runner).unwrap();
                let labels: Vec<&str> = results.entries.iter().map(|entry| entry.label.as_str()).collect();
                assert_eq!(labels, ["full", "half", "half-reset 0.25", "half-reset 0.75", "wise-ft 0.5"]);
                let op = |at: usize| results.entries[at].sample(Outcome::op).values;
                assert_eq!((op(0), op(2), op(4)), (vec![1.75, 2.25], vec![2.5, 2.5], vec![3.5, 4.5]));
                // The reset model scores 2 and 3 where training had reached 1 and 1.5.
                assert_eq!(results.entries[2].sample(Outcome::bwt).values, [1.25, 1.25]);
                assert_eq!(results.entries[0].sample(Outcome::bwt).values, [0.5, 1.0]);
                let general = |at: usize| results.entries[at].outcomes[1].general[0];
                assert_eq!(general(3), GeneralScore { base: 8.0, last: 12.0 });
                assert_eq!(general(0), GeneralScore { base: 8.0, last: 9.0 });
                let families: Vec<&str> = results.entries.iter().map(|entry| entry.family.as_str()).collect();
                assert_eq!(families, ["train", "train", "half-reset", "half-reset", "wise-ft"]);
                assert_eq!(results.entries[1].origin, Origin::Trained(Some(0.5)));
            },
        );
    }

    #[test]
    fn what_a_change_touches_is_run_again_and_nothing_else() {
        let none = |step: &Step| (step.id != "half-reset-1").then(|| printed(step));
        with_experiment(none, |recipe, runner| {
            // The half-reset needs the checkpoint of its training again, which is gone.
            let ids: Vec<&str> = runner.pending().iter().map(|step| step.id.as_str()).collect();
            assert_eq!(ids, ["full-1", "half-reset-1"]);
            assert!(
                Results::of(recipe, runner)
                    .unwrap_err()
                    .to_string()
                    .contains("half-reset-1: has not finished")
            );
            let mut changed = recipe.clone();
            changed.methods[3].interpolate = Some(vec![0.25]);
            let changed = runner.like(&changed).unwrap();
            let ids: Vec<&str> = changed.pending().iter().map(|step| step.id.as_str()).collect();
            let expected = [
                "full-0",
                "wise-ft-0.25-0-merge",
                "wise-ft-0.25-0",
                "full-1",
                "half-reset-1",
                "wise-ft-0.25-1-merge",
                "wise-ft-0.25-1",
            ];
            assert_eq!(ids, expected);
        });
    }

    #[test]
    fn results_that_contradict_themselves_are_refused() {
        for (key, value, fault) in [
            ("OP", json!(9.0), "OP of continual.json: got Some(9.0), expected 1.75"),
            ("BWT", Value::Null, "BWT of continual.json: got None"),
            ("R", json!([[1.0]]), "no matrix of one score"),
            ("R", json!([[1.0, null], [1.0, 2.0]]), "scores that are no numbers"),
            ("metric", Value::Null, "more than one metric"),
        ] {
            let broken = |step: &Step| {
                let mut result = printed(step);
                if step.id == "full-0" {
                    result[key] = value.clone();
                }
                Some(result)
            };
            with_experiment(broken, |recipe, runner| {
                let error = Results::of(recipe, runner).unwrap_err().to_string();
                assert!(error.starts_with("step full-0: ") && error.contains(fault), "{error}");
            });
        }
    }
}
