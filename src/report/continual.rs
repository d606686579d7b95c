//! What a sequence of tasks left of each: the matrix of scores, overall performance and backward transfer.

use serde_json::{Value, json};

use super::table::{table, text};
use crate::error::Escaped;
use crate::eval::Metric;
use crate::train::Continual;

/// Why tasks of several metrics have neither overall performance nor backward transfer.
const NO_MEAN: &str = "the tasks have more than one metric";

/// The matrix `R`, the scores before the first stage, the means, and the files beyond the tasks.
pub fn continual_json(scores: &Continual) -> Value {
    let names = |files: &[crate::train::ScoredFile]| -> Vec<String> {
        files.iter().map(|file| file.name.clone()).collect()
    };
    let metric = scores.metric();
    let tasks = scores.tasks();
    let other = |(at, file): (usize, &crate::train::ScoredFile)| {
        let all = scores.of_file(tasks.len() + at);
        json!({
            "name": file.name,
            "metric": file.metric.name(),
            "higher_is_better": file.metric.higher_is_better(),
            "base": all.first(),
            "after": all.get(1..).unwrap_or_default(),
        })
    };
    let mut out = json!({
        "tasks": names(tasks),
        "metric": metric.map(Metric::name),
        "higher_is_better": metric.map(Metric::higher_is_better),
        "base": scores.base(),
        "R": scores.matrix(),
        "OP": scores.overall_performance(),
        "BWT": scores.backward_transfer(),
        "others": scores.others().iter().enumerate().map(other).collect::<Vec<_>>(),
    });
    if metric.is_none() {
        out["metrics"] = tasks.iter().map(|task| task.metric.name()).collect();
        out["reason"] = json!(NO_MEAN);
    }
    out
}

/// One line for each file, with its score before the first stage and after each; below, the means.
pub fn continual_table(scores: &Continual) -> String {
    let stages = scores.measured().saturating_sub(1);
    let after: Vec<String> = (1..=stages).map(|stage| format!(">after {stage}")).collect();
    let mut columns = vec!["file", "metric", ">stage", ">before"];
    columns.extend(after.iter().map(String::as_str));
    columns.push(">since its stage");
    let mut lines = table(&columns);
    for (at, file) in scores.files().iter().enumerate() {
        let own = (at < scores.tasks().len()).then_some(at + 1);
        let all = scores.of_file(at);
        let since = own.and_then(|stage| Some(all.last()? - all.get(stage)?));
        let mut cells = vec![Escaped(&file.name).to_string(), file.metric.name().to_owned()];
        cells.push(own.map_or_else(|| "-".to_owned(), |stage| stage.to_string()));
        cells.extend(all.iter().map(|score| number(*score)));
        cells.push(since.map_or_else(|| "-".to_owned(), signed));
        lines.add_row(cells);
    }
    text(&lines) + &means(scores)
}

fn means(scores: &Continual) -> String {
    let Some(metric) = scores.metric() else { return format!("no OP and no BWT: {NO_MEAN}\n") };
    let (Some(op), Some(bwt)) = (scores.overall_performance(), scores.backward_transfer()) else {
        return String::new();
    };
    let (n, name) = (scores.tasks().len(), metric.name());
    let (better, forgetting) =
        if metric.higher_is_better() { ("higher", "negative") } else { ("lower", "positive") };
    format!(
        "OP {}: mean {name} of the {n} tasks after the last stage, {better} is better\n\
         BWT {}: mean change of the {name} since each task's own stage, over all {n} tasks; {forgetting} is forgetting\n",
        number(op),
        signed(bwt)
    )
}

/// Four decimals; `-` for what is no number.
pub(super) fn number(score: f64) -> String {
    if score.is_finite() { format!("{score:.4}") } else { "-".to_owned() }
}

/// As [`number`], with the sign.
pub(super) fn signed(change: f64) -> String {
    if change.is_finite() { format!("{change:+.4}") } else { "-".to_owned() }
}
