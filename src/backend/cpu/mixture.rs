//! A mixture of experts: each token goes through a few of many MLPs, and through a shared one where there is one.

use std::ops::Range;

use rayon::prelude::*;

use super::gated_product;
use super::linear;
use super::math::{dot, exp};
use super::panels::Panels;
use super::routes;
use super::swiglu::SwiGlu;
use super::weight::Weight;
use crate::backend::{Expert, LinearShape, MixtureActs, MixtureGradients, Routes, Routing};

/// Work buffers, and the panel of widened weights.
#[derive(Debug, Default)]
pub(super) struct Mixture {
    /// Rows of inputs, `[T · per_token, D]`.
    inputs: Vec<f32>,
    /// Rows of outputs or of gradients, `[T · per_token, D]`.
    outputs: Vec<f32>,
    /// `[T · per_token, F]`.
    act: Vec<f32>,
}

/// The weights of a mixture.
pub(super) struct Weights<'a, 'w> {
    pub(super) router: &'a Weight<'w>,
    pub(super) experts: &'a [Expert<&'a Weight<'w>>],
    pub(super) shared: Option<(&'a Weight<'w>, Expert<&'a Weight<'w>>)>,
    pub(super) routing: Routing,
}

/// Rows of one matrix, copied by the token of each route.
pub(super) fn gather(from: &[f32], routes: &Routes, cols: usize, to: &mut Vec<f32>) {
    to.resize(routes.tokens.len() * cols, 0.0);
    to.par_chunks_mut(cols).zip(&routes.tokens).for_each(|(to, token)| {
        to.copy_from_slice(&from[*token as usize * cols..][..cols]);
    });
}

/// Adds to each row of `to` those of its routes, times `weights` where there are any.
pub(super) fn scatter_add(
    from: &[f32],
    routes: &Routes,
    per_token: usize,
    weights: Option<&[f32]>,
    to: &mut [f32],
    cols: usize,
) {
    let own = routes.of_tokens.par_chunks(per_token);
    to.par_chunks_mut(cols).zip(own).for_each(|(to, own)| {
        for route in own {
            let weight = weights.map_or(1.0, |weights| weights[*route as usize]);
            let row = &from[*route as usize * cols..][..cols];
            to.iter_mut().zip(row).for_each(|(to, x)| *to += weight * x);
        }
    });
}

/// Rows of an expert: its gate, up and activation, all `[rows, F]`.
struct Inner<'a> {
    gate: &'a mut [f32],
    up: &'a mut [f32],
    act: &'a mut [f32],
}

/// gate, up and activation of the rows `x` of an expert.
fn inner_forward([gate, up, _]: Expert<&Weight<'_>>, x: &[f32], inner: Inner<'_>, panel: &mut Panels) {
    let rows = x.len() / gate.cols;
    linear::product(x, gate, rows, inner.gate, false, panel);
    linear::product(x, up, rows, inner.up, false, panel);
    gated_product::forward::<SwiGlu>(inner.gate, inner.up, inner.act);
}

/// `1 / (1 + e⁻ˣ)` of the shares of the shared expert, for each row of `x`.
fn shares(gate: &Weight<'_>, x: &[f32]) -> Vec<f32> {
    let weight = gate.vector();
    x.par_chunks(weight.len()).map(|row| 1.0 / (1.0 + exp(-dot(row, &weight)))).collect()
}

impl Mixture {
    /// See [`crate::backend::MixtureOperations::mixture_forward`]: adds to `out`, unless it is `None`.
    pub(super) fn forward(
        &mut self,
        x: &[f32],
        weights: &Weights<'_, '_>,
        acts: &mut MixtureActs<Vec<f32>>,
        out: Option<&mut [f32]>,
        panel: &mut Panels,
    ) {
        let (cols, experts, routing) = (weights.router.cols, weights.router.rows, weights.routing);
        let rows = x.len() / cols;
        let probabilities = &mut acts.probabilities[..rows * experts];
        linear::product(x, weights.router, rows, probabilities, false, panel);
        routes::softmax(probabilities, experts);
        acts.routes = routes::choose(probabilities, experts, routing);
        let wanted = out.is_some();
        let Self { inputs, outputs, act } = self;
        gather(x, &acts.routes, cols, inputs);
        outputs.resize(inputs.len(), 0.0);
        let [gate, up] = &mut acts.routed;
        for (expert, route) in weights.experts.iter().zip(ranges(&acts.routes)) {
            let wide = expert[0].rows;
            if route.is_empty() {
                continue;
            }
            let own = |range: &Range<usize>, cols: usize| range.start * cols..range.end * cols;
            act.resize((route.len() * wide).max(act.len()), 0.0);
            let act = &mut act[..route.len() * wide];
            let (gate, up) = (&mut gate[own(&route, wide)], &mut up[own(&route, wide)]);
            inner_forward(*expert, &inputs[own(&route, cols)], Inner { gate, up, act }, panel);
            if wanted {
                linear::product(act, expert[2], route.len(), &mut outputs[own(&route, cols)], false, panel);
            }
        }
        let shared = weights.shared.zip(acts.shared.as_mut());
        if let Some(out) = out {
            let out = &mut out[..rows * cols];
            scatter_add(outputs, &acts.routes, routing.per_token, Some(&acts.routes.weights), out, cols);
            if let Some(((share, expert), [gate, up])) = shared {
                let n = rows * expert[0].rows;
                act.resize(n.max(act.len()), 0.0);
                let inner = Inner { gate: &mut gate[..n], up: &mut up[..n], act: &mut act[..n] };
                inner_forward(expert, x, inner, panel);
                outputs.resize((rows * cols).max(outputs.len()), 0.0);
                linear::product(&act[..n], expert[2], rows, &mut outputs[..rows * cols], false, panel);
                let rows = out.par_chunks_mut(cols).zip(outputs.par_chunks(cols)).zip(shares(share, x));
                rows.for_each(|((out, y), share)| {
                    out.iter_mut().zip(y).for_each(|(out, y)| *out += share * y)
                });
            }
        } else if let Some(((_, expert), [gate, up])) = shared {
            let n = rows * expert[0].rows;
            act.resize(n.max(act.len()), 0.0);
            let inner = Inner { gate: &mut gate[..n], up: &mut up[..n], act: &mut act[..n] };
            inner_forward(expert, x, inner, panel);
        }
    }
}

/// The routes of each expert.
pub(super) fn ranges(routes: &Routes) -> impl Iterator<Item = Range<usize>> {
    routes.offsets.windows(2).map(|ends| ends[0]..ends[1]).collect::<Vec<_>>().into_iter()
}

/// The rows of one expert in the backward pass.
struct ExpertRows<'a> {
    /// `[rows, D]`.
    x: &'a [f32],
    /// Gradient of the output of each row before its weight, `[rows, D]`; with the weight afterwards. Then, where it is wanted,
    /// the gradient of `x`.
    dout: &'a mut [f32],
    /// The weight of each row in the output; afterwards its gradient.
    weights: &'a mut [f32],
    /// gate and up, `[rows, F]`; afterwards their gradients.
    gate: &'a mut [f32],
    up: &'a mut [f32],
}

impl ExpertRows<'_> {
    fn backward(
        self,
        [gate_proj, up_proj, down_proj]: Expert<&Weight<'_>>,
        [dgate, dup, ddown]: &mut Expert<Option<&mut Vec<f32>>>,
        (accumulate, wanted): (bool, bool),
        work: (&mut Vec<f32>, &mut Panels),
    ) {
        let Self { x, dout, weights, gate, up } = self;
        let (rows, cols, wide) = (weights.len(), gate_proj.cols, gate_proj.rows);
        let (act, panel) = work;
        let n = rows * wide;
        act.resize((2 * n).max(act.len()), 0.0);
        let (act, dact) = act[..2 * n].split_at_mut(n);
        gated_product::forward::<SwiGlu>(gate, up, act);
        linear::backward_input(dout, down_proj, rows, dact, false, panel);
        let of_rows = dact.par_chunks_mut(wide).zip(act.par_chunks(wide)).zip(dout.par_chunks_mut(cols));
        of_rows.zip(weights).for_each(|(((dact, act), dout), weight)| {
            let gradient = dot(dact, act);
            dact.iter_mut().chain(dout).for_each(|x| *x *= *weight);
            *weight = gradient;
        });
        let mut product = |dout: &[f32],
                           x: &[f32],
                           out_features: usize,
                           in_features: usize,
                           grad: &mut Option<&mut Vec<f32>>| {
            if let Some(grad) = grad {
                let shape = LinearShape { rows, out_features, in_features };
                linear::backward_weight(dout, x, shape, grad, accumulate, panel);
            }
        };
        product(dout, act, cols, wide, ddown);
        gated_product::backward::<SwiGlu>(dact, gate, up);
        product(gate, x, wide, cols, dgate);
        product(up, x, wide, cols, dup);
        if wanted {
            linear::backward_input(gate, gate_proj, rows, dout, false, panel);
            linear::backward_input(up, up_proj, rows, dout, true, panel);
        }
    }
}

impl Mixture {
    /// See [`crate::backend::MixtureOperations::mixture_backward`].
    pub(super) fn backward(
        &mut self,
        (dout, x): (&[f32], &[f32]),
        weights: &Weights<'_, '_>,
        gradients: MixtureGradients<'_, Vec<f32>>,
        acts: &mut MixtureActs<Vec<f32>>,
        dx: Option<&mut [f32]>,
        panel: &mut Panels,
    ) {
        let MixtureGradients { router, experts: of_experts, shared: of_shared, of_probabilities, accumulate } =
            gradients;
        let (cols, count, routing) = (weights.router.cols, weights.router.rows, weights.routing);
        let (rows, wanted) = (x.len() / cols, dx.is_some());
        let Self { inputs, outputs, act } = self;
        let MixtureActs { probabilities, routed: [gate, up], shared: shared_acts, routes } = acts;
        gather(x, routes, cols, inputs);
        gather(dout, routes, cols, outputs);
        let mut dweights = routes.weights.clone();
        for ((expert, mut own), route) in weights.experts.iter().zip(of_experts).zip(ranges(routes)) {
            let of = |cols: usize| route.start * cols..route.end * cols;
            let wide = of(expert[0].rows);
            if route.is_empty() {
                if !accumulate {
                    own.iter_mut().flatten().for_each(|grad| grad.fill(0.0));
                }
                continue;
            }
            let rows = ExpertRows {
                x: &inputs[of(cols)],
                dout: &mut outputs[of(cols)],
                weights: &mut dweights[route.clone()],
                gate: &mut gate[wide.clone()],
                up: &mut up[wide],
            };
            rows.backward(*expert, &mut own, (accumulate, wanted), (act, panel));
        }
        let probabilities = &mut probabilities[..rows * count];
        let of_probabilities = of_probabilities.map(Vec::as_slice);
        routes::backward((&dweights, of_probabilities), routes, count, routing, probabilities);
        if let Some(router) = router {
            let shape = LinearShape { rows, out_features: count, in_features: cols };
            linear::backward_weight(probabilities, x, shape, router, accumulate, panel);
        }
        let mut dx = dx.map(|dx| &mut dx[..rows * cols]);
        if let Some(dx) = &mut dx {
            linear::backward_input(probabilities, weights.router, rows, dx, false, panel);
            scatter_add(outputs, routes, routing.per_token, None, dx, cols);
        }
        if let (Some(weights), Some(acts), Some(own)) = (weights.shared, shared_acts, of_shared) {
            shared_backward((dout, x), weights, acts, own, accumulate, dx, (outputs, act, panel));
        }
    }
}

/// The gradient of the share of the shared expert, and those of its weights.
type SharedGradients<'g> = (Option<&'g mut Vec<f32>>, Expert<Option<&'g mut Vec<f32>>>);

/// The backward pass of the shared expert; adds to `dx`, unless it is `None`.
fn shared_backward(
    (dout, x): (&[f32], &[f32]),
    (share, expert): (&Weight<'_>, Expert<&Weight<'_>>),
    [gate, up]: &mut [Vec<f32>; 2],
    (dshare, mut own): SharedGradients<'_>,
    accumulate: bool,
    dx: Option<&mut [f32]>,
    (outputs, act, panel): (&mut Vec<f32>, &mut Vec<f32>, &mut Panels),
) {
    let cols = share.cols;
    let (rows, wide) = (x.len() / cols, expert[0].rows);
    let of_rows = shares(share, x);
    let mut weights = of_rows.clone();
    outputs.resize((rows * cols).max(outputs.len()), 0.0);
    let outputs = &mut outputs[..rows * cols];
    outputs.copy_from_slice(&dout[..rows * cols]);
    let n = rows * wide;
    let of_expert =
        ExpertRows { x, dout: outputs, weights: &mut weights, gate: &mut gate[..n], up: &mut up[..n] };
    of_expert.backward(expert, &mut own, (accumulate, dx.is_some()), (act, panel));
    // Through the sigmoid: s' = s (1 − s).
    let slopes: Vec<f32> = weights.iter().zip(&of_rows).map(|(dw, s)| dw * s * (1.0 - s)).collect();
    if let Some(dshare) = dshare {
        let shape = LinearShape { rows, out_features: 1, in_features: cols };
        linear::backward_weight(&slopes, x, shape, dshare, accumulate, panel);
    }
    if let Some(dx) = dx {
        let share = share.vector();
        dx.par_chunks_mut(cols).zip(outputs.par_chunks(cols)).zip(&slopes).for_each(|((dx, own), slope)| {
            for ((dx, own), share) in dx.iter_mut().zip(own).zip(share.iter()) {
                *dx += own + slope * share;
            }
        });
    }
}
