//! `--device`: where a model is computed.

use crate::Result;
use crate::backend::{ComputeDtype, Device, DeviceChoice};

/// Where to compute.
#[derive(Debug, clap::Args)]
pub(super) struct DeviceArgs {
    /// Where to compute
    #[arg(long, value_enum, default_value_t = DeviceArg::Auto, value_name = "DEVICE")]
    device: DeviceArg,
    /// The type of weights and activations; sums, master weights and moments are float32 in any case [default:
    /// bfloat16 on a GPU, float32 on the CPU]
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
    /// 8 bits of precision
    Bfloat16,
    /// 24 bits of precision
    Float32,
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
        let working = self.compute_dtype.map(|dtype| match dtype {
            DtypeArg::Bfloat16 => ComputeDtype::Bf16,
            DtypeArg::Float32 => ComputeDtype::F32,
        });
        Device::open(choice, working)
    }
}
