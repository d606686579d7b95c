//! The heat map of blocks and projections, for papers and READMEs.

use super::diff_report::DiffReport;
use super::rollup::Row;
use super::scale::{Scale, color_at};

const CELL: (usize, usize) = (30, 16);
/// Room for labels: of rows, of columns, and for the title.
const TITLE: usize = 46;
const FONT: usize = 11;

const STYLE: &str = "text{font:11px ui-sans-serif,system-ui,sans-serif;fill:#333}.t{font-size:13px;font-weight:600}\
.n{fill:#bbb;fill-opacity:.35}@media(prefers-color-scheme:dark){text{fill:#ddd}.n{fill:#888}}";

/// A line of every heat map, by which the next run knows it as its own.
pub const SVG_MARKER: &str = "<!-- written by hft-surgery diff -->";

impl DiffReport {
    /// An SVG document: a row per block, a column per projection, the colour is relative L2 on a logarithmic
    /// scale. Unchanged cells are grey. Readable on light and dark grounds.
    pub fn svg(&self) -> String {
        let rollup = &self.rollup;
        let mut rows: Vec<&Row> = rollup.rows.iter().filter(|row| row.layer.is_some()).collect();
        rows.extend(rollup.rows.iter().filter(|row| row.layer.is_none()));
        let scale = Scale::over(rollup.cells.values().filter_map(|total| total.delta.rel_l2()));
        let labels: Vec<String> = rows.iter().map(|row| rollup.label(row)).collect();
        let longest = |texts: &[String]| texts.iter().map(|t| t.chars().count().min(40)).max().unwrap_or(0);
        let left = 16 + longest(&labels) * 7;
        let top = TITLE + 10 + longest(&rollup.columns) * 5;
        let width = (left + rollup.columns.len() * CELL.0 + 16 + longest(&rollup.columns) * 4).max(380);
        let height = top + rows.len() * CELL.1 + 56;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">\n{SVG_MARKER}\n<title>Relative L2 of the difference by layer and projection</title>\n<style>{STYLE}</style>\n"
        );
        out += &text(16, 20, "t", "Relative L2 of b − a, by layer and projection");
        out += &text(16, 36, "", &format!("a = {}, b = {}", shorten(&self.a), shorten(&self.b)));
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
                    let value = total.delta.rel_l2().filter(|value| *value > 0.0);
                    let hint = format!(
                        "{label} {column}: {}",
                        value.map_or("unchanged".to_owned(), |v| format!("{v:.3e}"))
                    );
                    let fill = value.zip(scale).map(|(value, scale)| scale.color(value));
                    out += &rect(left + j * CELL.0, y, fill, &hint);
                }
            }
        }
        out += &scale.map_or_else(String::new, |scale| legend(scale, left, top + rows.len() * CELL.1 + 16));
        out + "</svg>\n"
    }
}

fn rect(x: usize, y: usize, fill: Option<[u8; 3]>, hint: &str) -> String {
    let paint = fill.map_or("class=\"n\"".to_owned(), |[r, g, b]| format!("fill=\"#{r:02x}{g:02x}{b:02x}\""));
    let (w, h) = (CELL.0 - 1, CELL.1 - 1);
    format!(
        "<rect x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" rx=\"2\" {paint}><title>{}</title></rect>\n",
        escaped(hint)
    )
}

/// The colours with their decades.
fn legend(scale: Scale, left: usize, top: usize) -> String {
    const WIDTH: usize = 240;
    const STEPS: usize = 48;
    let mut out = String::new();
    for i in 0..STEPS {
        let [r, g, b] = color_at((i as f64 + 0.5) / STEPS as f64);
        let x = left + i * WIDTH / STEPS;
        out += &format!(
            "<rect x=\"{x}\" y=\"{top}\" width=\"{}\" height=\"10\" fill=\"#{r:02x}{g:02x}{b:02x}\"/>\n",
            WIDTH / STEPS
        );
    }
    for (end, (x, anchor)) in scale.ends().into_iter().zip([(left, "start"), (left + WIDTH, "end")]) {
        let y = top + 24;
        out += &format!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{end:.1e}</text>\n");
    }
    out
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

/// Safe inside XML: markup escaped, control characters, which XML forbids, replaced.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
