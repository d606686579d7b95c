//! Sums over the tensors of a category, a shard, a block or the whole checkpoint.

use std::collections::{BTreeMap, BTreeSet};

use crate::diff::{Delta, Status, TensorDiff};
use crate::plan::{Category, TensorName};

/// Projections in the order of a forward pass; others follow in the order of their names.
const FORWARD: [&str; 9] =
    ["q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj"];

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

/// A row of the heat map: a block, or (layer `None`) the tensors outside of blocks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Row {
    pub(super) stack: String,
    pub(super) layer: Option<u32>,
}

/// The sums over every group of tensors.
#[derive(Debug, Default)]
pub(super) struct Rollup {
    pub(super) all: Total,
    pub(super) statuses: BTreeMap<Status, u64>,
    pub(super) categories: BTreeMap<Category, Total>,
    pub(super) shards: BTreeMap<String, Total>,
    pub(super) cells: BTreeMap<Cell, Total>,
    /// Columns of the heat map: projections of blocks by category and in the order of a forward pass, then those outside.
    pub(super) columns: Vec<String>,
    /// Rows of the heat map.
    pub(super) rows: Vec<Row>,
}

impl Rollup {
    pub(super) fn new(tensors: &[TensorDiff]) -> Self {
        let mut rollup = Self::default();
        let mut columns: BTreeSet<(bool, Category, usize, String)> = BTreeSet::new();
        for tensor in tensors {
            let parsed = TensorName::of(&tensor.name);
            rollup.all.add(tensor);
            *rollup.statuses.entry(tensor.status).or_default() += 1;
            rollup.categories.entry(parsed.category).or_default().add(tensor);
            let shard = tensor.b.as_ref().or(tensor.a.as_ref()).map(|form| form.shard.clone());
            rollup.shards.entry(shard.unwrap_or_default()).or_default().add(tensor);
            let row = Row { stack: parsed.stack, layer: parsed.layer };
            rollup.cells.entry((row, parsed.projection.clone())).or_default().add(tensor);
            let order = FORWARD.iter().position(|known| *known == parsed.projection).unwrap_or(FORWARD.len());
            columns.insert((parsed.layer.is_none(), parsed.category, order, parsed.projection));
        }
        for (.., projection) in columns {
            if !rollup.columns.contains(&projection) {
                rollup.columns.push(projection);
            }
        }
        rollup.rows = rollup.cells.keys().map(|(row, _)| row.clone()).collect();
        rollup.rows.dedup();
        rollup
    }

    /// The sums of a cell, where it has tensors.
    pub(super) fn cell(&self, row: &Row, column: &str) -> Option<&Total> {
        self.cells.get(&(row.clone(), column.to_owned()))
    }

    /// Whether rows of several stacks (encoder, decoder, vision) must be told apart.
    pub(super) fn several_stacks(&self) -> bool {
        let mut stacks: Vec<&str> =
            self.rows.iter().filter(|r| r.layer.is_some()).map(|r| r.stack.as_str()).collect();
        stacks.dedup();
        stacks.len() > 1
    }

    /// The label of a row.
    pub(super) fn label(&self, row: &Row) -> String {
        match row.layer {
            None => "outside".to_owned(),
            Some(layer) if self.several_stacks() => format!("{}.{layer}", row.stack),
            Some(layer) => layer.to_string(),
        }
    }
}
