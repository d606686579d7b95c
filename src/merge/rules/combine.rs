//! `y = [b +] Σ c_i z_i`: coefficients for the whole tensor, for each row, or for each column.

use std::ops::Range;

use crate::Result;
use crate::merge::rules::sphere::{Gram, model_stock, nuslerp};
use crate::merge::tiles::values::{TileBuffers, Values, over};
use crate::simd::{Kernel, dispatch};

/// The rule for one tensor.
#[derive(Debug)]
pub(crate) struct Combine {
    pub(crate) coefficients: Coefficients,
    /// Where all inputs are the same value, so is the result: coefficients that add up to 1.
    pub(crate) equal_stays: bool,
}

/// Where coefficients come from.
#[derive(Debug)]
pub(crate) enum Coefficients {
    /// One per input, for all elements.
    Whole(Vec<f32>),
    /// By a rule, from the vectors along the last axis; tiles hold whole vectors of this length.
    Vectors(u64, VectorRule),
    /// One per input and column.
    Columns(Vec<Vec<f32>>),
}

/// How the coefficients of one vector are found.
#[derive(Debug, Clone)]
pub(crate) enum VectorRule {
    NuSlerp(Vec<f64>),
    ModelStock,
}

impl VectorRule {
    fn coefficients(&self, gram: &Gram) -> Vec<f32> {
        let found = match self {
            Self::NuSlerp(weights) => nuslerp(gram, weights),
            Self::ModelStock => model_stock(gram),
        };
        found.into_iter().map(|c| c as f32).collect()
    }
}

impl Coefficients {
    /// One per input, rounded to f32.
    pub(crate) fn whole(coefficients: Vec<f64>) -> Self {
        Self::Whole(coefficients.into_iter().map(|c| c as f32).collect())
    }

    /// One per input for each vector along the first axis; a strip of columns is read at a time.
    pub(crate) fn columns(values: &Values<'_>, rule: &VectorRule) -> Result<Self> {
        const STRIP: u64 = 64;
        let (columns, models) = (values.row, values.models.len());
        let strips = (0..columns).step_by(STRIP as usize).map(|at| at..columns.min(at + STRIP));
        let found = over(strips.collect(), |buffers, strip| {
            let width = (strip.end - strip.start) as usize;
            let mut grams = vec![Gram::zero(models); width];
            for row in 0..values.elements / columns.max(1) {
                values.load(row * columns + strip.start..row * columns + strip.end, buffers)?;
                for (column, gram) in grams.iter_mut().enumerate() {
                    for i in 0..models {
                        for j in 0..=i {
                            let product = f64::from(buffers.z[i][column]) * f64::from(buffers.z[j][column]);
                            gram.add_product(i, j, product);
                        }
                    }
                }
            }
            Ok(grams.iter().map(|gram| rule.coefficients(gram)).collect::<Vec<_>>())
        })?;
        let of_model = |i: usize| found.iter().flatten().map(|c| c[i]).collect();
        Ok(Self::Columns((0..models).map(of_model).collect()))
    }
}

impl Combine {
    /// Computes the elements `range` into `buffers.out`.
    pub(crate) fn apply(
        &self,
        values: &Values<'_>,
        range: Range<u64>,
        buffers: &mut TileBuffers,
    ) -> Result<()> {
        values.load(range.clone(), buffers)?;
        let n = (range.end - range.start) as usize;
        let models = values.models.len();
        let TileBuffers { z, out, base, .. } = buffers;
        let z = &z[..models];
        out.clear();
        out.resize(n, 0.0);
        match &self.coefficients {
            Coefficients::Whole(c) => z.iter().zip(c).for_each(|(z, c)| dispatch(Add { z, c: *c, out })),
            Coefficients::Vectors(length, rule) => {
                let length = usize::try_from(*length).unwrap_or(usize::MAX).clamp(1, n.max(1));
                for at in (0..n).step_by(length) {
                    let part = at..n.min(at + length);
                    let gram = Gram::of_slices(models, |i| &z[i][part.clone()]);
                    for (z, c) in z.iter().zip(rule.coefficients(&gram)) {
                        dispatch(Add { z: &z[part.clone()], c, out: &mut out[part.clone()] });
                    }
                }
            }
            Coefficients::Columns(columns) => {
                for (z, c) in z.iter().zip(columns) {
                    let first = (range.start % values.row) as usize;
                    let c = c.iter().cycle().skip(first);
                    out.iter_mut().zip(z).zip(c).for_each(|((out, z), c)| *out += c * z);
                }
            }
        }
        if values.deltas {
            for (out, b) in out.iter_mut().zip(base) {
                let moved = *b + *out;
                *out = if *out == 0.0 { *b } else { moved };
            }
        } else if self.equal_stays {
            keep_equal(z, out);
        }
        Ok(())
    }
}

/// `out += c z`.
struct Add<'a> {
    z: &'a [f32],
    c: f32,
    out: &'a mut [f32],
}

impl Kernel for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (out, z) in self.out.iter_mut().zip(self.z) {
            *out += self.c * *z;
        }
    }
}

/// Where all inputs are the same bits, so is the result.
fn keep_equal(z: &[Vec<f32>], out: &mut [f32]) {
    match z {
        [] => {}
        [only] => out.copy_from_slice(only),
        [a, b] => dispatch(KeepPair { a, b, out }),
        [first, rest @ ..] => {
            for (i, out) in out.iter_mut().enumerate() {
                if rest.iter().all(|z| z[i].to_bits() == first[i].to_bits()) {
                    *out = first[i];
                }
            }
        }
    }
}

struct KeepPair<'a> {
    a: &'a [f32],
    b: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for KeepPair<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for ((a, b), out) in self.a.iter().zip(self.b).zip(self.out) {
            *out = if a.to_bits() == b.to_bits() { *a } else { *out };
        }
    }
}
