//! Activations, gradients, moments and weights on the GPU.

use half::bf16;

use super::device::{Arg, Device, Memory};
use super::{ComputeDtype, Cuda};
use crate::backend::Stored;
use crate::checkpoint::{Dtype, Known, decode_f32};
use crate::simd::bf16::widen_bits;

/// Elements on the GPU.
#[derive(Debug)]
pub struct Buffer {
    pub(super) memory: Memory,
    pub(super) len: usize,
    pub(super) of: ComputeDtype,
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

impl Buffer {
    pub(super) fn zeros(device: &Device, len: usize, of: ComputeDtype) -> Self {
        Self { memory: device.zeros(len * of.bytes()), len, of }
    }

    /// Its address, of at least `len` elements of this type.
    ///
    /// # Panics
    /// When it is shorter or of another type.
    pub(super) fn arg(&self, device: &Device, len: usize, of: ComputeDtype) -> Arg {
        assert!(self.of == of, "a kernel gets elements of {of:?}, not of {:?}", self.of);
        Arg::Pointer(device.pointer(&self.memory, len * of.bytes()).unwrap_or(0))
    }

    pub(super) fn download(&self, device: &Device) -> Vec<f32> {
        match self.of {
            ComputeDtype::F32 => device.download(&self.memory, self.len),
            ComputeDtype::Bf16 => {
                device.download::<u16>(&self.memory, self.len).into_iter().map(widen_bits).collect()
            }
        }
    }

    pub(super) fn upload(&mut self, device: &Device, values: &[f32]) {
        assert!(values.len() == self.len, "a buffer is set as a whole");
        match self.of {
            ComputeDtype::F32 => device.upload(values, &self.memory),
            ComputeDtype::Bf16 => device.upload(&rounded(values), &self.memory),
        }
    }
}

fn rounded(values: &[f32]) -> Vec<u16> {
    values.iter().map(|x| bf16::from_f32(*x).to_bits()).collect()
}

/// A parameter on the GPU.
#[derive(Debug)]
pub struct Weight {
    /// Output features; 1 for a vector.
    pub(super) rows: usize,
    /// Input features, or the length of a vector.
    pub(super) cols: usize,
    /// Trainable values in `f32`.
    pub(super) master: Option<Memory>,
    /// What the model computes with, where that is not the master.
    pub(super) copy: Option<Memory>,
}

impl Weight {
    /// Its address as the model computes with it.
    pub(super) fn arg(&self, device: &Device, of: ComputeDtype) -> Arg {
        let memory = self.copy.as_ref().or(self.master.as_ref());
        let Some(memory) = memory else { unreachable!("a weight has values") };
        Arg::Pointer(device.pointer(memory, self.rows * self.cols * of.bytes()).unwrap_or(0))
    }

    /// The master values.
    ///
    /// # Panics
    /// When it is frozen: nobody may ask for the master values of what has none.
    pub(super) fn master(&self) -> &Memory {
        let Some(master) = &self.master else { unreachable!("only trainable weights have master values") };
        master
    }
}

impl Cuda {
    /// A frozen weight, in the working type.
    ///
    /// `None` when the type is not a number or the bytes do not fit the shape.
    pub fn frozen(&self, stored: Stored<'_>) -> Option<Weight> {
        let Stored { rows, cols, .. } = stored;
        let copy = match self.working {
            ComputeDtype::Bf16 if *stored.dtype == Dtype::Known(Known::BF16) => {
                fits(stored)?;
                let memory = self.device.alloc(stored.bytes.len());
                self.device.upload(stored.bytes, &memory);
                memory
            }
            of => self.place(stored, of)?,
        };
        Some(Weight { rows, cols, master: None, copy: Some(copy) })
    }

    /// A trainable weight: `f32` master values, and a copy where the model computes with another type.
    ///
    /// `None` as for [`Cuda::frozen`].
    pub fn trainable(&self, stored: Stored<'_>) -> Option<Weight> {
        let Stored { rows, cols, .. } = stored;
        let master = Some(self.place(stored, ComputeDtype::F32)?);
        let copy = match self.working {
            ComputeDtype::Bf16 => Some(self.place(stored, ComputeDtype::Bf16)?),
            ComputeDtype::F32 => None,
        };
        Some(Weight { rows, cols, master, copy })
    }

    /// Values of any type, turned into another on their way to the GPU.
    fn place(&self, stored: Stored<'_>, of: ComputeDtype) -> Option<Memory> {
        /// Elements that are turned at once.
        const PIECE: usize = 1 << 14;
        let (elements, each) = (fits(stored)?, stored.dtype.bytes()?);
        // The type is one that can be turned.
        decode_f32(stored.dtype, &[], &mut [])?;
        let memory = self.device.alloc(elements * of.bytes());
        let mut values = vec![0.0; PIECE];
        self.device.upload_with(&memory, elements * of.bytes(), |at, out| {
            let first = at / of.bytes();
            for (i, out) in out.chunks_mut(PIECE * of.bytes()).enumerate() {
                let (from, n) = (first + i * PIECE, out.len() / of.bytes());
                let decoded =
                    decode_f32(stored.dtype, &stored.bytes[from * each..(from + n) * each], &mut values[..n]);
                assert!(decoded.is_some(), "the type was tried");
                write(&values[..n], of, out);
            }
        });
        Some(memory)
    }

    pub(super) fn set_master(&self, weight: &mut Weight, values: &[f32]) {
        assert!(values.len() == weight.rows * weight.cols, "a weight is set as a whole");
        self.device.upload(values, weight.master());
        if let Some(copy) = &weight.copy {
            self.device.upload(&rounded(values), copy);
        }
    }

    pub(super) fn master_values(&self, weight: &Weight) -> Vec<f32> {
        self.device.download(weight.master(), weight.rows * weight.cols)
    }
}

/// The number of elements, where the bytes fit the shape.
fn fits(stored: Stored<'_>) -> Option<usize> {
    let elements = stored.rows.checked_mul(stored.cols)?;
    (stored.bytes.len() == elements.checked_mul(stored.dtype.bytes()?)?).then_some(elements)
}

/// The bytes of values in the working type.
fn write(values: &[f32], of: ComputeDtype, out: &mut [u8]) {
    match of {
        ComputeDtype::F32 => {
            out.as_chunks_mut().0.iter_mut().zip(values).for_each(|(out, x)| *out = x.to_ne_bytes());
        }
        ComputeDtype::Bf16 => {
            let rounded = values.iter().map(|x| bf16::from_f32(*x).to_ne_bytes());
            out.as_chunks_mut().0.iter_mut().zip(rounded).for_each(|(out, x)| *out = x);
        }
    }
}
