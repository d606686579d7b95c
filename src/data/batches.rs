//! Rows become micro-batches, epoch after epoch, from any point on.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::data::batch::Batch;
use crate::data::packing::best_fit_decreasing;
use crate::data::row::Row;
use crate::plan::{Domain, Key};
use crate::{Error, Result};

/// Micro-batches that are drawn together before they are sorted by length, as in transformers.
const LENGTH_GROUP: usize = 50;

/// How rows come together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrangement {
    /// In the order of the epoch.
    Plain,
    /// Rows of about one length in a batch: of each 50 batches the longest first.
    GroupByLength,
    /// Several whole rows in each packed row of at most `max_length` tokens, by best-fit decreasing.
    Packed {
        /// Tokens of a packed row at most.
        max_length: usize,
    },
}

/// How batches are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchOptions {
    /// Rows, or packed rows, per micro-batch; the last one of an epoch may hold fewer.
    pub batch_size: usize,
    /// How rows come together.
    pub arrangement: Arrangement,
    /// Whether each epoch has an order of its own; otherwise all have the order of the files.
    pub shuffle: bool,
    /// Key of the order, together with the epoch.
    pub seed: u64,
}

/// A place between two micro-batches: before batch `batch` of `epoch`, both from 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The epoch.
    pub epoch: u32,
    /// The micro-batch that comes next.
    pub batch: usize,
}

/// All micro-batches of a training run.
///
/// The batch at a [`Cursor`] is a function of rows, options and cursor: a run that goes on from a cursor
/// sees the batches that it would have seen.
#[derive(Debug, Clone)]
pub struct Batches {
    rows: Vec<Row>,
    /// Indexes of rows that share a packed row.
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
            _ => (0..rows.len() as u32).map(|i| vec![i]).collect(),
        };
        Ok(Self { rows, packed, options })
    }

    /// The rows, in the order of the files.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Rows, or packed rows, of an epoch.
    pub fn packed_rows(&self) -> usize {
        self.packed.len()
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
        if self.options.arrangement == Arrangement::GroupByLength {
            let group = self.options.batch_size.saturating_mul(LENGTH_GROUP);
            order.chunks_mut(group).for_each(|chunk| {
                chunk.sort_by_key(|i| std::cmp::Reverse(self.rows[*i as usize].input_ids.len()));
            });
        }
        Epoch { batches: self, order }
    }

    /// The batches from a cursor on, epoch after epoch without end; each with the cursor behind it.
    ///
    /// # Errors
    /// [`Error::Usage`] when an epoch has fewer batches than the cursor says.
    pub fn resume(&self, cursor: Cursor) -> Result<Feed<'_>> {
        if cursor.batch > self.per_epoch() {
            let fault = format!("batch {} of an epoch of {} batches", cursor.batch, self.per_epoch());
            return Err(Error::usage(fault, "resume with the data and options that the run began with"));
        }
        Ok(Feed { epoch: self.epoch(cursor.epoch), cursor })
    }
}

/// One pass over all rows.
#[derive(Debug, Clone)]
pub struct Epoch<'a> {
    batches: &'a Batches,
    order: Vec<u32>,
}

impl<'a> Epoch<'a> {
    /// Micro-batch `batch`, counted from 0; `None` from [`Batches::per_epoch`] on.
    pub fn batch(&self, batch: usize) -> Option<Batch> {
        self.range(batch).map(|range| Batch::from_rows(self.rows_of(range)))
    }

    /// The rows of micro-batch `batch`, as [`Epoch::batch`] joins them.
    pub fn rows(&self, batch: usize) -> Option<Vec<&'a Row>> {
        self.range(batch).map(|range| self.rows_of(range).collect())
    }

    fn range(&self, batch: usize) -> Option<Range<usize>> {
        let size = self.batches.options.batch_size;
        let start = batch.checked_mul(size).filter(|start| *start < self.order.len())?;
        Some(start..start.saturating_add(size).min(self.order.len()))
    }

    fn rows_of(&self, range: Range<usize>) -> impl Iterator<Item = &'a Row> + '_ {
        let batches = self.batches;
        self.order[range].iter().flat_map(move |i| {
            batches.packed[*i as usize].iter().map(move |row| &batches.rows[*row as usize])
        })
    }
}

/// Batches without end, from a cursor on.
#[derive(Debug, Clone)]
pub struct Feed<'a> {
    epoch: Epoch<'a>,
    cursor: Cursor,
}

impl Feed<'_> {
    /// Before the batch that comes next.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }
}

impl Iterator for Feed<'_> {
    /// A batch, and the cursor to go on from behind it.
    type Item = (Batch, Cursor);

    fn next(&mut self) -> Option<Self::Item> {
        let batch = match self.epoch.batch(self.cursor.batch) {
            Some(batch) => batch,
            None => {
                self.cursor = Cursor { epoch: self.cursor.epoch.checked_add(1)?, batch: 0 };
                self.epoch = self.epoch.batches.epoch(self.cursor.epoch);
                self.epoch.batch(0)?
            }
        };
        self.cursor.batch += 1;
        Some((batch, self.cursor))
    }
}

#[cfg(test)]
#[path = "batches_tests.rs"]
mod tests;
