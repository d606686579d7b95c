//! Drawing a plan: which units of an inventory are trainable.
//!
//! Source of the rules and of the defaults: HFT, Hui et al. 2024, arXiv:2404.18466, section 3.

use std::collections::{BTreeMap, HashMap};

use super::forced::{Forced, forced};
use super::mask::{Granularity, Mask, Selector};
use super::partition::Shares;
use super::philox::Key;
use super::tensor_name::Category;
use super::{Inventory, Plan, Unit, balance, category, quota};
use crate::{Error, Result};

/// How units are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// The share of each category within every block: the paper's.
    #[default]
    Category,
    /// Whole blocks.
    Layer,
    /// Units of the whole model, whatever their block or category.
    Model,
    /// An independent coin for every unit.
    RandomTensor,
    /// Nothing is drawn: the globs decide.
    Explicit,
}

/// What a share counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balance {
    /// Matrices, as in the paper.
    #[default]
    Count,
    /// Parameters, which differ where matrices differ in size.
    Params,
}

/// What happens to a category that need not be drawn.
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
    /// How units are drawn.
    pub strategy: Strategy,
    /// The share that is trainable, 0 to 1.
    pub ratio: f64,
    /// What the share counts.
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

/// The source of randomness of one draw.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draw {
    pub(super) seed: u64,
    pub(super) round: u32,
    pub(super) ratio: f64,
    pub(super) balance: Balance,
}

impl Draw {
    /// A number that orders `name` at random among others.
    pub(super) fn score(&self, name: &str) -> u64 {
        Key::new(self.seed, self.round, name).score()
    }

    /// A coin that is true with the probability of the ratio.
    pub(super) fn lone(&self, name: &str) -> bool {
        Key::new(self.seed, self.round, name).uniform() < self.ratio
    }
}

/// Draws the plan that `selection` describes.
///
/// A unit that is only partly forced by globs is drawn with the rest of its tensors.
///
/// # Errors
/// [`Error::Usage`] for a ratio out of range, options that contradict each other, a glob that matches
/// nothing, or a tensor that is both trained and frozen.
pub fn select(inventory: &Inventory, selection: &Selection) -> Result<Plan> {
    check(selection)?;
    let forced = forced(inventory, selection)?;
    if selection.strategy == Strategy::Explicit {
        let rest = selection.train.is_empty();
        return plan_of(inventory, selection, &forced, &HashMap::new(), rest);
    }
    let mut decided: HashMap<&str, bool> = HashMap::new();
    let mut pool: Vec<&Unit> = Vec::new();
    for unit in inventory.units() {
        if unit.tensors.iter().all(|tensor| forced.contains_key(tensor)) {
            continue;
        }
        match policy(selection, unit.place.category) {
            Policy::Train => drop(decided.insert(&unit.name, true)),
            Policy::Freeze => drop(decided.insert(&unit.name, false)),
            Policy::Select => pool.push(unit),
        }
    }
    if selection.mask.is_some() {
        return masked_plan(inventory, selection, &forced, &decided, &pool);
    }
    decided.extend(draw(selection, &pool));
    plan_of(inventory, selection, &forced, &decided, false)
}

fn check(selection: &Selection) -> Result<()> {
    let Selection { ratio, strategy, balance, .. } = selection;
    if !(0.0..=1.0).contains(ratio) {
        let fault = format!("ratio out of range: got {ratio}, expected 0 to 1");
        return Err(Error::usage(fault, ""));
    }
    if *balance == Balance::Params && matches!(strategy, Strategy::RandomTensor | Strategy::Explicit) {
        let fault = "a balance by parameters needs a quota; this strategy has none";
        return Err(Error::usage(fault, "use --strategy category, layer or model"));
    }
    let globs = !selection.train.is_empty() || !selection.freeze.is_empty();
    if *strategy == Strategy::Explicit && !globs {
        return Err(Error::usage("the explicit strategy needs globs", "add --train or --freeze"));
    }
    if selection.mask.is_some() && (*strategy != Strategy::Category || *balance != Balance::Count) {
        let fault =
            "a row or element mask is drawn in every tensor; strategy and balance choose whole tensors";
        return Err(Error::usage(fault, "leave out --strategy and --balance"));
    }
    Ok(())
}

fn policy(selection: &Selection, category: Category) -> Policy {
    match category {
        Category::Embedding => selection.embeddings,
        Category::LmHead => selection.lm_head,
        Category::Norm => selection.norms,
        Category::Attention | Category::Mlp | Category::Other => Policy::Select,
    }
}

fn draw<'a>(selection: &Selection, pool: &[&'a Unit]) -> Vec<(&'a str, bool)> {
    let draw = Draw {
        seed: selection.seed,
        round: selection.round,
        ratio: selection.ratio,
        balance: selection.balance,
    };
    match selection.strategy {
        Strategy::Category => category::draw(&draw, pool),
        Strategy::Layer => by_layer(&draw, pool),
        Strategy::Model => choose(&draw, "model", pool),
        Strategy::RandomTensor => pool.iter().map(|u| (u.name.as_str(), draw.lone(&u.name))).collect(),
        Strategy::Explicit => Vec::new(),
    }
}

/// Draws the share from one pool of units. `label` keeps the coins of different pools apart.
pub(super) fn choose<'a>(draw: &Draw, label: &str, pool: &[&'a Unit]) -> Vec<(&'a str, bool)> {
    let names: Vec<&str> = pool.iter().map(|unit| unit.name.as_str()).collect();
    let sizes: Vec<u64> = pool.iter().map(|unit| unit.parameters).collect();
    let chosen = share(draw, label, &names, &sizes);
    names.into_iter().zip(chosen).collect()
}

fn share(draw: &Draw, label: &str, names: &[&str], sizes: &[u64]) -> Vec<bool> {
    match draw.balance {
        Balance::Count => quota::lowest(draw, names, quota::total(draw, label, names.len() as u64)),
        Balance::Params => balance::closest(draw, label, names, sizes),
    }
}

/// Whole blocks; what stands outside of blocks is drawn alone.
fn by_layer<'a>(draw: &Draw, pool: &[&'a Unit]) -> Vec<(&'a str, bool)> {
    let mut blocks: BTreeMap<String, Vec<&'a Unit>> = BTreeMap::new();
    let mut out = Vec::new();
    for unit in pool {
        match unit.place.layer {
            Some(layer) => blocks.entry(format!("{}.{layer}", unit.place.stack)).or_default().push(unit),
            None => out.push((unit.name.as_str(), draw.lone(&unit.name))),
        }
    }
    let names: Vec<&str> = blocks.keys().map(String::as_str).collect();
    let sizes: Vec<u64> = blocks.values().map(|units| units.iter().map(|u| u.parameters).sum()).collect();
    let chosen = share(draw, "layer", &names, &sizes);
    for (units, chosen) in blocks.values().zip(chosen) {
        out.extend(units.iter().map(|unit| (unit.name.as_str(), chosen)));
    }
    out
}

/// The plan of decided units and forced tensors; `rest` is the side of units nothing decided on.
fn plan_of(
    inventory: &Inventory,
    selection: &Selection,
    forced: &Forced,
    decided: &HashMap<&str, bool>,
    rest: bool,
) -> Result<Plan> {
    let side = |unit: &Unit, tensor: &String| {
        let drawn = decided.get(unit.name.as_str()).copied().unwrap_or(rest);
        forced.get(tensor).copied().unwrap_or(drawn)
    };
    let pool = inventory.units().iter().filter(|unit| {
        let selectable = policy(selection, unit.place.category) == Policy::Select;
        selectable && !unit.tensors.iter().any(|tensor| forced.contains_key(tensor))
    });
    let pool: Vec<(&Unit, bool)> = pool.map(|unit| (unit, side(unit, &unit.tensors[0]))).collect();
    let trainable = |on: bool| {
        inventory
            .units()
            .iter()
            .flat_map(move |unit| unit.tensors.iter().filter(move |tensor| side(unit, tensor) == on).cloned())
    };
    Plan::drawn(
        inventory,
        selection,
        trainable(true).collect(),
        trainable(false).collect(),
        Shares::of(&pool),
        None,
    )
}

/// All selectable tensors are trainable, under a mask that leaves the ratio of each.
fn masked_plan(
    inventory: &Inventory,
    selection: &Selection,
    forced: &Forced,
    decided: &HashMap<&str, bool>,
    pool: &[&Unit],
) -> Result<Plan> {
    let mut decided = decided.clone();
    decided.extend(pool.iter().map(|unit| (unit.name.as_str(), true)));
    let plan = plan_of(inventory, selection, forced, &decided, false)?;
    let tensors = pool.iter().flat_map(|unit| &unit.tensors).filter(|t| !forced.contains_key(*t));
    let mask = selection.mask.map(|(granularity, selector)| Mask {
        granularity,
        selector,
        ratio: selection.ratio,
        complement: false,
        tensors: tensors.cloned().collect(),
    });
    let shares = Shares { matrices: selection.ratio, parameters: selection.ratio };
    Plan::drawn(inventory, selection, plan.trainable().to_vec(), plan.frozen().to_vec(), Some(shares), mask)
}

#[cfg(test)]
#[path = "select_tests.rs"]
mod tests;
