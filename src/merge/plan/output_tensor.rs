//! One tensor of the output: its type and shape, where it goes, and what it is copied from.

use crate::checkpoint::{Dtype, Known};
use crate::merge::tiles::source::Source;

/// A tensor of the output.
#[derive(Debug, Clone)]
pub(crate) struct OutputTensor<'a> {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<u64>,
    /// The shard of the reference it stands in; the last one for a tensor that the reference lacks.
    pub(crate) shard: usize,
    /// What a copy is made of; for a computed tensor, what is beyond the elements that all inputs have.
    pub(crate) longest: Source<'a>,
    /// Why it is copied and not computed.
    pub(crate) copied: Option<&'static str>,
}

impl OutputTensor<'_> {
    /// Bytes of the tensor in the output.
    pub(crate) fn bytes(&self) -> u64 {
        let first = &self.longest;
        if self.copied.is_some() && self.dtype == first.info.dtype && first.through.is_none() {
            return first.info.len();
        }
        self.elements() * self.dtype.bytes().unwrap_or(1) as u64
    }

    pub(crate) fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// The type that floating-point tensors of these types are merged in and written as, as `torch.promote_types` gives it:
/// the larger one, and F32 for F16 with BF16. `None` where types of eight bits are mixed with others, which PyTorch does
/// not promote.
pub(crate) fn promoted<'d>(mut types: impl Iterator<Item = &'d Dtype>) -> Option<Dtype> {
    let wide = |dtype: &Dtype| dtype.bytes().is_some_and(|bytes| bytes > 1);
    let first = types.next()?.clone();
    types.try_fold(first, |a, b| match (a.bytes(), b.bytes()) {
        _ if a == *b => Some(a),
        _ if !wide(&a) || !wide(b) => None,
        (a_bytes, b_bytes) if a_bytes == b_bytes => Some(Dtype::Known(Known::F32)),
        (a_bytes, b_bytes) => Some(if a_bytes > b_bytes { a } else { b.clone() }),
    })
}
