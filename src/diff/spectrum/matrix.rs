//! A matrix of the change, or of the weights, read in panels.

use std::ops::Range;

use crate::checkpoint::{Checkpoint, Dtype, Known, Tensor};
use crate::diff::pair::{PairSide, common_elements};
use crate::diff::real::{AsF64, Decode};
use crate::{Error, Result};

/// One side and its decoder.
#[derive(Clone)]
struct Side<'a> {
    of: PairSide<'a>,
    decoder: AsF64,
}

/// τ = tuned − base, or the weights of tuned, as m rows of n columns.
#[derive(Clone)]
pub(crate) struct Matrix<'a> {
    /// The name of its tensor; `name[i]` for the i-th matrix of a tensor of three dimensions.
    pub(crate) name: String,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Its first element in the tensor.
    start: u64,
    base: Option<Side<'a>>,
    tuned: Side<'a>,
}

/// The name of the tensor of a matrix.
pub(crate) fn tensor_of(matrix: &str) -> &str {
    let stacked = matrix.strip_suffix(']').and_then(|name| name.rsplit_once('['));
    stacked.map_or(matrix, |(tensor, _)| tensor)
}

/// What one pass over a matrix tells.
#[derive(Debug, Clone, Default)]
pub(crate) struct Survey {
    /// Elements that are not finite.
    pub(crate) nonfinite: u64,
    /// Elements that are not zero.
    pub(crate) nonzero: u64,
    /// Σ x².
    pub(crate) squares: f64,
    /// The expected Σ of squared errors of rounding the elements that are not zero to the type of tuned: Σ ulp²/12. 0 for
    /// types of more than 16 bits.
    pub(crate) rounding: f64,
    /// Rows that have an element other than zero.
    pub(crate) live_rows: usize,
    /// Columns that have one.
    pub(crate) live_columns: Vec<bool>,
}

/// The matrices of a pair of tensors; none where they have no two dimensions of rows and columns.
///
/// # Errors
/// [`Error::Pairing`] for shapes whose rows differ and for types that are no real numbers.
pub(crate) fn matrices<'a>(
    base: Option<(&'a Checkpoint, Tensor<'a>)>,
    tuned: (&'a Checkpoint, Tensor<'a>),
) -> Result<Vec<Matrix<'a>>> {
    let name = &tuned.1.info.name;
    let shape = &tuned.1.info.shape;
    let common = match &base {
        Some((_, tensor)) => common_elements(&tensor.info.shape, shape),
        None => Some(tuned.1.info.elements()),
    };
    let Some(common) = common else {
        let of_base = base.map(|(_, tensor)| format!("{:?}", tensor.info.shape)).unwrap_or_default();
        return Err(fault(name, format!("shapes differ: {of_base} in a, {shape:?} in b")));
    };
    let (stacked, rows, columns) = match shape.as_slice() {
        [_, columns] if *columns > 0 => (false, common / columns, *columns),
        [_, rows, columns] => (true, *rows, *columns),
        _ => return Ok(Vec::new()),
    };
    if common == 0 || rows < 2 || columns < 2 {
        return Ok(Vec::new());
    }
    let side = |(checkpoint, tensor): (&'a Checkpoint, Tensor<'a>)| {
        let decoder = AsF64::of(&tensor.info.dtype).ok_or_else(|| {
            fault(name, format!("got {}, expected a type of real numbers", tensor.info.dtype))
        })?;
        Ok::<_, Error>(Side { of: PairSide::of(checkpoint, tensor), decoder })
    };
    let (base, tuned) = (base.map(side).transpose()?, side(tuned)?);
    let matrix = |i: u64| Matrix {
        name: if stacked { format!("{name}[{i}]") } else { name.clone() },
        rows: rows as usize,
        columns: columns as usize,
        start: i * rows * columns,
        base: base.clone(),
        tuned: tuned.clone(),
    };
    Ok((0..common / (rows * columns)).map(matrix).collect())
}

fn fault(name: &str, fault: String) -> Error {
    Error::Pairing { tensor: Some(name.to_owned()), fault, hint: None }
}

/// Buffers of one thread.
#[derive(Default)]
pub(crate) struct Buffers {
    bytes: Vec<u8>,
    base: Vec<f64>,
    /// The panel, row-major.
    pub(crate) panel: Vec<f64>,
}

impl Matrix<'_> {
    /// Bytes of all sides.
    pub(crate) fn bytes(&self) -> u64 {
        let elements = (self.rows * self.columns) as u64;
        [Some(&self.tuned), self.base.as_ref()]
            .into_iter()
            .flatten()
            .map(|s| elements * s.decoder.width() as u64)
            .sum()
    }

    /// Reads a block of rows and columns into `buffers.panel`.
    pub(crate) fn read(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        buffers: &mut Buffers,
    ) -> Result<()> {
        let Buffers { bytes, base, panel } = buffers;
        let elements = rows.len() * columns.len();
        panel.resize(elements, 0.0);
        self.decode(&self.tuned, &rows, &columns, bytes, panel)?;
        if let Some(side) = &self.base {
            base.resize(elements, 0.0);
            self.decode(side, &rows, &columns, bytes, base)?;
            panel.iter_mut().zip(base.iter()).for_each(|(x, base)| *x -= base);
        }
        Ok(())
    }

    fn decode(
        &self,
        side: &Side<'_>,
        rows: &Range<usize>,
        columns: &Range<usize>,
        bytes: &mut Vec<u8>,
        out: &mut [f64],
    ) -> Result<()> {
        let width = side.decoder.width() as u64;
        let mut run = |first: usize, out: &mut [f64]| -> Result<()> {
            let from = side.of.info.bytes.start + (self.start + first as u64) * width;
            let read = side.of.shard.bytes(from..from + out.len() as u64 * width, bytes)?;
            side.decoder.decode(read, out);
            Ok(())
        };
        if columns.len() == self.columns {
            return run(rows.start * self.columns, out);
        }
        for (row, out) in rows.clone().zip(out.chunks_exact_mut(columns.len())) {
            run(row * self.columns + columns.start, out)?;
        }
        Ok(())
    }

    /// Counts and sums over all elements, in one pass.
    pub(crate) fn survey(&self, buffers: &mut Buffers) -> Result<Survey> {
        const PANEL: usize = 1 << 20;
        let relative_ulp = match &self.tuned.of.info.dtype {
            Dtype::Known(Known::BF16) => 2f64.powi(-7),
            Dtype::Known(Known::F16) => 2f64.powi(-10),
            _ => 0.0,
        };
        let mut survey = Survey { live_columns: vec![false; self.columns], ..Survey::default() };
        let step = (PANEL / self.columns).max(1);
        let mut tuned = Vec::new();
        for first in (0..self.rows).step_by(step) {
            let rows = first..self.rows.min(first + step);
            self.read(rows.clone(), 0..self.columns, buffers)?;
            if relative_ulp > 0.0 {
                tuned.resize(buffers.panel.len(), 0.0);
                self.decode(&self.tuned, &rows, &(0..self.columns), &mut buffers.bytes, &mut tuned)?;
                survey.rounding += rounding(&buffers.panel, &tuned, relative_ulp);
            }
            for row in buffers.panel.chunks_exact(self.columns) {
                survey.add_row(row);
            }
        }
        Ok(survey)
    }

    /// Gives back the memory of the matrix, which is not read again.
    pub(crate) fn release(&self) {
        for side in [Some(&self.tuned), self.base.as_ref()].into_iter().flatten() {
            let width = side.decoder.width() as u64;
            let from = side.of.info.bytes.start + self.start * width;
            side.of.shard.release(from..from + (self.rows * self.columns) as u64 * width);
        }
    }
}

impl Survey {
    fn add_row(&mut self, row: &[f64]) {
        let mut live = false;
        for (x, live_column) in row.iter().zip(&mut self.live_columns) {
            let nonzero = *x != 0.0;
            self.nonfinite += u64::from(!x.is_finite());
            self.nonzero += u64::from(nonzero);
            self.squares += x * x;
            live |= nonzero;
            *live_column |= nonzero;
        }
        self.live_rows += usize::from(live);
    }
}

/// Σ ulp²/12 of `tuned` where `change` is not zero; an ulp is `relative` times the power of two below a number.
fn rounding(change: &[f64], tuned: &[f64], relative: f64) -> f64 {
    let squares = change.iter().zip(tuned).map(|(change, tuned)| {
        let power = f64::from_bits(tuned.to_bits() & 0x7ff0_0000_0000_0000);
        if *change != 0.0 { power * power } else { 0.0 }
    });
    squares.sum::<f64>() * relative * relative / 12.0
}
