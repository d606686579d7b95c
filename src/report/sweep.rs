//! What half-resets of several ratios score between their two sides.

use serde_json::{Map, Value, json};

use super::chart::{Chart, Point, Series, charts_svg};
use super::csv::quoted;
use super::evaluation::{Evaluation, evaluation_json};
use super::table::{table, text};
use crate::error::Escaped;
use crate::eval::Metric;

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Place {
    /// The base itself.
    Base,
    /// A half-reset of this ratio.
    Ratio(f64),
    /// The tuned model itself.
    Tuned,
}

/// One model of the curve.
#[derive(Debug, Clone)]
pub struct Draw {
    /// Where it stands between the sides.
    pub place: Place,
    /// The seed of the draw; `None` where nothing is drawn.
    pub seed: Option<u64>,
    /// Parameters that have their base values by the plan.
    pub returned: u64,
    /// All parameters.
    pub parameters: u64,
    /// Its scores, one for each file.
    pub scores: Vec<Evaluation>,
}

/// The curve of one fine-tune.
#[derive(Debug, Clone)]
pub struct Sweep {
    /// Names of the files; the first is the task.
    pub files: Vec<String>,
    /// The models in the order of the share that is returned, ends included.
    pub draws: Vec<Draw>,
}

/// All draws of one place on one file by one metric.
struct Curve {
    place: Place,
    share: f64,
    values: Vec<f64>,
    /// The mean of the standard errors over rows.
    stderr: Option<f64>,
}

impl Curve {
    fn mean(&self) -> f64 {
        self.values.iter().sum::<f64>() / self.values.len() as f64
    }

    /// The sample standard deviation over draws; `None` for a single one.
    fn deviation(&self) -> Option<f64> {
        let (n, mean) = (self.values.len() as f64, self.mean());
        let squares: f64 = self.values.iter().map(|value| (value - mean).powi(2)).sum();
        (self.values.len() > 1).then(|| (squares / (n - 1.0)).sqrt())
    }
}

impl Draw {
    fn share(&self) -> f64 {
        self.returned as f64 / self.parameters.max(1) as f64
    }
}

impl Place {
    fn word(self) -> String {
        match self {
            Self::Base => "base".to_owned(),
            Self::Tuned => "tuned".to_owned(),
            Self::Ratio(ratio) => format!("{ratio}"),
        }
    }
}

impl Sweep {
    /// A line of every picture, by which the next run knows it as its own.
    pub const SVG_MARKER: &'static str = "<!-- written by hft-surgery reset, a sweep -->";

    /// What is measured on the file at `at`, the perplexity aside, which is a function of the loss.
    fn metrics(&self, at: usize) -> Vec<Metric> {
        self.draws.first().map_or_else(Vec::new, |draw| {
            draw.scores[at].measured.iter().map(|measured| measured.metric).collect()
        })
    }

    fn curve(&self, file: usize, metric: Metric) -> Vec<Curve> {
        let mut curve: Vec<Curve> = Vec::new();
        for draw in &self.draws {
            let found = draw.scores[file].measured.iter().find(|measured| measured.metric == metric);
            let Some(mean) = found.map(|measured| measured.mean) else { continue };
            match curve.last_mut().filter(|last| last.place == draw.place) {
                Some(last) => {
                    let n = last.values.len() as f64;
                    last.share = (last.share * n + draw.share()) / (n + 1.0);
                    last.stderr = last.stderr.zip(mean.stderr).map(|(a, b)| (a * n + b) / (n + 1.0));
                    last.values.push(mean.value);
                }
                None => curve.push(Curve {
                    place: draw.place,
                    share: draw.share(),
                    values: vec![mean.value],
                    stderr: mean.stderr,
                }),
            }
        }
        curve
    }

    /// One line per file, metric and place on the curve.
    pub fn table(&self) -> String {
        let several =
            self.draws.iter().any(|draw| draw.seed.is_some_and(|seed| Some(seed) != self.first_seed()));
        let columns =
            ["data", "metric", ">ratio", ">returned", ">value", ">stderr", ">draws", ">std over draws"];
        let shown = if several { columns.len() } else { columns.len() - 2 };
        let mut lines = table(&columns[..shown]);
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"));
        for (at, file) in self.files.iter().enumerate() {
            for metric in self.metrics(at) {
                for point in self.curve(at, metric) {
                    let mut cells = vec![
                        Escaped(file).to_string(),
                        metric.name().to_owned(),
                        point.place.word(),
                        format!("{:.1} %", 100.0 * point.share),
                        number(Some(point.mean())),
                        number(point.stderr),
                        point.values.len().to_string(),
                        number(point.deviation()),
                    ];
                    cells.truncate(shown);
                    lines.add_row(cells);
                }
            }
        }
        text(&lines)
    }

    fn first_seed(&self) -> Option<u64> {
        self.draws.iter().find_map(|draw| draw.seed)
    }

    /// `{"draws": […], "curve": […]}`: every model with its scores under the keys of `eval`, then the mean over draws of
    /// each ratio, file and metric with the standard deviation and the values themselves.
    pub fn json(&self) -> Value {
        let draw = |draw: &Draw| {
            let mut fields = place_fields(draw.place);
            fields.insert("seed".to_owned(), json!(draw.seed));
            fields.insert("returned_parameters".to_owned(), json!(draw.returned));
            fields.insert("parameters".to_owned(), json!(draw.parameters));
            fields.insert("scores".to_owned(), evaluation_json(&draw.scores));
            Value::Object(fields)
        };
        let mut curve = Vec::new();
        for (at, file) in self.files.iter().enumerate() {
            for metric in self.metrics(at) {
                for point in self.curve(at, metric) {
                    let mut fields = Map::from_iter([
                        ("data".to_owned(), json!(file)),
                        ("metric".to_owned(), json!(metric.name())),
                    ]);
                    fields.extend(place_fields(point.place));
                    fields.insert("returned_share".to_owned(), json!(point.share));
                    fields.insert("mean".to_owned(), json!(point.mean()));
                    fields.insert("std".to_owned(), json!(point.deviation()));
                    fields.insert("stderr".to_owned(), json!(point.stderr));
                    fields.insert("values".to_owned(), json!(point.values));
                    curve.push(Value::Object(fields));
                }
            }
        }
        json!({"draws": self.draws.iter().map(draw).collect::<Vec<_>>(), "curve": curve})
    }

    /// A header line and one line per file, metric and place.
    pub fn csv(&self) -> String {
        let mut out = "data,metric,place,ratio,returned_share,draws,mean,std,stderr\n".to_owned();
        let number = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
        for (at, file) in self.files.iter().enumerate() {
            for metric in self.metrics(at) {
                for point in self.curve(at, metric) {
                    let (place, ratio) = place_words(point.place);
                    out += &format!(
                        "{},{},{place},{},{},{},{},{},{}\n",
                        quoted(file),
                        metric.name(),
                        number(ratio),
                        point.share,
                        point.values.len(),
                        point.mean(),
                        number(point.deviation()),
                        number(point.stderr)
                    );
                }
            }
        }
        out
    }

    /// Each file against the first, which is the task, with base and tuned as ends; below, each file against the share of
    /// parameters that is returned. Bars are standard deviations over draws.
    pub fn svg(&self) -> String {
        let curves: Vec<(String, Vec<Curve>)> = (0..self.files.len())
            .filter_map(|at| {
                let metric = *self.metrics(at).first()?;
                Some((format!("{} of {}", metric.name(), self.files[at]), self.curve(at, metric)))
            })
            .collect();
        let mut charts = Vec::new();
        for other in 1..curves.len() {
            let ((task, task_curve), (general, general_curve)) = (&curves[0], &curves[other]);
            let point = |(task, general): (&Curve, &Curve)| Point {
                x: task.mean(),
                y: general.mean(),
                x_spread: task.deviation().unwrap_or(0.0),
                y_spread: general.deviation().unwrap_or(0.0),
                label: task.place.word(),
            };
            charts.push(Chart {
                title: format!("{} against {}, by ratio of the half-reset", self.files[other], self.files[0]),
                x: task.clone(),
                y: general.clone(),
                series: vec![Series {
                    name: "half-reset".to_owned(),
                    points: task_curve.iter().zip(general_curve).map(point).collect(),
                    joined: true,
                }],
            });
        }
        for (file, curve) in curves {
            let point = |point: &Curve| Point {
                x: 100.0 * point.share,
                y: point.mean(),
                x_spread: 0.0,
                y_spread: point.deviation().unwrap_or(0.0),
                label: if matches!(point.place, Place::Ratio(_)) {
                    String::new()
                } else {
                    point.place.word()
                },
            };
            charts.push(Chart {
                title: format!("{file} by share of parameters returned to base"),
                x: "% of all parameters returned to base".to_owned(),
                y: file.clone(),
                series: vec![Series {
                    name: "half-reset".to_owned(),
                    points: curve.iter().map(point).collect(),
                    joined: true,
                }],
            });
        }
        charts_svg(&charts, Self::SVG_MARKER)
    }
}

fn place_words(place: Place) -> (&'static str, Option<f64>) {
    match place {
        Place::Base => ("base", None),
        Place::Tuned => ("tuned", None),
        Place::Ratio(ratio) => ("half-reset", Some(ratio)),
    }
}

fn place_fields(place: Place) -> Map<String, Value> {
    let (word, ratio) = place_words(place);
    Map::from_iter([("place".to_owned(), json!(word)), ("ratio".to_owned(), json!(ratio))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Estimate;
    use crate::report::Measured;

    fn draw(place: Place, seed: Option<u64>, returned: u64, losses: [f64; 2]) -> Draw {
        let score = |(data, value): (&str, f64)| Evaluation {
            model: "m".to_owned(),
            data: data.to_owned(),
            rows: 2,
            tokens: 9,
            measured: vec![Measured {
                metric: Metric::Loss,
                mean: Estimate { value, stderr: Some(0.25) },
                difference: None,
            }],
        };
        let scores = ["task", "general"].into_iter().zip(losses).map(score).collect();
        Draw { place, seed, returned, parameters: 100, scores }
    }

    #[test]
    fn draws_of_one_ratio_are_one_point_with_its_spread() {
        let sweep = Sweep {
            files: vec!["task".to_owned(), "general".to_owned()],
            draws: vec![
                draw(Place::Tuned, None, 0, [1.0, 3.0]),
                draw(Place::Ratio(0.5), Some(0), 40, [1.5, 2.5]),
                draw(Place::Ratio(0.5), Some(1), 60, [2.5, 2.5]),
                draw(Place::Base, None, 100, [4.0, 2.0]),
            ],
        };
        let curve = sweep.json()["curve"].clone();
        assert_eq!(curve.as_array().map(Vec::len), Some(6));
        assert_eq!((&curve[1]["mean"], &curve[1]["returned_share"]), (&json!(2.0), &json!(0.5)));
        // The sample standard deviation of 1.5 and 2.5.
        assert!((curve[1]["std"].as_f64().unwrap() - 0.5f64.sqrt()).abs() < 1e-15);
        assert_eq!((&curve[0]["std"], &curve[4]["std"]), (&Value::Null, &json!(0.0)));
        let table = sweep.table();
        assert!(table.contains("STD OVER DRAWS") && table.contains("0.7071"), "{table}");
        assert_eq!(sweep.csv().lines().count(), 7);
        let svg = sweep.svg();
        assert_eq!(svg.matches("<g ").count(), 3, "{svg}");
        assert!(
            svg.contains(Sweep::SVG_MARKER) && svg.contains(">tuned<") && svg.contains(">base<"),
            "{svg}"
        );
    }
}
