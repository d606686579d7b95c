//! The view for a terminal.

use std::collections::BTreeMap;

use super::checks::failed_lines;
use super::diff_report::DiffReport;
use super::rollup::Total;
use crate::Error;
use crate::diff::{Delta, Status, TensorDiff};
use crate::error::{Escaped, Group, groups};
use crate::report::colors::{Ground, Scale, color_at, wants_dark_text};
use crate::report::number::{grouped, percent};
use crate::report::table::{table, text};

/// The order of the list of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SortBy {
    /// ‖δ‖ / ‖a‖, largest first.
    RelL2,
    /// ‖δ‖, largest first.
    L2,
    /// max |δ|, largest first.
    MaxAbs,
    /// Share of changed elements, largest first.
    Changed,
    /// Cosine, smallest first.
    Cosine,
    /// Natural order of names.
    Name,
}

impl SortBy {
    /// Tensors with a larger key come first.
    fn key(self, delta: &Delta) -> f64 {
        match self {
            Self::RelL2 => delta.rel_l2().unwrap_or(f64::INFINITY),
            Self::L2 => delta.l2(),
            Self::MaxAbs => delta.max_abs(),
            Self::Changed => delta.changed_share(),
            Self::Cosine => -delta.cosine().unwrap_or(-1.0),
            Self::Name => 0.0,
        }
    }
}

impl DiffReport {
    /// The verdict of the checks with what failed, a headline, the categories, the heat map and the `top` tensors. `color`
    /// paints the cells.
    pub fn table(&self, top: usize, sort: SortBy, color: bool) -> String {
        const FAILED: usize = 10;
        let mut out: String = self.checks.verdict().iter().map(|line| format!("{line}\n")).collect();
        out += &failed_lines(&self.checks.failures(), FAILED);
        if let Some(unlike) = &self.checks.unlike {
            out += &format!("{unlike}\n");
        }
        out += &self.headline();
        if self.identical() {
            return out;
        }
        out += &format!("\n{}", self.category_table());
        if self.rollup.grid.rows.iter().any(|row| row.layer.is_some()) {
            out += &format!("\n{}", self.heat_table(color));
        }
        if top > 0 {
            out += &format!("\n{}", self.tensor_table(top, sort));
        }
        out += &self.mismatches();
        out
    }

    fn headline(&self) -> String {
        let all = &self.rollup.all;
        if self.identical() {
            return format!(
                "identical: {} tensors, {} elements\n",
                grouped(all.tensors),
                grouped(all.delta.elements)
            );
        }
        let delta = &all.delta;
        let changed = share(delta);
        let rel = number(delta.rel_l2());
        let counts = format!("{} of {} tensors differ", grouped(all.differing), grouped(all.tensors));
        let uncompared = all.tensors - all.compared;
        if all.compared == 0 {
            return format!("no tensor could be compared: {}\n", self.uncompared());
        }
        let mut out = format!(
            "{counts}, {changed} of {} elements changed, relative L2 {rel}\n",
            grouped(delta.elements)
        );
        if uncompared > 0 {
            out += &format!("{} tensors were not compared: {}\n", grouped(uncompared), self.uncompared());
        }
        let (a, b) = (delta.nonfinite_a, delta.nonfinite_b);
        if a + b > 0 {
            out += &format!("NaN or infinite: {} elements in a, {} in b\n", grouped(a), grouped(b));
        }
        out
    }

    /// How many tensors were not compared, by the reason.
    fn uncompared(&self) -> String {
        let mut counts: BTreeMap<Status, u64> = BTreeMap::new();
        let uncompared = |t: &&TensorDiff| t.delta.is_none() && t.status != Status::Identical;
        self.tensors.iter().filter(uncompared).for_each(|t| *counts.entry(t.status).or_default() += 1);
        let words = counts.iter().map(|(status, n)| {
            let what = match status {
                Status::OnlyInA => "only in a",
                Status::OnlyInB => "only in b",
                Status::ShapeDiffers => "of different shapes",
                _ => "of types without values",
            };
            format!("{} {what}", grouped(*n))
        });
        words.collect::<Vec<_>>().join(", ")
    }

    fn category_table(&self) -> String {
        let columns =
            ["category", ">tensors", ">differ", ">changed", ">rel l2", ">max |δ|", ">cosine", ">sign flips"];
        let mut rows = table(&columns);
        let mut add = |name: String, total: &Total| {
            let delta = total.measured();
            let flips = delta.map_or("-".to_owned(), |delta| grouped(delta.sign_flips));
            let changed = share(&total.delta);
            let (tensors, differing) = (grouped(total.tensors), grouped(total.differing));
            let (rel, most) = (number(total.rel_l2()), number(delta.map(Delta::max_abs)));
            let cosine = delta.map_or("-".to_owned(), cosine);
            rows.add_row([name, tensors, differing, changed, rel, most, cosine, flips]);
        };
        self.rollup.categories.iter().for_each(|(category, total)| add(category.to_string(), total));
        add("all".to_owned(), &self.rollup.all);
        text(&rows)
    }

    /// A row per block, a column per projection: relative L2, painted where colour is on.
    fn heat_table(&self, color: bool) -> String {
        let rollup = &self.rollup;
        let blocks: Vec<_> = rollup.grid.rows.iter().filter(|row| row.layer.is_some()).collect();
        let has = |column: &&String| blocks.iter().any(|row| rollup.cell(row, column).is_some());
        let columns: Vec<&String> = rollup.grid.columns.iter().filter(has).collect();
        let values = rollup.cells.values().filter_map(Total::rel_l2);
        let scale = Scale::over(values);
        let labels: Vec<String> =
            blocks.iter().map(|row| Escaped(&rollup.grid.label(row)).to_string()).collect();
        let first = labels.iter().map(|l| l.chars().count()).max().unwrap_or(0).max(5);
        let widths: Vec<usize> =
            columns.iter().map(|c| Escaped(*c).to_string().chars().count().clamp(7, 16)).collect();
        let mut out = format!("{:first$}", "LAYER");
        for (column, width) in columns.iter().zip(&widths) {
            let name: String = Escaped(*column).to_string().chars().take(*width).collect();
            out += &format!("  {name:>width$}");
        }
        for (row, label) in blocks.iter().zip(&labels) {
            out += &format!("\n{label:first$}");
            for (column, width) in columns.iter().zip(&widths) {
                let value = rollup.cell(row, column).map(Total::rel_l2);
                out += &format!("  {}", cell(value, *width, scale.filter(|_| color)));
            }
        }
        out + "\n"
    }

    fn tensor_table(&self, top: usize, sort: SortBy) -> String {
        let compared = self.tensors.iter().filter(|t| t.status != Status::Identical);
        let mut listed: Vec<(&TensorDiff, &Delta)> =
            compared.filter_map(|t| Some((t, t.delta.as_ref()?))).collect();
        listed.sort_by(|(_, a), (_, b)| sort.key(b).total_cmp(&sort.key(a)));
        let columns =
            ["tensor", "shape", "dtype", ">changed", ">rel l2", ">l2", ">max |δ|", ">mean", ">cosine"];
        let mut rows = table(&columns);
        for (tensor, delta) in listed.iter().take(top) {
            let form = tensor.b.as_ref().or(tensor.a.as_ref());
            rows.add_row([
                Escaped(&tensor.name).to_string(),
                form.map(|form| format!("{:?}", form.shape)).unwrap_or_default(),
                form.map(|form| form.dtype.to_string()).unwrap_or_default(),
                share(delta),
                number(delta.rel_l2()),
                number(Some(delta.l2())),
                number(Some(delta.max_abs())),
                number(Some(delta.mean())),
                cosine(delta),
            ]);
        }
        let rest = listed.len().saturating_sub(top);
        let more =
            if rest > 0 { format!("… and {rest} more tensors that differ\n") } else { String::new() };
        text(&rows) + &more
    }

    /// Tensors that are not on both sides in one form; many of one kind are told together.
    fn mismatches(&self) -> String {
        const MOST: usize = 20;
        let odd = |t: &&TensorDiff| !matches!(t.status, Status::Identical | Status::Changed);
        let found: Vec<Error> = self.tensors.iter().filter(odd).map(mismatch).collect();
        let groups = groups(&found);
        let messages = groups.iter().take(MOST).flat_map(Group::messages);
        let mut out: String = messages.map(|message| format!("{message}\n")).collect();
        if found.len() > groups.len().min(MOST) {
            out += "--json lists them all\n";
        }
        if out.is_empty() { out } else { format!("\n{out}") }
    }
}

/// What sets the two sides of a tensor apart, beside values.
fn mismatch(tensor: &TensorDiff) -> Error {
    let mut fault = match tensor.status {
        Status::OnlyInA => "only in a".to_owned(),
        Status::OnlyInB => "only in b".to_owned(),
        Status::ShapeDiffers => "shapes differ".to_owned(),
        _ => "dtypes differ".to_owned(),
    };
    if let (Some(a), Some(b)) = (&tensor.a, &tensor.b) {
        if a.shape != b.shape {
            let compared = if tensor.delta.is_some() { "common rows compared" } else { "not compared" };
            fault += &format!(": {:?} in a, {:?} in b, {compared}", a.shape, b.shape);
        }
        if a.dtype != b.dtype {
            fault += &format!(": {} in a, {} in b", a.dtype, b.dtype);
        }
    } else if let Some(name) = &tensor.renamed {
        fault += &format!(": the same bytes as `{}` on the other side", Escaped(name));
    }
    Error::Pairing { tensor: Some(tensor.name.clone()), fault, hint: None }
}

/// A cell of the heat map: blank where there is no tensor, `-` where none was compared, `·` where nothing changed.
fn cell(value: Option<Option<f64>>, width: usize, scale: Option<Scale>) -> String {
    let shown = match value {
        None => String::new(),
        Some(Some(0.0)) => "·".to_owned(),
        Some(value) => number(value),
    };
    let padded = format!("{shown:>width$}");
    match (value.flatten().filter(|value| *value > 0.0), scale) {
        (Some(value), Some(scale)) => {
            let back = color_at(scale.position(value), Ground::Dark);
            let front = if wants_dark_text(back) { "30" } else { "97" };
            format!("\u{1b}[{front};48;2;{};{};{}m{padded}\u{1b}[0m", back[0], back[1], back[2])
        }
        _ => padded,
    }
}

/// The share that changed, `0.0 %` or `100.0 %` only where it is exactly that.
fn share(delta: &Delta) -> String {
    match percent(delta.changed, delta.elements) {
        text if text == "0.0 %" && delta.changed > 0 => "<0.1 %".to_owned(),
        text if text == "100.0 %" && delta.changed < delta.elements => ">99.9 %".to_owned(),
        text => text,
    }
}

fn number(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(0.0) => "0".to_owned(),
        Some(value) => format!("{value:.2e}"),
    }
}

fn cosine(delta: &Delta) -> String {
    delta.cosine().map_or("-".to_owned(), |cosine| format!("{cosine:.6}"))
}
