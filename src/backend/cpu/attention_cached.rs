//! Attention of new tokens to sequences whose earlier keys and values are kept.

use std::ops::Range;

use rayon::prelude::*;

use super::attention::{BLOCK, Block, Slices, SoftCap, Softmax, Task, run};
use super::math::dot;
use crate::backend::AttentionShape;
use crate::simd::{Kernel, dispatch};

/// Products of single queries with keys from which on threads share the work.
const SHARED: usize = 1 << 18;

/// The keys and values of one sequence, those of its new tokens at the end.
#[derive(Debug, Clone, Copy)]
pub struct CachedSequence<'a> {
    /// Number of new tokens.
    pub new: usize,
    /// `[tokens, K · E]`, rotated.
    pub k: &'a [f32],
    /// `[tokens, K · E]`.
    pub v: &'a [f32],
    /// Where branches begin among all tokens of the sequence: each goes on from the tokens before the first branch, and does not
    /// attend to the others. Empty for a sequence without.
    pub branches: &'a [usize],
}

/// See [`super::Cpu::attention_cached`].
pub(super) fn forward(
    q: &[f32],
    sequences: &[CachedSequence<'_>],
    shape: AttentionShape,
    mut out: &mut [f32],
    mut lse: &mut [f32],
) {
    let AttentionShape { heads, kv_heads, head_dim, window, soft_cap } = shape;
    let (width, group) = (heads * head_dim, heads / kv_heads);
    let (mut blocks, mut queries, mut first) = (Vec::new(), Vec::new(), 0);
    for CachedSequence { new, k, v, branches } in sequences {
        let (own, rest) = out.split_at_mut(new * width);
        let (own_lse, rest_lse) = lse.split_at_mut(new * heads);
        (out, lse) = (rest, rest_lse);
        let len = k.len() / (kv_heads * head_dim);
        let rows = first..first + new;
        first += new;
        if *new == 1 {
            let block =
                Block { sequence: 0..len, queries: len - 1..len, rows: rows.clone(), window, branches: &[] };
            let q = q[rows.start * width..rows.end * width].chunks(group * head_dim);
            let parts = own.chunks_mut(group * head_dim).zip(own_lse.chunks_mut(group));
            queries.extend(q.zip(parts).enumerate().map(|(kv_head, (q, (out, lse)))| Query {
                q,
                keys: Keys { k, v, stride: kv_heads * head_dim, at: kv_head * head_dim },
                visible: block.visible(len - 1),
                head_dim,
                soft_cap,
                out,
                lse,
            }));
            continue;
        }
        let parts = own.chunks_mut(BLOCK * width).zip(own_lse.chunks_mut(BLOCK * heads)).enumerate();
        blocks.extend(parts.map(|(i, (out, lse))| {
            let of_block = i * BLOCK..(*new).min((i + 1) * BLOCK);
            let queries = len - new + of_block.start..len - new + of_block.end;
            let rows = rows.start + of_block.start..rows.start + of_block.end;
            let block = Block { sequence: 0..len, queries, rows, window, branches };
            Task { inputs: Slices { q, k, v }, block, out, lse }
        }));
    }
    run(shape, blocks);
    let work: usize = queries.iter().map(|query| query.visible.len() * query.q.len()).sum();
    if work < SHARED {
        let mut scores = Vec::new();
        queries.into_iter().for_each(|query| dispatch(Attend { query, scores: &mut scores }));
    } else {
        queries.into_par_iter().for_each_init(Vec::new, |scores, query| dispatch(Attend { query, scores }));
    }
}

/// The keys and values of one key/value head.
#[derive(Clone, Copy)]
struct Keys<'a> {
    k: &'a [f32],
    v: &'a [f32],
    /// Floats from one token to the next.
    stride: usize,
    /// Where the head begins.
    at: usize,
}

/// The queries of one token for one key/value head.
struct Query<'a> {
    /// `[H / K, E]`.
    q: &'a [f32],
    keys: Keys<'a>,
    visible: Range<usize>,
    head_dim: usize,
    soft_cap: Option<f32>,
    /// `[H / K, E]`.
    out: &'a mut [f32],
    /// `[H / K]`.
    lse: &'a mut [f32],
}

struct Attend<'a, 's> {
    query: Query<'a>,
    scores: &'s mut Vec<f32>,
}

impl Kernel for Attend<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { query: Query { q, keys, visible, head_dim, soft_cap, out, lse }, scores } = self;
        let Keys { k, v, stride, at } = keys;
        let scale = 1.0 / (head_dim as f32).sqrt();
        scores.resize(visible.len(), 0.0);
        for ((q, out), lse) in q.chunks(head_dim).zip(out.chunks_mut(head_dim)).zip(lse) {
            for (score, token) in scores.iter_mut().zip(visible.clone()) {
                *score = scale * dot(q, &k[token * stride + at..][..head_dim]);
            }
            if let Some(cap) = soft_cap {
                SoftCap { scores, cap }.run();
            }
            *lse = Softmax { visible: 0..scores.len(), row: scores }.run();
            out.fill(0.0);
            for (p, token) in scores.iter().zip(visible.clone()) {
                for (out, v) in out.iter_mut().zip(&v[token * stride + at..][..head_dim]) {
                    *out += p * v;
                }
            }
        }
    }
}
