//! The tables of the report.

use super::document::Block;
use super::sentences::{Measure, measures};
use crate::experiment::{Entry, Outcome, Results, Sample};
use crate::report::number::bytes;

/// A mean with its standard deviation over seeds.
fn mean(sample: &Sample) -> String {
    let std = sample.std().map_or_else(String::new, |std| format!(" ± {std:.4}"));
    format!("{:.4}{std}", sample.mean())
}

fn values(sample: &Sample) -> String {
    sample.values.iter().map(|value| format!("{value:.4}")).collect::<Vec<_>>().join(", ")
}

/// The entries by rising rank: the best OP first.
pub(super) fn ranked(results: &Results) -> Vec<&Entry> {
    let mut entries: Vec<&Entry> = results.entries.iter().collect();
    let op = |entry: &Entry| entry.sample(Outcome::op).mean();
    entries.sort_by(|a, b| op(a).total_cmp(&op(b)));
    if results.higher_is_better {
        entries.reverse();
    }
    entries
}

/// Every measure of every method, the best OP first.
pub(super) fn ranking(results: &Results) -> Block {
    let all = measures(results);
    let mut columns = vec!["rank".to_owned(), "method".to_owned()];
    columns.extend(all.iter().map(|measure| format!(">{}", measure.name)));
    let row = |(at, entry): (usize, &&Entry)| {
        let mut cells = vec![(at + 1).to_string(), format!("`{}`", entry.label)];
        cells.extend(all.iter().map(|measure| mean(&entry.sample(&measure.of))));
        cells
    };
    Block::Table { columns, rows: ranked(results).iter().enumerate().map(row).collect() }
}

/// The values of every seed.
pub(super) fn single_values(results: &Results) -> Block {
    let all = measures(results);
    let mut columns = vec!["method".to_owned()];
    columns.extend(all.iter().map(|measure| format!(">{}", measure.name)));
    let row = |entry: &Entry| {
        let mut cells = vec![format!("`{}`", entry.label)];
        cells.extend(all.iter().map(|measure: &Measure| values(&entry.sample(&measure.of))));
        cells
    };
    Block::Table { columns, rows: results.entries.iter().map(row).collect() }
}

/// The mean over seeds of the matrix of a trained method; `None` for others.
pub(super) fn matrix(results: &Results, entry: &Entry) -> Option<Block> {
    let first = entry.outcomes.first().filter(|outcome| !outcome.matrix.is_empty())?;
    let mut columns = vec!["after".to_owned()];
    columns.extend(results.tasks.iter().map(|task| format!(">{task}")));
    let n = results.tasks.len();
    let mut rows = vec![vec!["base".to_owned()]];
    rows[0].extend((0..n).map(|task| mean(&entry.sample(|outcome| outcome.base[task]))));
    for stage in 0..first.matrix.len() {
        let mut cells = vec![results.tasks[stage].clone()];
        cells.extend((0..n).map(|task| mean(&entry.sample(|outcome| outcome.matrix[stage][task]))));
        rows.push(cells);
    }
    Some(Block::Table { columns, rows })
}

/// The scores on the general set before and after.
pub(super) fn general(results: &Results) -> Block {
    let columns = ["file", "metric", "method", ">before", ">after", ">change", ">changes by seed"];
    let mut rows = Vec::new();
    for (at, (name, metric, _)) in results.general.iter().enumerate() {
        for entry in &results.entries {
            let change = entry.sample(|outcome| outcome.general[at].last - outcome.general[at].base);
            rows.push(vec![
                name.clone(),
                metric.clone(),
                format!("`{}`", entry.label),
                format!("{:.4}", entry.sample(|outcome| outcome.general[at].base).mean()),
                mean(&entry.sample(|outcome| outcome.general[at].last)),
                mean(&change),
                values(&change),
            ]);
        }
    }
    Block::Table { columns: columns.map(str::to_owned).to_vec(), rows }
}

/// What the training of each method took.
pub(super) fn costs(results: &Results) -> Block {
    let columns = ["method", ">seconds", ">seconds by seed", ">peak memory"].map(str::to_owned).to_vec();
    let row = |entry: &Entry| {
        let measured: Vec<_> = entry.outcomes.iter().filter_map(|outcome| outcome.measured).collect();
        let seconds = Sample { values: measured.iter().map(|measured| measured.seconds).collect() };
        let peak = measured.iter().map(|measured| measured.peak_resident_bytes).max()?;
        let std = seconds.std().map_or_else(String::new, |std| format!(" ± {std:.1}"));
        let each: Vec<String> = seconds.values.iter().map(|value| format!("{value:.1}")).collect();
        let mean = format!("{:.1}{std}", seconds.mean());
        Some(vec![format!("`{}`", entry.label), mean, each.join(", "), bytes(peak)])
    };
    Block::Table { columns, rows: results.entries.iter().filter_map(row).collect() }
}
