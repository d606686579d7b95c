//! Linear layers: products by cuBLASLt, biases by `kernels/linear.cu`.

use super::ComputeDtype;
use super::buffer::{Buffer, Weight};
use super::device::{Arg, Device, Memory};
use super::matmul::{Matmul, Shape};

/// Fewest rows of a piece, and most pieces, of a sum over rows.
const ROWS: usize = 64;
const PIECES: usize = 256;

/// See [`crate::backend::Backend::linear_forward`].
pub(super) fn forward(
    (device, of, matmul): (&Device, ComputeDtype, &mut Matmul),
    x: &Buffer,
    weight: &Weight,
    rows: usize,
    out: &Buffer,
    accumulate: bool,
) {
    let (outer, inner) = (weight.rows, weight.cols);
    let matrices =
        [weight.arg(device, of), x.arg(device, rows * inner, of), out.arg(device, rows * outer, out.of)];
    matmul.product(device, Shape::forward(rows, outer, inner, [of, out.of]), matrices, accumulate);
}

/// See [`crate::backend::Backend::linear_backward_input`].
pub(super) fn backward_input(
    (device, of, matmul): (&Device, ComputeDtype, &mut Matmul),
    dout: &Buffer,
    weight: &Weight,
    rows: usize,
    dx: &Buffer,
    accumulate: bool,
) {
    let (outer, inner) = (weight.rows, weight.cols);
    let matrices =
        [weight.arg(device, of), dout.arg(device, rows * outer, of), dx.arg(device, rows * inner, dx.of)];
    matmul.product(device, Shape::backward_input(rows, outer, inner, [of, dx.of]), matrices, accumulate);
}

/// See [`crate::backend::Backend::linear_backward_weight`].
pub(super) fn backward_weight(
    (device, of, matmul): (&Device, ComputeDtype, &mut Matmul),
    dout: &Buffer,
    x: &Buffer,
    rows: usize,
    (outer, inner): (usize, usize),
    dweight: &Buffer,
    accumulate: bool,
) {
    let dweight_arg = dweight.arg(device, outer * inner, dweight.of);
    let matrices = [x.arg(device, rows * inner, of), dout.arg(device, rows * outer, of), dweight_arg];
    matmul.product(
        device,
        Shape::backward_weight(rows, outer, inner, [of, dweight.of]),
        matrices,
        accumulate,
    );
}

/// See [`crate::backend::Backend::bias_forward`].
pub(super) fn bias_forward((device, of): (&Device, ComputeDtype), bias: &Weight, rows: usize, out: &Buffer) {
    let cols = bias.cols;
    let args = [bias.arg(device, of), Arg::U32(cols as u32), out.arg(device, rows * cols, of)];
    device.launch("bias_forward", (rows, cols.div_ceil(256)), 0, &args);
}

/// See [`crate::backend::Backend::bias_backward`].
pub(super) fn bias_backward(
    (device, of): (&Device, ComputeDtype),
    dout: &Buffer,
    rows: usize,
    dbias: &Buffer,
    partials: &mut Partials,
) {
    let cols = dbias.len;
    partials.sum(device, "bias_backward", (rows, cols), dbias, |pieces| {
        std::iter::once(dout.arg(device, rows * cols, of)).chain(pieces).collect()
    });
}

/// Sums over pieces of rows, on the way to a sum over all.
#[derive(Debug, Default)]
pub(super) struct Partials {
    memory: Memory,
}

impl Partials {
    /// Adds to `out` the sum over all rows: `kernel` makes those of the pieces, `sum_partials` adds them in
    /// order. `args` puts the arguments of the kernel before (rows, columns, rows of a piece, partial sums).
    pub(super) fn sum(
        &mut self,
        device: &Device,
        kernel: &str,
        (rows, cols): (usize, usize),
        out: &Buffer,
        args: impl FnOnce([Arg; 4]) -> Vec<Arg>,
    ) {
        let each = ROWS.max(rows.div_ceil(PIECES));
        let pieces = rows.div_ceil(each);
        let bytes = 4 * pieces * cols;
        device.reserve(&mut self.memory, bytes);
        let partials = Arg::Pointer(device.pointer(&self.memory, bytes).unwrap_or(0));
        let number = |n: usize| Arg::U32(n as u32);
        let args = args([number(rows), number(cols), number(each), partials]);
        device.launch(kernel, (cols.div_ceil(256), pieces), 0, &args);
        let args = [partials, number(pieces), number(cols), out.arg(device, cols, ComputeDtype::F32)];
        device.launch("sum_partials", (cols.div_ceil(256), 1), 0, &args);
    }
}
