//! `--device`: where a model is computed.

use serde_json::{Map, Value, json};

use crate::Result;
use crate::backend::{ComputeDtype, CpuPrecision, Device, DeviceChoice, cpu_precision};

/// Where to compute.
#[derive(Debug, clap::Args)]
pub(super) struct DeviceArgs {
    /// Where to compute
    #[arg(long, value_enum, default_value_t = DeviceArg::Auto, value_name = "DEVICE")]
    device: DeviceArg,
    /// The type of weights and activations on a GPU, of the operands of products with weights on the CPU; sums, master
    /// weights and moments are float32 in any case [default: bfloat16 on a GPU, float32 on the CPU]
    #[arg(long, value_enum, value_name = "TYPE")]
    compute_dtype: Option<DtypeArg>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum DeviceArg {
    /// A CUDA GPU where one can be used, the CPU otherwise
    Auto,
    /// The CPU
    Cpu,
    /// A CUDA GPU; `doctor` tells what is missing
    Cuda,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum DtypeArg {
    /// 8 bits of precision; on the CPU it takes AVX512-BF16, see `doctor`
    Bfloat16,
    /// 24 bits of precision
    Float32,
}

impl DtypeArg {
    fn compute_dtype(self) -> ComputeDtype {
        match self {
            Self::Bfloat16 => ComputeDtype::Bf16,
            Self::Float32 => ComputeDtype::F32,
        }
    }
}

/// How the CPU computes, where nothing else does.
#[derive(Debug, clap::Args)]
pub(super) struct PrecisionArgs {
    /// The type of the operands of products with weights; sums and activations are float32 in any case
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = DtypeArg::Float32)]
    compute_dtype: DtypeArg,
}

impl PrecisionArgs {
    /// # Errors
    /// As [`cpu_precision`].
    pub(super) fn precision(&self) -> Result<CpuPrecision> {
        cpu_precision(Some(self.compute_dtype.compute_dtype()))
    }
}

impl DeviceArgs {
    /// Starts the device.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub(super) fn open(&self) -> Result<Device> {
        let choice = match self.device {
            DeviceArg::Auto => DeviceChoice::Auto,
            DeviceArg::Cpu => DeviceChoice::Cpu,
            DeviceArg::Cuda => DeviceChoice::Cuda,
        };
        Device::open(choice, self.compute_dtype.map(DtypeArg::compute_dtype))
    }
}

/// The options that decide the result of a run, with the type of products where it is bfloat16 on the CPU.
pub(super) fn with_compute_dtype(device: &Device, mut options: Map<String, Value>) -> Map<String, Value> {
    if matches!(device, Device::Cpu(precision) if precision.instructions().is_some()) {
        options.insert("compute_dtype".to_owned(), json!("bfloat16"));
    }
    options
}
