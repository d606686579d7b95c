//! Heat maps as SVG, for papers and READMEs: a row per block, a column per projection or kind of parameter.

use super::colors::{Ground, Scale, color_at};
use super::xml::escaped;

const CELL: (usize, usize) = (30, 16);
/// Room for the title and one line below it.
const TITLE: usize = 46;
const LINE: usize = 15;
const FONT: usize = 11;

/// Steps of the scale.
const STEPS: usize = 24;

const STYLE: &str = "text{font:11px ui-sans-serif,system-ui,sans-serif;fill:#333}.t{font-size:13px;font-weight:600}\
.n{fill:#bbb;fill-opacity:.35}";

/// A line of every picture of `diff`, by which the next run knows it as its own.
pub const SVG_MARKER: &str = "<!-- written by hft-surgery diff -->";

/// What a heat map shows.
pub(super) struct HeatMap<'a> {
    /// What it is, for those who do not see it.
    pub(super) name: &'a str,
    pub(super) title: &'a str,
    /// The checkpoints, in lines.
    pub(super) subtitle: &'a [String],
    pub(super) rows: &'a [String],
    pub(super) columns: &'a [String],
    /// Where the values lie; `None` where there are none.
    pub(super) scale: Option<Scale>,
    /// How the scale runs.
    pub(super) legend: &'a str,
}

/// One cell.
pub(super) struct Cell {
    /// Grey where there is none.
    pub(super) value: Option<f64>,
    /// The value in words.
    pub(super) text: String,
}

impl HeatMap<'_> {
    /// The SVG document; `cell` gives the cell of a row and a column, where there is one. The colours follow the theme of
    /// the reader.
    pub(super) fn svg(&self, cell: impl Fn(usize, usize) -> Option<Cell>) -> String {
        let longest = |texts: &[String]| texts.iter().map(|t| t.chars().count().min(40)).max().unwrap_or(0);
        let left = 16 + longest(self.rows) * 7;
        let top = TITLE + LINE * self.subtitle.len().saturating_sub(1) + 10 + longest(self.columns) * 5;
        let width = (left + self.columns.len() * CELL.0 + 16 + longest(self.columns) * 4).max(380);
        let height = top + self.rows.len() * CELL.1 + 56;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">\n{SVG_MARKER}\n<title>{}</title>\n<style>{}</style>\n",
            escaped(self.name),
            style()
        );
        out += &text(16, 20, "t", self.title);
        for (i, line) in self.subtitle.iter().enumerate() {
            out += &text(16, 36 + i * LINE, "", line);
        }
        for (i, column) in self.columns.iter().enumerate() {
            let (x, y) = (left + i * CELL.0 + CELL.0 / 2, top - 6);
            out += &format!(
                "<text transform=\"translate({x} {y}) rotate(-35)\">{}</text>\n",
                escaped(&shorten(column))
            );
        }
        for (i, label) in self.rows.iter().enumerate() {
            let y = top + i * CELL.1;
            out += &format!(
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n",
                left - 6,
                y + FONT,
                escaped(&shorten(label))
            );
            for (j, column) in self.columns.iter().enumerate() {
                if let Some(Cell { value, text }) = cell(i, j) {
                    let class = value.zip(self.scale).map_or("n".to_owned(), |(v, s)| step(s.position(v)));
                    out += &rect(left + j * CELL.0, y, &class, &format!("{label} {column}: {text}"));
                }
            }
        }
        if let Some(scale) = self.scale {
            out += &legend(scale, left, top + self.rows.len() * CELL.1 + 16, self.legend);
        }
        out + "</svg>\n"
    }
}

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

/// The colours with the values at both ends.
fn legend(scale: Scale, left: usize, top: usize, words: &str) -> String {
    const WIDTH: usize = 240;
    let width = WIDTH / STEPS;
    let step = |i: usize| {
        let x = left + i * width;
        format!("<rect x=\"{x}\" y=\"{top}\" width=\"{width}\" height=\"10\" class=\"c{i}\"/>\n")
    };
    let mut out: String = (0..STEPS).map(step).collect();
    for (end, (x, anchor)) in scale.ends().into_iter().zip([(left, "start"), (left + WIDTH, "end")]) {
        let y = top + 24;
        let end = scale.label(end);
        out += &format!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{end}</text>\n");
    }
    out + &text(left, top + 38, "", words)
}

fn text(x: usize, y: usize, class: &str, content: &str) -> String {
    format!("<text x=\"{x}\" y=\"{y}\" class=\"{class}\">{}</text>\n", escaped(content))
}

/// The last 40 characters.
pub(super) fn shorten(text: &str) -> String {
    let n = text.chars().count();
    if n <= 40 {
        return text.to_owned();
    }
    format!("…{}", text.chars().skip(n - 39).collect::<String>())
}
