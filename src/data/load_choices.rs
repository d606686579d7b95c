//! Files of multiple choice become tokenized rows.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use crate::data::choice::{Choice, ChoiceRow, EncodedChoice, is_choice};
use crate::data::encode::no_tokenizer;
use crate::data::fault::Fault;
use crate::data::few_shot::FewShot;
use crate::data::files::files;
use crate::data::limits::Limits;
use crate::data::raw_row::RawRow;
use crate::data::row::Location;
use crate::data::rows_of_file::{MOST_FAULTS, no_rows, open, take_chunk};
use crate::data::tokenizer::Tokenizer;
use crate::{Faults, Result};

/// Tokenized rows of multiple choice in the order of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChoiceDataset {
    /// The rows; never empty.
    pub rows: Vec<ChoiceRow>,
    /// Rows whose question lost its beginning to the greatest length.
    pub cut_rows: usize,
    /// Rows in which a token spans the end of the question.
    pub merged_rows: usize,
    /// Files of the directory that belong to another split than training, and were not read.
    pub other_splits: Vec<PathBuf>,
    /// Files of the directory that may hold rows, in a format that is not read.
    pub other_formats: Vec<PathBuf>,
}

/// Whether the first row of `path` is one of multiple choice: `question` and `choices`, and no column of another format.
///
/// # Errors
/// When the path is no data or cannot be read.
pub fn holds_choices(path: &Path) -> Result<bool> {
    let files = files(path)?;
    let Some((file, format)) = files.read.first() else { return Ok(false) };
    let first = open(file, *format)?.next().transpose()?;
    Ok(first.is_some_and(|row| row.columns.is_ok_and(|columns| is_choice(&columns))))
}

/// Reads and tokenizes all rows of `path` as multiple choice: `question`, `choices`, `answer` and, optional,
/// `target_delimiter`. The result does not depend on the number of threads.
///
/// # Errors
/// [`crate::Error::Data`] with file and line, or [`crate::Error::Many`]: bad JSON, a column missing or of another type, a token id
/// outside of the vocabulary, no rows at all. Reading stops after 20 faulty rows.
pub fn load_choices(path: &Path, tokenizer: Option<&Tokenizer>, limits: Limits) -> Result<ChoiceDataset> {
    load_choices_few_shot(path, tokenizer, limits, None)
}

/// As [`load_choices`], with examples before each question.
///
/// # Errors
/// As [`load_choices`].
pub fn load_choices_few_shot(
    path: &Path,
    tokenizer: Option<&Tokenizer>,
    limits: Limits,
    few_shot: Option<&FewShot>,
) -> Result<ChoiceDataset> {
    let files = files(path)?;
    let mut dataset = ChoiceDataset {
        rows: Vec::new(),
        cut_rows: 0,
        merged_rows: 0,
        other_splits: files.other_splits,
        other_formats: files.other_formats,
    };
    let mut faults = Faults::default();
    for (file, format) in files.read {
        let mut raw = open(&file, format)?;
        let path: Arc<Path> = file.as_path().into();
        loop {
            let chunk = take_chunk(&mut raw)?;
            if chunk.is_empty() || faults.first().len() >= MOST_FAULTS {
                break;
            }
            let encode = |raw: RawRow| {
                let location = Location { path: path.clone(), line: raw.line };
                let columns = raw.columns.and_then(|row| FewShot::before(few_shot, row, raw.line));
                let choice = columns.and_then(|columns| Choice::parse(&columns));
                let encoded = choice
                    .and_then(|choice| choice.encode(tokenizer.ok_or_else(no_tokenizer)?, &location, limits));
                encoded.map_err(|fault: Fault| location.error(fault))
            };
            let encoded: Vec<_> = chunk.into_par_iter().map(encode).collect();
            for row in encoded {
                match row {
                    Ok(row) => dataset.add(row),
                    Err(error) if faults.first().len() < MOST_FAULTS => faults.push(error),
                    Err(_) => {}
                }
            }
        }
    }
    faults.into_result()?;
    if dataset.rows.is_empty() {
        return Err(no_rows(path));
    }
    Ok(dataset)
}

impl ChoiceDataset {
    fn add(&mut self, EncodedChoice { row, cut, merged }: EncodedChoice) {
        self.cut_rows += usize::from(cut);
        self.merged_rows += usize::from(merged);
        self.rows.push(row);
    }
}
