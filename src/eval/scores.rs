//! What a model scores on the rows of a file.

use super::answers::is_right;
use super::estimate::RowSum;
use super::loss::SequenceLoss;
use crate::data::{AnswerMetric, ChoiceRow, GenerateRow, Location, Row, last_number};
use crate::{Error, Result};

/// Tokenized rows of a file.
#[derive(Debug, PartialEq, Eq)]
pub enum EvalRows {
    /// Their targets have a loss.
    Loss(Vec<Row>),
    /// The most likely choice is right or wrong.
    Choice(Vec<ChoiceRow>),
    /// The answer that the model writes is right or wrong.
    Generate(GenerateRows),
}

/// Prompts, and how the answers to them are scored.
#[derive(Debug, PartialEq, Eq)]
pub struct GenerateRows {
    /// The rows.
    pub rows: Vec<GenerateRow>,
    /// How an answer is held against the accepted ones.
    pub metric: AnswerMetric,
    /// Whether upper and lower case are the same.
    pub ignore_case: bool,
    /// Tokens of an answer at most.
    pub max_new_tokens: usize,
}

/// What a model wrote after a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct WrittenAnswer {
    /// The text before the first stop string, without special tokens.
    pub text: String,
    /// Tokens that were written, the last of them included.
    pub tokens: usize,
    /// Whether a token or a text ended it, rather than the greatest length.
    pub stopped: bool,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Mean negative log-likelihood of target tokens, in nats.
    Loss,
    /// Share of questions whose right choice has the greatest log-probability: `acc` of lm-evaluation-harness.
    Accuracy,
    /// As [`Metric::Accuracy`], by log-probability over characters of the choice: `acc_norm` of lm-evaluation-harness.
    AccuracyNorm,
    /// Share of prompts whose answer is one of the accepted ones.
    ExactMatch,
    /// Share of prompts whose answer has one of the accepted ones in it.
    Contains,
    /// Share of prompts whose answer ends with the right number.
    NumericMatch,
}

impl From<AnswerMetric> for Metric {
    fn from(metric: AnswerMetric) -> Self {
        match metric {
            AnswerMetric::ExactMatch => Self::ExactMatch,
            AnswerMetric::Contains => Self::Contains,
            AnswerMetric::NumericMatch => Self::NumericMatch,
        }
    }
}

/// What a model makes of one row of a file.
#[derive(Debug, Clone, PartialEq)]
pub enum RowScore {
    /// A sum over its target tokens.
    Loss(RowSum),
    /// The choices of a question.
    Choice {
        /// The log-probability of each choice, in nats.
        log_probs: Vec<f64>,
        /// The most likely one, and the most likely one for its length.
        chosen: [usize; 2],
        /// The right one.
        answer: usize,
    },
    /// The answer to a prompt.
    Answer {
        /// What the model wrote.
        written: WrittenAnswer,
        /// Its last number, where numbers are compared.
        number: Option<String>,
        /// The accepted answers.
        accepted: Vec<String>,
        /// Whether it is right.
        right: bool,
    },
}

impl Metric {
    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Accuracy => "accuracy",
            Self::AccuracyNorm => "accuracy_norm",
            Self::ExactMatch => "exact_match",
            Self::Contains => "contains",
            Self::NumericMatch => "numeric_match",
        }
    }

    /// Whether a better model has a higher one.
    pub fn higher_is_better(self) -> bool {
        self != Self::Loss
    }
}

/// The scores of each row, in the order of the file.
#[derive(Debug)]
pub struct Scores {
    /// Number of rows.
    pub rows: usize,
    /// Number of tokens whose log-probability counts, or that were written.
    pub tokens: u64,
    /// Where the rows of the file are that the sums are over.
    pub locations: Vec<Location>,
    /// What the model makes of each of them.
    pub row_scores: Vec<RowScore>,
    /// What was measured, with one sum for each location.
    pub metrics: Vec<(Metric, Vec<RowSum>)>,
}

impl EvalRows {
    /// What is measured on these rows; the first of [`Scores::metrics`].
    pub fn metric(&self) -> Metric {
        match self {
            Self::Loss(_) => Metric::Loss,
            Self::Choice(_) => Metric::Accuracy,
            Self::Generate(rows) => rows.metric.into(),
        }
    }

    /// Number of rows.
    pub fn count(&self) -> usize {
        match self {
            Self::Loss(rows) => rows.len(),
            Self::Choice(rows) => rows.len(),
            Self::Generate(rows) => rows.rows.len(),
        }
    }

    /// The sequences that go through the model; none for answers that it writes.
    pub fn sequences(&self) -> Vec<&Row> {
        match self {
            Self::Loss(rows) => rows.iter().collect(),
            Self::Choice(rows) => rows.iter().flat_map(|row| &row.choices).collect(),
            Self::Generate(_) => Vec::new(),
        }
    }

    /// Tokens that may go through the model, to tell how far it is.
    pub fn tokens(&self) -> u64 {
        match self {
            Self::Generate(rows) => (rows.rows.len() * rows.max_new_tokens) as u64,
            _ => self.sequences().iter().map(|row| row.input_ids.len() as u64).sum(),
        }
    }

    /// Tokens of each sequence at most: of a prompt with its longest answer.
    pub fn lengths(&self) -> Vec<usize> {
        match self {
            Self::Generate(rows) => {
                rows.rows.iter().map(|row| row.prompt.len() + rows.max_new_tokens).collect()
            }
            _ => self.sequences().iter().map(|row| row.input_ids.len()).collect(),
        }
    }

    /// The scores of these rows; `losses` are those of [`EvalRows::sequences`].
    ///
    /// # Errors
    /// [`Error::Data`] for a choice whose log-probability is not a number.
    ///
    /// # Panics
    /// For answers that the model writes: those have [`GenerateRows::scores`].
    pub fn scores(&self, losses: &[SequenceLoss]) -> Result<Scores> {
        let tokens = losses.iter().map(|loss| loss.targets).sum();
        match self {
            Self::Loss(rows) => Ok(Scores { rows: rows.len(), tokens, ..of_loss(rows, losses) }),
            Self::Choice(rows) => Ok(Scores { rows: rows.len(), tokens, ..of_choices(rows, losses)? }),
            Self::Generate(_) => unreachable!("answers that are written have no loss"),
        }
    }
}

impl GenerateRows {
    /// The scores of these rows by what the model wrote after each prompt.
    pub fn scores(&self, written: Vec<WrittenAnswer>) -> Scores {
        let tokens = written.iter().map(|answer| answer.tokens as u64).sum();
        let score = |(row, written): (&GenerateRow, WrittenAnswer)| {
            let right = is_right(self.metric, self.ignore_case, &written.text, &row.accepted);
            let number =
                (self.metric == AnswerMetric::NumericMatch).then(|| last_number(&written.text)).flatten();
            (one_or_zero(right), RowScore::Answer { written, number, accepted: row.accepted.clone(), right })
        };
        let (sums, row_scores) = self.rows.iter().zip(written).map(score).unzip();
        let locations = self.rows.iter().map(|row| row.location.clone()).collect();
        Scores {
            rows: self.rows.len(),
            tokens,
            locations,
            row_scores,
            metrics: vec![(self.metric.into(), sums)],
        }
    }
}

fn one_or_zero(right: bool) -> RowSum {
    RowSum { sum: f64::from(u8::from(right)), count: 1.0 }
}

/// Several sequences of one row of the file are one row of the sample.
fn of_loss(rows: &[Row], losses: &[SequenceLoss]) -> Scores {
    let (mut locations, mut sums): (Vec<Location>, Vec<RowSum>) = (Vec::new(), Vec::new());
    for (row, loss) in rows.iter().zip(losses) {
        let (nats, count) = (loss.nats, loss.targets as f64);
        match sums.last_mut().filter(|_| locations.last() == Some(&row.location)) {
            Some(last) => *last = RowSum { sum: last.sum + nats, count: last.count + count },
            None => {
                locations.push(row.location.clone());
                sums.push(RowSum { sum: nats, count });
            }
        }
    }
    let row_scores = sums.iter().map(|sum| RowScore::Loss(*sum)).collect();
    Scores { rows: 0, tokens: 0, locations, row_scores, metrics: vec![(Metric::Loss, sums)] }
}

fn of_choices(rows: &[ChoiceRow], losses: &[SequenceLoss]) -> Result<Scores> {
    let (mut summed, mut normed, mut row_scores, mut rest) = (Vec::new(), Vec::new(), Vec::new(), losses);
    for row in rows {
        let (own, after) = rest.split_at(row.choices.len());
        rest = after;
        if let Some(at) = own.iter().position(|loss| loss.nats.is_nan()) {
            return Err(not_a_number(row.location(), at));
        }
        let log_probs: Vec<f64> = own.iter().map(|loss| -loss.nats).collect();
        let per_character = log_probs.iter().zip(&row.lengths).map(|(sum, length)| sum / *length as f64);
        let chosen = [first_largest(log_probs.iter().copied()), first_largest(per_character)];
        summed.push(one_or_zero(chosen[0] == row.answer));
        normed.push(one_or_zero(chosen[1] == row.answer));
        row_scores.push(RowScore::Choice { log_probs, chosen, answer: row.answer });
    }
    let locations = rows.iter().map(|row| row.location().clone()).collect();
    let metrics = vec![(Metric::Accuracy, summed), (Metric::AccuracyNorm, normed)];
    Ok(Scores { rows: 0, tokens: 0, locations, row_scores, metrics })
}

/// Index of the largest value; of equal ones that of the first, as `argmax` of NumPy.
fn first_largest(values: impl Iterator<Item = f64>) -> usize {
    let larger = |best: (usize, f64), next: (usize, f64)| if next.1 > best.1 { next } else { best };
    values.enumerate().reduce(larger).map_or(0, |(at, _)| at)
}

fn not_a_number(location: &Location, choice: usize) -> Error {
    Error::Data {
        path: location.path.to_path_buf(),
        line: Some(location.line),
        fault: format!("the log-probability of `choices[{choice}]` is not a number"),
        hint: Some(
            "look for NaN in the weights with `hft-surgery diff BASE MODEL --fail-on nonfinite`".to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn location(line: u64) -> Location {
        Location { path: Path::new("rows").into(), line }
    }

    fn question(line: u64, lengths: &[usize], answer: usize) -> ChoiceRow {
        let row = Row { input_ids: vec![0, 1], labels: vec![-100, 1], location: location(line) };
        ChoiceRow { choices: vec![row; lengths.len()], lengths: lengths.to_vec(), answer }
    }

    fn losses(nats: &[f64]) -> Vec<SequenceLoss> {
        nats.iter().map(|nats| SequenceLoss { nats: *nats, targets: 1 }).collect()
    }

    #[test]
    fn the_first_of_equal_choices_is_taken_and_lengths_divide() {
        let rows = EvalRows::Choice(vec![question(1, &[1, 4], 1), question(2, &[2, 2], 0)]);
        // Log-probabilities −2 and −4, over characters −2 and −1; then two equal ones.
        let scores = rows.scores(&losses(&[2.0, 4.0, 3.0, 3.0])).unwrap();
        let sums = |at: usize| scores.metrics[at].1.iter().map(|row| row.sum).collect::<Vec<_>>();
        assert_eq!((sums(0), sums(1)), (vec![0.0, 1.0], vec![1.0, 1.0]));
        let error = rows.scores(&losses(&[2.0, 4.0, 3.0, f64::NAN])).unwrap_err();
        assert_eq!(error.to_string(), "rows:2: the log-probability of `choices[1]` is not a number");
    }

    #[test]
    fn sequences_of_one_line_are_one_row_of_the_sample() {
        let row = |line| Row { input_ids: vec![0, 1], labels: vec![-100, 1], location: location(line) };
        let scores = EvalRows::Loss(vec![row(1), row(1), row(2)]).scores(&losses(&[1.0, 2.0, 4.0])).unwrap();
        assert_eq!((scores.rows, scores.tokens, scores.locations.len()), (3, 3, 2));
        assert_eq!(scores.metrics[0].1[0], RowSum { sum: 3.0, count: 2.0 });
    }
}
