//! The merge itself: decide, then stream tile by tile on every thread.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use serde_json::Value;

use crate::checkpoint::{Checkpoint, CommandInputs, Sidecars, Staging, Target};
use crate::merge::plan::job::{Job, MergeVocab};
use crate::merge::plan::output::{ConfigChange, OutFile, bytes_of, files, index};
use crate::merge::plan::plans::Plans;
use crate::merge::plan::tensor_plan::{Layout, Policy, layout};
use crate::merge::rules::ready::{Ready, Setup};
use crate::merge::rules::trim::global_cuts;
use crate::merge::tiles::finite::{self, NonFinite};
use crate::merge::tiles::source::Source;
use crate::merge::tiles::stored::encode;
use crate::merge::tiles::values::{TILE, Values, over};
use crate::merge::tokenizer::align::Alignment;
use crate::merge::tokenizer::sidecars::MergeSidecars;
use crate::merge::{Models, Recipe};
use crate::plan::{Category, TensorName};
use crate::surgery::output::finish;
use crate::surgery::{Output, Provenance, Record};
use crate::{Faults, Result};

/// Bytes copied at a time.
const PIECE: u64 = 8 << 20;

/// What is not in the recipe.
#[derive(Debug, Clone, Copy, Default)]
pub struct MergeOptions {
    /// Vocabularies of different size.
    pub vocab: MergeVocab,
    /// Copy tensors that not all models have from the first that has them, instead of refusing.
    pub keep_missing: bool,
    /// Most bytes of one file of the output; `None` for the files of the reference.
    pub shard_size: Option<u64>,
    /// Elements computed at a time, a multiple of 4096; `None` for the default. Changes no bit of the result.
    pub tile: Option<u64>,
}

/// A merge that was checked against all models and is ready to run.
pub struct Merge<'a> {
    pub(crate) recipe: &'a Recipe,
    pub(crate) models: &'a Models,
    pub(crate) jobs: Vec<Job<'a>>,
    options: MergeOptions,
    plans: Plans,
    sidecars: MergeSidecars<'a>,
    change: ConfigChange,
    /// The vocabulary of the recipe's tokenizer, where it names one.
    pub(crate) aligned: Option<Alignment<'a>>,
}

impl<'a> Merge<'a> {
    /// Decides on every tensor from headers alone.
    ///
    /// # Errors
    /// Everything that does not fit, at once.
    pub fn new(recipe: &'a Recipe, models: &'a Models, options: MergeOptions) -> Result<Self> {
        let mut faults = Faults::default();
        let aligned = faults.keep(Alignment::new(recipe, models));
        // Without a vocabulary that could be read, shapes that differ are no fault of their own.
        let vocab = if aligned.is_some() { options.vocab } else { MergeVocab::Union };
        let aligned = aligned.flatten();
        let policy = Policy { vocab, keep_missing: options.keep_missing, aligned: aligned.as_ref() };
        let layout = faults.keep(layout(recipe, models, policy));
        let sidecars = faults.keep(MergeSidecars::new(recipe, models, aligned.as_ref()));
        let (Some(Layout { jobs, layers }), Some(sidecars), true) =
            (layout, sidecars, faults.first().is_empty())
        else {
            return Err(faults.into_error());
        };
        let plans = Plans::read(recipe, models.reference(recipe), &jobs)?;
        let change = change(recipe, models, &jobs, layers, aligned.as_ref());
        Ok(Self { recipe, models, jobs, options, plans, sidecars, change, aligned })
    }

    /// Models without a tokenizer: their rows are taken for tokens as the base numbers them.
    pub fn without_tokenizer(&self) -> &[&'a str] {
        self.aligned.as_ref().map_or(&[], |aligned| &aligned.assumed)
    }

    /// Bytes to be written.
    pub fn bytes(&self) -> u64 {
        self.jobs.iter().map(bytes_of).sum()
    }

    /// Files beside the weights.
    pub fn sidecars(&self) -> &Sidecars {
        self.sidecars.of_reference()
    }

    /// Tensors that are copied from one model and not merged, with the reason.
    pub fn copied(&self) -> impl Iterator<Item = (&str, &'static str)> {
        self.jobs.iter().filter_map(|job| Some((job.name.as_str(), job.copied?)))
    }

    /// Writes the result and counts what is not finite in it. `done` is told the bytes written so far.
    ///
    /// # Errors
    /// [`crate::Error::Output`] before anything is written; [`crate::Error::Io`]; [`crate::Error::Checkpoint`] when
    /// an input changed meanwhile.
    pub fn write(
        &self,
        output: &Output<'_>,
        provenance: &Provenance,
        done: &(dyn Fn(u64) + Sync),
    ) -> Result<NonFinite> {
        let inputs: Vec<&Checkpoint> = self.models.all().collect();
        let staging = output.stage(CommandInputs::of(inputs.iter().copied()).with(self.plans.files()))?;
        let files = files(&self.jobs, self.models.reference(self.recipe), self.options.shard_size);
        staging.check_space(files.iter().map(|file| file.len).sum())?;
        let found = self.write_weights(&files, &staging, done)?;
        if files.len() > 1 {
            staging.write_small("model.safetensors.index.json", index(&files).as_bytes())?;
        }
        self.sidecars.copy(&staging, &|name, value| match name {
            "generation_config.json" => self.change.apply_to_generation(value),
            _ => self.change.apply(value),
        })?;
        let record = Record { provenance, seed: self.recipe.seed, plan: self.recipe.value.clone() };
        finish(staging, &inputs, record)?;
        Ok(found)
    }

    fn write_weights(
        &self,
        files: &[OutFile<'a, '_>],
        staging: &Staging,
        done: &(dyn Fn(u64) + Sync),
    ) -> Result<NonFinite> {
        let tile = self.options.tile.unwrap_or(TILE);
        let cuts = global_cuts(self.recipe, &self.jobs, tile)?;
        let masks = |values: &Values<'_>,
                     i: usize,
                     input: &crate::merge::plan::job::Input<'_>,
                     name: &str| { self.plans.mask(self.recipe, values, i, input, name) };
        let setup =
            Setup { rule: self.recipe.method.rule, seed: self.recipe.seed, tile, cuts: &cuts, masks: &masks };
        write_files(files, staging, &|job| Ready::new(job, &setup), done)
    }
}

/// Writes headers and tensors of all files; `prepare` measures what a tensor needs before its first tile.
pub(crate) fn write_files<'a>(
    files: &[OutFile<'a, '_>],
    staging: &Staging,
    prepare: &(dyn Fn(&Job<'a>) -> Result<Ready<'a>> + Sync),
    done: &(dyn Fn(u64) + Sync),
) -> Result<NonFinite> {
    let targets: Vec<Target> =
        files.iter().map(|f| Target::create(staging, &f.name, f.len)).collect::<Result<_>>()?;
    for (file, target) in files.iter().zip(&targets) {
        target.write_at(&file.header, 0)?;
    }
    let written = AtomicU64::new(0);
    let tell = |n: u64| done(written.fetch_add(n, Ordering::Relaxed) + n);
    let numbered = files.iter().enumerate();
    let work: Vec<(usize, &Job<'a>, u64)> =
        numbered.flat_map(|(f, file)| file.jobs.iter().map(move |(job, at)| (f, *job, *at))).collect();
    let write = |(f, job, at): &(usize, &Job<'a>, u64)| {
        let ready = prepare(job)?;
        let found = write_job(job, &ready, &targets[*f], *at, &tell)?;
        ready.release();
        Ok(found)
    };
    let counts = work.par_iter().map(write).collect::<Result<Vec<_>>>()?;
    let mut found = NonFinite::default();
    work.iter().zip(counts).for_each(|((_, job, _), elements)| found.add(&job.name, elements));
    if staging.sync() {
        targets.par_iter().try_for_each(Target::sync)?;
    }
    Ok(found)
}

/// What `config.json` must say of the result.
fn change(
    recipe: &Recipe,
    models: &Models,
    jobs: &[Job<'_>],
    layers: Option<Vec<u32>>,
    aligned: Option<&Alignment<'_>>,
) -> ConfigChange {
    let reference = models.reference(recipe);
    let embedding = jobs.iter().find(|job| TensorName::of(&job.name).is_token_embedding());
    let rows = embedding.and_then(|job| {
        let before = reference.find(&job.name)?.info.shape.first()?;
        job.shape.first().filter(|rows| aligned.is_some() || *rows != before).copied()
    });
    let head = jobs.iter().any(|job| TensorName::of(&job.name).category == Category::LmHead);
    let untie = head && reference.tied() && models.all().any(|model| !model.tied());
    let renumbered = aligned.map(|aligned| aligned.renumbered(models, reference)).unwrap_or_default();
    ConfigChange { dtype: recipe.dtype.clone(), vocab_size: rows, layers, untie, renumbered }
}

/// Writes one tensor; gives how many of its elements are not finite though all inputs are.
fn write_job(
    job: &Job<'_>,
    ready: &Ready<'_>,
    target: &Target,
    offset: u64,
    done: &(dyn Fn(u64) + Sync),
) -> Result<u64> {
    match ready {
        Ready::Copy(source) => write_source(job, source, 0, target, offset, done),
        Ready::Rule(values, formula) => {
            let width = job.dtype.bytes().unwrap_or(1) as u64;
            let counts = values.over(|scratch, range| {
                formula.apply(values, range.clone(), scratch)?;
                encode(&job.dtype, &scratch.out, &mut scratch.encoded);
                target.write_at(&scratch.encoded, offset + range.start * width)?;
                done(scratch.encoded.len() as u64);
                finite::count(&job.dtype, values.base.iter().chain(&values.models), &range, scratch)
            })?;
            let mut found = counts.into_iter().sum();
            let all: u64 = job.shape.iter().product();
            if values.elements < all {
                let longest = &job.inputs.longest;
                found += write_source(job, longest, values.elements, target, offset, done)?;
            }
            Ok(found)
        }
    }
}

/// Writes what the source has from element `first` on: bytes where the types agree. Gives how many elements the cast
/// made infinite.
fn write_source(
    job: &Job<'_>,
    source: &Source<'_>,
    first: u64,
    target: &Target,
    offset: u64,
    done: &(dyn Fn(u64) + Sync),
) -> Result<u64> {
    let width = job.dtype.bytes().unwrap_or(1) as u64;
    let elements: u64 = job.shape.iter().product();
    let tiles = || (first..elements).step_by(TILE as usize).map(|at| at..elements.min(at + TILE)).collect();
    if source.through.is_none() && source.info.dtype == job.dtype {
        let all = source.at(first..first).start..source.info.bytes.end;
        let before = all.start - source.info.bytes.start;
        let pieces = |range: Range<u64>| {
            let mut scratch = Vec::new();
            let at = offset + before + (range.start - all.start);
            target.copy_at(source.shard, range.clone(), at, &mut scratch)?;
            done(range.end - range.start);
            Ok(())
        };
        let starts: Vec<u64> = all.clone().step_by(PIECE as usize).collect();
        starts.into_par_iter().try_for_each(|at| pieces(at..all.end.min(at + PIECE)))?;
        return Ok(0);
    }
    let counts = over(tiles(), |scratch, range| {
        source.decode(range.clone(), &mut scratch.bytes, &mut scratch.out)?;
        match &source.through {
            Some(rows) => rows.encoded(range.clone(), &job.dtype, &mut scratch.encoded)?,
            None => encode(&job.dtype, &scratch.out, &mut scratch.encoded),
        }
        target.write_at(&scratch.encoded, offset + range.start * width)?;
        done(scratch.encoded.len() as u64);
        finite::count(&job.dtype, std::iter::once(source), &range, scratch)
    })?;
    Ok(counts.into_iter().sum())
}

impl std::fmt::Debug for Merge<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Merge({}, {} tensors)", self.recipe.method.name, self.jobs.len())
    }
}

/// The recipe as it was given, for a page or a log.
impl Recipe {
    /// The whole recipe as a value.
    pub fn value(&self) -> &Value {
        &self.value
    }
}
