//! The device that training and evaluation compute on.

#[cfg(feature = "cuda")]
use super::cuda::{self, Cuda};
use super::{Backend, ComputeDtype, Cpu, CpuPrecision, Diagnosis, MixtureOperations, gemm_gflops};
use crate::optimizer::StatePlace;
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
    Cpu(CpuPrecision),
    /// A GPU.
    #[cfg(feature = "cuda")]
    Cuda(Box<Cuda>),
}

impl Device {
    /// Opens the device. `None` for `compute_dtype` is bf16 on a GPU and `f32` on the CPU.
    ///
    /// # Errors
    /// [`Error::Device`] that names what is missing; as [`cpu_precision`].
    pub fn open(choice: DeviceChoice, compute_dtype: Option<ComputeDtype>) -> Result<Self> {
        let gpu = match choice {
            DeviceChoice::Cpu => false,
            DeviceChoice::Cuda => true,
            DeviceChoice::Auto => diagnose().usable(),
        };
        if gpu {
            return Self::open_gpu(compute_dtype.unwrap_or(ComputeDtype::Bf16));
        }
        Ok(Self::Cpu(cpu_precision(compute_dtype)?))
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
            Self::Cpu(precision) => {
                let instructions = precision.instructions().map(|name| format!(" (bfloat16 by {name})"));
                (format!("cpu{}", instructions.unwrap_or_default()), None)
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => (cuda.name(), cuda.free_memory()),
        }
    }

    /// Peak bytes of a GPU's memory that training allocated; `None` for the CPU.
    pub fn most_memory(&self) -> Option<u64> {
        match self {
            Self::Cpu(_) => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => Some(cuda.most_memory()),
        }
    }

    /// See [`Backend::rope_tables_of_passes`].
    pub fn rope_tables_of_passes(&self) -> bool {
        match self {
            Self::Cpu(_) => Cpu::default().rope_tables_of_passes(),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.rope_tables_of_passes(),
        }
    }

    /// Checks that the device computes with trainable weights in bfloat16 alone where `without_master`.
    ///
    /// # Errors
    /// [`Error::Usage`] that names what it does not compute.
    pub fn check_updates(&self, without_master: bool) -> Result<()> {
        match self {
            Self::Cpu(_) => Ok(()),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.check_updates(without_master),
        }
    }

    /// Checks that the device computes with matrices of [`WeightKind::Float8`](super::WeightKind).
    ///
    /// # Errors
    /// [`Error::Usage`] that names a GPU which is too old.
    pub fn check_float8(&self) -> Result<()> {
        match self {
            Self::Cpu(_) => Ok(()),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.check_float8(),
        }
    }

    /// Checks that the states of an optimizer can lie there.
    ///
    /// # Errors
    /// [`Error::Usage`] that names the place that the device has instead.
    pub fn check_state_place(&self, place: StatePlace) -> Result<()> {
        let on_cpu = matches!(self, Self::Cpu(_));
        let refuse = |fault, hint| Err(Error::usage(fault, hint));
        match place {
            StatePlace::Disk if !on_cpu => {
                refuse("--offload disk keeps moments on the disk for the CPU", "on a GPU use --offload host")
            }
            StatePlace::Host if on_cpu => refuse(
                "--offload host keeps moments of a GPU in the memory of the host",
                "on the CPU use --offload disk",
            ),
            _ => Ok(()),
        }
    }

    /// See [`MixtureOperations::packed_experts`].
    pub fn packed_experts(&self) -> bool {
        match self {
            Self::Cpu(_) => Cpu::default().packed_experts(),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.packed_experts(),
        }
    }

    /// See [`Backend::tokens_at_once`].
    pub fn tokens_at_once(&self) -> usize {
        match self {
            Self::Cpu(_) => Cpu::default().tokens_at_once(),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.tokens_at_once(),
        }
    }

    /// Speed of a large matrix product, in GFLOP/s: the yardstick for the speed of training.
    pub fn gemm_gflops(&mut self) -> f64 {
        match self {
            Self::Cpu(precision) => gemm_gflops(*precision),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.gemm_gflops(),
        }
    }
}

/// The precision of the CPU; `None` for `compute_dtype` is `f32`.
///
/// # Errors
/// [`Error::Usage`] for bf16 on a processor without instructions for it.
pub fn cpu_precision(compute_dtype: Option<ComputeDtype>) -> Result<CpuPrecision> {
    if compute_dtype != Some(ComputeDtype::Bf16) {
        return Ok(CpuPrecision::F32);
    }
    CpuPrecision::bf16().ok_or_else(|| {
        Error::usage(
            "this processor has no instructions for products in bfloat16 (AVX512-BF16)",
            "leave out --compute-dtype bfloat16",
        )
    })
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
