//! The rows of `train` and `eval`, and what is said of them.

use std::path::{Path, PathBuf};

use super::terminal::Terminal;
use crate::data::{Dataset, FewShot, Limits, Row, Tokenizer, load, load_few_shot, load_preferences};
use crate::error::Escaped;
use crate::{Error, Result};

/// Reads rows, and says what it left out.
pub(super) struct Loader<'a> {
    /// Absent where the model has none.
    pub(super) tokenizer: Option<&'a Tokenizer>,
    pub(super) limits: Limits,
    pub(super) terminal: &'a Terminal,
}

impl Loader<'_> {
    /// The rows to learn from: of a directory, those of its training split.
    pub(super) fn training(&self, path: &Path) -> Result<Dataset> {
        self.said(path, load(path, self.tokenizer, self.limits)?)
    }

    /// As [`Loader::training`], the pairs to learn from: a chosen answer and a rejected one by turns.
    pub(super) fn pairs(&self, path: &Path) -> Result<Dataset> {
        let dataset = load_preferences(path, self.tokenizer, self.limits)?;
        self.warn_of_equal_answers(path, &dataset);
        self.said(path, dataset)
    }

    /// The rows, after what was left out of them was said.
    fn said(&self, path: &Path, dataset: Dataset) -> Result<Dataset> {
        if !dataset.other_splits.is_empty() {
            let (path, left) = (Escaped(path), names(&dataset.other_splits));
            self.terminal.warn(&format!("{path}: only the training split is read; left out: {left}"));
        }
        self.warnings(path, &dataset).iter().for_each(|warning| self.terminal.warn(warning));
        Ok(dataset)
    }

    /// The rows to measure a loss on.
    ///
    /// # Errors
    /// [`Error::Usage`] for a directory of several splits.
    pub(super) fn held_out(&self, path: &Path) -> Result<Dataset> {
        let (dataset, warnings) = self.held_out_and_warnings(path, None)?;
        warnings.iter().for_each(|warning| self.terminal.warn(warning));
        Ok(dataset)
    }

    /// As [`Loader::held_out`], behind examples where there are some, and with what is to be said of them.
    pub(super) fn held_out_and_warnings(
        &self,
        path: &Path,
        few_shot: Option<&FewShot>,
    ) -> Result<(Dataset, Vec<String>)> {
        let dataset = match few_shot {
            Some(few_shot) => load_few_shot(path, self.tokenizer, self.limits, few_shot)?,
            None => load(path, self.tokenizer, self.limits)?,
        };
        self.of_one_split(path, dataset)
    }

    /// As [`Loader::held_out`], pairs.
    pub(super) fn held_out_pairs(&self, path: &Path) -> Result<Dataset> {
        let dataset = load_preferences(path, self.tokenizer, self.limits)?;
        self.warn_of_equal_answers(path, &dataset);
        let (dataset, warnings) = self.of_one_split(path, dataset)?;
        warnings.iter().for_each(|warning| self.terminal.warn(warning));
        Ok(dataset)
    }

    /// Warns of pairs whose answers are the same tokens.
    fn warn_of_equal_answers(&self, path: &Path, pairs: &Dataset) {
        let answers =
            |pair: &&[Row]| matches!(pair, [chosen, rejected] if chosen.input_ids == rejected.input_ids);
        let equal = pairs.rows.chunks(2).filter(answers).count();
        if equal > 0 {
            let of = pairs.rows.len() / 2;
            self.terminal.warn(&format!(
                "{}: in {equal} of {of} pairs both answers are the same tokens, after cutting to --max-length: no preference is \
                 learnt from them",
                Escaped(path)
            ));
        }
    }

    fn of_one_split(&self, path: &Path, dataset: Dataset) -> Result<(Dataset, Vec<String>)> {
        if !dataset.other_splits.is_empty() {
            let fault = format!(
                "{}: more than one split: {} and others",
                Escaped(path),
                names(&dataset.other_splits)
            );
            return Err(Error::usage(fault, "give the file on whose rows the loss is measured"));
        }
        let warnings = self.warnings(path, &dataset);
        Ok((dataset, warnings))
    }

    /// How much was read.
    pub(super) fn note(&self, path: &Path, dataset: &Dataset, pairs: bool) {
        let (rows, s) = (dataset.rows.len(), dataset.summary);
        let rows = if pairs { format!("{} pairs", rows / 2) } else { format!("{rows} rows") };
        let text = format!("{}: {rows}, {} tokens, {} of them targets", Escaped(path), s.tokens, s.targets);
        self.terminal.note(&text);
    }

    /// What was left out or cut, and what is not obeyed.
    fn warnings(&self, path: &Path, dataset: &Dataset) -> Vec<String> {
        let (s, path, mut warnings) = (dataset.summary, Escaped(path), Vec::new());
        if let (Some(most), 1..) = (self.limits.max_length, s.truncated_rows + s.dropped_rows) {
            warnings.push(format!(
                "{path}: {} rows cut to {most} tokens, {} left out as no target was left; {} tokens lost",
                s.truncated_rows, s.dropped_rows, s.lost_tokens
            ));
        }
        if !dataset.other_formats.is_empty() {
            let names = names(&dataset.other_formats);
            warnings.push(format!("{path}: files of a format that is not read are left out: {names}"));
        }
        if s.empty_rows > 0 {
            warnings.push(format!("{path}: {} rows with an empty `text` left out", s.empty_rows));
        }
        if s.merged_rows > 0 {
            warnings.push(format!(
                "{path}: in {} rows a prompt has tokens that it does not have with its answer: what is learnt \
                 begins where they part, behind another context than in use; end the prompts on a token boundary \
                 (without a space at the end, for instance)",
                s.merged_rows
            ));
        }
        if !dataset.ignored_columns.is_empty() {
            let columns: Vec<String> =
                dataset.ignored_columns.iter().map(|name| format!("`{}`", Escaped(name))).collect();
            let columns = columns.join(", ");
            warnings.push(format!("{path}: columns that look like a mask or weight are not read: {columns}"));
        }
        warnings
    }
}

/// The names of files, 20 at most.
pub(super) fn names(paths: &[PathBuf]) -> String {
    let shown = paths.iter().take(20).filter_map(|path| path.file_name());
    let shown: Vec<String> = shown.map(|name| Escaped(Path::new(name)).to_string()).collect();
    let more = paths.len().saturating_sub(20);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

/// The tokenizer beside the weights, where there is one.
pub(super) fn tokenizer(root: &Path) -> Result<Option<Tokenizer>> {
    root.join("tokenizer.json").exists().then(|| Tokenizer::open(root)).transpose()
}
