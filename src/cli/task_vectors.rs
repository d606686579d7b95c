//! `diff` of what fine-tunes changed in a base: advice on a merge, spectra, and the change of each block.

use std::path::PathBuf;

use clap::Args;

use super::outcome::Outcome;
use super::progress::bytes_bar;
use super::terminal::Terminal;
use super::view_args::ViewArgs;
use crate::checkpoint::{Checkpoint, CommandInputs};
use crate::diff::{SpectrumOptions, TensorDiff, diff, diff_bytes, pairwise, spectra, subspaces};
use crate::report::{AdviceReport, BlockChanges, RECIPE_MARKER, SVG_MARKER, SpectrumPair, SpectrumReport};
use crate::{Error, Result};

/// What is measured of task vectors.
#[derive(Debug, Args)]
pub(super) struct TaskVectorArgs {
    /// Advise on a merge of the fine-tunes over --base: overlap, conflicts of signs, norms, and a recipe
    #[arg(long, requires = "base", conflicts_with_all = ["spectrum", "plot_blocks"])]
    pub(super) advise: bool,
    /// Write the advised recipe for `merge`
    #[arg(long, value_name = "FILE", requires = "advise")]
    write_recipe: Option<PathBuf>,
    /// Measure the singular values of the change of every matrix: effective rank, stable rank, energy
    #[arg(long, conflicts_with_all = ["plan", "fail_on", "sort", "plot_blocks"])]
    pub(super) spectrum: bool,
    /// Ranks at which energy, decay and overlaps of subspaces are measured
    #[arg(long, value_name = "K,…", value_delimiter = ',', default_values_t = [1, 8, 64], requires = "spectrum", value_parser = ranks)]
    ranks: Vec<usize>,
    /// Singular values of the weights of B, not of the change
    #[arg(long, requires = "spectrum", conflicts_with = "base")]
    weights: bool,
    /// Only the K largest singular values, by random projection: for matrices too large to decompose
    #[arg(long, value_name = "K", requires = "spectrum", conflicts_with = "base", value_parser = ranks)]
    randomized: Option<usize>,
    /// Draw the relative change of attention and MLP in each block, a line for each fine-tune
    #[arg(long, value_name = "FILE", conflicts_with_all = ["plan", "fail_on", "sort", "html", "svg"])]
    pub(super) plot_blocks: Option<PathBuf>,
}

/// A rank of at least 1.
fn ranks(text: &str) -> std::result::Result<usize, String> {
    let rank = text.parse().map_err(|_| "expected a whole number".to_owned())?;
    if rank == 0 { Err("a rank is at least 1".to_owned()) } else { Ok(rank) }
}

/// A base, its fine-tunes, and the tensors that are wanted.
pub(super) struct FineTunes<'a> {
    pub(super) base: &'a Checkpoint,
    pub(super) tuned: Vec<&'a Checkpoint>,
    pub(super) wanted: &'a dyn Fn(&str) -> bool,
}

impl FineTunes<'_> {
    fn inputs(&self) -> CommandInputs {
        CommandInputs::of([self.base].into_iter().chain(self.tuned.iter().copied()))
    }

    pub(super) fn bytes(&self) -> u64 {
        let of = |c: &Checkpoint| {
            c.tensors().filter(|t| (self.wanted)(&t.info.name)).map(|t| t.info.len()).sum::<u64>()
        };
        of(self.base) + self.tuned.iter().map(|side| of(side)).sum::<u64>()
    }
}

fn path_of(checkpoint: &Checkpoint) -> String {
    checkpoint.path().to_string_lossy().into_owned()
}

fn nothing_matches() -> Error {
    Error::usage("no tensor matches", "leave out --only or --category")
}

impl TaskVectorArgs {
    /// `--advise`.
    pub(super) fn advise(
        &self,
        of: &FineTunes<'_>,
        views: &ViewArgs,
        terminal: &Terminal,
    ) -> Result<Outcome> {
        let inputs = of.inputs();
        let (html, svg) = views.files(&inputs)?;
        let recipe = views.file(&self.write_recipe, "--write-recipe", RECIPE_MARKER, &inputs)?;
        let bar = bytes_bar(terminal, "read all", of.bytes());
        let pairs = pairwise(of.base, &of.tuned, of.wanted, true, &|done| bar.set_position(done))?;
        bar.finish_and_clear();
        if pairs.iter().all(|pair| pair.tensors.is_empty()) {
            return Err(nothing_matches());
        }
        let models = of.tuned.iter().map(|side| path_of(side)).collect();
        let report = AdviceReport::new(path_of(of.base), models, pairs);
        report.warnings().iter().for_each(|warning| terminal.warn(warning));
        if let Some(file) = recipe {
            let text = report.recipe().ok_or_else(|| {
                let fault = "--write-recipe: fewer than two different fine-tunes are left, so there is nothing to merge";
                Error::usage(fault, "leave out --write-recipe to see why")
            })?;
            if of.tuned.iter().any(|side| side.path().to_str().is_none()) || of.base.path().to_str().is_none()
            {
                let fault = "--write-recipe: a path is not UTF-8, which a recipe is";
                return Err(Error::usage(fault, "merge by flags instead"));
            }
            file.write(&text, terminal)?;
        }
        html.map_or(Ok(()), |file| file.write(&report.html(), terminal))?;
        svg.map_or(Ok(()), |file| file.write(&report.svg(), terminal))?;
        views.print(terminal, || report.json(), || report.csv(), || report.table(views.top))?;
        Ok(Outcome::Success)
    }

    /// `--spectrum`, of one fine-tune or two.
    pub(super) fn spectra(
        &self,
        of: &FineTunes<'_>,
        views: &ViewArgs,
        terminal: &Terminal,
    ) -> Result<Outcome> {
        let inputs = of.inputs();
        let (html, svg) = views.files(&inputs)?;
        if of.tuned.len() > 1 && (html.is_some() || svg.is_some()) {
            let fault = "--html and --svg show the spectra of one fine-tune, got two";
            return Err(Error::usage(fault, "run it for each fine-tune without --base"));
        }
        let mut reports = Vec::new();
        for tuned in &of.tuned {
            reports.push(self.spectra_of(of, tuned, terminal)?);
        }
        for warning in reports.iter().flat_map(SpectrumReport::warnings) {
            terminal.warn(&warning);
        }
        if let [first, second] = of.tuned[..] {
            let bar = bytes_bar(terminal, "compare", of.bytes());
            let found =
                subspaces(of.base, [first, second], of.wanted, &self.ranks, &|done| bar.set_position(done))?;
            bar.finish_and_clear();
            let Ok(reports) = <[SpectrumReport; 2]>::try_from(reports) else { return Err(nothing_matches()) };
            let pair = SpectrumPair { reports, subspaces: found };
            views.print(terminal, || pair.json(), || pair.csv(), || pair.table(views.top))?;
            return Ok(Outcome::Success);
        }
        for report in &reports {
            html.as_ref().map_or(Ok(()), |file| file.write(&report.html(), terminal))?;
            svg.as_ref().map_or(Ok(()), |file| file.write(&report.svg(), terminal))?;
            views.print(terminal, || report.json(), || report.csv(), || report.table(views.top))?;
        }
        Ok(Outcome::Success)
    }

    fn spectra_of(
        &self,
        of: &FineTunes<'_>,
        tuned: &Checkpoint,
        terminal: &Terminal,
    ) -> Result<SpectrumReport> {
        let options =
            SpectrumOptions { ks: self.ranks.clone(), weights: self.weights, randomized: self.randomized };
        let bar = bytes_bar(terminal, "decompose", diff_bytes(of.base, tuned, of.wanted));
        let found = spectra(of.base, tuned, of.wanted, &options, &|done| bar.set_position(done))?;
        bar.finish_and_clear();
        if found.matrices.is_empty() && found.skipped.is_empty() {
            return Err(Error::usage("no matrix matches", "leave out --only or --category"));
        }
        Ok(SpectrumReport::new(path_of(of.base), path_of(tuned), self.weights, found))
    }

    /// `--plot-blocks`.
    pub(super) fn plot_blocks(
        &self,
        of: &FineTunes<'_>,
        views: &ViewArgs,
        terminal: &Terminal,
    ) -> Result<Outcome> {
        let inputs = of.inputs();
        let file = views.file(&self.plot_blocks, "--plot-blocks", SVG_MARKER, &inputs)?;
        let mut models: Vec<(String, Vec<TensorDiff>)> = Vec::new();
        for tuned in &of.tuned {
            let bar = bytes_bar(terminal, "read both", diff_bytes(of.base, tuned, of.wanted));
            let tensors = diff(of.base, tuned, of.wanted, &|done| bar.set_position(done))?;
            bar.finish_and_clear();
            let apart = tensors.iter().filter(|tensor| tensor.delta.is_none()).count();
            if apart > 0 {
                let path = crate::error::Escaped(tuned.path()).to_string();
                terminal.warn(&format!(
                    "{path}: {apart} tensors cannot be compared with the base and are left out"
                ));
            }
            models.push((path_of(tuned), tensors));
        }
        let changes = BlockChanges::new(path_of(of.base), models);
        if changes.is_empty() {
            let fault = "no tensor of attention or MLP stands in a numbered block of both";
            return Err(Error::usage(
                fault,
                "leave out --only and --category, or see the names with `inspect`",
            ));
        }
        file.map_or(Ok(()), |file| file.write(&changes.svg(), terminal))?;
        views.print(terminal, || changes.json(), || changes.csv(), || changes.table())?;
        Ok(Outcome::Success)
    }
}
