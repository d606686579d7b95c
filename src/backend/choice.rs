//! The device that was asked for.

use super::gemm_gflops;
use crate::{Error, Result};

/// What a user may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU where one can be used, the CPU otherwise.
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU, or an error.
    Cuda,
}

/// The type of weights and activations on a GPU. The CPU computes in `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComputeDtype {
    /// `float`: to compare with the CPU.
    F32,
    /// bfloat16, with master weights, moments, gradients of weights and all sums in `float`.
    Bf16,
}

/// A device that is ready.
#[derive(Debug)]
pub enum Device {
    /// The CPU.
    Cpu,
    /// A GPU.
    #[cfg(feature = "cuda")]
    Cuda(Box<super::cuda::Cuda>),
}

impl Device {
    /// Starts the device; on a GPU, `working` is bf16 unless something else is asked for.
    ///
    /// # Errors
    /// [`Error::Device`] that says what is missing; [`Error::Usage`] for bf16 on the CPU.
    pub fn open(choice: DeviceChoice, working: Option<ComputeDtype>) -> Result<Self> {
        let gpu = match choice {
            DeviceChoice::Cpu => false,
            DeviceChoice::Cuda => true,
            DeviceChoice::Auto => super::diagnose().usable(),
        };
        if gpu {
            return Self::open_gpu(working.unwrap_or(ComputeDtype::Bf16));
        }
        if working == Some(ComputeDtype::Bf16) {
            return Err(Error::usage(
                "the CPU computes in float32",
                "leave out --compute-dtype, or use --device cuda",
            ));
        }
        Ok(Self::Cpu)
    }

    #[cfg(feature = "cuda")]
    fn open_gpu(working: ComputeDtype) -> Result<Self> {
        Ok(Self::Cuda(Box::new(super::cuda::Cuda::open(working)?)))
    }

    #[cfg(not(feature = "cuda"))]
    fn open_gpu(_: ComputeDtype) -> Result<Self> {
        let hint = Some("use --device cpu, or build with --features cuda".to_owned());
        Err(Error::Device { fault: "this build has no CUDA backend".to_owned(), hint })
    }

    /// "cpu", or what the GPU is called and how much of its memory is free, in bytes.
    pub fn name(&self) -> (String, Option<u64>) {
        match self {
            Self::Cpu => ("cpu".to_owned(), None),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => (cuda.name(), cuda.free_memory()),
        }
    }

    /// The most bytes of a GPU's memory that training held at once; `None` for the CPU.
    pub fn most_memory(&self) -> Option<u64> {
        match self {
            Self::Cpu => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => Some(cuda.most_memory()),
        }
    }

    /// See [`super::Backend::tokens_at_once`].
    pub fn tokens_at_once(&self) -> usize {
        match self {
            Self::Cpu => super::Backend::tokens_at_once(&super::Cpu::default()),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => super::Backend::tokens_at_once(&**cuda),
        }
    }

    /// Speed of a large product, in GFLOP/s: what the layers can be measured against.
    pub fn gemm_gflops(&mut self) -> f64 {
        match self {
            Self::Cpu => gemm_gflops(),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.gemm_gflops(),
        }
    }
}
