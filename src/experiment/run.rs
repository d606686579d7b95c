//! Runs the chains of an experiment: what has finished is not run again.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::child::{Job, Measured, end_left_over};
use super::recipe::Recipe;
use super::steps::{Chain, Kind, Step, chains};
use super::store::{Record, Store};
use crate::checkpoint::{Sha256Hex, read_json, read_small};
use crate::error::Escaped;
use crate::{Error, Result};

/// An experiment that is ready to run.
#[derive(Debug)]
pub struct Runner<'a> {
    chains: Vec<Chain>,
    /// What decides the result of each step, in the order of the chains.
    fingerprints: Vec<Vec<String>>,
    store: &'a Store,
    conditions: Conditions,
}

/// How the steps are run, which does not change their results.
#[derive(Debug, Clone)]
pub struct Conditions {
    /// This program.
    pub program: PathBuf,
    /// Commands at once.
    pub jobs: usize,
    /// Threads of all of them together.
    pub threads: usize,
    /// Whether checkpoints stay.
    pub keep: bool,
}

/// A step that has just ended.
#[derive(Debug, Clone, Copy)]
pub struct Finished<'a> {
    /// The step.
    pub step: &'a Step,
    /// What it took.
    pub measured: Measured,
}

impl<'a> Runner<'a> {
    /// Decides on the steps of `recipe`; `base` is the digest of the base checkpoint.
    ///
    /// # Errors
    /// [`Error::Usage`] for two steps of one name; [`Error::Io`] for a file that cannot be read.
    pub fn new(recipe: &Recipe, base: &str, store: &'a Store, conditions: Conditions) -> Result<Self> {
        let chains_at = |out: &str| chains(recipe, out);
        let chains = chains_at(&store.root().to_string_lossy());
        check_names(&chains)?;
        let mut digests = HashMap::new();
        for path in chains.iter().flat_map(|chain| &chain.steps).flat_map(|step| &step.reads) {
            if !digests.contains_key(path) {
                digests.insert(path.clone(), digest(path)?);
            }
        }
        // Where the directory is does not matter.
        let anywhere = chains_at("OUT");
        let fingerprints = anywhere.iter().map(|chain| fingerprints(chain, base, &digests)).collect();
        Ok(Self { chains, fingerprints, store, conditions })
    }

    /// The chains with the real directory.
    pub fn chains(&self) -> &[Chain] {
        &self.chains
    }

    /// What decides the result of a step.
    #[cfg(test)]
    pub(super) fn fingerprint(&self, chain: usize, step: usize) -> &str {
        &self.fingerprints[chain][step]
    }

    /// The runner of another recipe with all else alike.
    #[cfg(test)]
    pub(super) fn like(&self, recipe: &Recipe) -> Result<Self> {
        Self::new(recipe, "base", self.store, self.conditions.clone())
    }

    /// The record of a step, where it has finished as the recipe says now.
    pub fn record(&self, chain: usize, step: usize) -> Option<Record> {
        let record = self.store.record(&self.chains[chain].steps[step].id)?;
        (record.fingerprint == self.fingerprints[chain][step]).then_some(record)
    }

    /// The steps that are to be run.
    pub fn pending(&self) -> Vec<&Step> {
        let chains = self.chains.iter().enumerate();
        chains.flat_map(|(at, chain)| self.to_run(at).into_iter().map(|step| &chain.steps[step])).collect()
    }

    /// The steps of a chain that are to be run: those that have not finished, and those whose checkpoint a step that has not
    /// finished works on and that is gone.
    fn to_run(&self, chain: usize) -> Vec<usize> {
        let steps = &self.chains[chain].steps;
        let unfinished = |step: usize| self.record(chain, step).is_none();
        let there = |step: usize| steps[step].checkpoint.as_ref().is_some_and(|path| self.store.has(path));
        let measured_by = |step: usize| matches!(steps[step].kind, Kind::Merge(_)).then_some(step + 1);
        let needed = |step: usize| match measured_by(step) {
            // An interpolation is written for its measurement alone.
            Some(eval) => unfinished(eval) && (unfinished(step) || !there(step)),
            None if step == 0 => {
                let later = (1..steps.len()).filter(|later| measured_by(*later).is_none());
                unfinished(0) || (later.into_iter().any(unfinished) && !there(0))
            }
            None => unfinished(step),
        };
        (0..steps.len()).filter(|step| needed(*step)).collect()
    }

    /// Runs what is left, `jobs` chains at once. `tell` hears of each step that has ended.
    ///
    /// # Errors
    /// The first fault of a step; those that run then come to their end, and are kept. [`Error::Training`] after `stop`.
    pub fn run(&self, stop: &AtomicBool, tell: &(dyn Fn(Finished<'_>) + Sync)) -> Result<()> {
        for step in self.chains.iter().flat_map(|chain| &chain.steps) {
            end_left_over(&self.store.of_step(&step.id, "running"))?;
        }
        let next = AtomicUsize::new(0);
        let fault: Mutex<Option<Error>> = Mutex::new(None);
        let failed = || fault.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        let work = || {
            while !failed() {
                let chain = next.fetch_add(1, Ordering::SeqCst);
                if chain >= self.chains.len() {
                    return;
                }
                if let Err(error) = self.run_chain(chain, stop, tell) {
                    fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.conditions.jobs.clamp(1, self.chains.len()) {
                scope.spawn(work);
            }
        });
        fault.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn run_chain(&self, chain: usize, stop: &AtomicBool, tell: &(dyn Fn(Finished<'_>) + Sync)) -> Result<()> {
        let steps = &self.chains[chain].steps;
        let to_run = self.to_run(chain);
        for (at, step) in steps.iter().enumerate() {
            if to_run.contains(&at) {
                let measured = self.run_step(step, &self.fingerprints[chain][at], stop)?;
                tell(Finished { step, measured });
            }
            if matches!(step.kind, Kind::Eval(_))
                && !self.conditions.keep
                && let Some(merged) = &steps[at - 1].checkpoint
            {
                self.store.remove(merged)?;
            }
        }
        match &steps[0].checkpoint {
            Some(trained) if !self.conditions.keep => self.store.remove(trained),
            _ => Ok(()),
        }
    }

    fn run_step(&self, step: &Step, fingerprint: &str, stop: &AtomicBool) -> Result<Measured> {
        self.store.forget(&step.id)?;
        if let Some(checkpoint) = &step.checkpoint {
            self.store.remove(checkpoint)?;
        }
        let Conditions { program, jobs, threads, .. } = &self.conditions;
        let job = Job {
            program,
            args: &step.args,
            threads: (threads / jobs).max(1),
            log: &self.store.of_step(&step.id, "log"),
            printed: &self.store.of_step(&step.id, "out"),
            running: &self.store.of_step(&step.id, "running"),
        };
        let (printed, measured) = job.run(stop)?;
        let result = match (step.kind, &step.checkpoint) {
            (Kind::Train, Some(trained)) => {
                let path = self.store.root().join(trained).join("continual.json");
                read_json(&read_small(&path)?).map_err(|e| unreadable(&path, &e))?
            }
            (Kind::Merge(_), _) => Value::Null,
            _ => read_json(printed.as_bytes()).map_err(|e| unreadable(Path::new(&step.id), &e))?,
        };
        let record = Record { fingerprint: fingerprint.to_owned(), result, measured };
        self.store.keep(&step.id, &step.args, &record)?;
        Ok(measured)
    }
}

/// Steps are told apart by their names.
fn check_names(chains: &[Chain]) -> Result<()> {
    let mut names = HashSet::new();
    for step in chains.iter().flat_map(|chain| &chain.steps) {
        if !names.insert(&step.id) {
            let fault = format!("two steps have the name {}", Escaped(&step.id));
            return Err(Error::usage(fault, "give one of their methods another name"));
        }
    }
    Ok(())
}

fn unreadable(path: &Path, why: &str) -> Error {
    Error::Data { path: path.to_owned(), line: None, fault: format!("not valid JSON: {why}"), hint: None }
}

/// What decides the results of a chain: the version of this program, the base, the rows and the arguments of a step, and
/// those of the training that it works on.
fn fingerprints(chain: &Chain, base: &str, digests: &HashMap<PathBuf, Sha256Hex>) -> Vec<String> {
    let own = |step: &Step, trained: Option<&str>| {
        let read: Vec<String> = step.reads.iter().map(|path| digests[path].to_string()).collect();
        let all = json!([env!("CARGO_PKG_VERSION"), base, trained, step.args, read]);
        Sha256Hex::of(all.to_string().as_bytes()).to_string()
    };
    let trained = own(&chain.steps[0], None);
    let later = chain.steps[1..].iter().map(|step| own(step, Some(&trained)));
    std::iter::once(trained.clone()).chain(later).collect()
}

/// SHA-256 of a file, or of the names and digests in a directory.
fn digest(path: &Path) -> Result<Sha256Hex> {
    if !path.is_dir() {
        return Ok(Sha256Hex::of(&std::fs::read(path).map_err(Error::io("open", path))?));
    }
    let entries = std::fs::read_dir(path).map_err(Error::io("list", path))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let lines = paths.iter().map(|path| Ok(format!("{}\0{}\n", path.display(), digest(path)?)));
    Ok(Sha256Hex::of(lines.collect::<Result<String>>()?.as_bytes()))
}
