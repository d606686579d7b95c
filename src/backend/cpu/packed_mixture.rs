//! A mixture whose experts are packed, as those of gpt-oss: each projection of all of them is one tensor, with a bias, and
//! gate and up take turns in the columns of one projection.

use std::ops::Range;

use rayon::prelude::*;

use super::clamped_swiglu;
use super::linear;
use super::math::dot;
use super::mixture::{gather, ranges, scatter_add};
use super::panels::Panels;
use super::routes;
use super::weight::Weight;
use crate::backend::{
    LinearShape, MixtureActs, PackedExperts, PackedMixtureGradients, PackedMixtureWeights, Routes,
};
use crate::checkpoint::decode_mxfp4;

/// Work buffers.
#[derive(Debug, Default)]
pub(super) struct PackedMixture {
    /// Rows of inputs, `[T · per_token, D]`.
    inputs: Vec<f32>,
    /// Rows of outputs or of gradients, `[T · per_token, D]`.
    outputs: Vec<f32>,
    work: Work,
}

/// Work buffers of one expert.
#[derive(Debug, Default)]
struct Work {
    /// Gate and up in turn, `[rows, 2 · F]`.
    gate_up: Vec<f32>,
    /// What `down` is applied to, and its gradient, `[rows, F]` each.
    act: Vec<f32>,
    /// The decoded values of a projection.
    decoded: Vec<f32>,
}

/// The first `len` elements of a buffer, which grows where it is shorter.
fn first(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// The matrix of one expert: `[I, O]`, or `[O, I]` as codes of MXFP4 are stored.
struct ExpertMatrix<'a> {
    matrix: Weight<'a>,
    inputs_first: bool,
}

impl ExpertMatrix<'_> {
    /// `out = x · matrix` from `I` to `O` columns.
    fn forward(&self, x: &[f32], rows: usize, out: &mut [f32], panel: &mut Panels) {
        if self.inputs_first {
            linear::backward_input(x, &self.matrix, rows, out, false, panel);
        } else {
            linear::product(x, &self.matrix, rows, out, false, panel);
        }
    }

    /// The gradient of `x` from that of `out`.
    fn backward(&self, dout: &[f32], rows: usize, dx: &mut [f32], panel: &mut Panels) {
        if self.inputs_first {
            linear::product(dout, &self.matrix, rows, dx, false, panel);
        } else {
            linear::backward_input(dout, &self.matrix, rows, dx, false, panel);
        }
    }
}

/// The matrix of expert `e`; those in MXFP4 are decoded.
fn matrix<'s>(
    experts: &'s PackedExperts<'_, Weight<'_>>,
    e: usize,
    decoded: &'s mut Vec<f32>,
) -> ExpertMatrix<'s> {
    let count = experts.bias.rows;
    let of_expert = |weight: &Weight<'_>| e * weight.rows / count..(e + 1) * weight.rows / count;
    let values = experts.values.of_rows(of_expert(experts.values));
    let Some(scales) = experts.scales else { return ExpertMatrix { matrix: values, inputs_first: true } };
    let scales = scales.of_rows(of_expert(scales));
    let (Some(codes), Some(exponents)) = (values.frozen_rows(), scales.frozen_rows()) else {
        unreachable!("codes of MXFP4 are frozen")
    };
    let (rows, cols) = (values.rows, 2 * values.cols);
    let decoded = first(decoded, rows * cols);
    let each = codes.bytes.par_chunks(codes.row_bytes).zip(exponents.bytes.par_chunks(exponents.row_bytes));
    each.zip(decoded.par_chunks_mut(cols)).for_each(|((codes, exponents), out)| {
        decode_mxfp4(codes, exponents, out);
    });
    ExpertMatrix { matrix: Weight::of_values(decoded, rows, cols), inputs_first: false }
}

/// The bias of expert `e`.
fn bias<'s>(experts: &'s PackedExperts<'_, Weight<'_>>, e: usize) -> Weight<'s> {
    experts.bias.of_rows(e..e + 1)
}

/// Gate and up from the columns that they take turns in.
fn part(both: &[f32], gate: &mut [f32], up: &mut [f32]) {
    let pairs = both.as_chunks::<2>().0.par_iter();
    pairs.zip(gate.par_iter_mut().zip(up)).for_each(|([g, u], (gate, up))| (*gate, *up) = (*g, *u));
}

/// The other way round.
fn join(gate: &[f32], up: &[f32], both: &mut [f32]) {
    let pairs = both.as_chunks_mut::<2>().0.par_iter_mut();
    pairs.zip(gate.par_iter().zip(up)).for_each(|(both, (gate, up))| *both = [*gate, *up]);
}

/// The elements of `range` of a matrix of `cols` columns.
fn of(range: &Range<usize>, cols: usize) -> Range<usize> {
    range.start * cols..range.end * cols
}

impl PackedMixture {
    /// See [`crate::backend::MixtureOperations::packed_mixture_forward`].
    pub(super) fn forward(
        &mut self,
        (x, rows): (&Vec<f32>, usize),
        weights: &PackedMixtureWeights<'_, Weight<'_>>,
        acts: &mut MixtureActs<Vec<f32>>,
        out: Option<&mut Vec<f32>>,
        panel: &mut Panels,
    ) {
        let (cols, experts, routing) = (weights.router.cols, weights.router.rows, weights.routing);
        let x = &x[..rows * cols];
        let probabilities = &mut acts.probabilities[..rows * experts];
        linear::product(x, weights.router, rows, probabilities, false, panel);
        linear::bias_forward(&weights.router_bias.vector(), rows, probabilities);
        routes::softmax(probabilities, experts);
        acts.routes = routes::choose(probabilities, experts, routing);
        let Self { inputs, outputs, work: Work { gate_up, act, decoded } } = self;
        gather(x, &acts.routes, cols, inputs);
        outputs.resize(inputs.len(), 0.0);
        let wide = weights.gate_up.bias.cols / 2;
        let [gate, up] = &mut acts.routed;
        for (e, route) in ranges(&acts.routes).enumerate().filter(|(_, route)| !route.is_empty()) {
            let both = first(gate_up, 2 * wide * route.len());
            let projection = matrix(&weights.gate_up, e, decoded);
            projection.forward(&inputs[of(&route, cols)], route.len(), both, panel);
            linear::bias_forward(&bias(&weights.gate_up, e).vector(), route.len(), both);
            let (gate, up) = (&mut gate[of(&route, wide)], &mut up[of(&route, wide)]);
            part(both, gate, up);
            if out.is_some() {
                let act = first(act, wide * route.len());
                clamped_swiglu::forward(weights.gate, gate, up, act);
                let y = &mut outputs[of(&route, cols)];
                matrix(&weights.down, e, decoded).forward(act, route.len(), y, panel);
                linear::bias_forward(&bias(&weights.down, e).vector(), route.len(), y);
            }
        }
        if let Some(out) = out {
            let Routes { weights, .. } = &acts.routes;
            scatter_add(outputs, &acts.routes, routing.per_token, Some(weights), &mut out[..x.len()], cols);
        }
    }

    /// See [`crate::backend::MixtureOperations::packed_mixture_backward`].
    pub(super) fn backward(
        &mut self,
        (dout, x, rows): (&Vec<f32>, &Vec<f32>, usize),
        weights: &PackedMixtureWeights<'_, Weight<'_>>,
        gradients: PackedMixtureGradients<'_, Vec<f32>>,
        acts: &mut MixtureActs<Vec<f32>>,
        dx: Option<&mut Vec<f32>>,
        panel: &mut Panels,
    ) {
        let PackedMixtureGradients { accumulate, of_probabilities, .. } = gradients;
        let (cols, count, routing) = (weights.router.cols, weights.router.rows, weights.routing);
        let (wanted, wide) = (dx.is_some(), weights.gate_up.bias.cols / 2);
        let (dout, x) = (&dout[..rows * cols], &x[..rows * cols]);
        let Self { inputs, outputs, work } = self;
        let MixtureActs { probabilities, routed: [gate, up], routes, .. } = acts;
        gather(x, routes, cols, inputs);
        gather(dout, routes, cols, outputs);
        let mut dweights = routes.weights.clone();
        let (mut dgate_up, mut ddown) = (gradients.gate_up, gradients.down);
        if !accumulate {
            dgate_up.iter_mut().chain(&mut ddown).flatten().for_each(|grad| grad.fill(0.0));
        }
        for (e, route) in ranges(routes).enumerate().filter(|(_, route)| !route.is_empty()) {
            let expert = ExpertRows {
                e,
                x: &inputs[of(&route, cols)],
                dout: &mut outputs[of(&route, cols)],
                weights: &mut dweights[route.clone()],
                gate: &mut gate[of(&route, wide)],
                up: &mut up[of(&route, wide)],
            };
            expert.backward(weights, [&mut dgate_up, &mut ddown], wanted, (&mut *work, &mut *panel));
        }
        let probabilities = &mut probabilities[..rows * count];
        routes::backward(
            (&dweights, of_probabilities.map(Vec::as_slice)),
            routes,
            count,
            routing,
            probabilities,
        );
        if let Some(router) = gradients.router {
            let shape = LinearShape { rows, out_features: count, in_features: cols };
            linear::backward_weight(probabilities, x, shape, router, accumulate, panel);
        }
        if let Some(bias) = gradients.router_bias {
            linear::bias_backward(probabilities, rows, bias);
        }
        if let Some(dx) = dx.map(|dx| &mut dx[..rows * cols]) {
            linear::backward_input(probabilities, weights.router, rows, dx, false, panel);
            scatter_add(outputs, routes, routing.per_token, None, dx, cols);
        }
    }
}

/// The rows of one expert in the backward pass.
struct ExpertRows<'a> {
    /// Its number.
    e: usize,
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

/// The gradients of values and bias of a projection of all experts.
type ProjectionGradients<'g> = [Option<&'g mut Vec<f32>>; 2];

impl ExpertRows<'_> {
    /// Adds to the gradients of the weights.
    fn backward(
        self,
        mixture: &PackedMixtureWeights<'_, Weight<'_>>,
        [dgate_up, ddown]: [&mut ProjectionGradients<'_>; 2],
        wanted: bool,
        (work, panel): (&mut Work, &mut Panels),
    ) {
        let Self { e, x, dout, weights, gate, up } = self;
        let rows = weights.len();
        let (cols, wide, n) = (x.len() / rows, gate.len() / rows, gate.len());
        let Work { gate_up, act, decoded } = work;
        let (act, dact) = first(act, 2 * n).split_at_mut(n);
        clamped_swiglu::forward(mixture.gate, gate, up, act);
        matrix(&mixture.down, e, decoded).backward(dout, rows, dact, panel);
        let bias = bias(&mixture.down, e);
        let bias = bias.vector();
        let of_rows = dact.par_chunks_mut(wide).zip(act.par_chunks(wide)).zip(dout.par_chunks_mut(cols));
        of_rows.zip(weights).for_each(|(((dact, act), dout), weight)| {
            let gradient = dot(dact, act) + dot(dout, &bias);
            dact.iter_mut().chain(dout).for_each(|x| *x *= *weight);
            *weight = gradient;
        });
        projection_gradients((e, rows), (act, wide), (dout, cols), ddown, panel);
        clamped_swiglu::backward(mixture.gate, dact, gate, up);
        let both = first(gate_up, 2 * n);
        join(gate, up, both);
        projection_gradients((e, rows), (x, cols), (both, 2 * wide), dgate_up, panel);
        if wanted {
            matrix(&mixture.gate_up, e, decoded).backward(both, rows, dout, panel);
        }
    }
}

/// Adds the gradients of values and bias of a projection of expert `e` from its input and the gradient of its output, each
/// with its columns.
fn projection_gradients(
    (e, rows): (usize, usize),
    (x, inputs): (&[f32], usize),
    (dout, outputs): (&[f32], usize),
    [values, bias]: &mut ProjectionGradients<'_>,
    panel: &mut Panels,
) {
    if let Some(values) = values {
        let shape = LinearShape { rows, out_features: inputs, in_features: outputs };
        let own = &mut values[e * inputs * outputs..(e + 1) * inputs * outputs];
        linear::backward_weight(x, dout, shape, own, true, panel);
    }
    if let Some(bias) = bias {
        linear::bias_backward(dout, rows, &mut bias[e * outputs..(e + 1) * outputs]);
    }
}
