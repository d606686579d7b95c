//! Causal attention over sequences laid end to end, with grouped key/value heads and a sliding window.
//!
//! Queries go in blocks, so that the scores of a block exist at a time and never the whole square. The
//! backward pass makes the probabilities anew from the log-sum-exp of each row (Dao et al. 2022,
//! arXiv:2205.14135).

use std::ops::Range;

use rayon::prelude::*;

use super::super::{AttentionShape, Sequences};
use super::linear::add;
use super::math::{dot, exp, exp_sum, max};
use super::matmul::{Into, Mat, MatMut, matmul_here};
use crate::simd::{Kernel, dispatch};

/// Queries of a block.
const BLOCK: usize = 128;

/// A block of queries of one sequence.
struct Block {
    /// Tokens of the sequence, in the micro-batch.
    sequence: Range<usize>,
    /// Its queries, counted in the sequence.
    queries: Range<usize>,
    window: Option<usize>,
}

impl Block {
    /// The keys, counted in the sequence, that any query of the block sees.
    fn keys(&self) -> Range<usize> {
        self.seen(self.queries.start).start..self.queries.end
    }

    /// The keys that query `i` sees.
    fn seen(&self, i: usize) -> Range<usize> {
        self.window.map_or(0, |window| (i + 1).saturating_sub(window))..i + 1
    }

    fn all(sequence: Range<usize>, window: Option<usize>) -> impl Iterator<Item = Self> {
        let len = sequence.len();
        (0..len).step_by(BLOCK).map(move |first| {
            let queries = first..len.min(first + BLOCK);
            Self { sequence: sequence.clone(), queries, window }
        })
    }
}

/// Rows of one head of `[T, heads, E]`.
fn head<'a>(x: &'a [f32], rows: Range<usize>, head: usize, heads: usize, width: usize) -> Mat<'a> {
    let stride = heads * width;
    Mat::new(&x[rows.start * stride + head * width..rows.end * stride], rows.len(), width, stride)
}

/// See [`crate::backend::Backend::attention_forward`].
pub(super) fn forward(
    [q, k, v]: [&[f32]; 3],
    shape: AttentionShape,
    sequences: Sequences<'_>,
    out: &mut [f32],
    lse: &mut [f32],
) {
    let (width, tokens) = (shape.heads * shape.head_dim, sequences.tokens());
    let (mut out, mut lse) = (&mut out[..tokens * width], &mut lse[..tokens * shape.heads]);
    let mut tasks = Vec::new();
    for sequence in sequences.ranges() {
        for block in Block::all(sequence, shape.window) {
            let n = block.queries.len();
            let (of_block, after) = out.split_at_mut(n * width);
            let (lse_of_block, lse_after) = lse.split_at_mut(n * shape.heads);
            (out, lse) = (after, lse_after);
            tasks.push((block, of_block, lse_of_block));
        }
    }
    tasks.into_par_iter().for_each_init(Vec::new, |scores, (block, out, lse)| {
        for h in 0..shape.heads {
            forward_head([q, k, v], shape, &block, h, scores, out, lse);
        }
    });
}

/// One head of one block of queries.
fn forward_head(
    [q, k, v]: [&[f32]; 3],
    shape: AttentionShape,
    block: &Block,
    h: usize,
    scores: &mut Vec<f32>,
    out: &mut [f32],
    lse: &mut [f32],
) {
    let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
    let (keys, n) = (block.keys(), block.queries.len());
    let at = |range: &Range<usize>| block.sequence.start + range.start..block.sequence.start + range.end;
    let (kv, columns) = (h / (heads / kv_heads), keys.len());
    scores.resize((n * columns).max(scores.len()), 0.0);
    let scores = &mut scores[..n * columns];
    let (q, k) =
        (head(q, at(&block.queries), h, heads, head_dim), head(k, at(&keys), kv, kv_heads, head_dim));
    let scale = 1.0 / (head_dim as f32).sqrt();
    matmul_here(MatMut::new(scores, n, columns, columns), Into::Overwrite, scale, q, k.t());
    for (r, row) in scores.chunks_mut(columns).enumerate() {
        let seen = block.seen(block.queries.start + r);
        let seen = seen.start - keys.start..seen.end - keys.start;
        lse[r * heads + h] = dispatch(Softmax { row, seen });
    }
    let stride = heads * head_dim;
    let out = MatMut::new(&mut out[h * head_dim..], n, head_dim, stride);
    let v = head(v, at(&keys), kv, kv_heads, head_dim);
    matmul_here(out, Into::Overwrite, 1.0, Mat::new(scores, n, columns, columns), v);
}

/// Scores to probabilities; gives the log-sum-exp. What is not seen gets probability 0.
struct Softmax<'a> {
    row: &'a mut [f32],
    seen: Range<usize>,
}

impl Kernel for Softmax<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let (before, rest) = self.row.split_at_mut(self.seen.start);
        let (seen, after) = rest.split_at_mut(self.seen.len());
        before.fill(0.0);
        after.fill(0.0);
        let largest = max(seen);
        let sum = exp_sum(seen, largest);
        let inverse = 1.0 / sum;
        for p in seen {
            *p *= inverse;
        }
        largest + sum.ln()
    }
}

/// What the backward pass reads.
struct Given<'a> {
    dout: &'a [f32],
    out: &'a [f32],
    lse: &'a [f32],
    qkv: [&'a [f32]; 3],
    shape: AttentionShape,
}

/// Gradients of one query head of one sequence, each `[len, E]`; those of the key and value are its share.
struct HeadGradients {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

/// See [`crate::backend::Backend::attention_backward`].
pub(super) fn backward(
    dout: &[f32],
    out: &[f32],
    lse: &[f32],
    shape: AttentionShape,
    sequences: Sequences<'_>,
    [q, k, v]: [&mut [f32]; 3],
) {
    let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
    let group = heads / kv_heads;
    let given = Given { dout, out, lse, qkv: [q, k, v], shape };
    let tasks: Vec<(Range<usize>, usize)> =
        sequences.ranges().flat_map(|range| (0..heads).map(move |h| (range.clone(), h))).collect();
    let gradients: Vec<HeadGradients> = tasks
        .into_par_iter()
        .map_init(Default::default, |scratch, (range, h)| backward_head(&given, &range, h, scratch))
        .collect();
    for (range, of_heads) in sequences.ranges().zip(gradients.chunks(heads)) {
        scatter(q, &range, heads * head_dim, |t, row| {
            for (out, g) in row.chunks_mut(head_dim).zip(of_heads) {
                out.copy_from_slice(&g.q[t * head_dim..(t + 1) * head_dim]);
            }
        });
        for (x, of) in [(&mut *k, 0), (&mut *v, 1)] {
            scatter(x, &range, kv_heads * head_dim, |t, row| {
                for (out, group) in row.chunks_mut(head_dim).zip(of_heads.chunks(group)) {
                    out.fill(0.0);
                    for g in group {
                        let share = if of == 0 { &g.k } else { &g.v };
                        add(out, &share[t * head_dim..(t + 1) * head_dim]);
                    }
                }
            });
        }
    }
}

/// Writes every row of a sequence.
fn scatter(x: &mut [f32], range: &Range<usize>, width: usize, write: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = x[range.start * width..range.end * width].par_chunks_mut(width);
    rows.enumerate().for_each(|(t, row)| write(t, row));
}

/// Probabilities and their gradients, of one block.
#[derive(Default)]
struct Scratch {
    p: Vec<f32>,
    ds: Vec<f32>,
}

fn backward_head(
    given: &Given<'_>,
    sequence: &Range<usize>,
    h: usize,
    scratch: &mut Scratch,
) -> HeadGradients {
    let AttentionShape { heads, kv_heads, head_dim, window } = given.shape;
    let ([q, k, v], kv) = (given.qkv, h / (heads / kv_heads));
    let scale = 1.0 / (head_dim as f32).sqrt();
    let zeros = || vec![0.0; sequence.len() * head_dim];
    let mut gradients = HeadGradients { q: zeros(), k: zeros(), v: zeros() };
    for block in Block::all(sequence.clone(), window) {
        let (keys, n) = (block.keys(), block.queries.len());
        let columns = keys.len();
        let at = |range: &Range<usize>| sequence.start + range.start..sequence.start + range.end;
        let of_query = |x| head(x, at(&block.queries), h, heads, head_dim);
        let of_key = |x| head(x, at(&keys), kv, kv_heads, head_dim);
        let Scratch { p, ds } = scratch;
        p.resize((n * columns).max(p.len()), 0.0);
        ds.resize((n * columns).max(ds.len()), 0.0);
        let (p, ds) = (&mut p[..n * columns], &mut ds[..n * columns]);
        let scores = MatMut::new(p, n, columns, columns);
        matmul_here(scores, Into::Overwrite, scale, of_query(q), of_key(k).t());
        let dp = MatMut::new(ds, n, columns, columns);
        matmul_here(dp, Into::Overwrite, 1.0, of_query(given.dout), of_key(v).t());
        for (r, (p, ds)) in p.chunks_mut(columns).zip(ds.chunks_mut(columns)).enumerate() {
            let token = sequence.start + block.queries.start + r;
            let seen = block.seen(block.queries.start + r);
            let seen = seen.start - keys.start..seen.end - keys.start;
            let row = (token * heads + h) * head_dim..(token * heads + h + 1) * head_dim;
            let (out, dout) = (&given.out[row.clone()], &given.dout[row]);
            dispatch(SoftmaxBackward { p, ds, seen, lse: given.lse[token * heads + h], out, dout });
        }
        let (p, ds) = (Mat::new(p, n, columns, columns), Mat::new(ds, n, columns, columns));
        let own = |x: &Range<usize>| x.start * head_dim..x.end * head_dim;
        let dq = MatMut::new(&mut gradients.q[own(&block.queries)], n, head_dim, head_dim);
        matmul_here(dq, Into::Overwrite, scale, ds, of_key(k));
        let dk = MatMut::new(&mut gradients.k[own(&keys)], columns, head_dim, head_dim);
        matmul_here(dk, Into::Add, scale, ds.t(), of_query(q));
        let dv = MatMut::new(&mut gradients.v[own(&keys)], columns, head_dim, head_dim);
        matmul_here(dv, Into::Add, 1.0, p.t(), of_query(given.dout));
    }
    gradients
}

/// Scores to probabilities in `p`, and `ds = p ∘ (dp − dout · out)` in place of `dp`.
struct SoftmaxBackward<'a> {
    p: &'a mut [f32],
    ds: &'a mut [f32],
    seen: Range<usize>,
    lse: f32,
    out: &'a [f32],
    dout: &'a [f32],
}

impl Kernel for SoftmaxBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let delta = dot(self.out, self.dout);
        for x in [&mut *self.p, &mut *self.ds] {
            x[..self.seen.start].fill(0.0);
            x[self.seen.end..].fill(0.0);
        }
        for (p, ds) in self.p[self.seen.clone()].iter_mut().zip(&mut self.ds[self.seen]) {
            *p = exp(*p - self.lse);
            *ds = *p * (*ds - delta);
        }
    }
}
