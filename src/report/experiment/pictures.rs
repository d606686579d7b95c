//! The pictures of the report.

use super::document::Block;
use super::sentences::{Measure, direction, measures};
use crate::experiment::{Entry, Origin, Outcome, Results};
use crate::report::chart::{Chart, Point, Series};

/// All pictures.
pub(super) fn pictures(results: &Results) -> Vec<Block> {
    let all = measures(results);
    let mut pictures = vec![picture("bwt_op.svg", scatter(results, &all[1], &all[0]))];
    for (at, measure) in all.iter().enumerate().skip(2) {
        let name = &results.general[at - 2].0;
        pictures
            .push(picture(&format!("trade_off_{name}.svg"), trade_off(results, &all[0], measure, at - 2)));
    }
    let share = |name: &str, measure, base: &dyn Fn(&Outcome) -> f64| {
        let chart = by_share(results, measure, base)?;
        Some(picture(&format!("share_{name}.svg"), chart))
    };
    pictures.extend(share("op", &all[0], &Outcome::base_mean));
    for (at, (name, ..)) in results.general.iter().enumerate() {
        pictures.extend(share(name, &all[at + 2], &move |outcome| outcome.general[at].base));
    }
    pictures
}

fn picture(file: &str, chart: Chart) -> Block {
    Block::Picture { file: file.to_owned(), chart }
}

fn axis(measure: &Measure) -> String {
    format!("{} ({})", measure.name, direction(measure.higher_is_better))
}

fn point(entry: &Entry, x: &Measure, y: &Measure, label: String) -> Point {
    let (of_x, of_y) = (entry.sample(&x.of), entry.sample(&y.of));
    Point {
        x: of_x.mean(),
        y: of_y.mean(),
        x_spread: of_x.std().unwrap_or(0.0),
        y_spread: of_y.std().unwrap_or(0.0),
        label,
    }
}

/// One point for each entry.
fn scatter(results: &Results, x: &Measure, y: &Measure) -> Chart {
    let series = results.entries.iter().map(|entry| Series {
        name: entry.label.clone(),
        points: vec![point(entry, x, y, String::new())],
        joined: false,
    });
    Chart {
        title: format!("{} against {}; bars are standard deviations over seeds", x.name, y.name),
        x: axis(x),
        y: axis(y),
        series: series.collect(),
    }
}

/// The number of a method that stands on a curve.
fn number(origin: Origin) -> Option<f64> {
    match origin {
        Origin::Trained(_) => None,
        Origin::HalfReset(number) | Origin::Interpolated(number) => Some(number),
    }
}

/// The score of the tasks against that of a file of the general set: half-resets and interpolations are curves.
fn trade_off(results: &Results, x: &Measure, y: &Measure, file: usize) -> Chart {
    let mut series: Vec<Series> = Vec::new();
    if let Some(outcome) = results.entries.first().and_then(|entry| entry.outcomes.first()) {
        let (at, general) = (outcome.base_mean(), outcome.general[file].base);
        let base = Point { x: at, y: general, x_spread: 0.0, y_spread: 0.0, label: "base".to_owned() };
        series.push(Series { name: "base".to_owned(), points: vec![base], joined: false });
    }
    for entry in &results.entries {
        let label = number(entry.origin).map_or_else(String::new, |number| number.to_string());
        let joined = number(entry.origin).is_some();
        let name = if joined { entry.method.clone() } else { entry.label.clone() };
        let point = point(entry, x, y, label);
        match series.iter_mut().find(|series| joined && series.name == name) {
            Some(curve) => curve.points.push(point),
            None => series.push(Series { name, points: vec![point], joined }),
        }
    }
    Chart {
        title: format!("{} against {}; bars are standard deviations over seeds", y.name, x.name),
        x: axis(x),
        y: axis(y),
        series,
    }
}

/// The share of trained or kept values of an entry, in percent of what is drawn.
fn share(entry: &Entry) -> Option<f64> {
    match entry.origin {
        Origin::Trained(share) => share.map(|share| 100.0 * share),
        Origin::HalfReset(ratio) => Some(100.0 * (1.0 - ratio)),
        Origin::Interpolated(_) => None,
    }
}

/// A measure by the share that is trained, or that keeps its tuned value in a half-reset; `None` where no family of methods has
/// two shares.
fn by_share(results: &Results, measure: &Measure, base: &dyn Fn(&Outcome) -> f64) -> Option<Chart> {
    let mut series: Vec<Series> = Vec::new();
    for entry in &results.entries {
        let Some(x) = share(entry) else { continue };
        let sample = entry.sample(&measure.of);
        let point = Point {
            x,
            y: sample.mean(),
            x_spread: 0.0,
            y_spread: sample.std().unwrap_or(0.0),
            label: String::new(),
        };
        match series.iter_mut().find(|series| series.name == entry.family) {
            Some(curve) => curve.points.push(point),
            None => series.push(Series { name: entry.family.clone(), points: vec![point], joined: true }),
        }
    }
    series.retain(|series| series.points.len() > 1);
    if series.is_empty() {
        return None;
    }
    for curve in &mut series {
        curve.points.sort_by(|a, b| a.x.total_cmp(&b.x));
    }
    let outcome = results.entries.first()?.outcomes.first()?;
    let base = Point { x: 0.0, y: base(outcome), x_spread: 0.0, y_spread: 0.0, label: "base".to_owned() };
    series.push(Series { name: "base".to_owned(), points: vec![base], joined: false });
    Some(Chart {
        title: format!("{} by the share that is trained, or kept by a half-reset", measure.name),
        x: "share of what is drawn, in %".to_owned(),
        y: axis(measure),
        series,
    })
}
