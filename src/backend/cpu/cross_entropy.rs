//! The output head and cross-entropy. Logits are computed for target rows only, a chunk of rows at a time.

use rayon::prelude::*;

use super::linear;
use super::math::{exp_sum, max, sum, tanh};
use super::panels::Panels;
use super::weight::Weight;
use crate::backend::{HeadGradients, LinearShape, Targets, head_rows};
use crate::simd::{Kernel, dispatch};

/// Work buffers, and the losses since the last [`CrossEntropy::take_losses`].
#[derive(Debug, Default)]
pub(super) struct CrossEntropy {
    /// Logits of a chunk of rows, then their gradients.
    logits: Vec<f32>,
    /// Hidden states of the target rows of a chunk.
    hidden: Vec<f32>,
    /// Gradients of `hidden`.
    dhidden: Vec<f32>,
    losses: Vec<f32>,
}

impl CrossEntropy {
    /// See [`crate::backend::Backend::cross_entropy`] and [`crate::backend::Head`]. `panel` holds packed or widened operands.
    pub(super) fn run(
        &mut self,
        hidden: &[f32],
        (weight, soft_cap): (&Weight<'_>, Option<f32>),
        targets: Targets<'_>,
        gradients: Option<HeadGradients<'_, Vec<f32>>>,
        panel: &mut Panels,
    ) {
        let (vocab, cols) = (weight.rows, weight.cols);
        let step = head_rows(targets.rows.len(), vocab);
        let Self { logits, hidden: rows, dhidden: drows, losses } = self;
        for buffer in [&mut *rows, &mut *drows] {
            buffer.resize((step * cols).max(buffer.len()), 0.0);
        }
        logits.resize((step * vocab).max(logits.len()), 0.0);
        let mut gradients = gradients;
        if let Some(HeadGradients { hidden: Some(dhidden), .. }) = &mut gradients {
            dhidden.fill(0.0);
        }
        if let Some(HeadGradients { weight: Some(dweight), accumulate: false, .. }) = &mut gradients
            && targets.rows.is_empty()
        {
            dweight.fill(0.0);
        }
        let mut accumulate = gradients.as_ref().is_some_and(|g| g.accumulate);
        let all_factors = gradients.as_ref().map(|g| g.factors);
        assert!(all_factors.is_none_or(|f| f.len() == targets.ids.len()), "each target has a factor");
        for (chunk, (at, ids)) in targets.rows.chunks(step).zip(targets.ids.chunks(step)).enumerate() {
            let n = at.len();
            for (row, t) in rows.chunks_mut(cols).zip(at) {
                row.copy_from_slice(&hidden[*t as usize * cols..(*t as usize + 1) * cols]);
            }
            let logits = &mut logits[..n * vocab];
            linear::forward(rows, weight, n, logits, false, panel);
            let factors = all_factors.map(|factors| &factors[chunk * step..]);
            let rows_of_logits = logits.par_chunks_mut(vocab).zip(ids).enumerate();
            losses.par_extend(rows_of_logits.map(|(i, (logits, id))| {
                let factor = factors.map(|factors| factors[i]);
                let label_smoothing = targets.label_smoothing;
                dispatch(Row { logits, id: *id as usize, label_smoothing, soft_cap, factor })
            }));
            let Some(HeadGradients { hidden: dhidden, weight: dweight, .. }) = &mut gradients else {
                continue;
            };
            if let Some(dhidden) = dhidden {
                linear::backward_input(logits, weight, n, drows, false, panel);
                for (row, t) in drows.chunks(cols).zip(at) {
                    dhidden[*t as usize * cols..(*t as usize + 1) * cols].copy_from_slice(row);
                }
            }
            if let Some(dweight) = dweight {
                let shape = LinearShape { rows: n, out_features: vocab, in_features: cols };
                linear::backward_weight(logits, rows, shape, dweight, accumulate, panel);
                accumulate = true;
            }
        }
    }

    /// See [`crate::backend::Backend::losses`].
    pub(super) fn take_losses(&mut self) -> Vec<f32> {
        std::mem::take(&mut self.losses)
    }
}

/// `log Σ exp(logits) − (1 − ε) logits[id] − ε mean(logits)`; with a factor, the logits become their gradient
/// `factor · (softmax − (1 − ε) onehot − ε / V)`. With a cap `c` both hold for `c · tanh(z / c)` of the logits `z`, and the
/// gradient is that of `z`.
struct Row<'a> {
    logits: &'a mut [f32],
    id: usize,
    /// `ε`.
    label_smoothing: f32,
    soft_cap: Option<f32>,
    factor: Option<f32>,
}

impl Kernel for Row<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        // By how much the capped logits grow with the logits.
        let mut slopes = Vec::new();
        if let Some(cap) = self.soft_cap {
            for z in self.logits.iter_mut() {
                *z = cap * tanh(*z / cap);
            }
            if self.factor.is_some() {
                slopes.extend(self.logits.iter().map(|z| 1.0 - (z / cap) * (z / cap)));
            }
        }
        let target = self.logits[self.id];
        let largest = max(self.logits);
        let (smoothing, vocab) = (self.label_smoothing, self.logits.len() as f32);
        // Without smoothing the logits are not read once more.
        let mean = if smoothing > 0.0 { sum(self.logits) / vocab } else { 0.0 };
        let sum = exp_sum(self.logits, largest);
        if let Some(factor) = self.factor {
            let (of_exp, of_each) = (factor / sum, factor * smoothing / vocab);
            for p in self.logits.iter_mut() {
                *p = *p * of_exp - of_each;
            }
            self.logits[self.id] -= factor * (1.0 - smoothing);
            for (p, slope) in self.logits.iter_mut().zip(&slopes) {
                *p *= slope;
            }
        }
        sum.ln() + largest - target * (1.0 - smoothing) - mean * smoothing
    }
}
