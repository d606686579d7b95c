//! How answers that a model writes are ended and scored, and the examples before a row.

use std::path::PathBuf;

use clap::ValueEnum;

use crate::data::{AnswerMetric, FewShot, Sampler, Shots};
use crate::{Error, Result};

/// New tokens of an answer at most, unless it is said.
pub(super) const MAX_NEW_TOKENS: usize = 256;

/// How answers are written and scored.
#[derive(Debug, clap::Args)]
pub(super) struct AnswerArgs {
    /// New tokens of a written answer at most
    #[arg(long, value_name = "N", default_value_t = MAX_NEW_TOKENS)]
    pub(super) max_new_tokens: usize,
    /// How a written answer is held against `answer`, where rows have no column `metric`
    #[arg(long, value_enum, value_name = "METRIC", default_value_t = MetricArg::ExactMatch)]
    metric: MetricArg,
    /// Upper and lower case of a written answer are the same
    #[arg(long)]
    pub(super) ignore_case: bool,
    /// A text that ends every written answer and does not belong to it, beside those of the column `stop`; `\n` is a line
    /// feed, `\t` a tab; may be repeated
    #[arg(long, value_name = "TEXT", value_parser = unescaped, allow_hyphen_values = true)]
    pub(super) stop: Vec<String>,
}

/// The examples before each row.
#[derive(Debug, clap::Args)]
pub(super) struct FewShotArgs {
    /// Solved rows of which some stand before each row, as text or as earlier messages
    #[arg(long, value_name = "FILE", requires = "shots")]
    few_shot: Option<PathBuf>,
    /// How many of them
    #[arg(long, value_name = "N", requires = "few_shot")]
    shots: Option<usize>,
    /// Which of them: `random` ones, other for each row and by --seed, or the `first`
    #[arg(long, value_enum, value_name = "WHICH", default_value_t = SamplerArg::Random, requires = "few_shot")]
    few_shot_sampler: SamplerArg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MetricArg {
    /// It is one of the accepted answers, white space around it aside
    #[value(name = "exact_match")]
    ExactMatch,
    /// One of the accepted answers stands in it
    #[value(name = "contains")]
    Contains,
    /// Its last number is the last number of one of the accepted answers
    #[value(name = "numeric_match", alias = "numeric")]
    NumericMatch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SamplerArg {
    Random,
    First,
}

impl Default for AnswerArgs {
    fn default() -> Self {
        Self {
            max_new_tokens: MAX_NEW_TOKENS,
            metric: MetricArg::ExactMatch,
            ignore_case: false,
            stop: Vec::new(),
        }
    }
}

impl AnswerArgs {
    pub(super) fn metric(&self) -> AnswerMetric {
        match self.metric {
            MetricArg::ExactMatch => AnswerMetric::ExactMatch,
            MetricArg::Contains => AnswerMetric::Contains,
            MetricArg::NumericMatch => AnswerMetric::NumericMatch,
        }
    }

    /// Tokens of a prompt at most, so that prompt and answer have `max_length` together.
    pub(super) fn max_prompt_length(&self, max_length: Option<usize>) -> Result<Option<usize>> {
        let Some(most) = max_length else { return Ok(None) };
        match most.checked_sub(self.max_new_tokens) {
            Some(left @ 1..) => Ok(Some(left)),
            _ => {
                let fault = format!(
                    "--max-length {most} leaves no prompt before --max-new-tokens {}",
                    self.max_new_tokens
                );
                Err(Error::usage(fault, "use a larger --max-length, or a smaller --max-new-tokens"))
            }
        }
    }
}

impl FewShotArgs {
    /// The file of the examples.
    pub(super) fn path(&self) -> Option<&PathBuf> {
        self.few_shot.as_ref()
    }

    /// The examples, where there are some.
    pub(super) fn read(&self, seed: u64) -> Result<Option<FewShot>> {
        let Some(path) = &self.few_shot else { return Ok(None) };
        let sampler = match self.few_shot_sampler {
            SamplerArg::Random => Sampler::Random { seed },
            SamplerArg::First => Sampler::First,
        };
        match self.shots {
            None | Some(0) => Err(Error::usage("--shots: got 0, expected 1 or more", "")),
            Some(count) => FewShot::read(path, Shots { count, sampler }).map(Some),
        }
    }
}

/// A text with `\n`, `\t` and `\\` for a line feed, a tab and a backslash.
fn unescaped(text: &str) -> std::result::Result<String, String> {
    let (mut out, mut chars) = (String::new(), text.chars());
    while let Some(c) = chars.next() {
        match (c, if c == '\\' { chars.next() } else { None }) {
            ('\\', Some('n')) => out.push('\n'),
            ('\\', Some('t')) => out.push('\t'),
            ('\\', Some('\\')) => out.push('\\'),
            ('\\', _) => return Err("a backslash stands before n, t or another backslash".to_owned()),
            (other, _) => out.push(other),
        }
    }
    if out.is_empty() { Err("expected a text that is not empty".to_owned()) } else { Ok(out) }
}
