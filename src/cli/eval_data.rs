//! The files of `eval`: their names, kinds and rows.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::named_file::NamedFile;
use super::rows::{Loader, names, tokenizer};
use super::terminal::Terminal;
use crate::checkpoint::Checkpoint;
use crate::data::{ChoiceDataset, Limits, holds_choices, load_choices};
use crate::error::Escaped;
use crate::eval::EvalRows;
use crate::model::ModelConfig;
use crate::{Error, Result};

/// A file with the name it has in the results.
pub(super) struct EvalFile {
    pub(super) name: String,
    path: PathBuf,
    holds_choices: bool,
}

/// Reads the rows of files for one model after the other.
pub(super) struct EvalData<'a> {
    pub(super) files: Vec<EvalFile>,
    max_length: Option<usize>,
    terminal: &'a Terminal,
    said: BTreeSet<String>,
    /// For each file the rows of the models before.
    read: Vec<Vec<Rc<EvalRows>>>,
}

impl EvalFile {
    /// # Errors
    /// When the file does not exist, or its first row cannot be read.
    fn of(argument: &Path) -> Result<Self> {
        let file = NamedFile::of(argument);
        let holds_choices = holds_choices(&file.path)?;
        Ok(Self { name: file.label(), path: file.path, holds_choices })
    }
}

impl<'a> EvalData<'a> {
    /// # Errors
    /// As [`EvalFile::of`], and for a name that two files have.
    pub(super) fn open(
        arguments: &[PathBuf],
        max_length: Option<usize>,
        terminal: &'a Terminal,
    ) -> Result<Self> {
        let files: Vec<EvalFile> = arguments.iter().map(|path| EvalFile::of(path)).collect::<Result<_>>()?;
        let mut names = BTreeSet::new();
        if let Some(twice) = files.iter().find(|file| !names.insert(&file.name)) {
            let fault = format!("--data: two files have the name {}", Escaped(&twice.name));
            return Err(Error::usage(fault, "name them apart: --data NAME=FILE"));
        }
        let read = files.iter().map(|_| Vec::new()).collect();
        Ok(Self { files, max_length, terminal, said: BTreeSet::new(), read })
    }

    /// The rows of every file for the model in `source`. Rows that an earlier model has too are kept once.
    pub(super) fn rows(&mut self, source: &Checkpoint, config: &ModelConfig) -> Result<Vec<Rc<EvalRows>>> {
        let tokenizer = tokenizer(source.root())?;
        let limits = Limits { max_length: self.max_length, vocab_size: config.vocab_size as u32 };
        let mut all = Vec::new();
        for at in 0..self.files.len() {
            let path = self.files[at].path.clone();
            let rows = if self.files[at].holds_choices {
                let dataset = load_choices(&path, tokenizer.as_ref(), limits)?;
                self.warn_of_choices(&path, &dataset)?;
                EvalRows::Choice(dataset.rows)
            } else {
                let loader = Loader { tokenizer: tokenizer.as_ref(), limits, terminal: self.terminal };
                let (dataset, warnings) = loader.held_out_and_warnings(&path)?;
                warnings.into_iter().for_each(|warning| self.warn(warning));
                EvalRows::Loss(dataset.rows)
            };
            self.warn_of_positions(&path, &rows, source);
            let same = self.read[at].iter().find(|earlier| ***earlier == rows).cloned();
            let rows = same.unwrap_or_else(|| Rc::new(rows));
            self.read[at].push(rows.clone());
            all.push(rows);
        }
        Ok(all)
    }

    /// What holds for the rows of several models is said once.
    fn warn(&mut self, warning: String) {
        if self.said.insert(warning.clone()) {
            self.terminal.warn(&warning);
        }
    }

    fn warn_of_choices(&mut self, path: &Path, dataset: &ChoiceDataset) -> Result<()> {
        let path = Escaped(path);
        if !dataset.other_splits.is_empty() {
            let fault = format!("{path}: more than one split: {} and others", names(&dataset.other_splits));
            return Err(Error::usage(fault, "give the file whose questions are asked"));
        }
        if !dataset.other_formats.is_empty() {
            let names = names(&dataset.other_formats);
            self.warn(format!("{path}: files of a format that is not read are left out: {names}"));
        }
        if let (Some(most), 1..) = (self.max_length, dataset.cut_rows) {
            let cut = dataset.cut_rows;
            self.warn(format!(
                "{path}: {cut} questions lost their beginning, so that a row has {most} tokens"
            ));
        }
        if dataset.merged_rows > 0 {
            self.warn(format!(
                "{path}: in {} rows a token spans the end of the question: what is scored begins behind as many \
                 tokens as the question has alone, as in lm-evaluation-harness",
                dataset.merged_rows
            ));
        }
        Ok(())
    }

    /// Says where rows have more tokens than `max_position_embeddings`; the last token of a row predicts nothing.
    fn warn_of_positions(&mut self, path: &Path, rows: &EvalRows, source: &Checkpoint) {
        let config = source.config().map(crate::checkpoint::Config::value);
        let Some(most) = config.and_then(|config| config["max_position_embeddings"].as_u64()) else { return };
        let longer =
            rows.sequences().iter().filter(|row| row.input_ids.len() as u64 > most.saturating_add(1)).count();
        if longer > 0 {
            self.warn(format!(
                "{}: {longer} sequences have more than {most} tokens, the max_position_embeddings of the model; \
                 --max-length {most} cuts them",
                Escaped(path)
            ));
        }
    }
}
