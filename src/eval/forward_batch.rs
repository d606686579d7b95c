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
}

impl<'a> ForwardBatch<'a> {
    /// Divides `batch` between sequences, into pieces of at most `most` tokens or of one sequence.
    pub fn split(batch: &'a Batch, most: usize) -> Vec<Self> {
        let ends = &batch.cu_seqlens;
        let mut pieces = Vec::new();
        let mut first = 0;
        while first + 1 < ends.len() {
            let start = ends[first];
            let fits = |end: &u32| (end - start) as usize <= most;
            let more = ends[first + 1..].iter().take_while(|end| fits(end)).count().max(1);
            let offsets: Vec<u32> = ends[first..=first + more].iter().map(|end| end - start).collect();
            let range = start as usize..ends[first + more] as usize;
            let (target_rows, target_ids) = next_token_targets(&batch.labels[range.clone()], &offsets);
            pieces.push(Self { ids: &batch.input_ids[range], offsets, target_rows, target_ids });
            first += more;
        }
        pieces
    }

    /// How the tokens divide into sequences.
    pub fn sequences(&self) -> Sequences<'_> {
        Sequences { offsets: &self.offsets }
    }

    /// The rows that predict a target, with their targets.
    pub fn targets(&self) -> Targets<'_> {
        Targets { rows: &self.target_rows, ids: &self.target_ids }
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
        let batch = Batch { input_ids: ids, labels, cu_seqlens: offsets };
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
}
