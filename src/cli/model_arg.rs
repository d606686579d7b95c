//! A model on the command line: a checkpoint, or a base with adapters, `BASE+ADAPTER*WEIGHT+…`, merged in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::adapted_models::ModelParts;
use super::reading_args::dequantized;
use super::terminal::Terminal;
use crate::checkpoint::{Checkpoint, Config, ReadOptions};
use crate::error::Escaped;
use crate::lora::{Adapter, WeightedAdapter, merged_in_memory};
use crate::{Error, Faults, Result};

/// Files of a tokenizer, which are read from the base.
const TOKENIZER: [&str; 2] = ["tokenizer.json", "chat_template.jinja"];

/// Opens the checkpoint at `path`. A base with adapters is merged in memory, quantized weights of it dequantized before.
///
/// # Errors
/// As [`Checkpoint::open`]; everything that does not fit between base and adapters.
pub(super) fn open_model(path: &Path, options: ReadOptions, terminal: &Terminal) -> Result<Checkpoint> {
    let (base, adapters) = parts(path);
    if adapters.is_empty() {
        return Checkpoint::open(path, options);
    }
    let base = dequantized(Checkpoint::open(&base, options)?, terminal)?;
    let mut faults = Faults::default();
    let open = |(path, weight): &(PathBuf, f64)| Some((faults.keep(Adapter::open(path, options))?, *weight));
    let opened: Vec<(Adapter, f64)> = adapters.iter().filter_map(open).collect();
    faults.into_result()?;
    for (adapter, _) in &adapters {
        warn_of_tokenizer(adapter, base.root(), terminal);
    }
    let weighted: Vec<_> =
        opened.iter().map(|(adapter, weight)| WeightedAdapter { adapter, weight: *weight }).collect();
    let (merged, notes) = merged_in_memory(base, &weighted, path.to_owned())?;
    notes.iter().for_each(|note| terminal.warn(&format!("{}: {note}", Escaped(path))));
    Ok(merged)
}

/// As [`open_model`], for a result that gets the files beside the weights as copies: `config.json` must fit the merged
/// weights. With the adapters, which are read too.
///
/// # Errors
/// [`Error::Usage`] for adapters that make two weights of one that embedding and head share; as [`open_model`].
pub(super) fn open_model_to_copy(
    path: &Path,
    options: ReadOptions,
    terminal: &Terminal,
) -> Result<(Checkpoint, Vec<PathBuf>)> {
    let (base, adapters) = parts(path);
    let merged = open_model(path, options, terminal)?;
    let tied = |checkpoint: &Checkpoint| checkpoint.config().and_then(Config::tie_word_embeddings);
    if !adapters.is_empty() && tied(&Checkpoint::open(&base, options)?) != tied(&merged) {
        let fault = format!("{}: embedding and head are no longer one weight", Escaped(path));
        return Err(Error::usage(
            fault,
            "write the merged model first: merge --base <CKPT> --lora <ADAPTER>",
        ));
    }
    Ok((merged, adapters.into_iter().map(|(path, _)| path).collect()))
}

/// The parts of a path; the path alone where it is one checkpoint.
fn parts(path: &Path) -> (PathBuf, Vec<(PathBuf, f64)>) {
    match ModelParts::of(path, &BTreeMap::new()) {
        Some(ModelParts { base, adapters, ignored_revision: None, .. }) => (base, adapters),
        _ => (path.to_owned(), Vec::new()),
    }
}

/// Says where an adapter brings a tokenizer that is not the one of its base.
fn warn_of_tokenizer(adapter: &Path, base: &Path, terminal: &Terminal) {
    for file in TOKENIZER {
        let own = std::fs::read(adapter.join(file)).ok();
        if own.is_some() && own != std::fs::read(base.join(file)).ok() {
            let adapter = Escaped(adapter);
            terminal.warn(&format!("{adapter}: its {file} is not that of the base, which is used"));
        }
    }
}
