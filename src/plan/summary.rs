//! How many units and parameters a plan trains.

use std::collections::BTreeMap;

use super::inventory::Inventory;
use super::partition::Plan;
use super::tensor_name::Category;

/// Counts of one category, or of all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Units trainable, whole or under a mask.
    pub trainable: u64,
    /// All units.
    pub units: u64,
    /// Parameters trainable; of a masked tensor, the ratio of it.
    pub trainable_parameters: u64,
    /// All parameters.
    pub parameters: u64,
}

/// The counts of a plan.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Per category.
    pub categories: BTreeMap<Category, Counts>,
    /// Per category and projection.
    pub projections: BTreeMap<(Category, String), Counts>,
    /// Over all units.
    pub total: Counts,
    /// Tensors that the plan freezes, buffers aside, and that keep their values all the same.
    pub kept: u64,
}

impl Summary {
    /// Counts `plan` over `inventory`, which it covers.
    pub fn new(inventory: &Inventory, plan: &Plan) -> Self {
        Self::with_kept(inventory, plan, &|_| false)
    }

    /// As [`Summary::new`], where the tensors that `kept` names keep their values whatever the plan says of them:
    /// they count as trainable ones do.
    pub fn with_kept(inventory: &Inventory, plan: &Plan, kept: &dyn Fn(&str) -> bool) -> Self {
        let mut summary = Self {
            categories: BTreeMap::new(),
            projections: BTreeMap::new(),
            total: Counts::default(),
            kept: 0,
        };
        for unit in inventory.units() {
            let stays = |tensor: &&String| plan.is_trainable(tensor) == Some(false) && kept(tensor);
            if !unit.buffer {
                summary.kept += unit.tensors.iter().filter(stays).count() as u64;
            }
            let on = |tensor: &&String| plan.is_trainable(tensor) == Some(true) || kept(tensor);
            let on = unit.tensors.iter().filter(on).count();
            let share = on as f64 / unit.tensors.len() as f64;
            let mask = unit.tensors.iter().find_map(|tensor| plan.mask_of(tensor));
            let mask = mask.filter(|_| !unit.tensors.iter().all(|tensor| kept(tensor)));
            let under = mask.map_or(1.0, |mask| if mask.complement { 1.0 - mask.ratio } else { mask.ratio });
            let counts = Counts {
                trainable: u64::from(on > 0),
                units: 1,
                trainable_parameters: (unit.parameters as f64 * share * under).round() as u64,
                parameters: unit.parameters,
            };
            let category = unit.tensor_name.category;
            summary.categories.entry(category).or_default().add(counts);
            summary
                .projections
                .entry((category, unit.tensor_name.projection.clone()))
                .or_default()
                .add(counts);
            summary.total.add(counts);
        }
        summary
    }
}

impl Counts {
    /// Adds the other counts.
    pub fn add(&mut self, other: Self) {
        self.trainable += other.trainable;
        self.units += other.units;
        self.trainable_parameters = self.trainable_parameters.saturating_add(other.trainable_parameters);
        self.parameters = self.parameters.saturating_add(other.parameters);
    }
}
