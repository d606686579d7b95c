//! Results that are infinite or NaN where no input is: counted for a warning.

use std::ops::Range;

use crate::Result;
use crate::checkpoint::{Dtype, Known};
use crate::merge::tiles::source::Source;
use crate::merge::tiles::values::TileBuffers;
use crate::simd::{Kernel, dispatch};

/// Elements of a result that are infinite or NaN, though every input has a finite number there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NonFinite {
    /// How many.
    pub elements: u64,
    /// The first tensor with one, in natural order of names.
    pub first: Option<String>,
}

impl NonFinite {
    /// Adds what a tensor has.
    pub(crate) fn add(&mut self, tensor: &str, elements: u64) {
        if elements == 0 {
            return;
        }
        self.elements += elements;
        if self.first.as_deref().is_none_or(|first| crate::checkpoint::natural_order(tensor, first).is_lt()) {
            self.first = Some(tensor.to_owned());
        }
    }
}

/// Counts the elements of `buffers.out`, the elements `range` of a result that is rounded to `dtype`, which are not
/// finite then though all `inputs` are.
///
/// # Errors
/// [`crate::Error::Io`] from reading by position.
pub(crate) fn count<'s, 'a: 's>(
    dtype: &Dtype,
    inputs: impl Iterator<Item = &'s Source<'a>>,
    range: &Range<u64>,
    buffers: &mut TileBuffers,
) -> Result<u64> {
    let least = least_infinite(dtype);
    if dispatch(Largest { values: &buffers.out }) < least {
        return Ok(0);
    }
    let mut found: Vec<bool> = buffers.out.iter().map(|x| magnitude(*x) >= least).collect();
    let TileBuffers { bytes, sum, .. } = buffers;
    for input in inputs {
        if input.info.dtype == Dtype::Known(Known::F64) && input.through.is_none() {
            let values = input.bytes(range.clone(), bytes)?.as_chunks::<8>().0;
            found.iter_mut().zip(values).for_each(|(found, x)| *found &= f64::from_le_bytes(*x).is_finite());
        } else {
            input.decode(range.clone(), bytes, sum)?;
            found.iter_mut().zip(&*sum).for_each(|(found, x)| *found &= x.is_finite());
        }
    }
    Ok(found.into_iter().filter(|found| *found).count() as u64)
}

/// The bits of |x|: they order as the magnitudes do, with infinity and NaN last.
#[inline(always)]
fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// The bits of the least f32 that is infinite when it is rounded to nearest even in `dtype`: half a unit of the last
/// place beyond the largest finite number.
fn least_infinite(dtype: &Dtype) -> u32 {
    match dtype {
        Dtype::Known(Known::BF16) => 0x7f7f_8000,
        Dtype::Known(Known::F16) => 65_520f32.to_bits(),
        _ => f32::INFINITY.to_bits(),
    }
}

/// The largest bits of |x|.
struct Largest<'a> {
    values: &'a [f32],
}

impl Kernel for Largest<'_> {
    type Output = u32;

    #[inline(always)]
    fn run(self) -> u32 {
        self.values.iter().fold(0, |most, x| most.max(magnitude(*x)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{decode_f32, encode_f32};

    /// Against the rounding itself: the number is infinite, the one before it is finite.
    #[test]
    fn the_least_infinite_number_is_the_first_that_rounds_to_infinity() {
        for known in [Known::BF16, Known::F16, Known::F32] {
            let dtype = Dtype::Known(known);
            let least = least_infinite(&dtype);
            for (bits, finite) in [(least, false), (least - 1, true)] {
                let (mut bytes, mut back) = (Vec::new(), [0.0]);
                encode_f32(&dtype, &[f32::from_bits(bits)], &mut bytes);
                decode_f32(&dtype, &bytes, &mut back);
                assert_eq!(back[0].is_finite(), finite, "{dtype} {bits:#x}");
            }
        }
    }

    #[test]
    fn the_first_tensor_is_the_first_by_name() {
        let mut found = NonFinite::default();
        [("b", 2), ("a", 0), ("c", 1)].iter().for_each(|(name, n)| found.add(name, *n));
        assert_eq!(found, NonFinite { elements: 3, first: Some("b".to_owned()) });
    }
}
