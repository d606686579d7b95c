//! Products with frozen matrices in eight-bit floats: `kernels/float8.cu` for the codes, cuBLASLt for the products.
//!
//! Weights and activations are e4m3, gradients of outputs e5m2, for their wider range; each matrix has one scale, and sums are
//! in `f32`. Micikevicius et al. 2022, arXiv:2209.05433. cuBLASLt multiplies such matrices on Hopper only where the rows of
//! both run along the inner dimension: for the gradient of the input the codes of the weight are transposed into work memory
//! each time, so that a frozen parameter takes one byte.

use super::argument::Arg;
use super::buffer::{Buffer, Weight};
use super::context::Context;
use super::device::Device;
use super::matmul::{Dtypes, Inputs, Scales, Shape};
use crate::backend::{FLOAT8_MULTIPLE, LinearShape};
use crate::{Error, Result};

/// The first compute capability with such products.
const OLDEST: (i32, i32) = (8, 9);

/// # Errors
/// [`Error::Usage`] for a GPU without products of eight-bit floats.
pub(super) fn check(device: &Device) -> Result<()> {
    if device.compute_capability() >= OLDEST {
        return Ok(());
    }
    Err(Error::usage(
        format!("{} has no products of eight-bit floats: they need compute capability 8.9", device.name()),
        "leave out --frozen-dtype float8",
    ))
}

/// Codes of the input of layers, for [`forward`].
pub(super) fn cast_input(context: &mut Context, x: &Buffer, n: usize) {
    let x = context.activations(x, n);
    context.float8.cast(&context.device, "float8_cast_e4m3", x, n);
}

/// `out = x · weightᵀ` of the input that was cast last.
pub(super) fn forward(context: &mut Context, weight: &Weight, rows: usize, out: &Buffer, accumulate: bool) {
    let shape = weight.linear_shape(rows);
    let Some(codes) = &weight.float8 else { unreachable!("the weight has codes") };
    let product = Product {
        weight: context.device.arg(&codes.memory, shape.out_features * shape.in_features),
        scale: codes.scale,
        inputs: Inputs::Float8,
        shape,
    };
    product.run(context, out, accumulate);
}

/// See [`crate::backend::Backend::linear_backward_input`].
pub(super) fn backward_input(
    context: &mut Context,
    dout: &Buffer,
    weight: &Weight,
    rows: usize,
    dx: &Buffer,
    accumulate: bool,
) {
    let LinearShape { out_features, in_features, .. } = weight.linear_shape(rows);
    let Some(codes) = &weight.float8 else { unreachable!("the weight has codes") };
    let n = rows * out_features;
    let dout = context.activations(dout, n);
    let Context { device, float8, .. } = context;
    float8.cast(device, "float8_cast_e5m2", dout, n);
    let weight = device.arg(&codes.memory, out_features * in_features);
    let product = Product {
        weight: float8.transpose(device, weight, (out_features, in_features)),
        scale: codes.scale,
        inputs: Inputs::Float8Gradient,
        shape: LinearShape { rows, out_features: in_features, in_features: out_features },
    };
    product.run(context, dx, accumulate);
}

/// `out = codes · weightᵀ`, of the codes that were cast last.
struct Product {
    /// Codes `[out_features, in_features]`.
    weight: Arg,
    scale: f32,
    inputs: Inputs,
    shape: LinearShape,
}

impl Product {
    fn run(self, context: &mut Context, out: &Buffer, accumulate: bool) {
        let LinearShape { rows, out_features, in_features } = self.shape;
        let sides = [out_features, in_features];
        assert!(sides.iter().all(|side| side.is_multiple_of(FLOAT8_MULTIPLE)), "sides of a matrix in float8");
        let Context { device, float8, matmul, .. } = context;
        let scales = device.arg(&float8.scales, 8);
        let matrices = [
            self.weight,
            device.arg(&float8.codes, rows * in_features),
            out.arg(device, rows * out_features, out.dtype),
        ];
        let dtypes = Dtypes { inputs: self.inputs, out: out.dtype };
        let shape = Shape::forward(self.shape, dtypes);
        // The scale of the weight is known on the host; that of the codes is on the GPU.
        let scales = Scales { product: self.scale, a: scales.skip(4), b: scales };
        matmul.scaled_product(device, shape, matrices, accumulate, Some(scales));
    }
}
