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
    let first = results.entries.first().and_then(|entry| entry.outcomes.first());
    let base = first.map(|outcome| Point {
        x: outcome.base_mean(),
        y: outcome.general[file].base,
        x_spread: 0.0,
        y_spread: 0.0,
        label: String::new(),
    });
    let alone = |name: &str, point| Series { name: name.to_owned(), points: vec![point], joined: false };
    let mut series: Vec<Series> = base.iter().map(|point| alone("base", point.clone())).collect();
    for entry in &results.entries {
        let Some(number) = number(entry.origin) else {
            series.push(alone(&entry.label, point(entry, x, y, String::new())));
            continue;
        };
        let point = point(entry, x, y, number.to_string());
        match series.iter_mut().find(|series| series.joined && series.name == entry.method) {
            Some(curve) => curve.points.push(point),
            None => series.push(Series { name: entry.method.clone(), points: vec![point], joined: true }),
        }
    }
    for curve in series.iter_mut().filter(|series| series.joined) {
        add_ends(curve, results, &base, &|entry| point(entry, x, y, String::new()));
    }
    Chart {
        title: format!("{} against {}; bars are standard deviations over seeds", y.name, x.name),
        x: axis(x),
        y: axis(y),
        series,
    }
}

/// The ends of a curve: a half-reset of nothing is the trained model, an interpolation of weight 0 is base.
fn add_ends(curve: &mut Series, results: &Results, base: &Option<Point>, of: &dyn Fn(&Entry) -> Point) {
    let own = results.entries.iter().find(|entry| entry.method == curve.name);
    let after = own.and_then(|entry| entry.after.as_ref());
    let trained = results.entries.iter().find(|entry| Some(&entry.method) == after).map(of);
    match own.map(|entry| entry.origin) {
        Some(Origin::HalfReset(_)) => trained.into_iter().for_each(|point| curve.points.insert(0, point)),
        Some(Origin::Interpolated(_)) => {
            base.iter().for_each(|point| curve.points.insert(0, point.clone()));
            curve.points.extend(trained);
        }
        _ => {}
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
