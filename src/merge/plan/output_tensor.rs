//! One tensor of the output: its type and shape, where it goes, and what it is copied from.

use crate::checkpoint::Dtype;
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
