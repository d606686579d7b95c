//! A tensor whose rows are the tokens of the result's vocabulary: each row is read where a model stores that token's row.
//!
//! Nothing is permuted in memory. Rows that follow each other in the file are one read.

use std::ops::Range;
use std::sync::OnceLock;

use crate::Result;
use crate::checkpoint::Dtype;
use crate::merge::tiles::stored::{StoredTensor, encode};

/// A row of the tensor of one model, its donor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DonorRow {
    /// Index of the model among the inputs.
    pub(crate) donor: usize,
    pub(crate) row: u64,
}

/// Where a row comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowOrigin {
    Donor(DonorRow),
    /// Zeros.
    Zero,
    /// The mean of rows of donors: index of a list of them.
    Mean(usize),
    /// The mean of the rows of all tokens.
    Padding,
}

/// Rows from `first` up to the next run. In a run of a donor's rows, one follows the other.
#[derive(Debug, Clone, Copy)]
struct Run {
    first: u64,
    origin: RowOrigin,
}

/// The rows of one input, in the order of the vocabulary of the result.
#[derive(Debug)]
pub(crate) struct Rows<'a> {
    /// In order; the first begins at row 0.
    runs: Vec<Run>,
    count: u64,
    /// Elements of a row.
    width: u64,
    /// The tensor of every model, as stored.
    donors: Vec<StoredTensor<'a>>,
    /// For each mean, the donors and their rows.
    means: Vec<Vec<DonorRow>>,
    /// Rows of tokens, which come before padding.
    tokens: u64,
    padding: OnceLock<Vec<f32>>,
}

impl<'a> Rows<'a> {
    /// No rows yet; `width` elements each.
    pub(crate) fn new(donors: Vec<StoredTensor<'a>>, width: u64) -> Self {
        let (runs, means, padding) = (Vec::new(), Vec::new(), OnceLock::new());
        Self { runs, count: 0, width, donors, means, tokens: 0, padding }
    }

    /// Adds the row of the next token.
    pub(crate) fn push(&mut self, origin: RowOrigin) {
        let follows = match (self.runs.last(), origin) {
            (Some(Run { first, origin: RowOrigin::Donor(start) }), RowOrigin::Donor(next)) => {
                start.donor == next.donor && start.row + (self.count - first) == next.row
            }
            (Some(run), RowOrigin::Zero | RowOrigin::Padding) => run.origin == origin,
            _ => false,
        };
        if !follows {
            self.runs.push(Run { first: self.count, origin });
        }
        self.count += 1;
        if origin != RowOrigin::Padding {
            self.tokens = self.count;
        }
    }

    /// Adds the row of the next token, the mean of these rows of donors.
    pub(crate) fn push_mean(&mut self, rows: Vec<DonorRow>) {
        self.means.push(rows);
        self.push(RowOrigin::Mean(self.means.len() - 1));
    }

    /// Whether these are all rows of a donor, in the order of its file.
    pub(crate) fn is_plain(&self, donor: usize) -> bool {
        let whole = self.donors[donor].rows() == self.count;
        let stored = |run: &Run| run.origin == RowOrigin::Donor(DonorRow { donor, row: 0 });
        whole && self.runs.len() <= 1 && self.runs.first().is_none_or(stored)
    }

    /// Number of rows.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Number of elements.
    pub(crate) fn elements(&self) -> u64 {
        self.count * self.width
    }

    /// How many rows are those of donor `own`, of other donors, means, zeros, and padding.
    pub(crate) fn count_by_origin(&self, own: usize) -> [u64; 5] {
        let mut counts = [0; 5];
        for (i, run) in self.runs.iter().enumerate() {
            let at = match run.origin {
                RowOrigin::Donor(DonorRow { donor, .. }) if donor == own => 0,
                RowOrigin::Donor(_) => 1,
                RowOrigin::Mean(_) => 2,
                RowOrigin::Zero => 3,
                RowOrigin::Padding => 4,
            };
            counts[at] += self.runs.get(i + 1).map_or(self.count, |next| next.first) - run.first;
        }
        counts
    }

    /// The parts of the elements `range` that lie in one run each.
    fn pieces(&self, range: Range<u64>) -> impl Iterator<Item = (Run, Range<u64>)> {
        let mut i = self.runs.partition_point(|run| run.first * self.width <= range.start).saturating_sub(1);
        let mut at = range.start;
        std::iter::from_fn(move || {
            let run = *self.runs.get(i).filter(|_| at < range.end)?;
            let next = self.runs.get(i + 1).map_or(self.count, |next| next.first);
            let piece = at..range.end.min(next * self.width);
            (at, i) = (piece.end, i + 1);
            Some((run, piece))
        })
    }

    /// The elements `range` as `f32`, into `out`, which is resized.
    pub(crate) fn decode(&self, range: Range<u64>, bytes: &mut Vec<u8>, out: &mut Vec<f32>) -> Result<()> {
        out.resize((range.end - range.start) as usize, 0.0);
        for (run, piece) in self.pieces(range.clone()) {
            let slot = (piece.start - range.start) as usize..(piece.end - range.start) as usize;
            self.fill(run, piece, bytes, &mut out[slot])?;
        }
        Ok(())
    }

    /// The elements `range` in a type, into `out`, which is cleared: bytes as they are where the types agree.
    pub(crate) fn encoded(&self, range: Range<u64>, dtype: &Dtype, out: &mut Vec<u8>) -> Result<()> {
        let (mut bytes, mut values, mut part) = (Vec::new(), Vec::new(), Vec::new());
        out.clear();
        for (run, piece) in self.pieces(range) {
            if let RowOrigin::Donor(DonorRow { donor, row }) = run.origin
                && self.donors[donor].info.dtype == *dtype
            {
                let donor = &self.donors[donor];
                out.extend_from_slice(donor.bytes(self.stored(run.first, row, &piece), &mut bytes)?);
                continue;
            }
            values.resize((piece.end - piece.start) as usize, 0.0);
            self.fill(run, piece, &mut bytes, &mut values)?;
            encode(dtype, &values, &mut part);
            out.extend_from_slice(&part);
        }
        Ok(())
    }

    /// The elements of a donor that a part of a run is.
    fn stored(&self, first: u64, row: u64, piece: &Range<u64>) -> Range<u64> {
        let at = |element: u64| element - first * self.width + row * self.width;
        at(piece.start)..at(piece.end)
    }

    fn fill(&self, run: Run, piece: Range<u64>, bytes: &mut Vec<u8>, out: &mut [f32]) -> Result<()> {
        match run.origin {
            RowOrigin::Donor(DonorRow { donor, row }) => {
                self.donors[donor].decode(self.stored(run.first, row, &piece), bytes, out)
            }
            RowOrigin::Zero => {
                out.fill(0.0);
                Ok(())
            }
            RowOrigin::Mean(list) => {
                let list = &self.means[list];
                let mut one = vec![0.0; out.len()];
                out.fill(0.0);
                for DonorRow { donor, row } in list {
                    let donor = &self.donors[*donor];
                    donor.decode(self.stored(run.first, *row, &piece), bytes, &mut one)?;
                    out.iter_mut().zip(&one).for_each(|(sum, x)| *sum += x);
                }
                out.iter_mut().for_each(|sum| *sum /= list.len() as f32);
                Ok(())
            }
            RowOrigin::Padding => {
                let mean = self.padding(bytes)?;
                let width = usize::try_from(self.width).unwrap_or(usize::MAX);
                let start = (piece.start % self.width) as usize;
                out.iter_mut().enumerate().for_each(|(i, x)| *x = mean[(start + i) % width]);
                Ok(())
            }
        }
    }

    /// The mean of the rows of all tokens, computed once.
    fn padding(&self, bytes: &mut Vec<u8>) -> Result<&[f32]> {
        if let Some(mean) = self.padding.get() {
            return Ok(mean);
        }
        let mut sums = vec![0.0f64; usize::try_from(self.width).unwrap_or(usize::MAX)];
        let mut row = Vec::new();
        for at in 0..self.tokens {
            self.decode(at * self.width..(at + 1) * self.width, bytes, &mut row)?;
            sums.iter_mut().zip(&row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        let mean = sums.iter().map(|sum| (sum / self.tokens.max(1) as f64) as f32).collect();
        Ok(self.padding.get_or_init(|| mean))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::checkpoint::{Access, Checkpoint, Known};

    fn embedding(checkpoint: &Checkpoint) -> StoredTensor<'_> {
        let tensor = checkpoint.find("model.embed_tokens.weight").unwrap();
        StoredTensor { shard: &checkpoint.shards()[tensor.shard], info: tensor.info }
    }

    /// Rows of both fixtures in another order, a mean, zeros and padding: any range of elements, whole rows or not, is
    /// that part of the whole, and the whole is what the definition says.
    #[test]
    fn any_range_is_part_of_the_whole() {
        let open = |name: &str| {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/merge/union").join(name);
            Checkpoint::open(&root, Access::Map).unwrap()
        };
        let (base, b) = (open("base"), open("b"));
        let donors = vec![embedding(&base), embedding(&b)];
        let mut rows = Rows::new(donors.clone(), 8);
        let (of, zero) = (|donor, row| RowOrigin::Donor(DonorRow { donor, row }), RowOrigin::Zero);
        for origin in [of(0, 3), of(0, 4), of(1, 5), zero, zero, of(1, 6), of(1, 7), of(0, 0)] {
            rows.push(origin);
        }
        rows.push_mean(vec![DonorRow { donor: 0, row: 1 }, DonorRow { donor: 1, row: 2 }]);
        rows.push(RowOrigin::Padding);
        rows.push(RowOrigin::Padding);
        assert_eq!((rows.count(), rows.elements()), (11, 88));
        assert_eq!(rows.count_by_origin(0), [3, 3, 1, 2, 2]);
        assert_eq!(rows.count_by_origin(1), [3, 3, 1, 2, 2]);

        let (mut bytes, mut whole) = (Vec::new(), Vec::new());
        rows.decode(0..88, &mut bytes, &mut whole).unwrap();
        let row = |donor: usize, row: u64| {
            let mut values = vec![0.0; 8];
            donors[donor].decode(row * 8..row * 8 + 8, &mut Vec::new(), &mut values).unwrap();
            values
        };
        let mean: Vec<f32> = row(0, 1).iter().zip(row(1, 2)).map(|(a, b)| (a + b) / 2.0).collect();
        let zero = vec![0.0; 8];
        let tokens =
            [row(0, 3), row(0, 4), row(1, 5), zero.clone(), zero, row(1, 6), row(1, 7), row(0, 0), mean];
        let pad: Vec<f32> =
            (0..8).map(|i| (tokens.iter().map(|r| f64::from(r[i])).sum::<f64>() / 9.0) as f32).collect();
        assert_eq!(whole, [tokens.concat(), pad.clone(), pad].concat());

        let (mut part, mut encoded, mut expected) = (Vec::new(), Vec::new(), Vec::new());
        for (start, end) in (0..88).flat_map(|start| (start..=88).map(move |end| (start, end))) {
            rows.decode(start..end, &mut bytes, &mut part).unwrap();
            assert_eq!(part, whole[start as usize..end as usize], "{start}..{end}");
            for dtype in [Known::F32, Known::BF16].map(Dtype::Known) {
                rows.encoded(start..end, &dtype, &mut encoded).unwrap();
                encode(&dtype, &part, &mut expected);
                assert_eq!(encoded, expected, "{start}..{end}");
            }
        }
    }

    #[test]
    fn the_rows_of_a_tensor_in_its_own_order_are_plain() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/merge/union/base");
        let base = Checkpoint::open(&root, Access::Map).unwrap();
        for n in [8, 9] {
            let mut rows = Rows::new(vec![embedding(&base)], 8);
            (0..n).for_each(|row| rows.push(RowOrigin::Donor(DonorRow { donor: 0, row })));
            assert_eq!(rows.is_plain(0), n == 9);
        }
    }
}
