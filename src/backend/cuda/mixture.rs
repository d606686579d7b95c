//! Mixtures of experts: `kernels/mixture.cu`, with the routes of `kernels/routes.cu` and the products of
//! `kernels/grouped_product.cu`. Nothing is read back to the host.

use std::collections::BTreeMap;

use super::argument::Arg;
use super::buffer::{Buffer, Weight};
use super::cached_upload::CachedUpload;
use super::context::Context;
use super::device::Device;
use super::grouped_product::{RowProduct, WeightGradient};
use super::memory::Memory;
use super::routes::{RouteArgs, Router, Routes, WARP_ROWS};
use super::{linear, swiglu};
use crate::backend::{ComputeDtype, Expert, LinearShape, MixtureActs, MixtureGradients, MixtureWeights};

/// No address.
const NULL: Arg = Arg::Pointer(0);

/// Tables of addresses, and work memory.
#[derive(Debug, Default)]
pub(super) struct Mixture {
    router: Router,
    /// By the number of the layer.
    tables: BTreeMap<usize, Tables>,
    /// What `down_proj` is applied to, and its gradient: `[R, F]`, then `[T, F]` of the shared expert.
    act: Buffer,
    dact: Buffer,
    /// Output of each route, or gradient of its input, `[R, D]`.
    routed: Buffer,
    /// Output of the shared expert, `[T, D]`.
    shared: Buffer,
    /// Its share in the output of each token, `[T]`.
    shares: Buffer,
    /// Gradients of the weights of routes, or of the shares.
    dweights: Memory,
    /// Gradients of what shares are computed from, `[T]`.
    slopes: Buffer,
}

/// Addresses of gate, up and down of every expert of a layer, and of their gradients: those of the gates first.
#[derive(Debug, Default)]
struct Tables {
    weights: CachedUpload<u64>,
    gradients: CachedUpload<u64>,
}

type Acts = MixtureActs<Buffer, Routes>;

/// The shared expert: what its share is computed from, and its matrices.
type Shared<'a, T> = (T, Expert<T>);

fn number(n: usize) -> Arg {
    Arg::U32(n as u32)
}

/// One address for each expert: of its matrix `part`.
fn addresses(table: Arg, experts: usize) -> Expert<Arg> {
    [0, 1, 2].map(|part| table.skip(8 * experts * part))
}

/// The address of a gradient of this many elements; 0 for none.
fn gradient_address(device: &Device, gradient: Option<&Buffer>, len: usize) -> u64 {
    gradient.map_or(0, |buffer| match buffer.arg(device, len, ComputeDtype::F32) {
        Arg::Pointer(address) => address,
        _ => unreachable!("a buffer is an address"),
    })
}

impl Tables {
    fn put_weights(&self, context: &Context, experts: &[Expert<&Weight>]) -> Expert<Arg> {
        let address = |weight: &Weight| match context.weight(weight) {
            Arg::Pointer(address) => address,
            _ => unreachable!("a weight is an address"),
        };
        let of_part = |part: usize| experts.iter().map(move |expert| address(expert[part]));
        let all: Vec<u64> = (0..3).flat_map(of_part).collect();
        addresses(self.weights.put(&context.device, &all), experts.len())
    }

    /// Those of the parts of which an expert is trainable.
    fn put_gradients(
        &self,
        device: &Device,
        experts: &[Expert<Option<&mut Buffer>>],
        len: usize,
    ) -> Expert<Option<Arg>> {
        let of_part = |part: usize| {
            experts.iter().map(move |expert| gradient_address(device, expert[part].as_deref(), len))
        };
        let all: Vec<u64> = (0..3).flat_map(of_part).collect();
        let table = addresses(self.gradients.put(device, &all), experts.len());
        let wanted = |part: usize| experts.iter().any(|expert| expert[part].is_some());
        [0, 1, 2].map(|part| wanted(part).then_some(table[part]))
    }
}

impl Mixture {
    /// See [`crate::backend::MixtureOperations::mixture_forward`].
    pub(super) fn forward(
        &mut self,
        context: &mut Context,
        (x, rows): (&Buffer, usize),
        weights: &MixtureWeights<'_, Weight>,
        acts: &Acts,
        out: Option<&Buffer>,
    ) {
        let MixtureWeights { router, experts, shared, routing, layer } = weights;
        let (count, cols) = (router.rows, router.cols);
        let routes = acts.routes.args(&context.device, rows, count, *routing);
        linear::forward(context, x, router, rows, &acts.probabilities, false);
        self.router.choose(context, &acts.probabilities, routes);
        let table = self.tables.entry(*layer).or_default().put_weights(context, experts);
        let inner = experts[0][0].rows;
        let len = routes.count * inner;
        let [gate, up] = &acts.routed;
        for (weights, out) in [(table[0], gate), (table[1], up)] {
            let (a, out) = (context.activations(x, rows * cols), context.activations(out, len));
            let product = RowProduct {
                a,
                rows: routes.tokens,
                weights,
                inner: cols,
                cols: inner,
                accumulate: false,
                out,
            };
            product.forward(&context.device, routes);
        }
        let shared = shared.zip(acts.shared.as_ref());
        if let Some((shared, acts)) = shared {
            let ([gate_proj, up_proj, _], [gate, up]) = (shared.1, acts);
            linear::forward(context, x, gate_proj, rows, gate, false);
            linear::forward(context, x, up_proj, rows, up, false);
        }
        let Some(out) = out else { return };
        self.act.reserve(&context.device, len, context.compute_dtype);
        self.routed.reserve(&context.device, routes.count * cols, context.compute_dtype);
        swiglu::forward(context, gate, up, len, &self.act);
        let product = RowProduct {
            a: context.activations(&self.act, len),
            rows: NULL,
            weights: table[2],
            inner,
            cols,
            accumulate: false,
            out: context.activations(&self.routed, routes.count * cols),
        };
        product.forward(&context.device, routes);
        if let Some((shared, [gate, up])) = shared {
            self.shared_output(context, (x, rows), shared, [gate, up]);
        }
        self.combine(context, routes, Some(routes.weights), shared.is_some(), (out, rows, cols));
    }

    /// Output and share of the shared expert.
    fn shared_output(
        &mut self,
        context: &mut Context,
        (x, rows): (&Buffer, usize),
        (share, [gate_proj, _, down_proj]): Shared<'_, &Weight>,
        [gate, up]: [&Buffer; 2],
    ) {
        let len = rows * gate_proj.rows;
        self.act.reserve(&context.device, len, context.compute_dtype);
        self.shared.reserve(&context.device, rows * down_proj.rows, context.compute_dtype);
        swiglu::forward(context, gate, up, len, &self.act);
        linear::forward(context, &self.act, down_proj, rows, &self.shared, false);
        self.shares(context, (x, rows), share);
    }

    fn shares(&mut self, context: &mut Context, (x, rows): (&Buffer, usize), share: &Weight) {
        self.shares.reserve(&context.device, rows, ComputeDtype::F32);
        linear::forward(context, x, share, rows, &self.shares, false);
        let args = [number(rows), context.floats(&self.shares, rows)];
        context.device.launch("mixture_shares", (rows.div_ceil(256), 1), 0, &args);
    }

    /// Adds to `out` the rows of each token's routes, times their `weights` where there are any, and the output of the shared
    /// expert where it is wanted.
    fn combine(
        &self,
        context: &Context,
        routes: RouteArgs,
        weights: Option<Arg>,
        shared: bool,
        (out, rows, cols): (&Buffer, usize, usize),
    ) {
        let (output, shares) = if shared {
            (context.activations(&self.shared, rows * cols), context.floats(&self.shares, rows))
        } else {
            (NULL, NULL)
        };
        let args = [
            context.activations(&self.routed, routes.count * cols),
            routes.of_tokens,
            weights.unwrap_or(NULL),
            number(routes.routing.per_token),
            output,
            shares,
            number(cols),
            context.activations(out, rows * cols),
        ];
        context.device.launch("mixture_combine", (rows, cols.div_ceil(256)), 0, &args);
    }

    /// The gradients of `weights`, from `dact` and `act`, `[rows, cols]`, which are multiplied by them.
    fn weigh(&mut self, context: &Context, weights: Arg, rows: usize, cols: usize) {
        context.device.reserve(&mut self.dweights, 4 * rows);
        let args = [
            weights,
            number(rows),
            number(cols),
            context.activations(&self.dact, rows * cols),
            context.activations(&self.act, rows * cols),
            context.memory(&self.dweights, 4 * rows),
        ];
        context.device.launch("mixture_weigh", (rows.div_ceil(WARP_ROWS), 1), 0, &args);
    }

    /// See [`crate::backend::MixtureOperations::mixture_backward`].
    pub(super) fn backward(
        &mut self,
        context: &mut Context,
        (dout, x, rows): (&Buffer, &Buffer, usize),
        weights: &MixtureWeights<'_, Weight>,
        gradients: MixtureGradients<'_, Buffer>,
        acts: &Acts,
        dx: Option<&Buffer>,
    ) {
        let MixtureWeights { router, experts, shared, routing, layer } = weights;
        let MixtureGradients {
            router: drouter,
            experts: dexperts,
            shared: dshared,
            of_probabilities,
            accumulate,
        } = gradients;
        let (count, cols) = (router.rows, router.cols);
        let routes = acts.routes.args(&context.device, rows, count, *routing);
        let tables = self.tables.entry(*layer).or_default();
        let addresses = tables.put_weights(context, experts);
        let wanted = tables.put_gradients(&context.device, &dexperts, experts[0][0].rows * cols);
        let shape = (rows, experts[0][0].rows, cols);
        self.experts_backward(
            context,
            (dout, x, shape),
            (addresses, wanted, accumulate),
            acts,
            routes,
            dx.is_some(),
        );
        let dweights = context.memory(&self.dweights, 4 * routes.count);
        self.router.backward(context, &acts.probabilities, routes, dweights, of_probabilities);
        if let Some(drouter) = drouter {
            let shape = LinearShape { rows, out_features: count, in_features: cols };
            linear::backward_weight(context, &self.router.dlogits, x, shape, drouter, accumulate);
        }
        if let Some(dx) = dx {
            linear::backward_input(context, &self.router.dlogits, router, rows, dx, false);
            self.combine(context, routes, None, false, (dx, rows, cols));
        }
        if let (Some(shared), Some(acts), Some(gradients)) = (shared, &acts.shared, dshared) {
            self.shared_backward(context, (dout, x, rows), *shared, acts, (gradients, accumulate), dx);
        }
    }

    /// Gradients of the experts, of the weights of routes and, in `routed` where it is wanted, of the input of each route.
    fn experts_backward(
        &mut self,
        context: &Context,
        (dout, x, (rows, inner, cols)): (&Buffer, &Buffer, (usize, usize, usize)),
        (weights, gradients, accumulate): (Expert<Arg>, Expert<Option<Arg>>, bool),
        acts: &Acts,
        routes: RouteArgs,
        input_wanted: bool,
    ) {
        let (device, dtype, len) = (&context.device, context.compute_dtype, routes.count * inner);
        self.act.reserve(device, len, dtype);
        self.dact.reserve(device, len, dtype);
        let [gate, up] = &acts.routed;
        let [dout, x] = [dout, x].map(|buffer| context.activations(buffer, rows * cols));
        let [act, dact, dgate, dup] =
            [&self.act, &self.dact, gate, up].map(|buffer| context.activations(buffer, len));
        let product = RowProduct {
            a: dout,
            rows: routes.tokens,
            weights: weights[2],
            inner: cols,
            cols: inner,
            accumulate: false,
            out: dact,
        };
        product.backward_input(device, routes);
        swiglu::forward(context, gate, up, len, &self.act);
        self.weigh(context, routes.weights, routes.count, inner);
        let gradient = |a: (Arg, Arg), b: (Arg, Arg), gradients: Option<Arg>, outer: usize, cols: usize| {
            if let Some(gradients) = gradients {
                WeightGradient { a, b, gradients, outer, cols, accumulate }.launch(device, routes);
            }
        };
        gradient((dout, routes.tokens), (act, NULL), gradients[2], cols, inner);
        swiglu::backward(context, &self.dact, len, gate, up);
        gradient((dgate, NULL), (x, routes.tokens), gradients[0], inner, cols);
        gradient((dup, NULL), (x, routes.tokens), gradients[1], inner, cols);
        if !input_wanted {
            return;
        }
        self.routed.reserve(device, routes.count * cols, dtype);
        let out = context.activations(&self.routed, routes.count * cols);
        for (a, weights, accumulate) in [(dgate, weights[0], false), (dup, weights[1], true)] {
            let product = RowProduct { a, rows: NULL, weights, inner, cols, accumulate, out };
            product.backward_input(device, routes);
        }
    }

    /// The backward pass of the shared expert; adds to `dx`, unless it is `None`.
    fn shared_backward(
        &mut self,
        context: &mut Context,
        (dout, x, rows): (&Buffer, &Buffer, usize),
        (share, [gate_proj, up_proj, down_proj]): Shared<'_, &Weight>,
        [gate, up]: &[Buffer; 2],
        ((dshare, [dgate, dup, ddown]), accumulate): (Shared<'_, Option<&mut Buffer>>, bool),
        dx: Option<&Buffer>,
    ) {
        let (inner, dtype) = (gate_proj.rows, context.compute_dtype);
        let len = rows * inner;
        self.act.reserve(&context.device, len, dtype);
        self.dact.reserve(&context.device, len, dtype);
        self.slopes.reserve(&context.device, rows, dtype);
        linear::backward_input(context, dout, down_proj, rows, &self.dact, false);
        swiglu::forward(context, gate, up, len, &self.act);
        self.shares(context, (x, rows), share);
        self.weigh(context, context.floats(&self.shares, rows), rows, inner);
        if let Some(gradient) = ddown {
            let shape = down_proj.linear_shape(rows);
            linear::backward_weight(context, dout, &self.act, shape, gradient, accumulate);
        }
        swiglu::backward(context, &self.dact, len, gate, up);
        let args = [
            context.memory(&self.dweights, 4 * rows),
            context.floats(&self.shares, rows),
            number(rows),
            context.activations(&self.slopes, rows),
        ];
        context.device.launch("mixture_slopes", (rows.div_ceil(256), 1), 0, &args);
        let all = [(gate, gate_proj, dgate), (up, up_proj, dup), (&self.slopes, share, dshare)];
        for (dout, weight, gradient) in all {
            if let Some(gradient) = gradient {
                linear::backward_weight(context, dout, x, weight.linear_shape(rows), gradient, accumulate);
            }
            if let Some(dx) = dx {
                linear::backward_input(context, dout, weight, rows, dx, true);
            }
        }
    }
}
