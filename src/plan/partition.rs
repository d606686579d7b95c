//! A plan: every tensor trainable or frozen, exactly once.

use std::collections::HashSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::inventory::{Inventory, Unit};
use super::mask::Mask;
use super::tensor_name::{Category, TensorName};
use crate::{Error, Faults, Result};

/// The trainable shares of the drawn units.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shares {
    /// Of the matrices, each counted once.
    pub matrices: f64,
    /// Of their parameters.
    pub parameters: f64,
}

impl Shares {
    /// The shares of a pool of (unit, trainable); `None` for an empty pool.
    pub(super) fn of(pool: &[(&Unit, bool)]) -> Option<Self> {
        let sum = |of: &dyn Fn(&Unit) -> u64| {
            let all: u64 = pool.iter().map(|(unit, _)| of(unit)).sum();
            let on: u64 = pool.iter().filter(|(_, on)| *on).map(|(unit, _)| of(unit)).sum();
            if all == 0 { 0.0 } else { on as f64 / all as f64 }
        };
        let shares = || Self { matrices: sum(&|_| 1), parameters: sum(&|unit| unit.parameters) };
        (!pool.is_empty()).then(shares)
    }
}

/// The model of a plan, for a person who reads the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Model {
    pub(super) architecture: Option<String>,
    pub(super) tensors: u64,
    pub(super) parameters: u64,
}

/// The options and the model that a plan was drawn from.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Origin {
    pub(super) strategy: Option<String>,
    pub(super) ratio: Option<f64>,
    pub(super) balance: Option<String>,
    pub(super) seed: u64,
    pub(super) round: u32,
    pub(super) model: Option<Model>,
    pub(super) shares: Option<Shares>,
}

/// Every tensor of a checkpoint in `trainable` or in `frozen`, exactly once. Cannot be built otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub(super) origin: Origin,
    trainable: Vec<String>,
    frozen: Vec<String>,
    mask: Option<Mask>,
    /// Positions in `trainable` and, behind it, `frozen`, by name.
    by_name: Vec<u32>,
    masked: HashSet<String>,
}

impl Plan {
    /// Checks that no tensor is named twice and that a mask covers trainable tensors only. `path` is for
    /// messages.
    pub(super) fn build(
        origin: Origin,
        trainable: Vec<String>,
        frozen: Vec<String>,
        mask: Option<Mask>,
        path: Option<&Path>,
    ) -> Result<Self> {
        let mut faults = Faults::default();
        let names = [trainable.as_slice(), frozen.as_slice()];
        let mut by_name: Vec<u32> = (0..(trainable.len() + frozen.len()) as u32).collect();
        by_name.sort_by(|a, b| name_at(names, *a).cmp(name_at(names, *b)));
        let trains = |at: u32| (at as usize) < trainable.len();
        for pair in by_name.windows(2).filter(|pair| name_at(names, pair[0]) == name_at(names, pair[1])) {
            let same = trains(pair[0]) == trains(pair[1]);
            let what = if same { "listed twice" } else { "in `trainable` and in `frozen`" };
            faults.push(fault(path, name_at(names, pair[1]), what, None));
        }
        if let Some(mask) = &mask {
            if !(0.0..=1.0).contains(&mask.ratio) {
                faults.push(Error::Plan {
                    path: path.map(Path::to_owned),
                    tensor: None,
                    fault: format!("mask ratio out of range: got {}, expected 0 to 1", mask.ratio),
                    hint: None,
                });
            }
            let trainable = |tensor: &str| find(names, &by_name, tensor).is_some_and(trains);
            let outside = mask.tensors.iter().filter(|tensor| !trainable(tensor));
            faults.extend(outside.map(|t| fault(path, t, "under the mask, but not in `trainable`", None)));
        }
        faults.into_result()?;
        let masked = mask.iter().flat_map(|mask| mask.tensors.iter().cloned()).collect();
        Ok(Self { origin, trainable, frozen, mask, by_name, masked })
    }

    /// The trainable tensors.
    pub fn trainable(&self) -> &[String] {
        &self.trainable
    }

    /// The frozen tensors.
    pub fn frozen(&self) -> &[String] {
        &self.frozen
    }

    /// The mask over some of the trainable tensors.
    pub fn mask(&self) -> Option<&Mask> {
        self.mask.as_ref()
    }

    /// The mask, if it covers this tensor.
    pub fn mask_of(&self, tensor: &str) -> Option<&Mask> {
        self.mask.as_ref().filter(|_| self.masked.contains(tensor))
    }

    /// Whether a tensor is trainable; `None` for a name the plan does not know.
    pub fn is_trainable(&self, tensor: &str) -> Option<bool> {
        let at = find([&self.trainable, &self.frozen], &self.by_name, tensor)?;
        Some((at as usize) < self.trainable.len())
    }

    /// Seed of the draw, and of the mask.
    pub fn seed(&self) -> u64 {
        self.origin.seed
    }

    /// Round of the draw, and of the mask.
    pub fn round(&self) -> u32 {
        self.origin.round
    }

    /// The trainable shares of the drawn units, where the plan holds them.
    pub fn shares(&self) -> Option<Shares> {
        self.origin.shares
    }

    /// An inventory of the plan's tensors by name alone: every tensor counts as one parameter.
    pub fn inventory_by_name(&self) -> Inventory {
        let architecture = self.origin.model.as_ref().and_then(|model| model.architecture.as_deref());
        let names = self.trainable.iter().chain(&self.frozen);
        Inventory::new(architecture, false, names.map(|name| (name.clone(), Vec::new())))
    }

    /// Checks that the plan covers exactly the tensors of `inventory` and splits no tied pair and no quantized weight.
    ///
    /// # Errors
    /// Every fault at once, each with its tensor.
    pub fn check_against(&self, inventory: &Inventory) -> Result<()> {
        let hint = || Some("make the plan from this checkpoint".to_owned());
        let names = inventory.tensor_names();
        let mut faults = Faults::default();
        let missing = names.iter().filter(|name| self.is_trainable(name).is_none());
        faults.extend(missing.map(|name| {
            fault(None, name, "in the checkpoint, but neither in `trainable` nor in `frozen`", hint())
        }));
        let planned = self.trainable.iter().chain(&self.frozen);
        let extra = planned.filter(|name| inventory.unit_of(name).is_none());
        faults.extend(extra.map(|name| fault(None, name, "in the plan, but not in the checkpoint", hint())));
        let has_head =
            |unit: &Unit| unit.tensors.iter().any(|t| TensorName::of(t).category == Category::LmHead);
        for unit in inventory.units() {
            if inventory.tied() && has_head(unit) && self.splits(unit) {
                let what = "tied with the embedding, but the two are in different lists";
                faults.push(fault(None, &unit.tensors[0], what, None));
            } else if unit.quantized && self.splits(unit) {
                let what = "part of a quantized weight whose tensors are in different lists";
                faults.push(fault(None, &unit.tensors[0], what, hint()));
            }
        }
        faults.extend(self.masked_codes(inventory));
        faults.into_result()
    }

    /// The fault of a mask over quantized weights, which rows or elements would break.
    fn masked_codes(&self, inventory: &Inventory) -> Option<Error> {
        let quantized = inventory.units().iter().filter(|unit| unit.quantized);
        let mut masked = quantized.flat_map(|unit| &unit.tensors).filter(|t| self.masked.contains(*t));
        let first = masked.next()?;
        let more = match masked.count() {
            0 => String::new(),
            n => format!(", as are {n} more"),
        };
        let what = format!("under a mask of rows or elements, but part of a quantized weight{more}");
        let hint = "decide on quantized weights as a whole with --granularity tensor, --train or --freeze";
        Some(fault(None, first, &what, Some(hint.to_owned())))
    }

    /// Whether the plan treats the tensors of a unit differently.
    fn splits(&self, unit: &Unit) -> bool {
        let state = |tensor: &String| (self.is_trainable(tensor), self.masked.contains(tensor));
        unit.tensors.windows(2).any(|pair| state(&pair[0]) != state(&pair[1]))
    }
}

fn name_at([trainable, frozen]: [&[String]; 2], at: u32) -> &str {
    let at = at as usize;
    trainable.get(at).unwrap_or_else(|| &frozen[at - trainable.len()])
}

/// The position of `tensor` in the two lists; `by_name` holds their positions sorted by name.
fn find(names: [&[String]; 2], by_name: &[u32], tensor: &str) -> Option<u32> {
    let found = by_name.binary_search_by(|at| name_at(names, *at).cmp(tensor)).ok()?;
    Some(by_name[found])
}

fn fault(path: Option<&Path>, tensor: &str, what: &str, hint: Option<String>) -> Error {
    Error::Plan {
        path: path.map(Path::to_owned),
        tensor: Some(tensor.to_owned()),
        fault: what.to_owned(),
        hint,
    }
}
