//! The files of `eval`: their names, kinds and rows.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::answer_args::AnswerArgs;
use super::named_file::NamedFile;
use super::rows::{Loader, names, tokenizer};
use super::terminal::Terminal;
use crate::checkpoint::Checkpoint;
use crate::data::{
    ChoiceDataset, FewShot, GenerateDataset, GenerateLimits, Limits, Tokenizer, holds_answers, holds_choices,
    load_choices_few_shot, load_generate,
};
use crate::error::Escaped;
use crate::eval::{EvalRows, GenerateRows};
use crate::model::ModelConfig;
use crate::report::Evaluation;
use crate::{Error, Result};

/// A file with the name it has in the results.
pub(super) struct EvalFile {
    pub(super) name: String,
    pub(super) path: PathBuf,
    kind: Kind,
}

/// What is measured on a file, by its first row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Loss,
    Choice,
    Generate,
}

/// How rows are read.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    pub(super) max_length: Option<usize>,
    pub(super) answers: &'a AnswerArgs,
    pub(super) few_shot: Option<&'a FewShot>,
}

/// Reads the rows of files for one model after the other.
pub(super) struct EvalData<'a> {
    pub(super) files: Vec<EvalFile>,
    reading: Reading<'a>,
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
        let kind = match (holds_choices(&file.path)?, holds_answers(&file.path)?) {
            (true, _) => Kind::Choice,
            (false, true) => Kind::Generate,
            (false, false) => Kind::Loss,
        };
        Ok(Self { name: file.label(), path: file.path, kind })
    }
}

impl<'a> EvalData<'a> {
    /// # Errors
    /// As [`EvalFile::of`], and for a name that two files have.
    pub(super) fn open(arguments: &[PathBuf], reading: Reading<'a>, terminal: &'a Terminal) -> Result<Self> {
        let files: Vec<EvalFile> = arguments.iter().map(|path| EvalFile::of(path)).collect::<Result<_>>()?;
        let mut names = BTreeSet::new();
        if let Some(twice) = files.iter().find(|file| !names.insert(&file.name)) {
            let fault = format!("--data: two files have the name {}", Escaped(&twice.name));
            return Err(Error::usage(fault, "name them apart: --data NAME=FILE"));
        }
        let read = files.iter().map(|_| Vec::new()).collect();
        Ok(Self { files, reading, terminal, said: BTreeSet::new(), read })
    }

    /// The rows of every file for the model in `source`. Rows that an earlier model has too are kept once.
    pub(super) fn rows(&mut self, source: &Checkpoint, config: &ModelConfig) -> Result<Vec<Rc<EvalRows>>> {
        let tokenizer = tokenizer(source.root())?;
        let mut all = Vec::new();
        for at in 0..self.files.len() {
            let path = self.files[at].path.clone();
            let rows = self.of_file(at, tokenizer.as_ref(), config.vocab_size as u32)?;
            self.warn_of_positions(&path, &rows, source);
            let same = self.read[at].iter().find(|earlier| ***earlier == rows).cloned();
            let rows = same.unwrap_or_else(|| Rc::new(rows));
            self.read[at].push(rows.clone());
            all.push(rows);
        }
        Ok(all)
    }

    fn of_file(&mut self, at: usize, tokenizer: Option<&Tokenizer>, vocab_size: u32) -> Result<EvalRows> {
        let path = self.files[at].path.clone();
        let Reading { max_length, answers, few_shot } = self.reading;
        let limits = Limits { max_length, vocab_size };
        match self.files[at].kind {
            Kind::Choice => {
                let dataset = load_choices_few_shot(&path, tokenizer, limits, few_shot)?;
                self.warn_of_choices(&path, &dataset)?;
                Ok(EvalRows::Choice(dataset.rows))
            }
            Kind::Generate => {
                let max_prompt_length = answers.max_prompt_length(max_length)?;
                let limits = GenerateLimits {
                    max_prompt_length,
                    vocab_size,
                    metric: answers.metric(),
                    stop: &answers.stop,
                };
                let dataset = load_generate(&path, tokenizer, limits, few_shot)?;
                self.warn_of_prompts(&path, &dataset)?;
                let (ignore_case, max_new_tokens) = (answers.ignore_case, answers.max_new_tokens);
                let GenerateDataset { rows, metric, .. } = dataset;
                Ok(EvalRows::Generate(GenerateRows { rows, metric, ignore_case, max_new_tokens }))
            }
            Kind::Loss => {
                let loader = Loader { tokenizer, limits, terminal: self.terminal };
                let (dataset, warnings) = loader.held_out_and_warnings(&path, few_shot)?;
                warnings.into_iter().for_each(|warning| self.warn(warning));
                Ok(EvalRows::Loss(dataset.rows))
            }
        }
    }

    /// What holds for the rows of several models is said once.
    fn warn(&mut self, warning: String) {
        if self.said.insert(warning.clone()) {
            self.terminal.warn(&warning);
        }
    }

    fn warn_of_choices(&mut self, path: &Path, dataset: &ChoiceDataset) -> Result<()> {
        self.warn_of_files(path, &dataset.other_splits, &dataset.other_formats)?;
        let path = Escaped(path);
        if let (Some(most), 1..) = (self.reading.max_length, dataset.cut_rows) {
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

    fn warn_of_prompts(&mut self, path: &Path, dataset: &GenerateDataset) -> Result<()> {
        self.warn_of_files(path, &dataset.other_splits, &dataset.other_formats)?;
        if dataset.cut_rows > 0 {
            let (path, cut, most) = (Escaped(path), dataset.cut_rows, self.reading.max_length.unwrap_or(0));
            self.warn(format!(
                "{path}: {cut} prompts lost their beginning, so that prompt and answer have {most} tokens"
            ));
        }
        Ok(())
    }

    /// # Errors
    /// [`Error::Usage`] for a directory of several splits.
    fn warn_of_files(&mut self, path: &Path, splits: &[PathBuf], formats: &[PathBuf]) -> Result<()> {
        let path = Escaped(path);
        if !splits.is_empty() {
            let fault = format!("{path}: more than one split: {} and others", names(splits));
            return Err(Error::usage(fault, "give the file whose questions are asked"));
        }
        if !formats.is_empty() {
            let names = names(formats);
            self.warn(format!("{path}: files of a format that is not read are left out: {names}"));
        }
        Ok(())
    }

    /// Says where rows have more tokens than `max_position_embeddings`; the last token of a row predicts nothing.
    fn warn_of_positions(&mut self, path: &Path, rows: &EvalRows, source: &Checkpoint) {
        let config = source.config().map(crate::checkpoint::Config::value);
        let Some(most) = config.and_then(|config| config["max_position_embeddings"].as_u64()) else { return };
        let longer =
            rows.lengths().into_iter().filter(|length| *length as u64 > most.saturating_add(1)).count();
        if longer > 0 {
            self.warn(format!(
                "{}: {longer} sequences have more than {most} tokens, the max_position_embeddings of the model; \
                 --max-length {most} cuts them",
                Escaped(path)
            ));
        }
    }
}

/// Says which means are no numbers.
pub(super) fn warn_of_nan(all: &[Evaluation], terminal: &Terminal) {
    let is_nan = |evaluation: &&Evaluation| evaluation.measured.iter().any(|of| of.mean.value.is_nan());
    for Evaluation { model, data, .. } in all.iter().filter(is_nan) {
        terminal.warn(&format!(
            "{}: the loss on {} is not a number; `hft-surgery diff BASE MODEL --fail-on nonfinite` tells which weights are \
             not finite",
            Escaped(model),
            Escaped(data)
        ));
    }
}
