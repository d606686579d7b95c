//! Files of prompts become rows whose answer the model writes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use crate::data::encode::no_tokenizer;
use crate::data::fault::Fault;
use crate::data::few_shot::FewShot;
use crate::data::files::files;
use crate::data::generate_row::{AnswerMetric, Generate, GenerateRow, is_generate, other_metric};
use crate::data::raw_row::RawRow;
use crate::data::row::Location;
use crate::data::rows_of_file::{MOST_FAULTS, no_rows, open, take_chunk};
use crate::data::template::ChatTemplate;
use crate::data::tokenizer::Tokenizer;
use crate::{Faults, Result};

/// Prompts in the order of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerateDataset {
    /// The rows; never empty.
    pub rows: Vec<GenerateRow>,
    /// The metric of all rows: that of their column `metric`, where they have one.
    pub metric: AnswerMetric,
    /// Rows whose prompt lost its beginning to the greatest length.
    pub cut_rows: usize,
    /// Files of the directory that belong to another split than training, and were not read.
    pub other_splits: Vec<PathBuf>,
    /// Files of the directory that may hold rows, in a format that is not read.
    pub other_formats: Vec<PathBuf>,
}

/// Limits on a prompt, and what holds where a row says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GenerateLimits<'a> {
    /// Tokens of a prompt at most; longer ones lose their beginning.
    pub max_prompt_length: Option<usize>,
    /// Rows of the model's embedding: every token id is below.
    pub vocab_size: u32,
    /// The metric of rows without a column `metric`.
    pub metric: AnswerMetric,
    /// Texts that end every answer.
    pub stop: &'a [String],
}

/// Whether the first row of `path` asks for an answer that the model writes: `answer` beside `prompt`, or beside a chat that
/// ends with another message than the assistant's.
///
/// # Errors
/// When the path is no data or cannot be read.
pub fn holds_answers(path: &Path) -> Result<bool> {
    let files = files(path)?;
    let Some((file, format)) = files.read.first() else { return Ok(false) };
    let first = open(file, *format)?.next().transpose()?;
    Ok(first.is_some_and(|row| row.columns.is_ok_and(|columns| is_generate(&columns))))
}

/// Reads and tokenizes the prompts of `path`, with examples before them. The result does not depend on the number of threads.
///
/// # Errors
/// [`crate::Error::Data`] with file and line, or [`crate::Error::Many`]: bad JSON, a column missing or of another type, rows of
/// different metrics, a missing chat template, a token id outside of the vocabulary, no rows at all. Reading stops after
/// 20 faulty rows.
pub fn load_generate(
    path: &Path,
    tokenizer: Option<&Tokenizer>,
    limits: GenerateLimits<'_>,
    few_shot: Option<&FewShot>,
) -> Result<GenerateDataset> {
    let files = files(path)?;
    let mut loading = Loading {
        tokenizer,
        limits,
        few_shot,
        metric: None,
        rows: Vec::new(),
        cut_rows: 0,
        faults: Faults::default(),
    };
    for (file, format) in files.read {
        let mut raw = open(&file, format)?;
        let path: Arc<Path> = file.as_path().into();
        loop {
            let chunk = take_chunk(&mut raw)?;
            if chunk.is_empty() || loading.faults.first().len() >= MOST_FAULTS {
                break;
            }
            loading.chunk(&path, chunk)?;
        }
    }
    loading.faults.into_result()?;
    if loading.rows.is_empty() {
        return Err(no_rows(path));
    }
    Ok(GenerateDataset {
        rows: loading.rows,
        metric: loading.metric.unwrap_or(limits.metric),
        cut_rows: loading.cut_rows,
        other_splits: files.other_splits,
        other_formats: files.other_formats,
    })
}

struct Loading<'a> {
    tokenizer: Option<&'a Tokenizer>,
    limits: GenerateLimits<'a>,
    few_shot: Option<&'a FewShot>,
    /// That of the first row.
    metric: Option<AnswerMetric>,
    rows: Vec<GenerateRow>,
    cut_rows: usize,
    faults: Faults,
}

impl Loading<'_> {
    fn chunk(&mut self, path: &Arc<Path>, chunk: Vec<RawRow>) -> Result<()> {
        let few_shot = self.few_shot;
        let parse = |raw: RawRow| {
            let location = Location { path: path.clone(), line: raw.line };
            let row = raw.columns.and_then(|row| FewShot::before(few_shot, row, raw.line));
            (location, row.and_then(|row| Generate::parse(&row)))
        };
        let parsed: Vec<_> = chunk.into_par_iter().map(parse).collect();
        let needs_template = parsed.iter().any(|(_, row)| row.as_ref().is_ok_and(Generate::needs_template));
        let template = match self.tokenizer.map(Tokenizer::template) {
            Some(Err(error)) if needs_template => return Err(error),
            template => template.and_then(Result::ok),
        };
        let tokenizer = self.tokenizer;
        let limits = self.limits;
        let encode = |(location, row): (Location, std::result::Result<Generate, Fault>)| {
            let encoded = row.and_then(|row| {
                let metric = row.metric.unwrap_or(limits.metric);
                row.check(metric)?;
                let tokenizer = tokenizer.ok_or_else(no_tokenizer)?;
                let (row, cut) =
                    row.encode(tokenizer, template, &location, limits.max_prompt_length, limits.vocab_size)?;
                Ok((row, metric, cut))
            });
            (location, encoded)
        };
        let encoded: Vec<_> = parsed.into_par_iter().map(encode).collect();
        for (location, row) in encoded {
            self.add(location, row, template)?;
        }
        Ok(())
    }

    fn add(
        &mut self,
        location: Location,
        row: std::result::Result<(GenerateRow, AnswerMetric, bool), Fault>,
        template: Option<&ChatTemplate>,
    ) -> Result<()> {
        let row = row.and_then(|(row, metric, cut)| {
            let expected = *self.metric.get_or_insert(metric);
            if metric == expected { Ok((row, cut)) } else { Err(other_metric(metric, expected)) }
        });
        match row {
            Ok((mut row, cut)) => {
                row.stop.extend(self.limits.stop.iter().cloned());
                self.cut_rows += usize::from(cut);
                self.rows.push(row);
            }
            Err(fault) if template.is_some_and(|template| template.is_limit(&fault)) => {
                self.faults.push(location.error(fault));
                return std::mem::take(&mut self.faults).into_result();
            }
            Err(fault) if self.faults.first().len() < MOST_FAULTS => self.faults.push(location.error(fault)),
            Err(_) => {}
        }
        Ok(())
    }
}
