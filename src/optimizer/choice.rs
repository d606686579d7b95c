//! The optimizers with their constants, by the names of their references.

/// An optimizer. Weight decay, the learning rate and clipping are common to all of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Optimizer {
    /// `torch.optim.AdamW`: moments in `f32`. Loshchilov and Hutter 2019, arXiv:1711.05101.
    AdamW(Adam),
    /// The same with moments of 8 bits, as `bitsandbytes.optim.AdamW8bit`. Dettmers et al. 2022, arXiv:2110.02861.
    AdamW8bit(Adam),
    /// `torch.optim.Adafactor`: of a matrix, one number for each row and each column. Shazeer and Stern 2018,
    /// arXiv:1804.04235.
    Adafactor(Adafactor),
    /// Lion with decoupled weight decay. Chen et al. 2023, arXiv:2302.06675.
    Lion(Lion),
    /// `torch.optim.SGD`, whose weight decay is added to the gradient.
    Sgd(Sgd),
}

/// Constants of AdamW, as `torch.optim.AdamW` names them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adam {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

/// Constants of Adafactor, as `torch.optim.Adafactor` names them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adafactor {
    /// The second moment moves by `t^beta2_decay` towards the squares of step `t`; at most 0.
    pub beta2_decay: f64,
    /// The least root mean square of the gradient that is divided by.
    pub eps1: f64,
    /// The least root mean square of a tensor that its step is in proportion to.
    pub eps2: f64,
    /// The largest root mean square of an update, in units of the step; at least 1.
    pub d: f64,
}

/// Constants of Lion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lion {
    /// The share of the momentum in the update.
    pub beta1: f64,
    /// Decay of the momentum.
    pub beta2: f64,
}

/// Constants of SGD, as `torch.optim.SGD` names them, without dampening.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Decay of the momentum; 0: none is kept.
    pub momentum: f64,
}

impl Default for Adafactor {
    /// The defaults of PyTorch for weights in `f32`.
    fn default() -> Self {
        Self { beta2_decay: -0.8, eps1: f64::from(f32::EPSILON), eps2: 1e-3, d: 1.0 }
    }
}

impl Optimizer {
    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::AdamW(_) => "adamw",
            Self::AdamW8bit(_) => "adamw8bit",
            Self::Adafactor(_) => "adafactor",
            Self::Lion(_) => "lion",
            Self::Sgd(_) => "sgd",
        }
    }

    /// Whether it keeps a first moment of every element, by which MoFO chooses.
    pub fn has_first_moment(&self) -> bool {
        match self {
            Self::AdamW(_) | Self::AdamW8bit(_) | Self::Lion(_) => true,
            Self::Adafactor(_) => false,
            Self::Sgd(sgd) => sgd.momentum != 0.0,
        }
    }
}
