//! Rows become the stages of a training run.

use super::training_args::DataArgs;
use crate::Result;
use crate::data::{Batch, BatchOptions, Batches, Dataset, Row};
use crate::model::Capacity;
use crate::train::Stage;

/// A stage with what it borrows.
pub(super) struct Arranged {
    batches: Batches,
    eval: Vec<Batch>,
    eval_rows: Vec<Row>,
    capacity: Capacity,
}

/// How rows are arranged.
pub(super) struct Arranging<'a> {
    pub(super) rows: &'a DataArgs,
    pub(super) batches: BatchOptions,
    /// Whether rows are a chosen and a rejected answer by turns.
    pub(super) pairs: bool,
    pub(super) tokens_at_once: usize,
}

impl Arranged {
    pub(super) fn stage(&self) -> Stage<'_> {
        let Self { batches, eval, eval_rows, capacity } = self;
        Stage { batches, eval, eval_rows, capacity: *capacity, reference: &[], eval_reference: &[] }
    }
}

impl Arranging<'_> {
    /// One stage for each of `datasets`, with the rows of `eval` measured in each.
    ///
    /// # Errors
    /// As [`Batches::new`].
    pub(super) fn arrange(&self, datasets: Vec<Dataset>, eval: Option<Dataset>) -> Result<Vec<Arranged>> {
        let eval_rows = eval.map_or_else(Vec::new, |eval| eval.rows);
        let eval = match self.pairs {
            false => Batch::in_order(&eval_rows, self.rows.batch_size),
            true if eval_rows.is_empty() => Vec::new(),
            true => {
                let rows = (0..eval_rows.len() as u32).collect();
                vec![Batch { rows, ..Batch::from_rows(&eval_rows) }]
            }
        };
        let arrange = |dataset: Dataset| {
            let longest = longest(&dataset.rows).max(longest(&eval_rows));
            let most_together = self.most_together(&dataset.rows).max(self.most_together(&eval_rows));
            let batches = Batches::new(dataset.rows, self.batches)?;
            let row = if self.rows.packing { self.rows.max_length.max(longest) } else { most_together };
            let most = self.rows.batch_size.saturating_mul(row);
            Ok(Arranged {
                batches,
                eval: eval.clone(),
                eval_rows: if self.pairs { eval_rows.clone() } else { Vec::new() },
                capacity: Capacity {
                    tokens: most_together.max(self.tokens_at_once.min(most)),
                    positions: longest,
                },
            })
        };
        datasets.into_iter().map(arrange).collect()
    }

    /// The most tokens of a row, or of the two answers of a pair, which go through the model together.
    fn most_together(&self, rows: &[Row]) -> usize {
        let together = rows.chunks(if self.pairs { 2 } else { 1 });
        together.map(|rows| rows.iter().map(|row| row.input_ids.len()).sum()).max().unwrap_or(0)
    }
}

fn longest(rows: &[Row]) -> usize {
    rows.iter().map(|row| row.input_ids.len()).max().unwrap_or(0)
}
