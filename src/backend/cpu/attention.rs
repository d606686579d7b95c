//! Causal attention over sequences laid end to end, with grouped key/value heads and a sliding window.
//!
//! The scores of one block of queries are in memory at a time, never the whole `[T, T]` matrix. The backward pass
//! recomputes the probabilities from the log-sum-exp of each row (Dao et al. 2022, arXiv:2205.14135).

use std::ops::Range;

use rayon::prelude::*;

use super::linear::add;
use super::math::{dot, exp, exp_sum, max, tanh};
use super::matmul::{Mat, MatMut, Store, matmul_here};
use crate::backend::{AttentionLayout, AttentionOutput, AttentionShape, QueryKeyValue, QueryKeyValueMut};
use crate::simd::{Kernel, dispatch};

/// Number of queries of a block.
pub(super) const BLOCK: usize = 128;

/// A block of queries of one sequence.
pub(super) struct Block<'a> {
    /// Tokens of the sequence, in the micro-batch.
    pub(super) sequence: Range<usize>,
    /// Its queries, as positions in the sequence.
    pub(super) queries: Range<usize>,
    /// Its queries, as rows of the queries of the micro-batch.
    pub(super) rows: Range<usize>,
    pub(super) window: Option<usize>,
    /// Where branches begin, as positions in the sequence; empty for a sequence without.
    pub(super) branches: &'a [usize],
}

impl Block<'_> {
    /// The keys, as positions in the sequence, that any query of the block attends to.
    fn keys(&self) -> Range<usize> {
        let starts = self.queries.clone().map(|i| self.visible(i).start);
        let start = if self.branches.is_empty() {
            self.visible(self.queries.start).start
        } else {
            starts.min().unwrap_or(0)
        };
        start..self.queries.end
    }

    /// The keys that query `i` attends to, but for those of [`Block::hidden`].
    pub(super) fn visible(&self, i: usize) -> Range<usize> {
        let (first, branch) = self.branch(i);
        let position = i - (branch - first);
        let start = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        if start > first { start + (branch - first)..i + 1 } else { start..i + 1 }
    }

    /// The keys of the branches before that of query `i`.
    fn hidden(&self, i: usize) -> Range<usize> {
        let (first, branch) = self.branch(i);
        first..branch
    }

    /// Where the first branch begins, and that of query `i`.
    fn branch(&self, i: usize) -> (usize, usize) {
        let of = self.branches.partition_point(|start| *start <= i);
        match self.branches.first() {
            Some(first) if of > 0 => (*first, self.branches[of - 1]),
            _ => (0, 0),
        }
    }

    fn all(sequence: Range<usize>, window: Option<usize>) -> impl Iterator<Item = Self> {
        let len = sequence.len();
        (0..len).step_by(BLOCK).map(move |first| {
            let queries = first..len.min(first + BLOCK);
            let rows = sequence.start + queries.start..sequence.start + queries.end;
            Self { sequence: sequence.clone(), queries, rows, window, branches: &[] }
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
    inputs: &QueryKeyValue<'_, Vec<f32>>,
    layout: AttentionLayout<'_>,
    out: &mut [f32],
    lse: &mut [f32],
) {
    let AttentionLayout { shape, sequences } = layout;
    let (width, tokens) = (shape.heads * shape.head_dim, sequences.tokens());
    let (mut out, mut lse) = (&mut out[..tokens * width], &mut lse[..tokens * shape.heads]);
    let inputs = Slices { q: inputs.q, k: inputs.k, v: inputs.v };
    let mut tasks = Vec::new();
    for sequence in sequences.ranges() {
        for block in Block::all(sequence, shape.window) {
            let n = block.queries.len();
            let (of_block, after) = out.split_at_mut(n * width);
            let (lse_of_block, lse_after) = lse.split_at_mut(n * shape.heads);
            (out, lse) = (after, lse_after);
            tasks.push(Task { inputs, block, out: of_block, lse: lse_of_block });
        }
    }
    run(shape, tasks);
}

/// Queries, keys and values of one micro-batch.
#[derive(Clone, Copy)]
pub(super) struct Slices<'a> {
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
}

/// A block with its part of the output and of the log-sum-exp.
pub(super) struct Task<'a> {
    pub(super) inputs: Slices<'a>,
    pub(super) block: Block<'a>,
    pub(super) out: &'a mut [f32],
    pub(super) lse: &'a mut [f32],
}

/// Computes the blocks on all threads.
pub(super) fn run(shape: AttentionShape, tasks: Vec<Task<'_>>) {
    tasks.into_par_iter().for_each_init(Vec::new, |scores, Task { inputs, block, out, lse }| {
        for h in 0..shape.heads {
            forward_head(inputs, shape, &block, h, BlockOutput { scores, out, lse });
        }
    });
}

/// What the forward pass of a block writes.
struct BlockOutput<'a> {
    /// `[queries, keys]` of one head.
    scores: &'a mut Vec<f32>,
    /// `[queries, H, E]`.
    out: &'a mut [f32],
    /// `[queries, H]`.
    lse: &'a mut [f32],
}

/// Head `h` of one block of queries.
fn forward_head(
    inputs: Slices<'_>,
    shape: AttentionShape,
    block: &Block<'_>,
    h: usize,
    output: BlockOutput<'_>,
) {
    let (Slices { q, k, v }, BlockOutput { scores, out, lse }) = (inputs, output);
    let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
    let (keys, n) = (block.keys(), block.queries.len());
    let at = |range: &Range<usize>| block.sequence.start + range.start..block.sequence.start + range.end;
    let (kv, columns) = (h / (heads / kv_heads), keys.len());
    scores.resize((n * columns).max(scores.len()), 0.0);
    let scores = &mut scores[..n * columns];
    let (q, k) =
        (head(q, block.rows.clone(), h, heads, head_dim), head(k, at(&keys), kv, kv_heads, head_dim));
    let scale = 1.0 / (head_dim as f32).sqrt();
    matmul_here(MatMut::new(scores, n, columns, columns), Store::Overwrite, scale, q, k.t());
    for (r, row) in scores.chunks_mut(columns).enumerate() {
        let (visible, hidden) =
            (block.visible(block.queries.start + r), block.hidden(block.queries.start + r));
        let visible = visible.start - keys.start..visible.end - keys.start;
        if let Some(cap) = shape.soft_cap {
            dispatch(SoftCap { scores: &mut row[visible.clone()], cap });
        }
        row[hidden.start.max(keys.start) - keys.start..hidden.end.max(keys.start) - keys.start]
            .fill(f32::NEG_INFINITY);
        lse[r * heads + h] = dispatch(Softmax { row, visible });
    }
    let stride = heads * head_dim;
    let out = MatMut::new(&mut out[h * head_dim..], n, head_dim, stride);
    let v = head(v, at(&keys), kv, kv_heads, head_dim);
    matmul_here(out, Store::Overwrite, 1.0, Mat::new(scores, n, columns, columns), v);
}

/// Replaces scores `s` by `cap · tanh(s / cap)`.
pub(super) struct SoftCap<'a> {
    pub(super) scores: &'a mut [f32],
    pub(super) cap: f32,
}

impl Kernel for SoftCap<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for score in self.scores {
            *score = self.cap * tanh(*score / self.cap);
        }
    }
}

/// Replaces scores by probabilities, 0 outside `visible`, and returns the log-sum-exp.
pub(super) struct Softmax<'a> {
    pub(super) row: &'a mut [f32],
    pub(super) visible: Range<usize>,
}

impl Kernel for Softmax<'_> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let (before, rest) = self.row.split_at_mut(self.visible.start);
        let (visible, after) = rest.split_at_mut(self.visible.len());
        before.fill(0.0);
        after.fill(0.0);
        let largest = max(visible);
        let sum = exp_sum(visible, largest);
        let inverse = 1.0 / sum;
        for p in visible {
            *p *= inverse;
        }
        largest + sum.ln()
    }
}

/// What the backward pass reads.
struct Inputs<'a> {
    output: &'a AttentionOutput<'a, Vec<f32>>,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    shape: AttentionShape,
}

/// Gradients of one query head of one sequence, each `[len, E]`; those of the key/value head are summed over its group
/// of query heads.
struct QueryHeadGradients {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

/// See [`crate::backend::Backend::attention_backward`].
pub(super) fn backward(
    output: &AttentionOutput<'_, Vec<f32>>,
    layout: AttentionLayout<'_>,
    qkv: QueryKeyValueMut<'_, Vec<f32>>,
) {
    let (AttentionLayout { shape, sequences }, QueryKeyValueMut { q, k, v }) = (layout, qkv);
    let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
    let group = heads / kv_heads;
    let inputs = Inputs { output, q, k, v, shape };
    let tasks: Vec<(Range<usize>, usize)> =
        sequences.ranges().flat_map(|range| (0..heads).map(move |h| (range.clone(), h))).collect();
    let gradients: Vec<QueryHeadGradients> = tasks
        .into_par_iter()
        .map_init(Default::default, |scores, (range, h)| backward_head(&inputs, &range, h, scores))
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

/// Calls `write` with every row of a sequence and its position, on all threads.
fn scatter(x: &mut [f32], range: &Range<usize>, width: usize, write: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = x[range.start * width..range.end * width].par_chunks_mut(width);
    rows.enumerate().for_each(|(t, row)| write(t, row));
}

/// Work buffers for the `[queries, keys]` matrices of one block.
#[derive(Default)]
struct BlockScores {
    /// Probabilities.
    p: Vec<f32>,
    /// Gradients of the scores.
    ds: Vec<f32>,
}

fn backward_head(
    inputs: &Inputs<'_>,
    sequence: &Range<usize>,
    h: usize,
    scores: &mut BlockScores,
) -> QueryHeadGradients {
    let Inputs { output, q, k, v, shape } = *inputs;
    let AttentionShape { heads, kv_heads, head_dim, window, soft_cap } = shape;
    let kv = h / (heads / kv_heads);
    let scale = 1.0 / (head_dim as f32).sqrt();
    let zeros = || vec![0.0; sequence.len() * head_dim];
    let mut gradients = QueryHeadGradients { q: zeros(), k: zeros(), v: zeros() };
    for block in Block::all(sequence.clone(), window) {
        let (keys, n) = (block.keys(), block.queries.len());
        let columns = keys.len();
        let at = |range: &Range<usize>| sequence.start + range.start..sequence.start + range.end;
        let of_query = |x| head(x, block.rows.clone(), h, heads, head_dim);
        let of_key = |x| head(x, at(&keys), kv, kv_heads, head_dim);
        let BlockScores { p, ds } = &mut *scores;
        p.resize((n * columns).max(p.len()), 0.0);
        ds.resize((n * columns).max(ds.len()), 0.0);
        let (p, ds) = (&mut p[..n * columns], &mut ds[..n * columns]);
        let scores = MatMut::new(p, n, columns, columns);
        matmul_here(scores, Store::Overwrite, scale, of_query(q), of_key(k).t());
        let dp = MatMut::new(ds, n, columns, columns);
        matmul_here(dp, Store::Overwrite, 1.0, of_query(output.dout), of_key(v).t());
        for (r, (p, ds)) in p.chunks_mut(columns).zip(ds.chunks_mut(columns)).enumerate() {
            let token = sequence.start + block.queries.start + r;
            let visible = block.visible(block.queries.start + r);
            let visible = visible.start - keys.start..visible.end - keys.start;
            let row = (token * heads + h) * head_dim..(token * heads + h + 1) * head_dim;
            let (out, dout) = (&output.out[row.clone()], &output.dout[row]);
            let lse = output.lse[token * heads + h];
            dispatch(SoftmaxBackward { p, ds, visible, soft_cap, lse, out, dout });
        }
        let (p, ds) = (Mat::new(p, n, columns, columns), Mat::new(ds, n, columns, columns));
        let own = |x: &Range<usize>| x.start * head_dim..x.end * head_dim;
        let dq = MatMut::new(&mut gradients.q[own(&block.queries)], n, head_dim, head_dim);
        matmul_here(dq, Store::Overwrite, scale, ds, of_key(k));
        let dk = MatMut::new(&mut gradients.k[own(&keys)], columns, head_dim, head_dim);
        matmul_here(dk, Store::Add, scale, ds.t(), of_query(q));
        let dv = MatMut::new(&mut gradients.v[own(&keys)], columns, head_dim, head_dim);
        matmul_here(dv, Store::Add, 1.0, p.t(), of_query(output.dout));
    }
    gradients
}

/// Replaces the scores in `p` by probabilities, and `ds = p ∘ (dp − dout · out)` in place of `dp`, times the slope of the
/// cap where there is one.
struct SoftmaxBackward<'a> {
    p: &'a mut [f32],
    ds: &'a mut [f32],
    visible: Range<usize>,
    soft_cap: Option<f32>,
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
            x[..self.visible.start].fill(0.0);
            x[self.visible.end..].fill(0.0);
        }
        let pairs = self.p[self.visible.clone()].iter_mut().zip(&mut self.ds[self.visible]);
        let Some(cap) = self.soft_cap else {
            for (p, ds) in pairs {
                *p = exp(*p - self.lse);
                *ds = *p * (*ds - delta);
            }
            return;
        };
        for (p, ds) in pairs {
            let t = tanh(*p / cap);
            *p = exp(cap * t - self.lse);
            *ds = *p * (*ds - delta) * (1.0 - t * t);
        }
    }
}
