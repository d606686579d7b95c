//! The device that training and evaluation compute on.

#[cfg(feature = "cuda")]
use super::cuda::{self, Cuda};
use super::{Backend, ComputeDtype, Cpu, Diagnosis, gemm_gflops};
use crate::{Error, Result};

/// The values of `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU where one can be used, the CPU otherwise.
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU, or an error.
    Cuda,
}

/// An open device.
#[derive(Debug)]
pub enum Device {
    /// The CPU.
    Cpu,
    /// A GPU.
    #[cfg(feature = "cuda")]
    Cuda(Box<Cuda>),
}

impl Device {
    /// Opens the device. `None` for `compute_dtype` is bf16 on a GPU.
    ///
    /// # Errors
    /// [`Error::Device`] that names what is missing; [`Error::Usage`] for bf16 on the CPU.
    pub fn open(choice: DeviceChoice, compute_dtype: Option<ComputeDtype>) -> Result<Self> {
        let gpu = match choice {
            DeviceChoice::Cpu => false,
            DeviceChoice::Cuda => true,
            DeviceChoice::Auto => diagnose().usable(),
        };
        if gpu {
            return Self::open_gpu(compute_dtype.unwrap_or(ComputeDtype::Bf16));
        }
        if compute_dtype == Some(ComputeDtype::Bf16) {
            return Err(Error::usage(
                "the CPU computes in float32",
                "leave out --compute-dtype, or use --device cuda",
            ));
        }
        Ok(Self::Cpu)
    }

    #[cfg(feature = "cuda")]
    fn open_gpu(compute_dtype: ComputeDtype) -> Result<Self> {
        Ok(Self::Cuda(Box::new(Cuda::open(compute_dtype)?)))
    }

    #[cfg(not(feature = "cuda"))]
    fn open_gpu(_: ComputeDtype) -> Result<Self> {
        let hint = Some("use --device cpu, or build with --features cuda".to_owned());
        Err(Error::Device { fault: "this build has no CUDA backend".to_owned(), hint })
    }

    /// "cpu", or the name of the GPU, with the bytes of its memory that are free.
    pub fn name(&self) -> (String, Option<u64>) {
        match self {
            Self::Cpu => ("cpu".to_owned(), None),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => (cuda.name(), cuda.free_memory()),
        }
    }

    /// Peak bytes of a GPU's memory that training allocated; `None` for the CPU.
    pub fn most_memory(&self) -> Option<u64> {
        match self {
            Self::Cpu => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => Some(cuda.most_memory()),
        }
    }

    /// See [`Backend::on_host`].
    pub fn on_host(&self) -> bool {
        match self {
            Self::Cpu => Cpu::default().on_host(),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.on_host(),
        }
    }

    /// Checks that the device computes with trainable weights in bfloat16 alone where `without_master`.
    ///
    /// # Errors
    /// [`Error::Usage`] that names what it does not compute.
    pub fn check_updates(&self, without_master: bool) -> Result<()> {
        match self {
            Self::Cpu => Ok(()),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.check_updates(without_master),
        }
    }

    /// See [`Backend::tokens_at_once`].
    pub fn tokens_at_once(&self) -> usize {
        match self {
            Self::Cpu => Cpu::default().tokens_at_once(),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.tokens_at_once(),
        }
    }

    /// Speed of a large matrix product, in GFLOP/s: the yardstick for the speed of training.
    pub fn gemm_gflops(&mut self) -> f64 {
        match self {
            Self::Cpu => gemm_gflops(),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.gemm_gflops(),
        }
    }
}

/// Looks for everything that the CUDA backend needs.
pub fn diagnose() -> Diagnosis {
    #[cfg(feature = "cuda")]
    return cuda::diagnose();
    #[cfg(not(feature = "cuda"))]
    Diagnosis {
        missing: vec![super::Missing {
            fault: "this build has no CUDA backend".to_owned(),
            hint: "build it with --features cuda".to_owned(),
        }],
        ..Diagnosis::default()
    }
}
