//! The scores of a sequence of tasks as a heat map in SVG.

use super::colors::{Ground, color_at, wants_dark_text};
use super::continual::{number, signed};
use super::xml::escaped;
use crate::train::{Continual, ScoredFile};

const CELL: (f64, f64) = (92.0, 34.0);
/// Space for the names of the rows, the title with the names of the columns, and the key.
const LEFT: f64 = 150.0;
const ABOVE: f64 = 74.0;
const BELOW: f64 = 52.0;
/// Between the tasks and the other files.
const GAP: f64 = 18.0;
/// Characters of a name at most.
const LONGEST: usize = 14;
const STYLE: &str = "text{font:11px ui-sans-serif,system-ui,sans-serif;fill:#333}.t{font-size:13px;font-weight:600}\
.o{fill:none;stroke:#d97706;stroke-width:2.5}text.d{fill:#111}text.l{fill:#fff}@media(prefers-color-scheme:dark){text{fill:#ddd}text.d{fill:#111}text.l{fill:#fff}}";

/// A column for each file, a row for each time that it was measured: the better a score within its column, the darker. The
/// score of a task right after its own stage has a frame; backward transfer is what happened to it below.
pub fn continual_svg(scores: &Continual) -> String {
    let (columns, rows) = (scores.files().len(), scores.measured());
    let gap = if scores.others().is_empty() { 0.0 } else { GAP };
    let width = (LEFT + columns as f64 * CELL.0 + gap + 16.0).max(560.0);
    let height = ABOVE + rows as f64 * CELL.1 + BELOW;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">\n<title>Scores of each task after each stage</title>\n<style>{STYLE}</style>\n<text x=\"16\" y=\"22\" class=\"t\">Scores of each task after each stage</text>\n"
    );
    for row in 0..rows {
        let name = match row.checked_sub(1) {
            None => "before the first".to_owned(),
            Some(stage) => format!("after {}", short(&scores.files()[stage].name)),
        };
        let y = y_of(row) + CELL.1 / 2.0 + 4.0;
        out += &format!("<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{name}</text>\n", LEFT - 8.0);
    }
    for (column, file) in scores.files().iter().enumerate() {
        let task = column < scores.tasks().len();
        out += &column_svg(file, &scores.of_file(column), LEFT + x_of(column, task), task.then_some(column));
    }
    out + &key(scores, height) + "</svg>\n"
}

fn x_of(column: usize, task: bool) -> f64 {
    column as f64 * CELL.0 + if task { 0.0 } else { GAP }
}

fn y_of(row: usize) -> f64 {
    ABOVE + row as f64 * CELL.1
}

/// The name and metric of a file, and its cells.
fn column_svg(file: &ScoredFile, all: &[f64], x: f64, task: Option<usize>) -> String {
    let middle = x + CELL.0 / 2.0;
    let mut out = format!(
        "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\" class=\"t\">{}</text>\n<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
        ABOVE - 22.0,
        short(&file.name),
        ABOVE - 7.0,
        file.metric.name()
    );
    let finite = || all.iter().copied().filter(|score| score.is_finite());
    let (low, high) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
    let goodness = |score: f64| {
        let share = if high > low { (score - low) / (high - low) } else { 0.5 };
        if file.metric.higher_is_better() { share } else { 1.0 - share }
    };
    let (cell_width, cell_height) = (CELL.0 - 2.0, CELL.1 - 2.0);
    for (row, score) in all.iter().enumerate() {
        let y = y_of(row);
        let color = if score.is_finite() { color_at(goodness(*score), Ground::Light) } else { [200; 3] };
        let [r, g, b] = color;
        let text = if wants_dark_text(color) { "d" } else { "l" };
        out += &format!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{cell_width}\" height=\"{cell_height}\" fill=\"#{r:02x}{g:02x}{b:02x}\"/><text x=\"{}\" y=\"{}\" text-anchor=\"middle\" class=\"{text}\">{}</text>\n",
            middle - 1.0,
            y + CELL.1 / 2.0 + 3.0,
            number(*score)
        );
    }
    if let Some(own) = task.filter(|task| task + 1 < all.len()) {
        let y = y_of(own + 1);
        out += &format!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{cell_width}\" height=\"{cell_height}\" class=\"o\"/>\n"
        );
    }
    out
}

fn key(scores: &Continual, height: f64) -> String {
    let means = match (scores.metric(), scores.overall_performance(), scores.backward_transfer()) {
        (Some(metric), Some(op), Some(bwt)) => {
            let (op, bwt, name) = (number(op), signed(bwt), metric.name());
            let sign = if metric.higher_is_better() { "negative" } else { "positive" };
            format!("OP {op} (mean {name} in the last row), BWT {bwt} ({sign} is forgetting)")
        }
        _ => String::new(),
    };
    format!(
        "<text x=\"16\" y=\"{}\">The better within its column, the darker. Framed: a task right after its own stage.</text>\n<text x=\"16\" y=\"{}\">{means}</text>\n",
        height - 30.0,
        height - 13.0
    )
}

/// A name as text of XML, cut where it is long: the end of a path tells more than its beginning.
fn short(name: &str) -> String {
    let n = name.chars().count();
    if n <= LONGEST {
        return escaped(name);
    }
    escaped(&format!("…{}", name.chars().skip(n + 1 - LONGEST).collect::<String>()))
}
