//! What a model scores on the rows of a file.

use super::estimate::RowSum;
use super::loss::SequenceLoss;
use crate::data::{ChoiceRow, Location, Row};
use crate::{Error, Result};

/// Tokenized rows of a file.
#[derive(Debug, PartialEq, Eq)]
pub enum EvalRows {
    /// Their targets have a loss.
    Loss(Vec<Row>),
    /// The most likely choice is right or wrong.
    Choice(Vec<ChoiceRow>),
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
}

impl Metric {
    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Accuracy => "accuracy",
            Self::AccuracyNorm => "accuracy_norm",
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
    /// Number of tokens whose log-probability counts.
    pub tokens: u64,
    /// Where the rows of the file are that the sums are over.
    pub locations: Vec<Location>,
    /// What was measured, with one sum for each location.
    pub metrics: Vec<(Metric, Vec<RowSum>)>,
}

impl EvalRows {
    /// What is measured on these rows; the first of [`Scores::metrics`].
    pub fn metric(&self) -> Metric {
        match self {
            Self::Loss(_) => Metric::Loss,
            Self::Choice(_) => Metric::Accuracy,
        }
    }

    /// The sequences that go through the model.
    pub fn sequences(&self) -> Vec<&Row> {
        match self {
            Self::Loss(rows) => rows.iter().collect(),
            Self::Choice(rows) => rows.iter().flat_map(|row| &row.choices).collect(),
        }
    }

    /// The scores of these rows; `losses` are those of [`EvalRows::sequences`].
    ///
    /// # Errors
    /// [`Error::Data`] for a choice whose log-probability is not a number.
    pub fn scores(&self, losses: &[SequenceLoss]) -> Result<Scores> {
        let tokens = losses.iter().map(|loss| loss.targets).sum();
        match self {
            Self::Loss(rows) => Ok(Scores { rows: rows.len(), tokens, ..of_loss(rows, losses) }),
            Self::Choice(rows) => Ok(Scores { rows: rows.len(), tokens, ..of_choices(rows, losses)? }),
        }
    }
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
    Scores { rows: 0, tokens: 0, locations, metrics: vec![(Metric::Loss, sums)] }
}

fn of_choices(rows: &[ChoiceRow], losses: &[SequenceLoss]) -> Result<Scores> {
    let (mut summed, mut normed, mut rest) = (Vec::new(), Vec::new(), losses);
    let right = |right: bool| RowSum { sum: f64::from(u8::from(right)), count: 1.0 };
    for row in rows {
        let (own, after) = rest.split_at(row.choices.len());
        rest = after;
        if let Some(at) = own.iter().position(|loss| loss.nats.is_nan()) {
            return Err(not_a_number(row.location(), at));
        }
        let log_probs = own.iter().map(|loss| -loss.nats);
        summed.push(right(first_largest(log_probs.clone()) == row.answer));
        let per_character = log_probs.zip(&row.lengths).map(|(sum, length)| sum / *length as f64);
        normed.push(right(first_largest(per_character) == row.answer));
    }
    let locations = rows.iter().map(|row| row.location().clone()).collect();
    let metrics = vec![(Metric::Accuracy, summed), (Metric::AccuracyNorm, normed)];
    Ok(Scores { rows: 0, tokens: 0, locations, metrics })
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
