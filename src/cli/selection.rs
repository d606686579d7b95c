//! The options that choose tensors, shared by `plan` and `reset`.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::Result;
use crate::plan::{
    Balance, Granularity, Inventory, Plan, Policy, Selection, Selector, Strategy, glob_matches, literal_glob,
    select,
};

/// Which tensors are chosen, apart from the share.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Selection")]
pub(super) struct SelectionArgs {
    /// How tensors are drawn
    #[arg(long, value_enum, default_value_t = StrategyArg::Category)]
    pub(super) strategy: StrategyArg,
    /// What the share counts: matrices, or their parameters
    #[arg(long, value_enum, default_value_t = BalanceArg::Count)]
    balance: BalanceArg,
    /// Input embeddings: always trainable, always frozen, or drawn like the rest
    #[arg(long, value_enum, value_name = "POLICY")]
    embeddings: Option<PolicyArg>,
    /// Output head: as --embeddings
    #[arg(long, value_enum, value_name = "POLICY")]
    lm_head: Option<PolicyArg>,
    /// Norms: as --embeddings
    #[arg(long, value_enum, value_name = "POLICY")]
    norms: Option<PolicyArg>,
    /// Tensors that are trainable (keep their tuned value) whatever is drawn; may be repeated
    #[arg(long, value_name = "GLOB")]
    train: Vec<String>,
    /// Tensors that are frozen (return to base) whatever is drawn; may be repeated
    #[arg(long, value_name = "GLOB")]
    freeze: Vec<String>,
    /// Seed of the draw
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Round of training: each draws anew
    #[arg(long, default_value_t = 0)]
    round: u32,
    /// Draw whole tensors, rows of each, or elements of each
    #[arg(long, value_enum, default_value_t = GranularityArg::Tensor)]
    granularity: GranularityArg,
    /// How rows or elements are chosen [default: bernoulli]
    #[arg(long, value_enum)]
    selector: Option<SelectorArg>,
    /// Swap the two halves of this plan instead of drawing
    #[arg(long, value_name = "PLAN", conflicts_with_all = ["strategy", "balance", "granularity", "selector", "seed", "round", "ratio"])]
    complement_of: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum StrategyArg {
    /// The share of each category in every block (the paper's)
    Category,
    /// Whole blocks
    Layer,
    /// Matrices of the whole model
    Model,
    /// An independent Bernoulli draw for each matrix
    RandomTensor,
    /// What --train and --freeze say
    Explicit,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum BalanceArg {
    /// A share of the matrices (the paper's)
    Count,
    /// A share of the parameters
    Params,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PolicyArg {
    Train,
    Freeze,
    Select,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum GranularityArg {
    Tensor,
    Row,
    Element,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SelectorArg {
    /// An independent Bernoulli draw for each
    Bernoulli,
    /// The largest |tuned − base| stay trainable
    TopMagnitude,
}

impl SelectionArgs {
    /// The plan over `inventory` with the share `ratio` trainable.
    pub(super) fn plan(&self, inventory: &Inventory, ratio: f64) -> Result<Plan> {
        self.plan_of_round(inventory, ratio, 0, &[])
    }

    /// The plan that `--complement-of` names.
    pub(super) fn complement_of(&self) -> Option<&PathBuf> {
        self.complement_of.as_ref()
    }

    /// Seed of the draw.
    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    /// As [`SelectionArgs::plan`], `later` rounds after `--round`, with the tensors of these names frozen.
    pub(super) fn plan_of_round(
        &self,
        inventory: &Inventory,
        ratio: f64,
        later: u32,
        frozen: &[&str],
    ) -> Result<Plan> {
        self.drawn(inventory, ratio, (self.seed, later), frozen)
    }

    /// As [`SelectionArgs::plan`], with this seed in place of `--seed`.
    pub(super) fn plan_of_seed(&self, inventory: &Inventory, ratio: f64, seed: u64) -> Result<Plan> {
        self.drawn(inventory, ratio, (seed, 0), &[])
    }

    /// Whether a glob of `--train` matches this tensor.
    pub(super) fn trains(&self, tensor: &str) -> bool {
        self.train.iter().any(|glob| glob_matches(glob, tensor))
    }

    /// Whether nothing is drawn.
    pub(super) fn is_explicit(&self) -> bool {
        self.strategy == StrategyArg::Explicit
    }

    fn drawn(
        &self,
        inventory: &Inventory,
        ratio: f64,
        (seed, later): (u64, u32),
        frozen: &[&str],
    ) -> Result<Plan> {
        if let Some(path) = &self.complement_of {
            return self.complement(inventory, path);
        }
        let defaults = Selection::default();
        if inventory.tied() && self.lm_head.is_some_and(|head| Some(head) != self.embeddings) {
            let fault =
                "--lm-head and --embeddings differ, but the head of this model is tied to its embedding";
            return Err(crate::Error::usage(fault, "the pair follows --embeddings"));
        }
        let selection = Selection {
            strategy: match self.strategy {
                StrategyArg::Category => Strategy::Category,
                StrategyArg::Layer => Strategy::Layer,
                StrategyArg::Model => Strategy::Model,
                StrategyArg::RandomTensor => Strategy::RandomTensor,
                StrategyArg::Explicit => Strategy::Explicit,
            },
            ratio,
            balance: match self.balance {
                BalanceArg::Count => Balance::Count,
                BalanceArg::Params => Balance::Params,
            },
            embeddings: policy(self.embeddings).unwrap_or(defaults.embeddings),
            lm_head: policy(self.lm_head).unwrap_or(defaults.lm_head),
            norms: policy(self.norms).unwrap_or(defaults.norms),
            seed,
            round: self.round.saturating_add(later),
            train: self.train.clone(),
            freeze: self.freeze.iter().cloned().chain(frozen.iter().map(|name| literal_glob(name))).collect(),
            mask: self.mask()?,
        };
        select(inventory, &selection)
    }

    fn mask(&self) -> Result<Option<(Granularity, Selector)>> {
        let selector = match self.selector {
            Some(SelectorArg::TopMagnitude) => Selector::TopMagnitude,
            Some(SelectorArg::Bernoulli) | None => Selector::Bernoulli,
        };
        match self.granularity {
            GranularityArg::Row => Ok(Some((Granularity::Row, selector))),
            GranularityArg::Element => Ok(Some((Granularity::Element, selector))),
            GranularityArg::Tensor if self.selector.is_some() => Err(crate::Error::usage(
                "--selector chooses rows or elements, got --granularity tensor",
                "add --granularity element or --granularity row",
            )),
            GranularityArg::Tensor => Ok(None),
        }
    }

    fn complement(&self, inventory: &Inventory, path: &Path) -> Result<Plan> {
        let refined = self.embeddings.is_some() || self.lm_head.is_some() || self.norms.is_some();
        if refined || !self.train.is_empty() || !self.freeze.is_empty() {
            return Err(crate::Error::usage(
                "--complement-of swaps the two halves of a plan exactly and takes no other choice",
                "refine the plan that it is the complement of",
            ));
        }
        let plan = Plan::read(path)?;
        plan.check_against(inventory)?;
        plan.complement()
    }
}

/// The share and the rest, where they differ: a half is one number whichever of the two is counted.
pub(super) fn uneven(ratio: f64) -> Option<(f64, f64)> {
    const DIGITS: f64 = 1e6;
    let rest = ((1.0 - ratio) * DIGITS).round() / DIGITS;
    (ratio != rest).then_some((ratio, rest))
}

fn policy(arg: Option<PolicyArg>) -> Option<Policy> {
    arg.map(|policy| match policy {
        PolicyArg::Train => Policy::Train,
        PolicyArg::Freeze => Policy::Freeze,
        PolicyArg::Select => Policy::Select,
    })
}
