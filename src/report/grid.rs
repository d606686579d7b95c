//! The rows and columns of a map of a model: blocks, and the projections in them.

use std::collections::BTreeSet;

use crate::plan::{Category, TensorName};

/// Projections in the order of a forward pass; others follow in the order of their names.
const FORWARD: [&str; 9] =
    ["q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj"];

/// A row: a block, or (layer `None`) the tensors outside of blocks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Row {
    pub(super) stack: String,
    pub(super) layer: Option<u32>,
}

/// The rows and columns that tensors have.
#[derive(Debug, Default)]
pub(super) struct Grid {
    /// In order, those outside of blocks first.
    pub(super) rows: Vec<Row>,
    /// Projections of blocks by category and in the order of a forward pass, then those outside.
    pub(super) columns: Vec<String>,
}

impl Grid {
    pub(super) fn of(names: impl Iterator<Item = TensorName>) -> Self {
        let mut rows = BTreeSet::new();
        let mut found: BTreeSet<(bool, Category, usize, String)> = BTreeSet::new();
        for TensorName { stack, layer, category, projection, .. } in names {
            let order = FORWARD.iter().position(|known| *known == projection).unwrap_or(FORWARD.len());
            found.insert((layer.is_none(), category, order, projection));
            rows.insert(Row { stack, layer });
        }
        let mut columns = Vec::new();
        for (.., projection) in found {
            if !columns.contains(&projection) {
                columns.push(projection);
            }
        }
        Self { rows: rows.into_iter().collect(), columns }
    }

    /// The label of a row: its number, with its stack where several (encoder, decoder, vision) must be told apart.
    pub(super) fn label(&self, row: &Row) -> String {
        let mut stacks: Vec<&str> =
            self.rows.iter().filter(|r| r.layer.is_some()).map(|r| r.stack.as_str()).collect();
        stacks.dedup();
        match row.layer {
            None => "outside".to_owned(),
            Some(layer) if stacks.len() > 1 => format!("{}.{layer}", row.stack),
            Some(layer) => layer.to_string(),
        }
    }

    /// The rows of blocks, then those outside of them.
    pub(super) fn blocks_first(&self) -> Vec<&Row> {
        let (blocks, outside): (Vec<&Row>, Vec<&Row>) = self.rows.iter().partition(|row| row.layer.is_some());
        [blocks, outside].concat()
    }
}
