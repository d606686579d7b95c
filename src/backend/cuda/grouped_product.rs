//! Products of the routes of each expert with the matrix of that expert: `kernels/grouped_product.cu`.

use super::argument::Arg;
use super::device::Device;
use super::routes::RouteArgs;

/// Rows and columns of a tile of results.
const TILE: (usize, usize) = (64, 128);

/// `out [routes, cols]` from rows of `a`, `[., inner]`, and a matrix for each expert.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowProduct {
    pub(super) a: Arg,
    /// The row of `a` for each route; null: that of its own number.
    pub(super) rows: Arg,
    /// Addresses of the matrices.
    pub(super) weights: Arg,
    pub(super) inner: usize,
    pub(super) cols: usize,
    /// Add to `out` instead of overwriting it.
    pub(super) accumulate: bool,
    pub(super) out: Arg,
}

impl RowProduct {
    /// `out[r] = a[rows[r]] · wᵀ` with matrices `[cols, inner]`.
    pub(super) fn forward(self, device: &Device, routes: RouteArgs) {
        self.launch(device, "grouped_forward", routes);
    }

    /// `out[r] = a[rows[r]] · w` with matrices `[inner, cols]`.
    pub(super) fn backward_input(self, device: &Device, routes: RouteArgs) {
        self.launch(device, "grouped_backward_input", routes);
    }

    fn launch(self, device: &Device, kernel: &str, routes: RouteArgs) {
        let Self { a, rows, weights, inner, cols, accumulate, out } = self;
        let numbers = [routes.experts, inner, cols, usize::from(accumulate)].map(|n| Arg::U32(n as u32));
        let args = [&[a, rows, weights, routes.tiles, routes.offsets][..], &numbers, &[out]].concat();
        device.launch(kernel, (routes.most_tiles, cols.div_ceil(TILE.1)), 0, &args);
    }
}

/// `g [outer, cols] = Σ a[rows[r]]ᵀ · b[other_rows[r]]` over the routes of each expert, in `f32`.
#[derive(Debug, Clone, Copy)]
pub(super) struct WeightGradient {
    /// `[., outer]`, and the row for each route; null: that of its own number.
    pub(super) a: (Arg, Arg),
    /// `[., cols]`, likewise.
    pub(super) b: (Arg, Arg),
    /// Addresses of the gradients; null for those that are not wanted.
    pub(super) gradients: Arg,
    pub(super) outer: usize,
    pub(super) cols: usize,
    /// Add to the gradients instead of overwriting them.
    pub(super) accumulate: bool,
}

impl WeightGradient {
    pub(super) fn launch(self, device: &Device, routes: RouteArgs) {
        let Self { a, b, gradients, outer, cols, accumulate } = self;
        let numbers = [outer, cols, usize::from(accumulate)].map(|n| Arg::U32(n as u32));
        let args = [&[a.0, a.1, b.0, b.1, gradients, routes.offsets][..], &numbers].concat();
        let tiles = outer.div_ceil(TILE.0) * cols.div_ceil(TILE.1);
        device.launch("grouped_backward_weight", (tiles, routes.experts), 0, &args);
    }
}
