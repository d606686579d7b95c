//! Linear layers: `out = x · Wᵀ (+ bias)`.

use rayon::prelude::*;

use super::matmul::{Mat, MatMut, Store};
use super::matvec;
use super::panels::Panels;
use super::weight::{FrozenRows, Weight};
use crate::backend::LinearShape;

/// Rows of one partial sum of a bias gradient.
const ROWS: usize = 64;

/// See [`crate::backend::Backend::linear_forward`]: a few rows go through a frozen matrix as it is stored.
pub(super) fn product(
    x: &[f32],
    weight: &Weight<'_>,
    rows: usize,
    out: &mut [f32],
    accumulate: bool,
    panel: &mut Panels,
) {
    match few_rows(weight, rows, panel) {
        Some(frozen) => {
            let x = panel.rounded(&x[..rows * weight.cols]);
            matvec::forward(frozen, &x, &mut out[..rows * weight.rows], accumulate, &mut panel.widened);
        }
        None => forward(x, weight, rows, out, accumulate, panel),
    }
}

/// The rows of a frozen matrix, where so few rows of inputs go through it as it is stored: in bfloat16 where products are.
pub(super) fn few_rows<'w>(weight: &'w Weight<'_>, rows: usize, panel: &Panels) -> Option<FrozenRows<'w>> {
    let as_stored = rows <= matvec::MOST_VECTORS && (!panel.is_bf16() || weight.bf16_rows(0..0).is_some());
    weight.frozen_rows().filter(|_| as_stored)
}

/// [`product`] of many rows.
pub(super) fn forward(
    x: &[f32],
    weight: &Weight<'_>,
    rows: usize,
    out: &mut [f32],
    accumulate: bool,
    panel: &mut Panels,
) {
    let (features, inner) = (weight.rows, weight.cols);
    let x = Mat::new(&x[..rows * inner], rows, inner, inner);
    let step = panel.rows_at_once(weight);
    for first in (0..features).step_by(step) {
        let last = features.min(first + step);
        let (w, products) = panel.weight(weight, first..last);
        let out = MatMut::new(&mut out[first..rows * features], rows, last - first, features);
        products.matmul(out, Store::accumulate(accumulate), x, w.t());
    }
}

/// See [`crate::backend::Backend::linear_backward_input`].
pub(super) fn backward_input(
    dout: &[f32],
    weight: &Weight<'_>,
    rows: usize,
    dx: &mut [f32],
    accumulate: bool,
    panel: &mut Panels,
) {
    let (features, inner) = (weight.rows, weight.cols);
    let step = panel.rows_at_once(weight);
    for first in (0..features).step_by(step) {
        let last = features.min(first + step);
        let (w, products) = panel.weight(weight, first..last);
        let dout = Mat::new(&dout[first..rows * features], rows, last - first, features);
        let dx = MatMut::new(&mut dx[..rows * inner], rows, inner, inner);
        products.matmul(dx, Store::accumulate(accumulate || first > 0), dout, w);
    }
}

/// See [`crate::backend::Backend::linear_backward_weight`].
pub(super) fn backward_weight(
    dout: &[f32],
    x: &[f32],
    shape: LinearShape,
    dweight: &mut [f32],
    accumulate: bool,
    panel: &mut Panels,
) {
    let LinearShape { rows, out_features: features, in_features: inner } = shape;
    let dout = Mat::new(&dout[..rows * features], rows, features, features);
    let x = Mat::new(&x[..rows * inner], rows, inner, inner);
    let dweight = MatMut::new(dweight, features, inner, inner);
    panel.products().matmul(dweight, Store::accumulate(accumulate), dout.t(), x);
}

/// See [`crate::backend::Backend::bias_forward`].
pub(super) fn bias_forward(bias: &[f32], rows: usize, out: &mut [f32]) {
    let cols = bias.len();
    out[..rows * cols].par_chunks_mut(cols).for_each(|row| {
        for (out, bias) in row.iter_mut().zip(bias) {
            *out += bias;
        }
    });
}

/// See [`crate::backend::Backend::bias_backward`].
pub(super) fn bias_backward(dout: &[f32], rows: usize, dbias: &mut [f32]) {
    let cols = dbias.len();
    let partials: Vec<Vec<f32>> = dout[..rows * cols]
        .par_chunks(ROWS * cols)
        .map(|rows| {
            let mut sum = vec![0.0; cols];
            for row in rows.chunks(cols) {
                add(&mut sum, row);
            }
            sum
        })
        .collect();
    for partial in &partials {
        add(dbias, partial);
    }
}

/// `a += b`.
pub(super) fn add(a: &mut [f32], b: &[f32]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a += b;
    }
}
