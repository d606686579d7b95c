//! Files become tokenized rows.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use crate::data::encode::{Encoded, Encoder};
use crate::data::fault::Fault;
use crate::data::few_shot::FewShot;
use crate::data::files::{self, Format};
use crate::data::limits::Limits;
use crate::data::preference::preference;
use crate::data::raw_row::RawRow;
use crate::data::record::Record;
use crate::data::row::{Location, Row, targets};
use crate::data::rows_of_file::{MOST_FAULTS, no_rows, open, take_chunk};
use crate::data::tokenizer::Tokenizer;
use crate::{Error, Faults, Result};

/// Names of ignored columns that are kept.
const MOST_IGNORED: usize = 20;

/// Counts of rows and tokens that were read, cut and left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Files that were read.
    pub files: usize,
    /// Rows of the files. A row may become several [`Row`]s.
    pub read: usize,
    /// Tokens that were kept.
    pub tokens: usize,
    /// Kept tokens whose loss counts.
    pub targets: usize,
    /// Rows that lost their end.
    pub truncated_rows: usize,
    /// Tokens cut off, those of dropped rows included.
    pub lost_tokens: usize,
    /// Rows that lost every target to truncation and were left out.
    pub dropped_rows: usize,
    /// Rows with an empty `text`, which were left out.
    pub empty_rows: usize,
    /// Rows in which a token spans the end of a prompt: what is learnt begins with it, behind another context than
    /// the prompt alone is.
    pub merged_rows: usize,
}

/// Tokenized rows in the order of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// The rows; never empty, each with a target token.
    pub rows: Vec<Row>,
    /// Counts of what was read.
    pub summary: Summary,
    /// Files of the directory that belong to another split than training, and were not read.
    pub other_splits: Vec<PathBuf>,
    /// Files of the directory that may hold rows, in a format that is not read.
    pub other_formats: Vec<PathBuf>,
    /// Columns that look like a mask or a weight and that no format reads: 20 at most.
    pub ignored_columns: BTreeSet<String>,
}

/// Reads and tokenizes all rows of `path`, a file or a directory of files, for supervised fine-tuning.
///
/// The columns of each row decide its format; rows of `input_ids` need no tokenizer. Rows are held in memory, 8 bytes per token. A row over
/// `max_length` tokens keeps its beginning; if that leaves no target token, the row is left out and
/// counted. The result does not depend on the number of threads.
///
/// # Errors
/// [`Error::Data`] with file and line, or [`Error::Many`]: bad JSON, unknown columns, a token id outside
/// of the vocabulary, a row without target tokens, a missing chat template, no rows at all. Reading
/// stops after 20 faulty rows.
///
/// # Examples
///
/// ```
/// # fn main() -> hft_surgery::Result<()> {
/// use hft_surgery::data::{Limits, Tokenizer, load};
///
/// let tokenizer = Tokenizer::open("fixtures/data/chatml".as_ref())?;
/// let limits = Limits { max_length: Some(512), vocab_size: tokenizer.vocab_size() };
/// let dataset = load("fixtures/data/chat.jsonl".as_ref(), Some(&tokenizer), limits)?;
/// assert_eq!(dataset.rows[0].input_ids.len(), dataset.rows[0].labels.len());
/// # Ok(())
/// # }
/// ```
pub fn load(path: &Path, tokenizer: Option<&Tokenizer>, limits: Limits) -> Result<Dataset> {
    load_as(path, tokenizer, limits, RowKind { pairs: false, few_shot: None })
}

/// As [`load`], with examples before the prompt of each row, which are not targets.
///
/// # Errors
/// As [`load`], and a row without a prompt.
pub fn load_few_shot(
    path: &Path,
    tokenizer: Option<&Tokenizer>,
    limits: Limits,
    few_shot: &FewShot,
) -> Result<Dataset> {
    load_as(path, tokenizer, limits, RowKind { pairs: false, few_shot: Some(few_shot) })
}

/// As [`load`], for rows of preferences: rows `2 i` and `2 i + 1` of the dataset are the chosen and the rejected answer
/// of pair `i`, each behind the prompt. A pair is left out where the prompt alone fills the greatest length.
///
/// # Errors
/// As [`load`], and a row that is no preference.
pub fn load_preferences(path: &Path, tokenizer: Option<&Tokenizer>, limits: Limits) -> Result<Dataset> {
    load_as(path, tokenizer, limits, RowKind { pairs: true, few_shot: None })
}

/// How rows are read.
#[derive(Clone, Copy)]
struct RowKind<'a> {
    /// Rows are preferences.
    pairs: bool,
    few_shot: Option<&'a FewShot>,
}

fn load_as(path: &Path, tokenizer: Option<&Tokenizer>, limits: Limits, kind: RowKind<'_>) -> Result<Dataset> {
    let files = files::files(path)?;
    let dataset = Dataset {
        rows: Vec::new(),
        summary: Summary::default(),
        other_splits: files.other_splits,
        other_formats: files.other_formats,
        ignored_columns: BTreeSet::new(),
    };
    let mut loading = Loading { tokenizer, limits, kind, dataset, faults: Faults::default() };
    for (file, format) in files.read {
        loading.file(&file, format)?;
    }
    loading.faults.into_result()?;
    let dataset = loading.dataset;
    if dataset.rows.is_empty() {
        return Err(nothing_left(path, dataset.summary, limits.max_length));
    }
    Ok(dataset)
}

fn nothing_left(path: &Path, summary: Summary, max_length: Option<usize>) -> Error {
    if summary.empty_rows > 0 && summary.empty_rows == summary.read {
        let fault = format!("no rows but {} with an empty `text`", summary.empty_rows);
        return Error::Data { path: path.to_owned(), line: None, fault, hint: None };
    }
    let Some(length) = max_length.filter(|_| summary.dropped_rows > 0) else { return no_rows(path) };
    let fault = format!("no row has a target token among its first {length} tokens");
    let hint = Some("use a larger --max-length".to_owned());
    Error::Data { path: path.to_owned(), line: None, fault, hint }
}

struct Loading<'a> {
    tokenizer: Option<&'a Tokenizer>,
    limits: Limits,
    kind: RowKind<'a>,
    dataset: Dataset,
    faults: Faults,
}

impl Loading<'_> {
    fn file(&mut self, path: &Path, format: Format) -> Result<()> {
        let mut rows = open(path, format)?;
        let path: Arc<Path> = path.into();
        self.dataset.summary.files += 1;
        loop {
            let chunk = take_chunk(&mut rows)?;
            if chunk.is_empty() || self.faults.first().len() >= MOST_FAULTS {
                return Ok(());
            }
            self.chunk(&path, chunk)?;
        }
    }

    fn chunk(&mut self, path: &Arc<Path>, chunk: Vec<RawRow>) -> Result<()> {
        let parse = if self.kind.pairs { preference } else { Record::parse };
        let few_shot = self.kind.few_shot;
        let read = |raw: RawRow| {
            let location = Location { path: path.clone(), line: raw.line };
            match raw.columns.and_then(|row| FewShot::before(few_shot, row, raw.line)).and_then(parse) {
                Ok((record, ignored)) => (location, Ok(record), ignored),
                Err(fault) => (location, Err(fault), Vec::new()),
            }
        };
        let mut records: Vec<_> = chunk.into_par_iter().map(read).collect();
        for (_, _, ignored) in &mut records {
            self.ignored(std::mem::take(ignored));
        }
        let needs_template =
            records.iter().any(|(_, record, _)| record.as_ref().is_ok_and(Record::needs_template));
        let template = match self.tokenizer.map(Tokenizer::template) {
            Some(Err(error)) if needs_template => return Err(error),
            template => template.and_then(Result::ok),
        };
        let (tokenizer, vocab_size) = (self.tokenizer, self.limits.vocab_size);
        let tokenize =
            |(location, record, _): (Location, std::result::Result<Record, Fault>, Vec<String>)| {
                let encoder = Encoder { tokenizer, template, location };
                let encoded = record.and_then(|record| encoder.encode(record));
                (encoder.location, encoded.and_then(|encoded| checked(encoded, vocab_size)))
            };
        let tokenized: Vec<_> = records.into_par_iter().map(tokenize).collect();
        for (location, encoded) in tokenized {
            self.dataset.summary.read += 1;
            match encoded {
                Ok(encoded) => self.add(encoded),
                Err(fault) if template.is_some_and(|template| template.is_limit(&fault)) => {
                    self.faults.push(location.error(fault));
                    return std::mem::take(&mut self.faults).into_result();
                }
                Err(fault) => self.faults.push(location.error(fault)),
            }
        }
        Ok(())
    }

    fn add(&mut self, Encoded { rows, merged }: Encoded) {
        self.dataset.summary.empty_rows += usize::from(rows.is_empty());
        self.dataset.summary.merged_rows += usize::from(merged);
        let has_target = |row: &Row| targets(&row.labels[..self.kept(row)]) > 0;
        if self.kind.pairs && !rows.iter().all(has_target) {
            self.dataset.summary.dropped_rows += 1;
            self.dataset.summary.lost_tokens += rows.iter().map(|row| row.input_ids.len()).sum::<usize>();
            return;
        }
        rows.into_iter().for_each(|row| self.fit(row));
    }

    fn ignored(&mut self, columns: Vec<String>) {
        let known = &mut self.dataset.ignored_columns;
        for name in columns {
            if known.len() < MOST_IGNORED {
                known.insert(name);
            }
        }
    }

    /// Tokens of a row that are kept.
    fn kept(&self, row: &Row) -> usize {
        let length = row.input_ids.len();
        length.min(self.limits.max_length.unwrap_or(length))
    }

    /// Adds a row, cut to the greatest length.
    fn fit(&mut self, mut row: Row) {
        let (length, kept) = (row.input_ids.len(), self.kept(&row));
        let summary = &mut self.dataset.summary;
        if targets(&row.labels[..kept]) == 0 {
            summary.dropped_rows += 1;
            summary.lost_tokens += length;
            return;
        }
        summary.truncated_rows += usize::from(kept < length);
        summary.lost_tokens += length - kept;
        row.input_ids.truncate(kept);
        row.labels.truncate(kept);
        summary.tokens += kept;
        summary.targets += row.targets();
        self.dataset.rows.push(row);
    }
}

/// Refuses rows that cannot be trained on.
fn checked(encoded: Encoded, vocab_size: u32) -> std::result::Result<Encoded, Fault> {
    encoded.rows.iter().try_for_each(|row| row.check(vocab_size))?;
    Ok(encoded)
}
