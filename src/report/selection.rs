//! What a plan chose, as a table and as JSON.

use serde_json::{Value, json};

use super::number::{grouped, percent};
use super::table::{table, text};
use crate::plan::{Plan, Row, Summary};

/// Which side of a plan a report counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What is trainable: for `plan`.
    Trainable,
    /// What is frozen: for `reset`, where it returns to base.
    Frozen,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Trainable => "trainable",
            Self::Frozen => "returned to base",
        }
    }

    /// (units, parameters) of this side. A unit under a mask counts for both sides.
    fn counts(self, row: &Row) -> (u64, u64) {
        match self {
            Self::Trainable => (row.trainable, row.trainable_parameters),
            Self::Frozen => (row.units - row.trainable, row.parameters - row.trainable_parameters),
        }
    }
}

/// The table per category and projection. `sizes` says whether the numbers of parameters are known.
pub fn selection_table(summary: &Summary, plan: &Plan, side: Side, sizes: bool) -> String {
    let masked = plan.mask().is_some();
    let name = format!(">{}", side.name());
    let mut columns = vec!["category", "projection", ">matrices", name.as_str()];
    if sizes {
        columns.extend([">parameters", name.as_str(), ">share"]);
    }
    let mut rows = table(&columns);
    let mut add = |category: &str, projection: &str, row: &Row| {
        let (units, parameters) = side.counts(row);
        let units = if masked { "-".to_owned() } else { grouped(units) };
        let mut cells = vec![category.to_owned(), projection.to_owned(), grouped(row.units), units];
        if sizes {
            let share = percent(parameters, row.parameters);
            cells.extend([grouped(row.parameters), grouped(parameters), share]);
        }
        rows.add_row(cells);
    };
    for (category, row) in &summary.categories {
        add(&category.to_string(), "", row);
        for ((of, projection), row) in &summary.projections {
            if of == category {
                add("", &crate::error::Escaped(projection).to_string(), row);
            }
        }
    }
    add("all", "", &summary.total);
    let mut out = text(&rows);
    if let Some(shares) = plan.shares() {
        let of = |share: f64| if side == Side::Trainable { share } else { 1.0 - share } * 100.0;
        let (matrices, parameters) = (of(shares.matrices), of(shares.parameters));
        out += &format!(
            "\n{} of what was drawn: {matrices:.1} % of matrices, {parameters:.1} % of parameters\n",
            side.name()
        );
    }
    out
}

/// The same as JSON, with the plan.
pub fn selection_json(summary: &Summary, plan: &Plan, side: Side) -> Value {
    let counts = |row: &Row| {
        let (units, parameters) = side.counts(row);
        json!({
            "matrices": row.units,
            "matrices_chosen": units,
            "parameters": row.parameters,
            "parameters_chosen": parameters,
        })
    };
    let categories = summary.categories.iter().map(|(category, row)| (category.to_string(), counts(row)));
    json!({
        "chosen": side.name(),
        "categories": categories.collect::<serde_json::Map<_, _>>(),
        "total": counts(&summary.total),
        "plan": plan.to_value(),
    })
}
