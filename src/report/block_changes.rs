//! Relative change of attention and of the feed-forward part, block by block, of several fine-tunes: figure 6 of the HFT
//! paper (arXiv:2404.18466).

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::csv::quoted;
use super::grid::{Grid, Row};
use super::heat_map::{SVG_MARKER, shorten};
use super::loss_curve::{path, ticks};
use super::table::{table, text};
use super::xml::escaped;
use crate::diff::{Delta, TensorDiff};
use crate::error::Escaped;
use crate::plan::{Category, TensorName};

/// The kinds of parameters, one panel for each.
const KINDS: [(Category, &str); 2] = [(Category::Attention, "Attention"), (Category::Mlp, "MLP")];

/// A picture as wide as a phone.
const WIDTH: f64 = 400.0;
const PANEL: f64 = 210.0;
const LEFT: f64 = 54.0;
const RIGHT: f64 = 14.0;
/// Room above and below the lines of a panel.
const ABOVE: f64 = 26.0;
const BELOW: f64 = 26.0;

/// Line colours on a light and on a dark ground (Okabe & Ito 2008, safe for colour-blind eyes).
const COLORS: [(&str, &str); 6] = [
    ("#0060a8", "#56b4e9"),
    ("#b84a00", "#f0a35e"),
    ("#00734f", "#2fc79a"),
    ("#9a3d78", "#dd9cc4"),
    ("#6b5d00", "#e3d14a"),
    ("#444444", "#c0c0c0"),
];
const DASHES: [&str; 3] = ["", "6 3", "2 3"];

/// The relative change ‖τ‖ / ‖base‖ of every block, kind of parameter and fine-tune.
#[derive(Debug)]
pub struct BlockChanges {
    base: String,
    /// The paths of the fine-tunes, as given.
    models: Vec<String>,
    blocks: Vec<(Row, String)>,
    /// Of every fine-tune: ‖τ‖ / ‖base‖ of a block and kind; `None` where the base is zero or nothing was compared.
    values: Vec<BTreeMap<(Row, Category), Option<f64>>>,
}

impl BlockChanges {
    /// The changes of fine-tunes of `base`: of each its path and the comparison of its tensors with the base.
    pub fn new(base: String, models: Vec<(String, Vec<TensorDiff>)>) -> Self {
        let tensors = models.iter().flat_map(|(_, tensors)| tensors);
        let grid = Grid::of(tensors.map(|tensor| TensorName::of(&tensor.name)));
        let blocks = grid.rows.iter().filter(|row| row.layer.is_some());
        let blocks = blocks.map(|row| (row.clone(), grid.label(row))).collect();
        let (paths, tensors): (Vec<String>, Vec<Vec<TensorDiff>>) = models.into_iter().unzip();
        Self {
            base,
            models: paths,
            blocks,
            values: tensors.iter().map(|tensors| relative(tensors)).collect(),
        }
    }

    /// Whether there is a block with one of the two kinds.
    pub fn is_empty(&self) -> bool {
        self.values.iter().all(BTreeMap::is_empty)
    }

    fn value(&self, model: usize, block: &Row, kind: Category) -> Option<f64> {
        self.values[model].get(&(block.clone(), kind)).copied().flatten()
    }

    /// A row per block, for each kind a column per fine-tune.
    pub fn table(&self) -> String {
        let mut columns = vec!["layer".to_owned()];
        for (kind, _) in KINDS {
            columns.extend((1..=self.models.len()).map(|i| format!(">{kind} {i}")));
        }
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        let mut rows = table(&columns);
        for (block, label) in &self.blocks {
            let mut row = vec![Escaped(label).to_string()];
            for (kind, _) in KINDS {
                let cell =
                    |model| self.value(model, block, kind).map_or("-".to_owned(), |x| format!("{x:.2e}"));
                row.extend((0..self.models.len()).map(cell));
            }
            rows.add_row(row);
        }
        let names = self.models.iter().enumerate().map(|(i, path)| format!("{} {}\n", i + 1, Escaped(path)));
        format!("‖τ‖ / ‖base‖ over {}\n{}\n{}", Escaped(&self.base), names.collect::<String>(), text(&rows))
    }

    /// `{"base", "models", "blocks"}`; values that do not exist are null.
    pub fn json(&self) -> Value {
        let blocks = self.blocks.iter().map(|(block, _)| {
            let of =
                |kind| (0..self.models.len()).map(|model| self.value(model, block, kind)).collect::<Vec<_>>();
            let (attention, mlp) = (of(Category::Attention), of(Category::Mlp));
            json!({"stack": block.stack, "layer": block.layer, "attention": attention, "mlp": mlp})
        });
        json!({"base": self.base, "models": self.models, "blocks": blocks.collect::<Vec<_>>()})
    }

    /// A header line and one line per fine-tune, block and kind; values that do not exist are empty.
    pub fn csv(&self) -> String {
        let mut out = "model,stack,layer,category,rel_l2\n".to_owned();
        for (model, name) in self.models.iter().enumerate() {
            for (block, _) in &self.blocks {
                for (kind, _) in KINDS {
                    let value = self.value(model, block, kind).map_or_else(String::new, |x| x.to_string());
                    let layer = block.layer.map_or_else(String::new, |layer| layer.to_string());
                    out += &format!("{},{},{layer},{kind},{value}\n", quoted(name), quoted(&block.stack));
                }
            }
        }
        out
    }

    /// Two panels, attention and MLP, with a line for each fine-tune. Both have one scale, which starts at 0.
    pub fn svg(&self) -> String {
        let top = 44.0 + 16.0 * self.models.len() as f64;
        let height = top + KINDS.len() as f64 * PANEL + 8.0;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n{SVG_MARKER}\n<title>Relative change of attention and MLP by layer</title>\n<style>{}</style>\n<text x=\"12\" y=\"20\" class=\"t\">Relative change ‖τ‖ / ‖base‖ by layer</text>\n<text x=\"12\" y=\"36\">base {}</text>\n",
            self.style(),
            escaped(&shorten(&self.base))
        );
        for (i, path) in self.models.iter().enumerate() {
            let y = 52.0 + 16.0 * i as f64;
            out += &format!(
                "<path class=\"l s{i}\" d=\"M12 {0} L36 {0}\"/><text x=\"42\" y=\"{1}\" class=\"s{i}\">{2}</text>\n",
                y - 4.0,
                y,
                escaped(&shorten(path))
            );
        }
        for (i, (kind, name)) in KINDS.iter().enumerate() {
            out += &self.panel(*kind, name, top + i as f64 * PANEL);
        }
        out + "</svg>\n"
    }

    fn style(&self) -> String {
        let (mut light, mut dark) = (String::new(), String::new());
        for i in 0..self.models.len() {
            let ((on_light, on_dark), dash) =
                (COLORS[i % COLORS.len()], DASHES[i / COLORS.len() % DASHES.len()]);
            light += &format!(
                "path.s{i},circle.s{i}{{stroke:{on_light};stroke-dasharray:{}}}text.s{i}{{fill:{on_light}}}",
                if dash.is_empty() { "none" } else { dash }
            );
            dark += &format!("path.s{i},circle.s{i}{{stroke:{on_dark}}}text.s{i}{{fill:{on_dark}}}");
        }
        format!(
            "text{{font:11px ui-sans-serif,system-ui,sans-serif;fill:#333}}.t{{font-size:13px;font-weight:600}}.g{{stroke:#999;stroke-opacity:.3}}.l{{fill:none;stroke-width:2}}.d{{fill:none;stroke-width:1.5}}{light}@media(prefers-color-scheme:dark){{text{{fill:#ddd}}{dark}}}"
        )
    }

    fn panel(&self, kind: Category, name: &str, top: f64) -> String {
        let values = self.values.iter().flat_map(BTreeMap::values).flatten().copied();
        let high = values.filter(|x| x.is_finite()).fold(0.0, f64::max);
        let high = if high > 0.0 { high } else { 1.0 };
        let last = self.blocks.len().saturating_sub(1).max(1) as f64;
        let x = |block: usize| LEFT + 6.0 + block as f64 / last * (WIDTH - LEFT - RIGHT - 12.0);
        let y = |value: f64| top + ABOVE + (1.0 - value / high) * (PANEL - ABOVE - BELOW);
        let mut out = format!("<text x=\"12\" y=\"{}\" class=\"t\">{name}</text>\n", top + 16.0);
        let (marks, digits) = ticks(0.0, high, 4);
        for mark in marks {
            let label = if digits > 4 { format!("{mark:.0e}") } else { format!("{mark:.digits$}") };
            out += &format!(
                "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{1:.1}\" y2=\"{1:.1}\" class=\"g\"/><text x=\"{2}\" y=\"{3:.1}\" text-anchor=\"end\">{label}</text>\n",
                WIDTH - RIGHT,
                y(mark),
                LEFT - 6.0,
                y(mark) + 4.0
            );
        }
        let bottom = top + PANEL - BELOW + 18.0;
        let every = self.blocks.len().div_ceil(8).max(1);
        for (i, (_, label)) in self.blocks.iter().enumerate().step_by(every) {
            let label = label.rsplit('.').next().unwrap_or(label);
            out += &format!("<text x=\"{:.1}\" y=\"{bottom}\" text-anchor=\"middle\">{label}</text>\n", x(i));
        }
        for model in 0..self.models.len() {
            let points = || {
                let at = |(i, (block, _)): (usize, &(Row, String))| {
                    self.value(model, block, kind).filter(|v| v.is_finite()).map(|v| (i, v))
                };
                self.blocks.iter().enumerate().filter_map(at)
            };
            out += &path(&format!("l s{model}"), points().map(|(i, value)| (x(i), y(value))));
            for (i, value) in points() {
                out += &format!(
                    "<circle class=\"d s{model}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\"><title>{} {}: {value:.3e}</title></circle>\n",
                    x(i),
                    y(value),
                    escaped(&shorten(&self.models[model])),
                    escaped(&self.blocks[i].1)
                );
            }
        }
        out
    }
}

/// ‖δ‖ / ‖a‖ of every block and kind.
fn relative(tensors: &[TensorDiff]) -> BTreeMap<(Row, Category), Option<f64>> {
    let mut sums: BTreeMap<(Row, Category), Delta> = BTreeMap::new();
    for tensor in tensors {
        let TensorName { stack, layer, category, .. } = TensorName::of(&tensor.name);
        let kind = KINDS.iter().any(|(kind, _)| *kind == category);
        if let (Some(delta), true, true) = (&tensor.delta, kind, layer.is_some()) {
            sums.entry((Row { stack, layer }, category)).or_default().append(delta);
        }
    }
    sums.into_iter().map(|(at, delta)| (at, delta.rel_l2())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diff::Status;

    fn tensor(name: &str, squares: f64) -> TensorDiff {
        let delta = Delta { squares, squares_a: 4.0, ..Delta::default() };
        let name = name.to_owned();
        TensorDiff { name, status: Status::Changed, a: None, b: None, delta: Some(delta), renamed: None }
    }

    #[test]
    fn a_line_for_each_model_and_a_point_for_each_block() {
        let model = |factor: f64| {
            (0..3)
                .flat_map(|i| {
                    let squares = factor * f64::from(i + 1);
                    ["self_attn.q_proj", "mlp.up_proj"]
                        .map(|p| tensor(&format!("model.layers.{i}.{p}.weight"), squares))
                })
                .chain([tensor("model.norm.weight", 9.0)])
                .collect::<Vec<_>>()
        };
        let models = vec![("full <1>".to_owned(), model(1.0)), ("half".to_owned(), model(0.0))];
        let changes = BlockChanges::new("base".to_owned(), models);
        let svg = changes.svg();
        assert_eq!((svg.matches("<circle").count(), svg.matches("<path class=\"l s1\"").count()), (12, 3));
        assert!(svg.contains("full &lt;1&gt;") && !svg.contains("NaN"), "{svg}");
        let json = changes.json();
        assert_eq!(json["blocks"][0]["attention"], serde_json::json!([0.5, 0.0]));
        assert_eq!(changes.csv().lines().count(), 1 + 2 * 3 * 2);
        assert!(changes.table().contains("5.00e-1"), "{}", changes.table());
    }
}
