//! Sums over the tensors of a category, a shard, a block or the whole checkpoint.

use std::collections::BTreeMap;

use crate::diff::{Delta, Status, TensorDiff};
use crate::plan::{Category, TensorName};
use crate::report::grid::{Grid, Row};

/// The sums over a group of tensors.
#[derive(Debug, Clone, Default)]
pub(super) struct Total {
    pub(super) tensors: u64,
    /// Tensors that are not identical.
    pub(super) differing: u64,
    /// Tensors that were compared, by value or by bytes.
    pub(super) compared: u64,
    pub(super) delta: Delta,
    /// The tensor with the largest |δ|.
    pub(super) largest: Option<String>,
}

impl Total {
    /// The sums, where anything was compared.
    pub(super) fn measured(&self) -> Option<&Delta> {
        (self.compared > 0).then_some(&self.delta)
    }

    /// ‖δ‖ / ‖a‖, where anything was compared and a is not zero.
    pub(super) fn rel_l2(&self) -> Option<f64> {
        self.measured()?.rel_l2()
    }

    fn add(&mut self, tensor: &TensorDiff) {
        self.tensors += 1;
        self.differing += u64::from(tensor.status != Status::Identical);
        self.compared += u64::from(tensor.delta.is_some() || tensor.status == Status::Identical);
        let Some(delta) = &tensor.delta else { return };
        if delta.max_abs() > self.delta.max_abs() {
            self.largest = Some(tensor.name.clone());
        }
        self.delta.append(delta);
    }
}

/// A cell of the heat map.
pub(super) type Cell = (Row, String);

/// The sums over every group of tensors.
#[derive(Debug, Default)]
pub(super) struct Rollup {
    pub(super) all: Total,
    pub(super) statuses: BTreeMap<Status, u64>,
    pub(super) categories: BTreeMap<Category, Total>,
    pub(super) shards: BTreeMap<String, Total>,
    pub(super) cells: BTreeMap<Cell, Total>,
    /// Rows and columns of the heat map.
    pub(super) grid: Grid,
}

impl Rollup {
    pub(super) fn new(tensors: &[TensorDiff]) -> Self {
        let grid = Grid::of(tensors.iter().map(|tensor| TensorName::of(&tensor.name)));
        let mut rollup = Self { grid, ..Self::default() };
        for tensor in tensors {
            let parsed = TensorName::of(&tensor.name);
            rollup.all.add(tensor);
            *rollup.statuses.entry(tensor.status).or_default() += 1;
            rollup.categories.entry(parsed.category).or_default().add(tensor);
            let shard = tensor.b.as_ref().or(tensor.a.as_ref()).map(|form| form.shard.clone());
            rollup.shards.entry(shard.unwrap_or_default()).or_default().add(tensor);
            let row = Row { stack: parsed.stack, layer: parsed.layer };
            rollup.cells.entry((row, parsed.projection)).or_default().add(tensor);
        }
        rollup
    }

    /// The sums of a cell, where it has tensors.
    pub(super) fn cell(&self, row: &Row, column: &str) -> Option<&Total> {
        self.cells.get(&(row.clone(), column.to_owned()))
    }
}
