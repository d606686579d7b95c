//! The half of a plan that is trained, or returned to base, as a table and as JSON.

use serde_json::{Value, json};

use super::number::{grouped, percent};
use super::table::{table, text};
use crate::plan::{Counts, Plan, Summary};

/// Projections that a table lists, of a category or of a checkpoint; models of real families have fewer than 100.
pub(super) const MOST_PROJECTIONS: usize = 1000;

/// The half of a plan that a report counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// The trainable half: for `plan`.
    Trainable,
    /// The frozen half: for `reset`, where it returns to base.
    Frozen,
}

impl Half {
    fn name(self) -> &'static str {
        match self {
            Self::Trainable => "trainable",
            Self::Frozen => "returned to base",
        }
    }

    /// (units, parameters) of this half. A unit under a mask counts in both halves.
    fn counts(self, all: &Counts) -> (u64, u64) {
        match self {
            Self::Trainable => (all.trainable, all.trainable_parameters),
            Self::Frozen => (all.units - all.trainable, all.parameters - all.trainable_parameters),
        }
    }
}

/// The table per category and projection. `sizes` says whether the numbers of parameters are known.
pub fn selection_table(summary: &Summary, plan: &Plan, half: Half, sizes: bool) -> String {
    let masked = plan.mask().is_some();
    let name = format!(">{}", half.name());
    let mut columns = vec!["category", "projection", ">matrices", name.as_str()];
    if sizes {
        columns.extend([">parameters", name.as_str(), ">share"]);
    }
    let mut rows = table(&columns);
    let mut add = |category: &str, projection: &str, row: &Counts| {
        let (units, parameters) = half.counts(row);
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
        let mut left = Counts::default();
        let projections = summary.projections.iter().filter(|((of, _), _)| of == category);
        let more = projections.clone().count().saturating_sub(MOST_PROJECTIONS);
        for (i, ((_, projection), row)) in projections.enumerate() {
            if i < MOST_PROJECTIONS {
                add("", &crate::error::Escaped(projection).to_string(), row);
            } else {
                left.add(*row);
            }
        }
        if more > 0 {
            add("", &format!("… and {more} more"), &left);
        }
    }
    add("all", "", &summary.total);
    let mut out = text(&rows);
    // The plan's shares are not those of the result where tensors stay that it freezes.
    if let Some(shares) = plan.shares().filter(|_| summary.kept == 0) {
        let of = |share: f64| if half == Half::Trainable { share } else { 1.0 - share } * 100.0;
        let (matrices, parameters) = (of(shares.matrices), of(shares.parameters));
        out += &format!(
            "\n{} of what was drawn: {matrices:.1} % of matrices, {parameters:.1} % of parameters\n",
            half.name()
        );
    }
    out
}

/// The same as JSON, with the plan.
pub fn selection_json(summary: &Summary, plan: &Plan, half: Half) -> Value {
    let counts = |row: &Counts| {
        let (units, parameters) = half.counts(row);
        json!({
            "matrices": row.units,
            "matrices_chosen": units,
            "parameters": row.parameters,
            "parameters_chosen": parameters,
        })
    };
    let categories = summary.categories.iter().map(|(category, row)| (category.to_string(), counts(row)));
    json!({
        "chosen": half.name(),
        "categories": categories.collect::<serde_json::Map<_, _>>(),
        "total": counts(&summary.total),
        "plan": plan.to_value(),
    })
}
