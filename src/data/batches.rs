//! Rows become the micro-batches of each epoch.

use crate::data::batch::Batch;
use crate::data::length_groups::group_by_length;
use crate::data::packing::best_fit_decreasing;
use crate::data::row::Row;
use crate::plan::{Domain, Key};
use crate::{Error, Result};

/// The rows that come into one micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrangement {
    /// In the order of the epoch.
    Plain,
    /// Rows of about one length in a batch, as transformers groups them.
    GroupByLength {
        /// Rows of an optimizer step: a batch of transformers' sampler.
        rows_per_step: usize,
    },
    /// Several whole rows in each packed row of at most `max_length` tokens, by best-fit decreasing.
    Packed {
        /// Tokens of a packed row at most.
        max_length: usize,
    },
    /// In the order of the epoch, rows `2 i` and `2 i + 1` always one after the other: the chosen and the rejected
    /// answer of a preference.
    Pairs,
}

/// How rows become micro-batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchOptions {
    /// Rows, packed rows, or pairs, per micro-batch; the last one of an epoch may hold fewer.
    pub batch_size: usize,
    /// The rows that come into one micro-batch.
    pub arrangement: Arrangement,
    /// Whether rows are shuffled in each epoch; otherwise they keep the order of the files.
    pub shuffle: bool,
    /// Key of the order, together with the epoch.
    pub seed: u64,
}

/// All micro-batches of a training run.
///
/// Each is a function of rows, options, epoch and its number in the epoch: a run that is resumed sees the batches that
/// it would have seen.
#[derive(Debug, Clone)]
pub struct Batches {
    rows: Vec<Row>,
    /// Indexes of rows that share a packed row or are a pair.
    packed: Vec<Vec<u32>>,
    options: BatchOptions,
}

impl Batches {
    /// Arranges rows.
    ///
    /// # Errors
    /// [`Error::Usage`] when there are no rows, `batch_size` is 0, or a row is longer than a packed row.
    pub fn new(rows: Vec<Row>, options: BatchOptions) -> Result<Self> {
        if options.batch_size == 0 {
            return Err(Error::usage("a batch size of 0", "use a --batch-size of 1 or more"));
        }
        if rows.is_empty() || u32::try_from(rows.len()).is_err() {
            return Err(Error::usage(format!("{} training rows", rows.len()), ""));
        }
        let packed = match options.arrangement {
            Arrangement::Packed { max_length } => {
                let lengths: Vec<usize> = rows.iter().map(|row| row.input_ids.len()).collect();
                if let Some(length) = lengths.iter().find(|length| **length > max_length) {
                    let fault = format!("a row of {length} tokens in packed rows of {max_length}");
                    return Err(Error::usage(fault, "cut the rows to the same length when loading them"));
                }
                best_fit_decreasing(&lengths, max_length)
            }
            Arrangement::Pairs => {
                assert!(rows.len().is_multiple_of(2), "each chosen answer has a rejected one");
                (0..rows.len() as u32).step_by(2).map(|i| vec![i, i + 1]).collect()
            }
            Arrangement::Plain | Arrangement::GroupByLength { .. } => {
                (0..rows.len() as u32).map(|i| vec![i]).collect()
            }
        };
        Ok(Self { rows, packed, options })
    }

    /// The rows, in the order of the files.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Micro-batches of an epoch, the same number in each.
    pub fn per_epoch(&self) -> usize {
        self.packed.len().div_ceil(self.options.batch_size)
    }

    /// The order of one epoch.
    pub fn epoch(&self, epoch: u32) -> Epoch<'_> {
        let mut order: Vec<u32> = (0..self.packed.len() as u32).collect();
        if self.options.shuffle {
            let key = Key::new(self.options.seed, epoch, "train/data");
            let score = |i: &u32| {
                let [low, high, ..] = key.block(Domain::Shuffle, u64::from(*i));
                (u64::from(high) << 32 | u64::from(low), *i)
            };
            order.sort_by_cached_key(score);
        }
        if let Arrangement::GroupByLength { rows_per_step } = self.options.arrangement {
            let lengths: Vec<usize> = self.rows.iter().map(|row| row.input_ids.len()).collect();
            group_by_length(&mut order, &lengths, rows_per_step);
        }
        Epoch { batches: self, order }
    }
}

/// One pass over all rows.
#[derive(Debug, Clone)]
pub struct Epoch<'a> {
    batches: &'a Batches,
    order: Vec<u32>,
}

impl Epoch<'_> {
    /// Micro-batch `batch`, counted from 0; `None` from [`Batches::per_epoch`] on.
    pub fn batch(&self, batch: usize) -> Option<Batch> {
        let Batches { rows, packed, options } = self.batches;
        let start = batch.checked_mul(options.batch_size).filter(|start| *start < self.order.len())?;
        let end = start.saturating_add(options.batch_size).min(self.order.len());
        let packed = self.order[start..end].iter().flat_map(|i| &packed[*i as usize]);
        let places: Vec<u32> = packed.copied().collect();
        let batch = Batch::from_rows(places.iter().map(|row| &rows[*row as usize]));
        Some(Batch { rows: places, ..batch })
    }
}

#[cfg(test)]
#[path = "batches_tests.rs"]
mod tests;
