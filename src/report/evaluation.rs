//! The scores of models on files.

use serde_json::{Map, Value, json};

use super::csv::quoted;
use super::number::grouped;
use super::table::{table, text};
use crate::error::Escaped;
use crate::eval::{Difference, Estimate, Metric};

/// One model on one file.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// The checkpoint as it was given.
    pub model: String,
    /// Name of the file.
    pub data: String,
    /// Number of rows.
    pub rows: usize,
    /// Number of tokens whose log-probability counts.
    pub tokens: u64,
    /// What was measured.
    pub measured: Vec<Measured>,
}

/// One mean.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// What it is a mean of.
    pub metric: Metric,
    /// The mean.
    pub mean: Estimate,
    /// By how much it exceeds that of the first model; `None` for the first, and where they cannot be compared.
    pub difference: Option<Difference>,
}

const METRICS: [Metric; 3] = [Metric::Loss, Metric::Accuracy, Metric::AccuracyNorm];

/// `exp(loss)`, with the standard error that the delta method gives.
fn perplexity(loss: Estimate) -> Estimate {
    let value = loss.value.exp();
    Estimate { value, stderr: loss.stderr.map(|stderr| stderr * value) }
}

impl Evaluation {
    fn find(&self, metric: Metric) -> Option<&Measured> {
        self.measured.iter().find(|measured| measured.metric == metric)
    }

    /// `loss` or `choice`.
    fn kind(&self) -> &'static str {
        if self.find(Metric::Loss).is_some() { "loss" } else { "choice" }
    }

    /// The means by name, the perplexity behind the loss.
    fn means(&self) -> Vec<(&'static str, Option<Estimate>)> {
        let mut means = Vec::new();
        for metric in METRICS {
            let mean = self.find(metric).map(|measured| measured.mean);
            means.push((metric.name(), mean));
            if metric == Metric::Loss {
                means.push(("perplexity", mean.map(perplexity)));
            }
        }
        means
    }

    /// The same keys for every kind; what does not exist is null.
    fn fields(&self) -> Vec<(String, Value)> {
        let mut fields = vec![
            ("model".to_owned(), json!(self.model)),
            ("data".to_owned(), json!(self.data)),
            ("kind".to_owned(), json!(self.kind())),
            ("rows".to_owned(), json!(self.rows)),
            ("tokens".to_owned(), json!(self.tokens)),
        ];
        for (name, mean) in self.means() {
            fields.push((name.to_owned(), json!(mean.map(|mean| mean.value))));
            fields.push((format!("{name}_stderr"), json!(mean.and_then(|mean| mean.stderr))));
        }
        for metric in METRICS {
            let difference = self.find(metric).and_then(|measured| measured.difference);
            let bound = |at: usize| difference.and_then(|difference| Some(difference.interval?[at]));
            for (part, value) in [
                ("", difference.map(|difference| difference.value)),
                ("_stderr", difference.and_then(|difference| difference.stderr)),
                ("_low", bound(0)),
                ("_high", bound(1)),
            ] {
                fields.push((format!("{}_difference{part}", metric.name()), json!(value)));
            }
        }
        fields
    }
}

/// One object per model and file.
pub fn evaluation_json(all: &[Evaluation]) -> Value {
    all.iter().map(|one| Value::Object(one.fields().into_iter().collect())).collect()
}

/// A header line and one line per model and file; numbers that do not exist are empty.
pub fn evaluation_csv(all: &[Evaluation]) -> String {
    let names = all.first().map(Evaluation::fields).unwrap_or_default();
    let mut out = names.into_iter().map(|(name, _)| name).collect::<Vec<_>>().join(",") + "\n";
    let cell = |(_, value): (String, Value)| match value {
        Value::Null => String::new(),
        Value::String(text) => quoted(&text),
        number => number.to_string(),
    };
    for one in all {
        out += &(one.fields().into_iter().map(cell).collect::<Vec<_>>().join(",") + "\n");
    }
    out
}

/// One line per file, metric and model, so that the models stand below each other; `files` are the names of the files.
pub fn evaluation_table(all: &[Evaluation], files: &[String]) -> String {
    let columns =
        ["data", "metric", "model", ">rows", ">value", ">stderr", ">difference", ">stderr", ">95 % interval"];
    let compares = all.iter().any(|one| one.model != all[0].model);
    let shown = if compares { columns.len() } else { columns.len() - 3 };
    let mut lines = table(&columns[..shown]);
    for file in files {
        let of_file: Vec<&Evaluation> = all.iter().filter(|one| one.data == *file).collect();
        let metrics: Vec<&str> =
            of_file.iter().take(1).flat_map(|one| one.means()).map(|(name, _)| name).collect();
        for (at, metric) in metrics.iter().enumerate() {
            for one in &of_file {
                let Some(mean) = one.means()[at].1 else { continue };
                let difference =
                    one.measured.iter().find(|m| m.metric.name() == *metric).and_then(|m| m.difference);
                let mut cells =
                    vec![Escaped(file).to_string(), (*metric).to_owned(), Escaped(&one.model).to_string()];
                cells.extend([grouped(one.rows as u64), number(mean.value), optional(mean.stderr)]);
                cells.extend([
                    difference.map_or_else(dash, |d| format!("{:+.4}", d.value)),
                    optional(difference.and_then(|d| d.stderr)),
                    difference
                        .and_then(|d| d.interval)
                        .map_or_else(dash, |[l, h]| format!("{l:+.4} to {h:+.4}")),
                ]);
                cells.truncate(shown);
                lines.add_row(cells);
            }
        }
    }
    text(&lines)
}

fn number(value: f64) -> String {
    format!("{value:.4}")
}

fn optional(value: Option<f64>) -> String {
    value.map_or_else(dash, number)
}

fn dash() -> String {
    "-".to_owned()
}

/// One model on one file as JSON, without names: what a loss or a choice has.
pub fn single_json(one: &Evaluation) -> Value {
    let Some(loss) = one.find(Metric::Loss) else {
        let own =
            |(name, value): &(String, Value)| !value.is_null() && !["model", "data"].contains(&name.as_str());
        return Value::Object(one.fields().into_iter().filter(own).collect::<Map<_, _>>());
    };
    let (loss, perplexity) = (loss.mean.value, perplexity(loss.mean).value);
    json!({"loss": loss, "perplexity": perplexity, "tokens": one.tokens, "rows": one.rows})
}

/// One model on one file, a line for each number.
pub fn single_text(one: &Evaluation) -> String {
    let mut out = String::new();
    for (name, mean) in one.means() {
        let Some(Estimate { value, stderr }) = mean else { continue };
        let digits = if name == "perplexity" { 4 } else { 6 };
        let stderr = stderr.map_or_else(String::new, |stderr| format!(" ± {stderr:.digits$}"));
        out += &format!("{name} {value:.digits$}{stderr}\n");
    }
    out + &format!("tokens {}\nrows {}\n", grouped(one.tokens), grouped(one.rows as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(value: f64, stderr: f64) -> Estimate {
        Estimate { value, stderr: Some(stderr) }
    }

    fn choice(model: &str, difference: Option<Difference>) -> Evaluation {
        let accuracy = Measured { metric: Metric::Accuracy, mean: estimate(0.5, 0.1), difference };
        let norm = Measured { metric: Metric::AccuracyNorm, mean: estimate(0.25, 0.05), difference: None };
        Evaluation {
            model: model.to_owned(),
            data: "arc".to_owned(),
            rows: 8,
            tokens: 90,
            measured: vec![accuracy, norm],
        }
    }

    #[test]
    fn models_stand_below_each_other_with_their_difference() {
        let difference = Difference { value: -0.125, stderr: Some(0.0625), interval: Some([-0.25, 0.0]) };
        let shown = evaluation_table(
            &[choice("base", None), choice("=tuned", Some(difference))],
            &["arc".to_owned()],
        );
        let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["arc", "accuracy", "base", "8", "0.5000", "0.1000", "-", "-", "-"]);
        let expected = [
            "arc", "accuracy", "=tuned", "8", "0.5000", "0.1000", "-0.1250", "0.0625", "-0.2500", "to",
            "+0.0000",
        ];
        assert_eq!(lines[2], expected);
        assert_eq!(lines.len(), 5, "{shown}");
        let alone = evaluation_table(&[choice("base", None)], &["arc".to_owned()]);
        assert!(!alone.contains("DIFFERENCE"), "{alone}");
        let csv = evaluation_csv(&[choice("=tuned", Some(difference))]);
        assert!(
            csv.starts_with(
                "model,data,kind,rows,tokens,loss,loss_stderr,perplexity,perplexity_stderr,accuracy,"
            ),
            "{csv}"
        );
        assert!(
            csv.contains("\n'=tuned,arc,choice,8,90,,,,,0.5,0.1,0.25,0.05,,,,,-0.125,0.0625,-0.25,0.0,,,,\n"),
            "{csv}"
        );
    }

    #[test]
    fn the_perplexity_has_the_error_of_the_delta_method() {
        let loss = Measured { metric: Metric::Loss, mean: estimate(2.0, 0.5), difference: None };
        let one = Evaluation { measured: vec![loss], ..choice("base", None) };
        let json = &evaluation_json(std::slice::from_ref(&one))[0];
        assert_eq!((json["kind"].as_str(), json["accuracy"].is_null()), (Some("loss"), true));
        assert_eq!(json["perplexity_stderr"].as_f64(), Some(2f64.exp() * 0.5));
        let keys: Vec<String> = single_json(&one).as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["loss", "perplexity", "tokens", "rows"]);
    }
}
