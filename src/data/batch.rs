//! A micro-batch: sequences one after the other, without padding.

use crate::data::row::{IGNORED, Row};

/// Sequences concatenated without padding, as variable-length attention takes them.
///
/// Sequence `s` is `cu_seqlens[s]..cu_seqlens[s + 1]` of `input_ids` and `labels`; positions begin at 0
/// in each, and none attends to another. Labels are not shifted; the first label of every sequence is
/// [`IGNORED`], so shifting the whole of `labels` by one never crosses sequences.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids of all sequences.
    pub input_ids: Vec<u32>,
    /// Labels of all sequences, not shifted.
    pub labels: Vec<i32>,
    /// The start of every sequence and the end of the last, as in FlashAttention: 0 first, one entry more than sequences.
    pub cu_seqlens: Vec<u32>,
    /// The place of each sequence's row among the rows of its dataset, where that matters.
    pub rows: Vec<u32>,
}

impl Batch {
    /// Rows in their order, `size` at a time.
    pub fn in_order<'a>(rows: impl IntoIterator<Item = &'a Row>, size: usize) -> Vec<Self> {
        let rows: Vec<&Row> = rows.into_iter().collect();
        rows.chunks(size.max(1)).map(|rows| Self::from_rows(rows.iter().copied())).collect()
    }

    /// Joins rows.
    pub fn from_rows<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Self {
        let mut batch = Self { cu_seqlens: vec![0], ..Self::default() };
        for row in rows {
            let start = batch.labels.len();
            batch.input_ids.extend_from_slice(&row.input_ids);
            batch.labels.extend_from_slice(&row.labels);
            if let Some(first) = batch.labels.get_mut(start) {
                *first = IGNORED;
            }
            batch.cu_seqlens.push(batch.labels.len() as u32);
        }
        batch
    }

    /// Length of the longest sequence.
    pub fn max_seqlen(&self) -> usize {
        self.cu_seqlens.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0)
    }
}
