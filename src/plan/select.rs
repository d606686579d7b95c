//! Drawing a plan: which units of an inventory are trainable.

use std::collections::HashMap;

use super::forced::{Forced, forced};
use super::inventory::{Inventory, Unit};
use super::mask::Mask;
use super::partition::{Model, Origin, Plan, Shares};
use super::selection::{Balance, Policy, Selection, Strategy};
use super::strategy;
use crate::Result;

/// Draws the plan that `selection` describes.
///
/// A unit that is only partly forced by globs is drawn with the rest of its tensors.
///
/// # Errors
/// [`Error::Usage`](crate::Error::Usage) for a ratio out of range, options that contradict each other, a glob that
/// matches nothing, or a tensor that is both trained and frozen;
/// [`Error::Plan`](crate::Error::Plan) for a mask over quantized weights.
pub fn select(inventory: &Inventory, selection: &Selection) -> Result<Plan> {
    selection.check()?;
    let forced = forced(inventory, selection)?;
    let decided = decide(inventory, selection, &forced);
    let trains = |unit: &Unit, tensor: &String| {
        let decided = forced.get(tensor).or_else(|| decided.get(unit.name.as_str()));
        !unit.buffer && decided == Some(&true)
    };
    let (mut trainable, mut frozen) = (Vec::new(), Vec::new());
    for unit in inventory.units() {
        for tensor in &unit.tensors {
            if trains(unit, tensor) { trainable.push(tensor.clone()) } else { frozen.push(tensor.clone()) }
        }
    }
    let mask = mask(inventory, selection, &forced);
    let masked = mask.is_some();
    let shares = if masked {
        Some(Shares { matrices: selection.ratio, parameters: selection.ratio })
    } else {
        let whole =
            drawn(inventory, selection).filter(|unit| !unit.tensors.iter().any(|t| forced.contains_key(t)));
        Shares::of(&whole.map(|unit| (unit, trains(unit, &unit.tensors[0]))).collect::<Vec<_>>())
    };
    let plan = Plan::build(origin(inventory, selection, shares), trainable, frozen, mask, None)?;
    if masked {
        plan.check_against(inventory)?;
    }
    Ok(plan)
}

/// The units whose category is drawn, not fixed by a policy.
fn drawn<'a>(inventory: &'a Inventory, selection: &'a Selection) -> impl Iterator<Item = &'a Unit> {
    let drawn = |unit: &&Unit| selection.policy(unit.tensor_name.category) == Policy::Select;
    inventory.units().iter().filter(|unit| !unit.buffer).filter(drawn)
}

fn is_forced(unit: &Unit, forced: &Forced) -> bool {
    unit.tensors.iter().all(|tensor| forced.contains_key(tensor))
}

/// Unit → trainable, for the units that globs do not force whole. Under a mask, every drawn unit is trainable.
fn decide<'a>(inventory: &'a Inventory, selection: &Selection, forced: &Forced) -> HashMap<&'a str, bool> {
    let units = inventory.units().iter().filter(|unit| !unit.buffer && !is_forced(unit, forced));
    if selection.strategy == Strategy::Explicit {
        let trainable = selection.train.is_empty();
        return units.map(|unit| (unit.name.as_str(), trainable)).collect();
    }
    let mut decided = HashMap::new();
    let mut pool = Vec::new();
    for unit in units {
        match selection.policy(unit.tensor_name.category) {
            Policy::Select if selection.mask.is_none() => pool.push(unit),
            Policy::Select | Policy::Train => drop(decided.insert(unit.name.as_str(), true)),
            Policy::Freeze => drop(decided.insert(unit.name.as_str(), false)),
        }
    }
    decided.extend(strategy::draw(selection, &pool));
    decided
}

/// The mask over the tensors that are drawn and not forced.
fn mask(inventory: &Inventory, selection: &Selection, forced: &Forced) -> Option<Mask> {
    let (granularity, selector) = selection.mask?;
    let tensors = drawn(inventory, selection).flat_map(|unit| &unit.tensors);
    Some(Mask {
        granularity,
        selector,
        ratio: selection.ratio,
        complement: false,
        tensors: tensors.filter(|tensor| !forced.contains_key(*tensor)).cloned().collect(),
    })
}

fn origin(inventory: &Inventory, selection: &Selection, shares: Option<Shares>) -> Origin {
    let strategy = match selection.strategy {
        Strategy::Category => "category",
        Strategy::Layer => "layer",
        Strategy::Model => "model",
        Strategy::RandomTensor => "random-tensor",
        Strategy::Explicit => "explicit",
    };
    let explicit = selection.strategy == Strategy::Explicit;
    Origin {
        strategy: Some(strategy.to_owned()),
        ratio: (!explicit).then_some(selection.ratio),
        balance: (selection.balance == Balance::Params).then(|| "params".to_owned()),
        seed: selection.seed,
        round: selection.round,
        model: Some(Model {
            architecture: inventory.architecture().map(str::to_owned),
            tensors: inventory.tensors() as u64,
            parameters: inventory.parameters(),
        }),
        shares: shares.filter(|_| !explicit),
    }
}

#[cfg(test)]
#[path = "select_tests.rs"]
mod tests;
