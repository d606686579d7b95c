//! Batches divided into what a device computes at once.

use crate::backend::{Sequences, Targets};
use crate::data::Batch;

/// Whole sequences of a batch that go through the model together.
#[derive(Debug)]
pub struct ForwardBatch<'a> {
    /// Token ids of the sequences, end to end.
    pub ids: &'a [u32],
    /// Sequence `i` is tokens `offsets[i]..offsets[i + 1]`.
    pub offsets: Vec<u32>,
    /// Rows of the last hidden state that predict a target.
    pub target_rows: Vec<u32>,
    /// The target of each of these rows.
    pub target_ids: Vec<u32>,
    /// The sequences, as positions in their batch.
    pub range: std::ops::Range<usize>,
    /// As [`Targets::label_smoothing`]; 0 unless it is set.
    pub label_smoothing: f32,
}

impl<'a> ForwardBatch<'a> {
    /// Divides `batch` between sequences, into pieces of at most `most` tokens or of one sequence.
    pub fn split(batch: &'a Batch, most: usize) -> Vec<Self> {
        Self::split_groups(batch, most, 1)
    }

    /// As [`ForwardBatch::split`], with each group of `size` consecutive sequences in one piece, however long it is.
    ///
    /// # Panics
    /// When the sequences are no whole number of groups.
    pub fn split_groups(batch: &'a Batch, most: usize, size: usize) -> Vec<Self> {
        assert!(batch.cu_seqlens.len() % size == 1 % size, "the sequences are whole groups");
        let ends = &batch.cu_seqlens;
        let mut pieces = Vec::new();
        let mut first = 0;
        while first + 1 < ends.len() {
            let start = ends[first];
            let fits = |end: &u32| (end - start) as usize <= most;
            let groups = ends[first + size..].iter().step_by(size).take_while(|end| fits(end)).count();
            let more = groups.max(1) * size;
            let offsets: Vec<u32> = ends[first..=first + more].iter().map(|end| end - start).collect();
            let range = start as usize..ends[first + more] as usize;
            let (target_rows, target_ids) = next_token_targets(&batch.labels[range.clone()], &offsets);
            let ids = &batch.input_ids[range];
            let range = first..first + more;
            pieces.push(Self { ids, offsets, target_rows, target_ids, range, label_smoothing: 0.0 });
            first += more;
        }
        pieces
    }

    /// Of pairs, makes every token but the first of each chosen sequence a target, the prompt's too.
    pub fn predict_whole_chosen(&mut self) {
        let mut rows = Vec::with_capacity(self.ids.len());
        for (i, range) in self.sequences().ranges().enumerate() {
            let range = range.start as u32..range.end as u32;
            if i % 2 == 0 {
                rows.extend(range.start..range.end.max(range.start + 1) - 1);
            } else {
                rows.extend(self.target_rows.iter().filter(|row| range.contains(*row)));
            }
        }
        self.target_ids = rows.iter().map(|row| self.ids[*row as usize + 1]).collect();
        self.target_rows = rows;
    }

    /// How the tokens divide into sequences.
    pub fn sequences(&self) -> Sequences<'_> {
        Sequences { offsets: &self.offsets }
    }

    /// The sum of `values`, one for each target, over the targets of each sequence.
    pub fn sums(&self, values: &[f32]) -> Vec<f64> {
        let mut pairs = self.target_rows.iter().zip(values).peekable();
        let mut sum = |range: std::ops::Range<usize>| {
            let mut sum = 0.0;
            while let Some((_, value)) = pairs.next_if(|(row, _)| (**row as usize) < range.end) {
                sum += f64::from(*value);
            }
            sum
        };
        self.sequences().ranges().map(&mut sum).collect()
    }

    /// The rows that predict a target, with their targets.
    pub fn targets(&self) -> Targets<'_> {
        let Self { target_rows, target_ids, label_smoothing, .. } = self;
        Targets { rows: target_rows, ids: target_ids, label_smoothing: *label_smoothing }
    }
}

/// Rows that predict a target, and the targets: token `t` predicts the label of `t + 1` in its sequence. Negative
/// labels are ignored.
pub fn next_token_targets(labels: &[i32], offsets: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let sequences = Sequences { offsets };
    let pairs = sequences.ranges().flat_map(|range| {
        let last = range.end.max(range.start + 1) - 1;
        (range.start..last).filter_map(|t| Some((t as u32, u32::try_from(labels[t + 1]).ok()?)))
    });
    pairs.unzip()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forward_batches_are_whole_sequences_and_keep_every_target() {
        let lengths = [300usize, 200, 13, 600, 1, 511, 2];
        let offsets: Vec<u32> = std::iter::once(0)
            .chain(lengths.iter().scan(0, |end, n| {
                *end += *n as u32;
                Some(*end)
            }))
            .collect();
        let ids: Vec<u32> = (0..lengths.iter().sum::<usize>() as u32).collect();
        let labels: Vec<i32> =
            ids.iter().map(|id| if id % 3 == 0 { -100 } else { id.cast_signed() }).collect();
        let batch = Batch { input_ids: ids, labels, cu_seqlens: offsets, rows: Vec::new() };
        let parts = ForwardBatch::split(&batch, 512);
        let sizes: Vec<usize> = parts.iter().map(|part| part.ids.len()).collect();
        assert_eq!(sizes, [500, 13, 600, 512, 2]);
        let joined: Vec<u32> = parts.iter().flat_map(|part| part.target_ids.clone()).collect();
        assert_eq!(joined, next_token_targets(&batch.labels, &batch.cu_seqlens).1);
        for part in &parts {
            let predicted = part.target_rows.iter().zip(&part.target_ids);
            assert!(predicted.into_iter().all(|(row, id)| part.ids[*row as usize + 1] == *id));
        }
    }

    #[test]
    fn groups_stay_together() {
        let lengths = [3u32, 4, 9, 2, 1, 1];
        let mut batch = Batch { cu_seqlens: vec![0], ..Batch::default() };
        for length in lengths {
            batch.input_ids.extend(0..length);
            batch.labels.extend(vec![1; length as usize]);
            batch.cu_seqlens.push(batch.input_ids.len() as u32);
        }
        let ranges = |most| -> Vec<_> {
            ForwardBatch::split_groups(&batch, most, 2).into_iter().map(|piece| piece.range).collect()
        };
        assert_eq!(ranges(1), [0..2, 2..4, 4..6]);
        assert_eq!(ranges(13), [0..2, 2..6]);
        assert_eq!(ranges(20).len(), 1);
        let mut pieces = ForwardBatch::split_groups(&batch, 13, 2);
        assert_eq!(pieces[1].offsets, [0, 9, 11, 12, 13]);
        // Nothing predicts the only token of a sequence.
        pieces[1].predict_whole_chosen();
        assert_eq!(pieces[1].target_rows, [0, 1, 2, 3, 4, 5, 6, 7, 9]);
        assert_eq!(pieces[1].target_ids, [1, 2, 3, 4, 5, 6, 7, 8, 1]);
    }
}
