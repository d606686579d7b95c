//! Matrix products by cuBLASLt. The plan for a shape is made once.

use std::collections::HashMap;
use std::ffi::c_void;

use cudarc::cublaslt::{result, sys};

use super::argument::Arg;
use super::device::{Device, Mode};
use super::memory::Memory;
use crate::backend::{ComputeDtype, LinearShape};
use crate::{Error, Result};

/// Bytes of the workspace of cuBLASLt.
const WORKSPACE: usize = 32 << 20;

/// A product of column-major matrices: `out [m, n] = op(a) [m, k] · op(b) [k, n]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    /// `a` is stored `[k, m]`.
    pub(super) transpose_a: bool,
    /// `b` is stored `[n, k]`.
    pub(super) transpose_b: bool,
    pub(super) dtypes: Dtypes,
}

/// Element types of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Dtypes {
    pub(super) inputs: Inputs,
    pub(super) out: ComputeDtype,
}

/// Element types of both inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Inputs {
    /// Both are of this type.
    Work(ComputeDtype),
    /// Both are e4m3.
    Float8,
    /// `a` is e4m3, `b` is e5m2.
    Float8Gradient,
}

impl From<ComputeDtype> for Inputs {
    fn from(dtype: ComputeDtype) -> Self {
        Self::Work(dtype)
    }
}

/// Factors of a product of eight-bit floats.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scales {
    /// Of the product.
    pub(super) product: f32,
    /// Address of the factor of `a`.
    pub(super) a: Arg,
    /// Address of the factor of `b`.
    pub(super) b: Arg,
}

/// The descriptors of a shape, and the algorithm that cuBLASLt chose for it.
#[derive(Debug)]
struct Plan {
    operation: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// The library's handle and its plans.
#[derive(Debug)]
pub(super) struct Matmul {
    handle: sys::cublasLtHandle_t,
    workspace: Memory,
    plans: HashMap<Shape, Plan>,
}

fn name(status: result::CublasError) -> String {
    format!("{:?}", status.0)
}

fn address(arg: Arg) -> *mut c_void {
    match arg {
        Arg::Pointer(address) => address as *mut c_void,
        _ => unreachable!("matrices are addresses"),
    }
}

/// Sets where the factors of both inputs are.
fn set_scales(
    operation: sys::cublasLtMatmulDesc_t,
    scales: Scales,
) -> std::result::Result<(), result::CublasError> {
    use sys::cublasLtMatmulDescAttributes_t as Attribute;
    let pointers = [
        (Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, address(scales.a)),
        (Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, address(scales.b)),
    ];
    for (attribute, pointer) in pointers {
        // SAFETY: the descriptor is alive, and the attribute is an address.
        unsafe {
            result::set_matmul_desc_attribute(operation, attribute, std::ptr::from_ref(&pointer).cast(), 8)?;
        }
    }
    Ok(())
}

impl Matmul {
    /// # Errors
    /// [`Error::Device`].
    pub(super) fn open(device: &Device) -> Result<Self> {
        let handle = result::create_handle().map_err(|e| {
            let fault = format!("cuBLASLt does not start: {}", name(e));
            Error::Device { fault, hint: None }
        })?;
        Ok(Self { handle, workspace: device.alloc(WORKSPACE), plans: HashMap::new() })
    }

    /// Bytes of the workspace, which is allocated as long as the handle exists.
    pub(super) fn workspace_bytes(&self) -> u64 {
        self.workspace.bytes() as u64
    }

    /// `out = a · b`, or `out += a · b` with `accumulate`, summed in `f32`.
    ///
    /// The arguments are addresses whose callers have checked them against the shape.
    pub(super) fn product(&mut self, device: &Device, shape: Shape, matrices: [Arg; 3], accumulate: bool) {
        self.scaled_product(device, shape, matrices, accumulate, None);
    }

    /// [`Self::product`] times `scales`, which eight-bit floats have.
    pub(super) fn scaled_product(
        &mut self,
        device: &Device,
        shape: Shape,
        [a, b, out]: [Arg; 3],
        accumulate: bool,
        scales: Option<Scales>,
    ) {
        if shape.m == 0 || shape.n == 0 || device.failed() || device.mode() == Mode::Count {
            return;
        }
        if !self.plans.contains_key(&shape) {
            match Plan::new(self.handle, shape, scales) {
                Ok(plan) => drop(self.plans.insert(shape, plan)),
                Err(e) => return device.fail(format!("cuBLASLt has no plan for {shape:?}: {}", name(e))),
            }
        }
        if !device.computes() {
            return;
        }
        let (Some(plan), Some(workspace)) =
            (self.plans.get(&shape), device.pointer(&self.workspace, WORKSPACE))
        else {
            return;
        };
        if let Err(e) = scales.map_or(Ok(()), |scales| set_scales(plan.operation, scales)) {
            return device.fail(format!("cuBLASLt takes no scales: {}", name(e)));
        }
        let (alpha, beta) = (scales.map_or(1.0, |scales| scales.product), f32::from(u8::from(accumulate)));
        let scalar = |x: &f32| std::ptr::from_ref(x).cast::<c_void>();
        // SAFETY: the descriptors live in the plan; the callers have checked that the matrices lie in their buffers;
        // the scalars are read before the call returns.
        let done = unsafe {
            result::matmul(
                self.handle,
                plan.operation,
                scalar(&alpha),
                scalar(&beta),
                address(a),
                plan.a,
                address(b),
                plan.b,
                address(out),
                plan.out,
                address(out),
                plan.out,
                &raw const plan.algorithm,
                workspace as *mut c_void,
                WORKSPACE,
                device.cu_stream().cast(),
            )
        };
        if let Err(e) = done {
            device.fail(format!("cuBLASLt: {} for {shape:?}", name(e)));
        }
    }
}

impl Plan {
    fn new(
        handle: sys::cublasLtHandle_t,
        shape: Shape,
        scales: Option<Scales>,
    ) -> std::result::Result<Self, result::CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let data_type = |dtype: ComputeDtype| match dtype {
            ComputeDtype::F32 => sys::cudaDataType::CUDA_R_32F,
            ComputeDtype::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        };
        let layout = |rows: usize, cols: usize, data_type| {
            result::create_matrix_layout(data_type, rows as u64, cols as u64, rows as i64)
        };
        let Shape { m, n, k, transpose_a, transpose_b, dtypes: Dtypes { inputs, out } } = shape;
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let operation = result::create_matmul_desc(compute, data_type(ComputeDtype::F32))?;
        let transposes = [
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSA, transpose_a),
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, transpose_b),
        ];
        for (attribute, transpose) in transposes {
            let value = i32::from(transpose);
            // SAFETY: the descriptor was just created, and the attribute is a number of 32 bits.
            unsafe {
                result::set_matmul_desc_attribute(
                    operation,
                    attribute,
                    std::ptr::from_ref(&value).cast(),
                    4,
                )?;
            }
        }
        scales.map_or(Ok(()), |scales| set_scales(operation, scales))?;
        let e4m3 = sys::cudaDataType::CUDA_R_8F_E4M3;
        let (of_a, of_b) = match inputs {
            Inputs::Work(dtype) => (data_type(dtype), data_type(dtype)),
            Inputs::Float8 => (e4m3, e4m3),
            Inputs::Float8Gradient => (e4m3, sys::cudaDataType::CUDA_R_8F_E5M2),
        };
        let a = if transpose_a { layout(k, m, of_a)? } else { layout(m, k, of_a)? };
        let b = if transpose_b { layout(n, k, of_b)? } else { layout(k, n, of_b)? };
        let out = layout(m, n, data_type(out))?;
        let preference = result::create_matmul_pref()?;
        let most = WORKSPACE;
        // SAFETY: the descriptors were just created; the attribute is a number of 64 bits.
        let found = unsafe {
            let attribute =
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            result::set_matmul_pref_attribute(preference, attribute, std::ptr::from_ref(&most).cast(), 8)?;
            let found = result::get_matmul_algo_heuristic(handle, operation, a, b, out, out, preference);
            result::destroy_matmul_pref(preference)?;
            found?
        };
        Ok(Self { operation, a, b, out, algorithm: found.algo })
    }
}

impl Drop for Matmul {
    fn drop(&mut self) {
        for plan in self.plans.values() {
            // SAFETY: the plans own their descriptors, and no product is queued after this. An error
            // of the library cannot be handled here.
            unsafe {
                let _ = result::destroy_matmul_desc(plan.operation);
                for layout in [plan.a, plan.b, plan.out] {
                    let _ = result::destroy_matrix_layout(layout);
                }
            }
        }
        // SAFETY: as above.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Shape {
    /// `out [rows, out_features] = x [rows, in_features] · w [out_features, in_features]ᵀ`, row-major; `a` is `w`, `b`
    /// is `x`.
    pub(super) fn forward(shape: LinearShape, dtypes: Dtypes) -> Self {
        let LinearShape { rows, out_features, in_features } = shape;
        Self { m: out_features, n: rows, k: in_features, transpose_a: true, transpose_b: false, dtypes }
    }

    /// `dx [rows, in_features] = dout [rows, out_features] · w [out_features, in_features]`, row-major; `a` is `w`, `b`
    /// is `dout`.
    pub(super) fn backward_input(shape: LinearShape, dtypes: Dtypes) -> Self {
        let LinearShape { rows, out_features, in_features } = shape;
        Self { m: in_features, n: rows, k: out_features, transpose_a: false, transpose_b: false, dtypes }
    }

    /// `dw [out_features, in_features] = dout [rows, out_features]ᵀ · x [rows, in_features]`, row-major; `a` is `x`,
    /// `b` is `dout`.
    pub(super) fn backward_weight(shape: LinearShape, dtypes: Dtypes) -> Self {
        let LinearShape { rows, out_features, in_features } = shape;
        Self { m: in_features, n: out_features, k: rows, transpose_a: false, transpose_b: true, dtypes }
    }
}
