//! The heat map of blocks and projections, for papers and READMEs.

use super::diff_report::DiffReport;
use super::rollup::{Row, Total};
use crate::report::colors::{Ground, Scale, color_at};
use crate::report::xml::escaped;

const CELL: (usize, usize) = (30, 16);
/// Room for labels: of rows, of columns, and for the title.
const TITLE: usize = 46;
const FONT: usize = 11;

/// Steps of the scale.
const STEPS: usize = 24;

const STYLE: &str = "text{font:11px ui-sans-serif,system-ui,sans-serif;fill:#333}.t{font-size:13px;font-weight:600}\
.n{fill:#bbb;fill-opacity:.35}";

/// The colour of every step, on a light and on a dark ground.
fn style() -> String {
    let steps = |ground| {
        let step = |i: usize| {
            let [r, g, b] = color_at(i as f64 / (STEPS - 1) as f64, ground);
            format!(".c{i}{{fill:#{r:02x}{g:02x}{b:02x}}}")
        };
        (0..STEPS).map(step).collect::<String>()
    };
    let (light, dark) = (steps(Ground::Light), steps(Ground::Dark));
    format!("{STYLE}{light}@media(prefers-color-scheme:dark){{text{{fill:#ddd}}.n{{fill:#888}}{dark}}}")
}

/// A line of every heat map, by which the next run knows it as its own.
pub const SVG_MARKER: &str = "<!-- written by hft-surgery diff -->";

impl DiffReport {
    /// An SVG document: a row per block, a column per projection, the colour is relative L2 on a logarithmic
    /// scale. Unchanged cells are grey. The colours follow the theme of the reader.
    pub fn svg(&self) -> String {
        let rollup = &self.rollup;
        let mut rows: Vec<&Row> = rollup.rows.iter().filter(|row| row.layer.is_some()).collect();
        rows.extend(rollup.rows.iter().filter(|row| row.layer.is_none()));
        let scale = Scale::over(rollup.cells.values().filter_map(Total::rel_l2));
        let labels: Vec<String> = rows.iter().map(|row| rollup.label(row)).collect();
        let longest = |texts: &[String]| texts.iter().map(|t| t.chars().count().min(40)).max().unwrap_or(0);
        let left = 16 + longest(&labels) * 7;
        let top = TITLE + 10 + longest(&rollup.columns) * 5;
        let width = (left + rollup.columns.len() * CELL.0 + 16 + longest(&rollup.columns) * 4).max(380);
        let height = top + rows.len() * CELL.1 + 56;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">\n{SVG_MARKER}\n<title>Relative L2 of the difference by layer and projection</title>\n<style>{}</style>\n",
            style()
        );
        out += &text(16, 20, "t", "Relative L2 of tuned − base, by layer and projection");
        out += &text(16, 36, "", &format!("base {}, tuned {}", shorten(&self.a), shorten(&self.b)));
        for (i, column) in rollup.columns.iter().enumerate() {
            let (x, y) = (left + i * CELL.0 + CELL.0 / 2, top - 6);
            out += &format!(
                "<text transform=\"translate({x} {y}) rotate(-35)\">{}</text>\n",
                escaped(&shorten(column))
            );
        }
        for (i, (row, label)) in rows.iter().zip(&labels).enumerate() {
            let y = top + i * CELL.1;
            out += &format!(
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n",
                left - 6,
                y + FONT,
                escaped(&shorten(label))
            );
            for (j, column) in rollup.columns.iter().enumerate() {
                if let Some(total) = rollup.cell(row, column) {
                    let value = total.rel_l2().filter(|value| *value > 0.0);
                    let without_size = if total.differing > 0 { "not compared" } else { "unchanged" };
                    let size = value.map_or(without_size.to_owned(), |v| format!("{v:.3e}"));
                    let class = value.zip(scale).map_or("n".to_owned(), |(v, scale)| step(scale.position(v)));
                    out += &rect(left + j * CELL.0, y, &class, &format!("{label} {column}: {size}"));
                }
            }
        }
        out += &scale.map_or_else(String::new, |scale| legend(scale, left, top + rows.len() * CELL.1 + 16));
        out + "</svg>\n"
    }
}

/// The class of a position from 0 to 1.
fn step(position: f64) -> String {
    format!("c{}", (position * (STEPS - 1) as f64).round() as usize)
}

fn rect(x: usize, y: usize, class: &str, hint: &str) -> String {
    let (w, h) = (CELL.0 - 1, CELL.1 - 1);
    format!(
        "<rect x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" rx=\"2\" class=\"{class}\"><title>{}</title></rect>\n",
        escaped(hint)
    )
}

/// The colours with their decades.
fn legend(scale: Scale, left: usize, top: usize) -> String {
    const WIDTH: usize = 240;
    let width = WIDTH / STEPS;
    let step = |i: usize| {
        let x = left + i * width;
        format!("<rect x=\"{x}\" y=\"{top}\" width=\"{width}\" height=\"10\" class=\"c{i}\"/>\n")
    };
    let mut out: String = (0..STEPS).map(step).collect();
    for (end, (x, anchor)) in scale.ends().into_iter().zip([(left, "start"), (left + WIDTH, "end")]) {
        let y = top + 24;
        out += &format!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{end:.1e}</text>\n");
    }
    out + &text(left, top + 38, "", "logarithmic, from the 2nd to the 98th percentile")
}

fn text(x: usize, y: usize, class: &str, content: &str) -> String {
    format!("<text x=\"{x}\" y=\"{y}\" class=\"{class}\">{}</text>\n", escaped(content))
}

/// The last 40 characters.
fn shorten(text: &str) -> String {
    let n = text.chars().count();
    if n <= 40 {
        return text.to_owned();
    }
    format!("…{}", text.chars().skip(n - 39).collect::<String>())
}
