//! The output head and cross-entropy: `kernels/cross_entropy.cu`. The logits of a few rows exist at a time.

use std::ops::Range;

use super::ComputeDtype;
use super::buffer::{Buffer, Weight};
use super::device::{Arg, Device, Memory};
use super::matmul::{Matmul, Shape};
use super::staged::Staged;
use crate::backend::{HeadGradients, Targets};

/// Logits that exist at once, unless [`ROWS`] rows have more.
const LOGITS: usize = 1 << 25;
/// Rows are taken in multiples of this.
const ROWS: usize = 128;

/// Scratch.
#[derive(Debug, Default)]
pub(super) struct CrossEntropy {
    rows: Staged<u32>,
    ids: Staged<u32>,
    /// Hidden rows, and their gradients.
    hidden: Memory,
    dhidden: Memory,
    logits: Memory,
    /// Gradients of the logits, where they are not `f32`.
    dlogits: Memory,
    losses: Memory,
}

impl CrossEntropy {
    /// See [`crate::backend::Backend::cross_entropy`].
    pub(super) fn run(
        &mut self,
        (device, of, matmul): (&Device, ComputeDtype, &mut Matmul),
        hidden: &Buffer,
        weight: &Weight,
        targets: Targets<'_>,
        mut gradients: Option<HeadGradients<'_, Buffer>>,
    ) {
        let (vocab, cols) = (weight.rows, weight.cols);
        assert!(targets.ids.iter().all(|id| (*id as usize) < vocab), "targets are below the vocabulary size");
        assert!(targets.rows.iter().all(|t| (*t as usize + 1) * cols <= hidden.len), "target rows exist");
        if let Some(HeadGradients { hidden: Some(dhidden), .. }) = &mut gradients {
            let bytes = dhidden.memory.bytes();
            device.clear(&mut dhidden.memory, bytes);
        }
        if let Some(HeadGradients { weight: Some(dweight), accumulate: false, .. }) = &mut gradients
            && targets.rows.is_empty()
        {
            let bytes = dweight.memory.bytes();
            device.clear(&mut dweight.memory, bytes);
        }
        let step = (LOGITS / vocab.max(1) / ROWS * ROWS).max(ROWS).min(targets.rows.len().max(1));
        device.reserve(&mut self.hidden, step * cols * of.bytes());
        device.reserve(&mut self.dhidden, step * cols * of.bytes());
        device.reserve(&mut self.logits, step * vocab * 4);
        device.reserve(&mut self.losses, targets.rows.len() * 4);
        if of == ComputeDtype::Bf16 {
            device.reserve(&mut self.dlogits, step * vocab * of.bytes());
        }
        let mut accumulate = gradients.as_ref().is_some_and(|g| g.accumulate);
        let places = self.place(device, targets);
        for first in (0..targets.rows.len()).step_by(step) {
            let rows = first..targets.rows.len().min(first + step);
            let gpu = (device, of, &mut *matmul);
            self.chunk(gpu, hidden, weight, (places, rows), gradients.as_mut(), accumulate);
            accumulate = true;
        }
    }

    /// Brings the targets to the GPU: their rows and ids.
    pub(super) fn place(&self, device: &Device, targets: Targets<'_>) -> [Arg; 2] {
        [self.rows.put_batch(device, targets.rows), self.ids.put_batch(device, targets.ids)]
    }

    /// The losses of the last run.
    pub(super) fn losses(&self) -> &Memory {
        &self.losses
    }

    /// Losses and gradients of as many rows as there is room for logits.
    fn chunk(
        &self,
        (device, of, matmul): (&Device, ComputeDtype, &mut Matmul),
        hidden: &Buffer,
        weight: &Weight,
        (places, range): ([Arg; 2], Range<usize>),
        gradients: Option<&mut HeadGradients<'_, Buffer>>,
        accumulate: bool,
    ) {
        let (n, vocab, cols) = (range.len(), weight.rows, weight.cols);
        let pointer = |memory: &Memory, bytes| Arg::Pointer(device.pointer(memory, bytes).unwrap_or(0));
        let gathered = pointer(&self.hidden, n * cols * of.bytes());
        let logits = pointer(&self.logits, n * vocab * 4);
        let dlogits = match of {
            ComputeDtype::F32 => logits,
            ComputeDtype::Bf16 => pointer(&self.dlogits, n * vocab * of.bytes()),
        };
        let drows = pointer(&self.dhidden, n * cols * of.bytes());
        let [rows, ids] = places.map(|place| place.skip(4 * range.start));
        let table = weight.arg(device, of);
        let columns = Arg::U32(cols as u32);
        device.launch(
            "gather_rows",
            (n, 1),
            0,
            &[hidden.arg(device, hidden.len, of), rows, columns, gathered],
        );
        let shape = Shape::forward(n, vocab, cols, [of, ComputeDtype::F32]);
        matmul.product(device, shape, [table, gathered, logits], false);
        let args = [
            logits,
            ids,
            Arg::U32(vocab as u32),
            Arg::F32(gradients.as_ref().map_or(0.0, |g| g.scale)),
            Arg::U32(u32::from(gradients.is_some())),
            dlogits,
            pointer(&self.losses, range.end * 4).skip(4 * range.start),
        ];
        device.launch("cross_entropy", (n, 1), 0, &args);
        let Some(HeadGradients { hidden: dhidden, weight: dweight, .. }) = gradients else { return };
        if let Some(dhidden) = dhidden {
            let shape = Shape::backward_input(n, vocab, cols, [of, of]);
            matmul.product(device, shape, [table, dlogits, drows], false);
            let all = dhidden.arg(device, dhidden.len, of);
            device.launch("scatter_rows", (n, 1), 0, &[drows, rows, columns, all]);
        }
        if let Some(dweight) = dweight {
            let out = dweight.arg(device, vocab * cols, ComputeDtype::F32);
            let shape = Shape::backward_weight(n, vocab, cols, [of, ComputeDtype::F32]);
            matmul.product(device, shape, [gathered, dlogits, out], accumulate);
        }
    }
}
