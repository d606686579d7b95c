//! `--optimizer` with its constants, and what trainable weights are kept in.

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use crate::backend::Device;
use crate::optimizer::{Adafactor, Adam, Lion, Optimizer, Sgd, StatePlace};
use crate::train::{FrozenDtype, Gradients, Master};
use crate::{Error, Result};

/// The optimizer with its constants.
#[derive(Debug, clap::Args)]
pub(super) struct UpdateArgs {
    /// How gradients become updates; all but adamw and adamw8bit need --learning-rate
    #[arg(long, value_enum, value_name = "NAME", default_value_t = OptimizerArg::Adamw)]
    optimizer: OptimizerArg,
    /// What trainable weights are kept in
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = MasterArg::F32)]
    master: MasterArg,
    /// What gradients are kept in between the backward pass and the update
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = GradientDtypeArg::Float32)]
    gradient_dtype: GradientDtypeArg,
    /// What frozen matrices of attention and MLPs are kept in and multiplied in
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = FrozenDtypeArg::Stored)]
    frozen_dtype: FrozenDtypeArg,
    /// Where the optimizer keeps what it keeps of each parameter; the result is the same
    #[arg(long, value_enum, value_name = "PLACE", default_value_t = OffloadArg::Auto)]
    offload: OffloadArg,
    /// Update each block as soon as the backward pass has its gradients, so that those of one block are in memory at a
    /// time; takes --max-grad-norm 0 and micro-batches that are steps
    #[arg(long)]
    pub(super) optimizer_in_backward: bool,
    /// Decay of the first moment; of lion, its share in the update
    #[arg(long, value_name = "X", default_value_t = 0.9)]
    adam_beta1: f64,
    /// Decay of the second moment, of lion that of its momentum [default: 0.999; 0.99 for lion]
    #[arg(long, value_name = "X")]
    adam_beta2: Option<f64>,
    /// Added to the root of the second moment
    #[arg(long, value_name = "X", default_value_t = 1e-8)]
    adam_epsilon: f64,
    /// Decay of the momentum of sgd [default: 0, no momentum]
    #[arg(long, value_name = "X")]
    momentum: Option<f64>,
    /// The power of the step by which adafactor's second moment moves, at most 0 [default: -0.8]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    adafactor_beta2_decay: Option<f64>,
    /// The least root mean square of a tensor that a step of adafactor is in proportion to [default: 1e-3]
    #[arg(long, value_name = "X")]
    adafactor_epsilon2: Option<f64>,
    /// The largest root mean square of an update of adafactor, in units of the step, at least 1 [default: 1]
    #[arg(long, value_name = "X")]
    adafactor_d: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OptimizerArg {
    /// AdamW: 8 bytes of moments for each parameter
    Adamw,
    /// AdamW with moments of 8 bits: 2 bytes
    #[value(name = "adamw8bit")]
    Adamw8bit,
    /// Adafactor: a number for each row and column; the learning rate is relative to the size of a tensor
    Adafactor,
    /// Lion: 4 bytes of momentum
    Lion,
    /// SGD: 4 bytes with --momentum, none without
    Sgd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MasterArg {
    /// float32, rounded when a checkpoint is written: 4 bytes for each parameter
    F32,
    /// bfloat16 alone, rounded stochastically at every step: 2 bytes; the trained tensors must be bfloat16
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FrozenDtypeArg {
    /// As they are stored
    Stored,
    /// Eight-bit floats (e4m3) with one scale for each matrix: 1 byte for each parameter; on a GPU products are in eight
    /// bits too
    Float8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OffloadArg {
    /// On the CPU disk, on a GPU host, where it does not fit into memory; none otherwise
    Auto,
    /// In the memory of the device
    None,
    /// On the CPU: in a file without a name in --out, which is mapped into memory
    Disk,
    /// On a GPU: in page-locked memory of the host, read and written over the bus
    Host,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum GradientDtypeArg {
    /// 4 bytes for each parameter
    Float32,
    /// 2 bytes, and 4 for those of one block: each pass is added to the sum of those before and rounded to nearest
    #[value(name = "bfloat16")]
    Bfloat16,
}

impl UpdateArgs {
    /// Where the optimizer keeps its state; `None`: where it fits.
    pub(super) fn offload(&self) -> Option<StatePlace> {
        match self.offload {
            OffloadArg::Auto => None,
            OffloadArg::None => Some(StatePlace::Device),
            OffloadArg::Disk => Some(StatePlace::Disk),
            OffloadArg::Host => Some(StatePlace::Host),
        }
    }

    fn beta2(&self) -> f64 {
        self.adam_beta2.unwrap_or(if self.optimizer == OptimizerArg::Lion { 0.99 } else { 0.999 })
    }

    /// The optimizer with its constants.
    pub(super) fn optimizer(&self) -> Optimizer {
        let adam = Adam { beta1: self.adam_beta1, beta2: self.beta2(), eps: self.adam_epsilon };
        match self.optimizer {
            OptimizerArg::Adamw => Optimizer::AdamW(adam),
            OptimizerArg::Adamw8bit => Optimizer::AdamW8bit(adam),
            OptimizerArg::Adafactor => {
                let usual = Adafactor::default();
                Optimizer::Adafactor(Adafactor {
                    beta2_decay: self.adafactor_beta2_decay.unwrap_or(usual.beta2_decay),
                    eps2: self.adafactor_epsilon2.unwrap_or(usual.eps2),
                    d: self.adafactor_d.unwrap_or(usual.d),
                    ..usual
                })
            }
            OptimizerArg::Lion => Optimizer::Lion(Lion { beta1: self.adam_beta1, beta2: self.beta2() }),
            OptimizerArg::Sgd => Optimizer::Sgd(Sgd { momentum: self.momentum.unwrap_or(0.0) }),
        }
    }

    /// What trainable weights are kept in.
    pub(super) fn master(&self) -> Master {
        match self.master {
            MasterArg::F32 => Master::F32,
            MasterArg::None => Master::None,
        }
    }

    /// What frozen matrices are kept in.
    pub(super) fn frozen(&self) -> FrozenDtype {
        match self.frozen_dtype {
            FrozenDtypeArg::Stored => FrozenDtype::Stored,
            FrozenDtypeArg::Float8 => FrozenDtype::Float8,
        }
    }

    /// Which gradients are in memory at once.
    pub(super) fn gradients(&self) -> Gradients {
        match self.gradient_dtype {
            _ if self.optimizer_in_backward => Gradients::OneBlock,
            GradientDtypeArg::Float32 => Gradients::F32,
            GradientDtypeArg::Bfloat16 => Gradients::Bf16,
        }
    }

    /// Bytes of value, gradient and moments for each parameter of a large matrix; the gradients of one block count as none.
    pub(super) fn bytes_per_parameter(&self) -> f64 {
        const LARGE: usize = 1 << 12;
        let moments = self.optimizer().state_bytes(LARGE, LARGE) as f64 / (LARGE * LARGE) as f64;
        let gradient = self.gradients().bytes() as f64;
        let value = if self.master == MasterArg::F32 { 4.0 } else { 2.0 };
        value + gradient + moments
    }

    /// Whether the learning rate is another than AdamW's, so that it must be given.
    fn has_other_rates(&self) -> bool {
        !matches!(self.optimizer, OptimizerArg::Adamw | OptimizerArg::Adamw8bit)
    }

    /// # Errors
    /// A number out of range, a constant of another optimizer, a learning rate that is missing.
    pub(super) fn check(&self, learning_rate: Option<f64>) -> Result<()> {
        let of_adafactor = [
            ("adafactor-beta2-decay", self.adafactor_beta2_decay.is_some()),
            ("adafactor-epsilon2", self.adafactor_epsilon2.is_some()),
            ("adafactor-d", self.adafactor_d.is_some()),
        ];
        let given = of_adafactor.map(|(flag, given)| (flag, given, OptimizerArg::Adafactor));
        let name = self.optimizer().name();
        for (flag, given, of) in
            given.into_iter().chain([("momentum", self.momentum.is_some(), OptimizerArg::Sgd)])
        {
            if given && of != self.optimizer {
                let fault = format!("--{flag} is no constant of --optimizer {name}");
                return Err(Error::usage(fault, format!("leave out --{flag}")));
            }
        }
        if self.optimizer_in_backward && self.gradient_dtype != GradientDtypeArg::Float32 {
            return Err(Error::usage(
                "--optimizer-in-backward keeps no gradients, and --gradient-dtype bfloat16 says what they are kept in",
                "leave out one of them",
            ));
        }
        if self.has_other_rates() && learning_rate.is_none() {
            let usual = match self.optimizer {
                OptimizerArg::Adafactor => "it is relative to the root mean square of a tensor: 1e-3 or 1e-2",
                OptimizerArg::Lion => "a third to a tenth of that of AdamW is usual: 2e-6 to 7e-6",
                _ => "it multiplies gradients as they are: 1e-3 to 1e-1",
            };
            return Err(Error::usage(format!("--optimizer {name} needs --learning-rate"), usual));
        }
        let in_range = |flag: &str, value: Option<f64>, expected: &str, ok: fn(f64) -> bool| match value
            .filter(|value| !(value.is_finite() && ok(*value)))
        {
            None => Ok(()),
            Some(got) => {
                Err(Error::usage(format!("--{flag} out of range: got {got}, expected {expected}"), ""))
            }
        };
        in_range("adam-epsilon", Some(self.adam_epsilon), "0 or more", |x| x >= 0.0)?;
        in_range("adam-beta1", Some(self.adam_beta1), "0 to below 1", |x| (0.0..1.0).contains(&x))?;
        in_range("adam-beta2", self.adam_beta2, "0 to below 1", |x| (0.0..1.0).contains(&x))?;
        in_range("momentum", self.momentum, "0 to below 1", |x| (0.0..1.0).contains(&x))?;
        in_range("adafactor-beta2-decay", self.adafactor_beta2_decay, "at most 0", |x| x <= 0.0)?;
        in_range("adafactor-epsilon2", self.adafactor_epsilon2, "0 or more", |x| x >= 0.0)?;
        in_range("adafactor-d", self.adafactor_d, "1 or more", |x| x >= 1.0)
    }

    /// # Errors
    /// What the device does not compute.
    pub(super) fn check_device(&self, device: &Device) -> Result<()> {
        device.check_state_place(self.offload().unwrap_or_default())?;
        device.check_updates(self.master() == Master::None)?;
        if self.frozen() == FrozenDtype::Float8 { device.check_float8() } else { Ok(()) }
    }

    /// The constants that decide the result; for AdamW with a master in `f32` those that it always had.
    pub(super) fn describe(&self) -> Map<String, Value> {
        let mut all = Map::new();
        let mut add = |name: &str, value: Value| drop(all.insert(name.to_owned(), value));
        if self.optimizer != OptimizerArg::Adamw {
            add("optimizer", json!(self.optimizer().name()));
        }
        if self.master == MasterArg::None {
            add("master", json!("none"));
        }
        if self.frozen() == FrozenDtype::Float8 {
            add("frozen_dtype", json!("float8"));
        }
        if self.gradient_dtype == GradientDtypeArg::Bfloat16 {
            add("gradient_dtype", json!("bfloat16"));
        }
        if self.optimizer_in_backward {
            add("optimizer_in_backward", json!(true));
        }
        match self.optimizer() {
            Optimizer::AdamW(adam) | Optimizer::AdamW8bit(adam) => {
                add("adam_beta1", json!(adam.beta1));
                add("adam_beta2", json!(adam.beta2));
                add("adam_epsilon", json!(adam.eps));
            }
            Optimizer::Adafactor(adafactor) => {
                add("adafactor_beta2_decay", json!(adafactor.beta2_decay));
                add("adafactor_epsilon2", json!(adafactor.eps2));
                add("adafactor_d", json!(adafactor.d));
            }
            Optimizer::Lion(lion) => {
                add("adam_beta1", json!(lion.beta1));
                add("adam_beta2", json!(lion.beta2));
            }
            Optimizer::Sgd(sgd) => add("momentum", json!(sgd.momentum)),
        }
        all
    }
}
