//! The output head and cross-entropy: `kernels/cross_entropy.cu`. Logits are computed a chunk of rows at a time.

use std::ops::Range;

use super::argument::Arg;
use super::buffer::{Buffer, Weight};
use super::cached_upload::CachedUpload;
use super::context::Context;
use super::device::Device;
use super::matmul::{Dtypes, Shape};
use super::memory::Memory;
use crate::backend::{ComputeDtype, HeadGradients, Targets, TrainingPass};

/// Most logits of a chunk, unless [`ROWS`] rows have more.
const LOGITS: usize = 1 << 25;
/// A chunk has a multiple of this number of rows, except the last.
const ROWS: usize = 128;

/// Targets and work memory on the GPU.
#[derive(Debug, Default)]
pub(super) struct CrossEntropy {
    rows: CachedUpload<u32>,
    ids: CachedUpload<u32>,
    factors: CachedUpload<f32>,
    /// Hidden states of the rows of a chunk.
    hidden: Memory,
    /// Gradients of `hidden`.
    dhidden: Memory,
    logits: Memory,
    /// Gradients of the logits; for `f32` they overwrite the logits.
    dlogits: Memory,
    losses: Memory,
}

/// Addresses of the targets, and their label smoothing.
#[derive(Debug, Clone, Copy)]
struct TargetArgs {
    rows: Arg,
    ids: Arg,
    /// Null without gradients.
    factors: Arg,
    label_smoothing: Arg,
}

/// A chunk of rows, and what its losses and gradients are computed from.
struct Chunk<'a> {
    hidden: &'a Buffer,
    weight: &'a Weight,
    /// As [`crate::backend::Head::soft_cap`]; 0 for none.
    soft_cap: f32,
    targets: TargetArgs,
    /// The rows, as indices into the targets.
    range: Range<usize>,
    /// Add to the gradient of the weight instead of overwriting it.
    accumulate: bool,
}

impl CrossEntropy {
    /// See [`crate::backend::Backend::cross_entropy`].
    pub(super) fn run(
        &mut self,
        context: &mut Context,
        hidden: &Buffer,
        (weight, soft_cap): (&Weight, Option<f32>),
        targets: Targets<'_>,
        mut gradients: Option<HeadGradients<'_, Buffer>>,
    ) {
        let (vocab, cols) = (weight.rows, weight.cols);
        assert!(targets.ids.iter().all(|id| (*id as usize) < vocab), "targets are below the vocabulary size");
        assert!(targets.rows.iter().all(|t| (*t as usize + 1) * cols <= hidden.len), "target rows exist");
        if let Some(gradients) = &mut gradients {
            clear(&context.device, gradients, targets.rows.is_empty());
        }
        let step = (LOGITS / vocab.max(1) / ROWS * ROWS).max(ROWS).min(targets.rows.len().max(1));
        self.reserve(context, weight, step, targets.rows.len());
        let mut accumulate = gradients.as_ref().is_some_and(|g| g.accumulate);
        let args = self.put_targets(&context.device, targets, gradients.as_ref().map(|g| g.factors));
        for first in (0..targets.rows.len()).step_by(step) {
            let range = first..targets.rows.len().min(first + step);
            let chunk =
                Chunk { hidden, weight, soft_cap: soft_cap.unwrap_or(0.0), targets: args, range, accumulate };
            self.chunk(context, &chunk, gradients.as_mut());
            accumulate = true;
        }
    }

    /// Memory for chunks of `step` rows and for the losses of all rows.
    fn reserve(&mut self, context: &Context, weight: &Weight, step: usize, rows: usize) {
        let (vocab, cols, dtype) = (weight.rows, weight.cols, context.compute_dtype);
        let device = &context.device;
        device.reserve(&mut self.hidden, step * cols * dtype.bytes());
        device.reserve(&mut self.dhidden, step * cols * dtype.bytes());
        device.reserve(&mut self.logits, step * vocab * 4);
        device.reserve(&mut self.losses, rows * 4);
        if dtype == ComputeDtype::Bf16 {
            device.reserve(&mut self.dlogits, step * vocab * dtype.bytes());
        }
    }

    fn put_targets(&self, device: &Device, targets: Targets<'_>, factors: Option<&[f32]>) -> TargetArgs {
        assert!(factors.is_none_or(|f| f.len() == targets.ids.len()), "each target has a factor");
        TargetArgs {
            rows: self.rows.put_for_pass(device, targets.rows),
            ids: self.ids.put_for_pass(device, targets.ids),
            factors: factors.map_or(Arg::Pointer(0), |factors| self.factors.put_for_pass(device, factors)),
            label_smoothing: Arg::F32(targets.label_smoothing),
        }
    }

    /// Uploads the targets of `pass`.
    pub(super) fn upload_targets(&self, device: &Device, pass: &TrainingPass<'_>) {
        self.put_targets(device, pass.targets, Some(pass.factors));
    }

    /// The losses of the last run.
    pub(super) fn losses(&self) -> &Memory {
        &self.losses
    }

    /// Losses and gradients of one chunk.
    fn chunk(
        &self,
        context: &mut Context,
        chunk: &Chunk<'_>,
        gradients: Option<&mut HeadGradients<'_, Buffer>>,
    ) {
        let Chunk { hidden, weight, range, .. } = chunk;
        let (n, vocab, cols, dtype) = (range.len(), weight.rows, weight.cols, context.compute_dtype);
        let (shape, columns, table) = (weight.linear_shape(n), Arg::U32(cols as u32), context.weight(weight));
        let gathered = context.memory(&self.hidden, n * cols * dtype.bytes());
        let logits = context.memory(&self.logits, n * vocab * 4);
        let dlogits = match dtype {
            ComputeDtype::F32 => logits,
            ComputeDtype::Bf16 => context.memory(&self.dlogits, n * vocab * dtype.bytes()),
        };
        let rows = chunk.targets.rows.skip(4 * range.start);
        let args = [context.activations(hidden, hidden.len), rows, columns, gathered];
        context.device.launch("gather_rows", (n, 1), 0, &args);
        let to_f32 = Dtypes { inputs: dtype.into(), out: ComputeDtype::F32 };
        let product = Shape::forward(shape, to_f32);
        context.matmul.product(&context.device, product, [table, gathered, logits], false);
        let factors = chunk.targets.factors;
        let factors = if gradients.is_some() { factors.skip(4 * range.start) } else { factors };
        let args = [
            logits,
            chunk.targets.ids.skip(4 * range.start),
            Arg::U32(vocab as u32),
            chunk.targets.label_smoothing,
            Arg::F32(chunk.soft_cap),
            factors,
            dlogits,
            context.memory(&self.losses, range.end * 4).skip(4 * range.start),
        ];
        context.device.launch("cross_entropy", (n, 1), 0, &args);
        let Some(HeadGradients { hidden: dhidden, weight: dweight, .. }) = gradients else { return };
        if let Some(dhidden) = dhidden {
            let drows = context.memory(&self.dhidden, n * cols * dtype.bytes());
            let product = Shape::backward_input(shape, Dtypes { inputs: dtype.into(), out: dtype });
            context.matmul.product(&context.device, product, [table, dlogits, drows], false);
            let args = [drows, rows, columns, context.activations(dhidden, dhidden.len)];
            context.device.launch("scatter_rows", (n, 1), 0, &args);
        }
        if let Some(dweight) = dweight {
            let out = context.floats(dweight, vocab * cols);
            let product = Shape::backward_weight(shape, to_f32);
            context.matmul.product(&context.device, product, [gathered, dlogits, out], chunk.accumulate);
        }
    }
}

/// Zeroes the gradients that no chunk overwrites as a whole.
fn clear(device: &Device, gradients: &mut HeadGradients<'_, Buffer>, no_targets: bool) {
    let clear = |buffer: &mut Buffer| {
        let bytes = buffer.memory.bytes();
        device.clear(&mut buffer.memory, bytes);
    };
    if let Some(dhidden) = &mut gradients.hidden {
        clear(dhidden);
    }
    if let Some(dweight) = &mut gradients.weight
        && no_targets
        && !gradients.accumulate
    {
        clear(dweight);
    }
}
