//! The raw numbers of the report.

use serde_json::{Value, json};

use super::sentences::measures;
use crate::experiment::{Entry, Origin, Outcome, Results};

/// Everything that was measured; what the clock and the system said stands under `measured` alone.
pub(super) fn document(results: &Results) -> Value {
    let general = |(name, metric, better): &(String, String, bool)| json!({"name": name, "metric": metric, "higher_is_better": better});
    json!({
        "tasks": results.tasks,
        "metric": results.metric,
        "higher_is_better": results.higher_is_better,
        "general": results.general.iter().map(general).collect::<Vec<_>>(),
        "methods": results.entries.iter().map(|one| entry(results, one)).collect::<Vec<_>>(),
    })
}

fn entry(results: &Results, entry: &Entry) -> Value {
    let (kind, number) = match entry.origin {
        Origin::Trained(share) => ("trained", share),
        Origin::HalfReset(ratio) => ("half-reset", Some(ratio)),
        Origin::Interpolated(alpha) => ("interpolated", Some(alpha)),
    };
    let summary = measures(results).into_iter().map(|measure| {
        let sample = entry.sample(&measure.of);
        let numbers = json!({"mean": sample.mean(), "std": sample.std(), "values": sample.values});
        (measure.name, numbers)
    });
    json!({
        "label": entry.label,
        "method": entry.method,
        "kind": kind,
        "number": number,
        "summary": summary.collect::<serde_json::Map<_, _>>(),
        "seeds": entry.outcomes.iter().map(outcome).collect::<Vec<_>>(),
    })
}

fn outcome(outcome: &Outcome) -> Value {
    let general: Vec<Value> =
        outcome.general.iter().map(|score| json!({"base": score.base, "last": score.last})).collect();
    let measured = outcome.measured.map(
        |measured| json!({"seconds": measured.seconds, "peak_resident_bytes": measured.peak_resident_bytes}),
    );
    json!({
        "seed": outcome.seed,
        "R": (!outcome.matrix.is_empty()).then_some(&outcome.matrix),
        "base": outcome.base,
        "last": outcome.last,
        "learnt": outcome.learnt,
        "OP": outcome.op(),
        "BWT": outcome.bwt(),
        "general": general,
        "measured": measured,
    })
}
