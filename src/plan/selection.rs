//! The options that decide a plan.
//!
//! Source of the defaults: HFT, Hui et al. 2024, arXiv:2404.18466, section 3.

use super::mask::{Granularity, Selector};
use super::tensor_name::Category;
use crate::{Error, Result};

/// The rule by which units are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// The share of each category within every block: the paper's.
    #[default]
    Category,
    /// Whole blocks.
    Layer,
    /// Units of the whole model, whatever their block or category.
    Model,
    /// An independent Bernoulli draw for every unit.
    RandomTensor,
    /// Nothing is drawn: the globs decide.
    Explicit,
}

/// The unit in which a share is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balance {
    /// Matrices, as in the paper.
    #[default]
    Count,
    /// Parameters, which differ where matrices differ in size.
    Params,
}

/// How a category is treated that need not be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Always trainable.
    Train,
    /// Always frozen.
    Freeze,
    /// Drawn like the rest.
    Select,
}

/// Everything that decides a plan, besides the inventory.
#[derive(Debug, Clone)]
pub struct Selection {
    /// The rule by which units are drawn.
    pub strategy: Strategy,
    /// The share that is trainable, 0 to 1.
    pub ratio: f64,
    /// The unit in which the share is counted.
    pub balance: Balance,
    /// Token and position embeddings; with a tied head, the pair.
    pub embeddings: Policy,
    /// The output head.
    pub lm_head: Policy,
    /// Norms.
    pub norms: Policy,
    /// Seed of the draw.
    pub seed: u64,
    /// Each round draws anew.
    pub round: u32,
    /// Globs of tensors that are trainable whatever is drawn.
    pub train: Vec<String>,
    /// Globs of tensors that are frozen whatever is drawn.
    pub freeze: Vec<String>,
    /// Draw rows or elements of each tensor instead of whole tensors.
    pub mask: Option<(Granularity, Selector)>,
}

impl Default for Selection {
    fn default() -> Self {
        Self {
            strategy: Strategy::Category,
            ratio: 0.5,
            balance: Balance::Count,
            embeddings: Policy::Train,
            lm_head: Policy::Train,
            norms: Policy::Select,
            seed: 0,
            round: 0,
            train: Vec::new(),
            freeze: Vec::new(),
            mask: None,
        }
    }
}

impl Selection {
    /// Refuses a ratio out of range and options that contradict each other.
    pub(super) fn check(&self) -> Result<()> {
        let Self { ratio, strategy, balance, .. } = self;
        if !(0.0..=1.0).contains(ratio) {
            let fault = format!("ratio out of range: got {ratio}, expected 0 to 1");
            return Err(Error::usage(fault, ""));
        }
        if *balance == Balance::Params && matches!(strategy, Strategy::RandomTensor | Strategy::Explicit) {
            let fault = "a balance by parameters needs a quota; this strategy has none";
            return Err(Error::usage(fault, "use --strategy category, layer or model"));
        }
        let globs = !self.train.is_empty() || !self.freeze.is_empty();
        if *strategy == Strategy::Explicit && !globs {
            return Err(Error::usage("the explicit strategy needs globs", "add --train or --freeze"));
        }
        if self.mask.is_some() && (*strategy != Strategy::Category || *balance != Balance::Count) {
            let fault =
                "a row or element mask is drawn in every tensor; strategy and balance choose whole tensors";
            return Err(Error::usage(fault, "leave out --strategy and --balance"));
        }
        Ok(())
    }

    /// Whether the units of `category` are drawn.
    pub(super) fn policy(&self, category: Category) -> Policy {
        match category {
            Category::Embedding => self.embeddings,
            Category::LmHead => self.lm_head,
            Category::Norm => self.norms,
            Category::Attention | Category::Mlp | Category::Other => Policy::Select,
        }
    }
}
