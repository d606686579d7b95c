//! Routes of a mixture of experts: `kernels/routes.cu`.

use super::argument::Arg;
use super::buffer::Buffer;
use super::context::Context;
use super::device::Device;
use super::memory::Memory;
use super::partial_sums::RowSum;
use crate::backend::{RouterLoss, Routing};

/// Routes of a tile of `kernels/grouped_product.cu`.
const TILE: usize = 64;
/// Tokens of a piece whose routes are counted and placed together.
const PIECE: usize = 64;
/// Rows of a block whose warps have one each.
pub(super) const WARP_ROWS: usize = 8;

/// Which token has which expert, on the GPU: as [`crate::backend::Routes`], in elements of 32 bits.
#[derive(Debug)]
pub struct Routes {
    /// `[N + 1]`.
    offsets: Memory,
    /// Expert and first route of every tile, then tiles of no expert.
    tiles: Memory,
    tokens: Memory,
    weights: Memory,
    of_tokens: Memory,
    /// The expert of each element of `of_tokens`.
    of_experts: Memory,
}

/// The routes of a pass as arguments of kernels.
#[derive(Debug, Clone, Copy)]
pub(super) struct RouteArgs {
    pub(super) offsets: Arg,
    pub(super) tiles: Arg,
    pub(super) tokens: Arg,
    pub(super) weights: Arg,
    pub(super) of_tokens: Arg,
    of_experts: Arg,
    /// Tokens.
    rows: usize,
    /// Routes.
    pub(super) count: usize,
    /// Tiles at most.
    pub(super) most_tiles: usize,
    pub(super) experts: usize,
    pub(super) routing: Routing,
}

/// Work memory of the router.
#[derive(Debug, Default)]
pub(super) struct Router {
    /// Experts of each token, the most probable first, and their weights.
    chosen: Memory,
    shares: Memory,
    /// The first route of each expert in each piece.
    starts: Memory,
    /// Gradient of the logits.
    pub(super) dlogits: Buffer,
}

/// Every expert may have one tile that is not full.
fn most_tiles(routes: usize, experts: usize) -> usize {
    routes / TILE + experts
}

fn number(n: usize) -> Arg {
    Arg::U32(n as u32)
}

impl Routes {
    /// Room for the routes of `tokens` tokens.
    pub(super) fn new(device: &Device, tokens: usize, per_token: usize, experts: usize) -> Self {
        let count = tokens * per_token;
        let of = |elements: usize| device.alloc(4 * elements);
        Self {
            offsets: of(experts + 1),
            tiles: of(2 * most_tiles(count, experts)),
            tokens: of(count),
            weights: of(count),
            of_tokens: of(count),
            of_experts: of(count),
        }
    }

    /// Those of `rows` tokens.
    pub(super) fn args(&self, device: &Device, rows: usize, experts: usize, routing: Routing) -> RouteArgs {
        let count = rows * routing.per_token;
        let most_tiles = most_tiles(count, experts);
        let of = |memory: &Memory, elements: usize| device.arg(memory, 4 * elements);
        RouteArgs {
            offsets: of(&self.offsets, experts + 1),
            tiles: of(&self.tiles, 2 * most_tiles),
            tokens: of(&self.tokens, count),
            weights: of(&self.weights, count),
            of_tokens: of(&self.of_tokens, count),
            of_experts: of(&self.of_experts, count),
            rows,
            count,
            most_tiles,
            experts,
            routing,
        }
    }
}

impl Router {
    /// Replaces logits by probabilities, and finds the routes.
    pub(super) fn choose(&mut self, context: &Context, probabilities: &Buffer, routes: RouteArgs) {
        let RouteArgs { rows, count, experts, routing, .. } = routes;
        let device = &context.device;
        let pieces = rows.div_ceil(PIECE);
        device.reserve(&mut self.chosen, 4 * count);
        device.reserve(&mut self.shares, 4 * count);
        device.reserve(&mut self.starts, 4 * pieces * experts);
        let [chosen, shares] = [&self.chosen, &self.shares].map(|memory| context.memory(memory, 4 * count));
        let starts = context.memory(&self.starts, 4 * pieces * experts);
        let probabilities = context.floats(probabilities, rows * experts);
        let [each, of_piece] = [routing.per_token, PIECE * routing.per_token].map(number);
        let normalised = Arg::U32(u32::from(routing.normalised));
        let args = [number(rows), number(experts), each, normalised, probabilities, chosen, shares];
        device.launch("routes_choose", (rows.div_ceil(WARP_ROWS), 1), 0, &args);
        let args = [chosen, number(count), of_piece, number(experts), starts];
        device.launch("routes_count", (pieces, 1), 0, &args);
        let numbers = [pieces, experts, routes.most_tiles].map(number);
        let args = [&numbers[..], &[starts, routes.offsets, routes.tiles]].concat();
        device.launch("routes_offsets", (usize::from(pieces > 0), 1), 0, &args);
        let args = [
            chosen,
            shares,
            starts,
            number(count),
            of_piece,
            each,
            number(experts),
            routes.tokens,
            routes.weights,
            routes.of_tokens,
            routes.of_experts,
        ];
        device.launch("routes_place", (pieces, 1), 0, &args);
    }

    /// From the gradients of the weights of routes to those of the logits, in `dlogits`.
    pub(super) fn backward(
        &mut self,
        context: &Context,
        probabilities: &Buffer,
        routes: RouteArgs,
        dweights: Arg,
        of_probabilities: Option<&Buffer>,
    ) {
        let RouteArgs { rows, experts, routing, .. } = routes;
        self.dlogits.reserve(&context.device, rows * experts, context.compute_dtype);
        let args = [
            context.floats(probabilities, rows * experts),
            routes.weights,
            dweights,
            routes.of_tokens,
            routes.of_experts,
            of_probabilities.map_or(Arg::Pointer(0), |buffer| context.floats(buffer, experts)),
            number(rows),
            number(experts),
            number(routing.per_token),
            Arg::U32(u32::from(routing.normalised)),
            context.activations(&self.dlogits, rows * experts),
        ];
        context.device.launch("routes_backward", (rows.div_ceil(WARP_ROWS), 1), 0, &args);
    }
}

/// See [`crate::backend::MixtureOperations::router_load`].
pub(super) fn add_load(
    context: &mut Context,
    probabilities: &Buffer,
    routes: &Routes,
    rows: usize,
    [counts, sums]: &[Buffer; 2],
) {
    let experts = counts.len;
    let input = context.floats(probabilities, rows * experts);
    let sum = RowSum { kernel: "routes_load", rows, cols: experts, out: context.floats(sums, experts) };
    context.partial_sums.sum(&context.device, sum, &[input]);
    let offsets = context.memory(&routes.offsets, 4 * (experts + 1));
    let args = [offsets, number(experts), context.floats(counts, experts)];
    context.device.launch("routes_add_counts", (experts.div_ceil(256), 1), 0, &args);
}

/// See [`crate::backend::MixtureOperations::router_loss`].
pub(super) fn loss(context: &Context, loss: &RouterLoss<Buffer>, tokens: usize, factor: f32) {
    let RouterLoss { loads: [counts, sums], of_probabilities, sum } = loss;
    let experts = counts.len;
    let args = [
        context.floats(counts, experts),
        context.floats(sums, experts),
        number(experts),
        Arg::F32(tokens as f32),
        Arg::F32(factor),
        context.floats(of_probabilities, experts),
        context.floats(sum, 1),
    ];
    context.device.launch("routes_loss", (1, 1), 0, &args);
}
