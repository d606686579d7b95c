//! The command lines of an experiment, in chains that do not depend on each other.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::recipe::{Method, Procedure, Recipe, flag, push_flags};

/// One command line.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its name, unique in the experiment.
    pub id: String,
    /// What it does.
    pub kind: Kind,
    /// Place of the method in the recipe.
    pub method: usize,
    /// The seed.
    pub seed: u64,
    /// The arguments, the name of the program left out.
    pub args: Vec<String>,
    /// Files that it reads, apart from checkpoints.
    pub reads: Vec<PathBuf>,
    /// The checkpoint that it writes, below the directory of the experiment.
    pub checkpoint: Option<String>,
}

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Trains on all tasks and measures after each.
    Train,
    /// Measures half-resets of a result.
    Sweep,
    /// Writes an interpolation of this weight.
    Merge(f64),
    /// Measures it.
    Eval(f64),
}

/// Steps that follow each other. The first trains; the others work on its result.
#[derive(Debug, Clone)]
pub struct Chain {
    /// The steps in order.
    pub steps: Vec<Step>,
}

/// Tokens of a row of `train`, where nothing else is said.
const MAX_LENGTH: u64 = 1024;

/// The chains of `recipe`, seed by seed, with outputs below `out`.
pub fn chains(recipe: &Recipe, out: &str) -> Vec<Chain> {
    let mut chains = Vec::new();
    let writer = Writer { recipe, out };
    for seed in &recipe.seeds {
        for (at, method) in recipe.methods.iter().enumerate() {
            let Some(Procedure::Train(options)) = method.procedure() else { continue };
            let mut steps = vec![writer.train(at, method, *seed, options)];
            for (at, other) in recipe.methods.iter().enumerate() {
                match other.procedure() {
                    Some(Procedure::Reset { after, ratios }) if after == method.name => {
                        steps.push(writer.sweep(at, other, *seed, after, ratios));
                    }
                    Some(Procedure::Interpolate { after, alphas }) if after == method.name => {
                        let mut alphas = alphas.to_vec();
                        alphas.sort_by(f64::total_cmp);
                        alphas.dedup();
                        let interpolate = |alpha| writer.interpolate(at, *seed, after, alpha);
                        steps.extend(alphas.into_iter().flat_map(interpolate));
                    }
                    _ => {}
                }
            }
            chains.push(Chain { steps });
        }
    }
    chains
}

struct Writer<'a> {
    recipe: &'a Recipe,
    out: &'a str,
}

impl Writer<'_> {
    fn train(&self, at: usize, method: &Method, seed: u64, options: &Map<String, Value>) -> Step {
        let id = format!("{}-{seed}", method.name);
        let mut args = words(["train", "--model", &self.recipe.base]);
        for task in &self.recipe.tasks {
            args.extend(words(["--data", &format!("{}={}", task.name, task.train)]));
        }
        args.extend(self.measured("--eval-data"));
        push_flags(&mut args, &self.recipe.options(options));
        let checkpoint = format!("runs/{id}");
        args.extend(words(["--seed", &seed.to_string(), "--json", "--out", &self.below(&checkpoint)]));
        let reads =
            self.recipe.tasks.iter().map(|task| PathBuf::from(&task.train)).chain(self.read()).collect();
        Step { id, kind: Kind::Train, method: at, seed, args, reads, checkpoint: Some(checkpoint) }
    }

    fn sweep(&self, at: usize, method: &Method, seed: u64, after: &str, ratios: &[f64]) -> Step {
        let ratios: Vec<String> = ratios.iter().map(f64::to_string).collect();
        let tuned = self.below(&format!("runs/{after}-{seed}"));
        let mut args = words(["reset", "--base", &self.recipe.base, "--tuned", &tuned]);
        args.extend(words(["--sweep", &ratios.join(",")]));
        args.extend(self.measured("--eval"));
        args.extend(self.eval_options());
        push_flags(&mut args, &method.options);
        args.extend(words(["--seed", &seed.to_string(), "--json"]));
        let id = format!("{}-{seed}", method.name);
        Step { id, kind: Kind::Sweep, method: at, seed, args, reads: self.read().collect(), checkpoint: None }
    }

    fn interpolate(&self, at: usize, seed: u64, after: &str, alpha: f64) -> [Step; 2] {
        let id = format!("{}-{alpha}-{seed}", self.recipe.methods[at].name);
        let checkpoint = format!("runs/{id}");
        let (tuned, merged) = (self.below(&format!("runs/{after}-{seed}")), self.below(&checkpoint));
        let base = format!("{}:weight={}", self.recipe.base, 1.0 - alpha);
        let mut merge = words(["merge", "--method", "linear", "--model", &base]);
        merge.extend(words(["--model", &format!("{tuned}:weight={alpha}"), "--out", &merged]));
        let mut eval = words(["eval", "--model", &merged]);
        eval.extend(self.measured("--data"));
        eval.extend(self.eval_options());
        eval.push("--json".to_owned());
        let step = |id: String, kind, args, reads: Vec<PathBuf>, checkpoint| Step {
            id,
            kind,
            method: at,
            seed,
            args,
            reads,
            checkpoint,
        };
        [
            step(format!("{id}-merge"), Kind::Merge(alpha), merge, Vec::new(), Some(checkpoint)),
            step(id, Kind::Eval(alpha), eval, self.read().collect(), None),
        ]
    }

    fn below(&self, path: &str) -> String {
        format!("{}/{path}", self.out)
    }

    /// The files that are measured, each behind `flag` with its name: the tasks in order, then the general set.
    fn measured(&self, flag: &str) -> Vec<String> {
        let tasks = self.recipe.tasks.iter().map(|task| (task.name.as_str(), task.eval.as_str()));
        let files = tasks.chain(self.recipe.general());
        files.flat_map(|(name, path)| [flag.to_owned(), format!("{name}={path}")]).collect()
    }

    fn read(&self) -> impl Iterator<Item = PathBuf> {
        let tasks = self.recipe.tasks.iter().map(|task| task.eval.as_str());
        tasks.chain(self.recipe.general().map(|(_, path)| path)).map(PathBuf::from)
    }

    /// What `eval` and `reset --sweep` must have in common with the measurements of `train`.
    fn eval_options(&self) -> Vec<String> {
        let mut options = Map::from_iter([("max-length".to_owned(), MAX_LENGTH.into())]);
        let shared = ["max-length", "batch-size", "device", "compute-dtype"];
        for (key, value) in &self.recipe.train {
            if shared.contains(&flag(key).as_str()) {
                options.insert(flag(key), value.clone());
            }
        }
        let mut args = Vec::new();
        push_flags(&mut args, &options);
        args
    }
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}
