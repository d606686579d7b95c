//! A LoRA adapter from a base and its fine-tune.
//!
//! Every projection of attention and of the feed-forward part gets `B A ≈ W_tuned − W_base` by a singular value
//! decomposition, written as PEFT writes it with lora_alpha = r, so that the scale is 1. What else differs (embeddings,
//! norms, head) goes into modules_to_save whole, or as it is asked for.

use rayon::prelude::*;
use serde_json::json;

use crate::checkpoint::CommandInputs;
use crate::lora::adapter_file::{ConfigText, FactorPair, write_config, write_weights};
use crate::lora::conv1d::is_conv1d;
use crate::lora::differing::{Differing, Embeddings, Matrix, Other, Scope, difference};
use crate::lora::rank::RankRule;
use crate::lora::saved::{Saved, short_names};
use crate::lora::svd::{Factors, factors};
use crate::merge::tiles::low_rank::transpose;
use crate::merge::tiles::source::Source;
use crate::plan::{Key, module_of};
use crate::surgery::output::finish;
use crate::surgery::{Output, Pairing, Provenance, Record};
use crate::{Error, Result};

/// What an adapter is to hold.
#[derive(Clone, Copy)]
pub struct Extract<'f> {
    /// The rank of each module.
    pub rank: RankRule,
    /// Whether a tensor of this name may be in the adapter.
    pub included: &'f (dyn Fn(&str) -> bool + Sync),
    /// What becomes of embeddings and of the output head.
    pub embeddings: Embeddings,
    /// Whether norms, biases and other tensors without factors are saved whole.
    pub norms: bool,
    /// Seed of random projections.
    pub seed: u64,
}

/// What an extraction found.
#[derive(Debug)]
pub struct Extraction {
    /// The tensors with factors.
    pub modules: Vec<ExtractedModule>,
    /// The tensors that are saved whole.
    pub saved: Vec<WholeTensor>,
    /// The tensors that differ and are not in the adapter.
    pub left_out: Vec<WholeTensor>,
    /// What a reader should know of the adapter.
    pub notes: Vec<String>,
}

/// A tensor with factors.
#[derive(Debug)]
pub struct ExtractedModule {
    /// Its name.
    pub name: String,
    /// Rows and columns.
    pub shape: [u64; 2],
    /// The rank of its factors; 0 where it has none.
    pub rank: usize,
    /// ‖Δ‖², Δ = W_tuned − W_base.
    pub squares: f64,
    /// ‖Δ − B A‖², measured.
    pub residual: f64,
    /// Whether the decomposition was not by random projection.
    pub exact: bool,
}

/// A tensor without factors that differs.
#[derive(Debug)]
pub struct WholeTensor {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// ‖W_tuned − W_base‖²; `None` where shapes or types tell of no difference.
    pub squares: Option<f64>,
    /// Why it is not in the adapter.
    pub why: Option<&'static str>,
}

impl ExtractedModule {
    /// The share of ‖Δ‖² that the factors hold, 1 − ‖Δ − B A‖² / ‖Δ‖².
    pub fn energy(&self) -> f64 {
        if self.squares > 0.0 { (1.0 - self.residual / self.squares).max(0.0) } else { 1.0 }
    }

    /// ‖Δ − B A‖ / ‖Δ‖.
    pub fn relative_error(&self) -> f64 {
        if self.squares > 0.0 { (self.residual / self.squares).sqrt() } else { 0.0 }
    }
}

impl Extraction {
    /// ‖Δ‖² over all tensors whose difference can be measured.
    pub fn squares(&self) -> f64 {
        let others = self.saved.iter().chain(&self.left_out).filter_map(|tensor| tensor.squares);
        self.modules.iter().map(|module| module.squares).chain(others).sum()
    }

    /// ‖Δ − what the adapter adds‖ / ‖Δ‖ over the same tensors: what is saved whole has no error, what is left out all.
    pub fn relative_error(&self) -> f64 {
        let left_out = self.left_out.iter().filter_map(|tensor| tensor.squares);
        let lost: f64 = self.modules.iter().map(|module| module.residual).chain(left_out).sum();
        let all = self.squares();
        if all > 0.0 { (lost / all).sqrt() } else { 0.0 }
    }
}

/// Writes the adapter into a new directory.
///
/// # Errors
/// [`crate::Error::Checkpoint`] for quantized weights, [`crate::Error::Pairing`], [`crate::Error::Output`],
/// [`crate::Error::Io`].
pub fn extract_lora(
    pairing: &Pairing<'_>,
    extract: Extract<'_>,
    output: &Output<'_>,
    provenance: &Provenance,
    done: &(dyn Fn(u64) + Sync),
) -> Result<Extraction> {
    let (base, tuned) = (pairing.base, pairing.tuned);
    for side in [base, tuned] {
        side.check_not_adapter()?;
        side.check_not_quantized("an extraction")?;
    }
    let staging = output.stage(CommandInputs::of([base, tuned]))?;
    let scope = Scope { included: extract.included, embeddings: extract.embeddings, norms: extract.norms };
    let differing = Differing::find(pairing, &scope)?;
    let decompose = |matrix: &Matrix<'_>| {
        let name = &matrix.new.info.name;
        let mut values = difference(&matrix.old, &matrix.new);
        let found = factors(&mut values, &extract.rank, Key::new(extract.seed, 0, name), name)?;
        done(matrix.new.info.len());
        Ok(found)
    };
    let found: Vec<Factors> = differing.matrices.par_iter().map(decompose).collect::<Result<_>>()?;
    let modules: Vec<ExtractedModule> =
        differing.matrices.iter().zip(&found).map(|(matrix, factors)| module(matrix, factors)).collect();
    let mut fan_in_fan_out = false;
    let mut pairs = Vec::new();
    for (matrix, factors) in differing.matrices.iter().zip(found).filter(|(_, factors)| factors.rank > 0) {
        let conv1d = is_conv1d(base, module_of(&matrix.old.info.name)) == Some(true) && !matrix.is_embedding;
        fan_in_fan_out |= conv1d;
        pairs.push(pair(matrix, factors, conv1d || matrix.is_embedding));
    }
    let whole: Vec<&Source<'_>> =
        differing.others.iter().filter(|other| other.left_out.is_none()).map(|other| &other.new).collect();
    if pairs.is_empty() && whole.is_empty() {
        return Err(nothing(modules.is_empty() && differing.others.is_empty()));
    }
    let targets = pairs.iter().map(|pair| pair.module.clone()).collect();
    let Saved { tensors, modules: saved_modules, biases } = Saved::new(pairing, &whole, &targets);
    let text = ConfigText {
        base_model: Some(base.path().to_string_lossy().into_owned()),
        task_type: Some("CAUSAL_LM".to_owned()),
        bias: if biases { "all" } else { "none" },
        fan_in_fan_out,
        targets: short_names(base, targets),
        saved: saved_modules,
    };
    write_config(&staging, &pairs, &text)?;
    let ranks: serde_json::Map<_, _> =
        pairs.iter().map(|pair| (pair.module.clone(), json!(pair.rank))).collect();
    write_weights(&staging, pairs, &tensors)?;
    let extraction = extraction(&differing, modules, &tensors)?;
    finish(
        staging,
        &[base, tuned],
        Record { provenance, seed: extract.seed, plan: json!({"ranks": ranks}) },
    )?;
    Ok(extraction)
}

fn nothing(same: bool) -> Error {
    let (fault, hint) = match same {
        true => (
            "base and tuned have the same weights: there is nothing to extract",
            "PEFT loads no adapter without tensors",
        ),
        false => (
            "nothing of what differs would be in the adapter",
            "look at --include, --exclude, --embeddings, --norms, --threshold and --max-rank",
        ),
    };
    Error::Pairing { tensor: None, fault: fault.to_owned(), hint: Some(hint.to_owned()) }
}

fn module(matrix: &Matrix<'_>, factors: &Factors) -> ExtractedModule {
    let shape = &matrix.new.info.shape;
    ExtractedModule {
        name: matrix.new.info.name.clone(),
        shape: [shape[0], shape[1]],
        rank: factors.rank,
        squares: factors.squares,
        residual: factors.residual,
        exact: factors.exact,
    }
}

/// The factors as PEFT has them. `transposed` where the weight lies as `[in, out]`, as those of embeddings and Conv1D.
fn pair(matrix: &Matrix<'_>, factors: Factors, transposed: bool) -> FactorPair {
    let Factors { rank, left, right, .. } = factors;
    let rows = matrix.new.info.shape[0] as usize;
    let (a, b) = if transposed { (transpose(&left, rows), transpose(&right, rank)) } else { (right, left) };
    let module = module_of(&matrix.old.info.name).to_owned();
    FactorPair { module, is_embedding: matrix.is_embedding, rank, a, b }
}

/// What is told of the adapter.
fn extraction(
    differing: &Differing<'_>,
    modules: Vec<ExtractedModule>,
    saved: &[(String, Source<'_>)],
) -> Result<Extraction> {
    let tensor = |source: &Source<'_>, squares, why| WholeTensor {
        name: source.info.name.clone(),
        bytes: source.info.len(),
        squares,
        why,
    };
    let mut extraction = Extraction { modules, saved: Vec::new(), left_out: Vec::new(), notes: Vec::new() };
    let is_saved = |name: &str| saved.iter().any(|(_, source)| source.info.name == name);
    let left_out = |other: &&Other<'_>| other.left_out.is_some() && !is_saved(&other.new.info.name);
    for other in differing.others.iter().filter(left_out) {
        extraction.left_out.push(tensor(&other.new, other.squares()?, other.left_out));
    }
    for (_, source) in saved {
        let name = &source.info.name;
        let other = differing.others.iter().find(|other| other.new.info.name == *name);
        let squares = other.map_or(Ok(Some(0.0)), |other| other.squares())?;
        extraction.saved.push(tensor(source, squares, None));
    }
    if let Some(name) = differing.resized.iter().find(|name| is_saved(name)) {
        let name = crate::error::Escaped(name.as_str());
        extraction.notes.push(format!(
            "`{name}` has another number of rows than in the base, and is saved whole: resize the base first \
             (resize_token_embeddings)"
        ));
    }
    if differing.tied {
        extraction.notes.push(
            "embedding and head are one weight: their factors are right when they are merged; without merging, PEFT adds \
             them to the embedding alone"
                .to_owned(),
        );
    }
    let empty = extraction.modules.iter().filter(|module| module.rank == 0).count();
    if empty > 0 {
        extraction
            .notes
            .push(format!("{empty} matrices that differ have no singular value above --threshold: left out"));
    }
    Ok(extraction)
}
