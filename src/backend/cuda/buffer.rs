//! Activations, gradients, moments and weights on the GPU.

use half::bf16;

use super::argument::Arg;
use super::device::Device;
use super::memory::Memory;
use crate::backend::{ComputeDtype, Float8Matrix, LinearShape, Stored, WeightKind, WeightValues};
use crate::checkpoint::{Dtype, Known, decode_f32};
use crate::simd::bf16::widen_bits;

/// Elements on the GPU.
#[derive(Debug)]
pub struct Buffer {
    pub(super) memory: Memory,
    pub(super) len: usize,
    pub(super) dtype: ComputeDtype,
}

impl ComputeDtype {
    /// Bytes of an element.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// Empty.
impl Default for Buffer {
    fn default() -> Self {
        Self { memory: Memory::default(), len: 0, dtype: ComputeDtype::F32 }
    }
}

impl Buffer {
    pub(super) fn zeros(device: &Device, len: usize, dtype: ComputeDtype) -> Self {
        Self { memory: device.zeros(len * dtype.bytes()), len, dtype }
    }

    /// Makes it hold `len` elements of this type at least; the contents are then undefined.
    pub(super) fn reserve(&mut self, device: &Device, len: usize, dtype: ComputeDtype) {
        device.reserve(&mut self.memory, len * dtype.bytes());
        (self.len, self.dtype) = (len, dtype);
    }

    /// The address of its first `len` elements, as an argument of type `dtype`.
    ///
    /// # Panics
    /// When the buffer is shorter or of another type.
    pub(super) fn arg(&self, device: &Device, len: usize, dtype: ComputeDtype) -> Arg {
        assert!(self.dtype == dtype, "a kernel takes elements of {dtype:?}, not of {:?}", self.dtype);
        device.arg(&self.memory, len * dtype.bytes())
    }

    pub(super) fn download(&self, device: &Device) -> Vec<f32> {
        match self.dtype {
            ComputeDtype::F32 => device.download(&self.memory, self.len),
            ComputeDtype::Bf16 => {
                device.download::<u16>(&self.memory, self.len).into_iter().map(widen_bits).collect()
            }
        }
    }

    pub(super) fn upload(&mut self, device: &Device, values: &[f32]) {
        assert!(values.len() == self.len, "a buffer is set as a whole");
        match self.dtype {
            ComputeDtype::F32 => device.upload(values, &self.memory),
            ComputeDtype::Bf16 => device.upload(&to_bf16(values), &self.memory),
        }
    }
}

fn to_bf16(values: &[f32]) -> Vec<u16> {
    values.iter().map(|x| bf16::from_f32(*x).to_bits()).collect()
}

/// A parameter on the GPU.
#[derive(Debug)]
pub struct Weight {
    /// Output features; 1 for a vector.
    pub(super) rows: usize,
    /// Input features, or the length of a vector.
    pub(super) cols: usize,
    /// The values of a trainable weight in `f32`; `None` where they are in bfloat16 alone.
    pub(super) master: Option<Memory>,
    /// The values in the compute dtype, where that is not `f32`.
    pub(super) copy: Option<Memory>,
    /// The only values of a frozen matrix in e4m3.
    pub(super) float8: Option<Codes>,
}

/// The codes of a matrix in e4m3.
#[derive(Debug)]
pub(super) struct Codes {
    pub(super) memory: Memory,
    pub(super) scale: f32,
}

impl Weight {
    /// A frozen weight in the compute dtype.
    ///
    /// `None` when the stored type is not a number or the bytes do not fit the shape.
    pub(super) fn frozen(device: &Device, dtype: ComputeDtype, stored: Stored<'_>) -> Option<Self> {
        let Stored { rows, cols, .. } = stored;
        let copy = match dtype {
            ComputeDtype::Bf16 if *stored.dtype == Dtype::Known(Known::BF16) => {
                elements_of(stored)?;
                let memory = device.alloc(stored.bytes.len());
                device.upload(stored.bytes, &memory);
                memory
            }
            dtype => convert(device, dtype, stored)?,
        };
        Some(Self { rows, cols, master: None, copy: Some(copy), float8: None })
    }

    /// A frozen matrix in e4m3; `None` as for [`Weight::frozen`].
    fn float8(device: &Device, stored: Stored<'_>) -> Option<Self> {
        let Stored { rows, cols, .. } = stored;
        let Float8Matrix { codes, scale } = Float8Matrix::quantize(stored)?;
        let memory = device.alloc(codes.len());
        device.upload(&codes, &memory);
        Some(Self { rows, cols, master: None, copy: None, float8: Some(Codes { memory, scale }) })
    }

    /// A trainable weight: `f32` master values, and a copy in the compute dtype where that is another type.
    ///
    /// `None` as for [`Weight::frozen`].
    pub(super) fn trainable(device: &Device, dtype: ComputeDtype, stored: Stored<'_>) -> Option<Self> {
        let Stored { rows, cols, .. } = stored;
        let master = Some(convert(device, ComputeDtype::F32, stored)?);
        let copy = match dtype {
            ComputeDtype::Bf16 => Some(convert(device, ComputeDtype::Bf16, stored)?),
            ComputeDtype::F32 => None,
        };
        Some(Self { rows, cols, master, copy, float8: None })
    }

    /// A weight of this kind.
    ///
    /// `None` as for [`Weight::frozen`], and for [`WeightKind::Rounded`] of another type than bfloat16, or where another
    /// type is computed with.
    pub(super) fn new(
        device: &Device,
        dtype: ComputeDtype,
        stored: Stored<'_>,
        kind: WeightKind,
    ) -> Option<Self> {
        match kind {
            WeightKind::Frozen => Self::frozen(device, dtype, stored),
            WeightKind::Float8 => Self::float8(device, stored),
            WeightKind::Trainable => Self::trainable(device, dtype, stored),
            WeightKind::Rounded => {
                let bf16 = dtype == ComputeDtype::Bf16 && *stored.dtype == Dtype::Known(Known::BF16);
                bf16.then(|| Self::frozen(device, dtype, stored))?
            }
        }
    }

    /// The layer `[rows, out_features]` with this weight.
    pub(super) fn linear_shape(&self, rows: usize) -> LinearShape {
        LinearShape { rows, out_features: self.rows, in_features: self.cols }
    }

    /// The address of the values in the compute dtype.
    pub(super) fn arg(&self, device: &Device, dtype: ComputeDtype) -> Arg {
        let memory = self.copy.as_ref().or(self.master.as_ref());
        let Some(memory) = memory else { unreachable!("a weight has values") };
        device.arg(memory, self.rows * self.cols * dtype.bytes())
    }

    /// Sets master values and copy, as far as there are.
    pub(super) fn upload(&mut self, device: &Device, values: &[f32]) {
        assert!(values.len() == self.rows * self.cols, "a weight is set as a whole");
        if let Some(master) = &self.master {
            device.upload(values, master);
        }
        if let Some(copy) = &self.copy {
            device.upload(&to_bf16(values), copy);
        }
    }

    /// The values of a trainable weight, on the host.
    ///
    /// # Panics
    /// When it has neither a master nor a copy in bfloat16.
    pub(super) fn download(&self, device: &Device) -> Vec<f32> {
        let len = self.rows * self.cols;
        match (&self.master, &self.copy) {
            (Some(master), _) => device.download(master, len),
            (None, Some(copy)) => {
                assert!(copy.bytes() == 2 * len, "a weight without a master is in bfloat16");
                device.download::<u16>(copy, len).into_iter().map(widen_bits).collect()
            }
            (None, None) => unreachable!("a weight has values"),
        }
    }
}

impl Weight {
    /// As [`Weight::download`], in the type that they are kept in.
    pub(super) fn trained_values(&self, device: &Device) -> WeightValues<'static> {
        match (&self.master, &self.copy) {
            (None, Some(copy)) => WeightValues::Bf16(device.download(copy, copy.bytes()).into()),
            _ => WeightValues::Floats(self.download(device).into()),
        }
    }
}

/// Uploads stored values, converted to `dtype`; `None` as for [`Weight::frozen`].
fn convert(device: &Device, dtype: ComputeDtype, stored: Stored<'_>) -> Option<Memory> {
    /// Elements that are converted at once.
    const PIECE: usize = 1 << 14;
    let (elements, stored_bytes) = (elements_of(stored)?, stored.dtype.bytes()?);
    // `None` for a type that cannot be decoded.
    decode_f32(stored.dtype, &[], &mut [])?;
    let memory = device.alloc(elements * dtype.bytes());
    let mut values = vec![0.0; PIECE];
    device.upload_with(&memory, elements * dtype.bytes(), |offset, out| {
        let first = offset / dtype.bytes();
        for (i, out) in out.chunks_mut(PIECE * dtype.bytes()).enumerate() {
            let (from, n) = (first + i * PIECE, out.len() / dtype.bytes());
            let bytes = &stored.bytes[from * stored_bytes..(from + n) * stored_bytes];
            let decoded = decode_f32(stored.dtype, bytes, &mut values[..n]);
            assert!(decoded.is_some(), "the type was checked above");
            write(&values[..n], dtype, out);
        }
    });
    Some(memory)
}

/// The number of elements; `None` when the bytes do not fit the shape.
fn elements_of(stored: Stored<'_>) -> Option<usize> {
    let elements = stored.rows.checked_mul(stored.cols)?;
    (stored.bytes.len() == elements.checked_mul(stored.dtype.bytes()?)?).then_some(elements)
}

/// Writes values as elements of `dtype`.
fn write(values: &[f32], dtype: ComputeDtype, out: &mut [u8]) {
    match dtype {
        ComputeDtype::F32 => {
            out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(out, x)| *out = x.to_ne_bytes());
        }
        ComputeDtype::Bf16 => {
            let rounded = values.iter().map(|x| bf16::from_f32(*x).to_ne_bytes());
            out.as_chunks_mut().0.iter_mut().zip(rounded).for_each(|(out, x)| *out = x);
        }
    }
}
