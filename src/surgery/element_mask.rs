//! The mask of a plan over the elements of one tensor, as `reset`, `merge` and `train` carry it out.

use std::ops::Range;

use crate::plan::{Domain, Granularity, Histogram, Inventory, Key, Plan, Selector, Threshold, bernoulli};

/// Which elements of a tensor are trainable.
#[derive(Debug, Clone)]
pub(crate) struct ElementMask {
    pub(crate) selection: Selection,
    /// Whether the selected elements are frozen and the others trainable.
    pub(crate) complement: bool,
}

/// The elements that a mask selects.
#[derive(Debug, Clone)]
pub(crate) enum Selection {
    /// Every element.
    All,
    /// No element.
    Nothing,
    /// An independent Bernoulli draw of probability `share` for each element or row.
    Bernoulli { key: Key, granularity: Granularity, share: f64 },
    /// The elements with the largest |tuned − base|.
    LargestElements(LargestElements),
    /// One flag per row.
    Rows(Vec<bool>),
}

/// The elements whose values rank highest by magnitude, of equal ones those with the smaller index.
#[derive(Debug, Clone)]
pub(crate) struct LargestElements {
    pub(crate) threshold: Threshold,
    /// Elements of one part.
    pub(crate) part: u64,
    /// For each part, the number of values equal to the threshold in earlier parts.
    pub(crate) ties_before: Vec<u64>,
}

/// What a plan says of one tensor.
#[derive(Debug, Clone)]
pub(crate) enum PlannedMask {
    /// A mask that follows from the plan alone.
    Known(ElementMask),
    /// The share with the largest |tuned − base|, which has to be measured on both checkpoints.
    Largest { granularity: Granularity, share: f64, complement: bool },
}

impl PlannedMask {
    /// Reads `plan`; `None` for a tensor that it does not list.
    ///
    /// A tied head and its embedding draw the same words: the key is the first tensor of their unit.
    pub(crate) fn of(plan: &Plan, inventory: &Inventory, tensor: &str) -> Option<Self> {
        if !plan.is_trainable(tensor)? {
            return Some(Self::Known(Selection::Nothing.into()));
        }
        let Some(mask) = plan.mask_of(tensor) else {
            return Some(Self::Known(Selection::All.into()));
        };
        let (granularity, share, complement) = (mask.granularity, mask.ratio, mask.complement);
        Some(match mask.selector {
            Selector::TopMagnitude => Self::Largest { granularity, share, complement },
            Selector::Bernoulli => {
                let key = Key::new(plan.seed(), plan.round(), key_name(inventory, tensor));
                let selection = Selection::Bernoulli { key, granularity, share };
                Self::Known(ElementMask { selection, complement })
            }
        })
    }
}

/// The name that keys the draws of a tensor: the first tensor of its unit.
pub(crate) fn key_name<'n>(inventory: &'n Inventory, tensor: &'n str) -> &'n str {
    let first = inventory.unit_of(tensor).and_then(|unit| unit.tensors.first());
    first.map_or(tensor, String::as_str)
}

impl From<Selection> for ElementMask {
    fn from(selection: Selection) -> Self {
        Self { selection, complement: false }
    }
}

impl ElementMask {
    /// Whether [`ElementMask::fill`] needs the task vector.
    pub(crate) fn needs_task_vector(&self) -> bool {
        matches!(self.selection, Selection::LargestElements(_))
    }

    /// Marks which of the elements `range` are trainable. Rows have `row` elements; `tau` is the task vector of
    /// `range`, where it is needed.
    ///
    /// # Panics
    /// When the largest elements are selected and `range` begins inside a part.
    pub(crate) fn fill(&self, range: Range<u64>, row: u64, tau: &[f32], out: &mut [bool]) {
        let first = range.start / row;
        match &self.selection {
            Selection::All => out.fill(true),
            Selection::Nothing => out.fill(false),
            Selection::Bernoulli { key, granularity: Granularity::Element, share } => {
                bernoulli(key, Domain::Element, range.start, *share, out);
            }
            Selection::Bernoulli { key, granularity: Granularity::Row, share } => {
                let mut rows = vec![false; (range.end.div_ceil(row).max(first) - first) as usize];
                bernoulli(key, Domain::Row, first, *share, &mut rows);
                repeat_rows(&rows, row, range.start - first * row, out);
            }
            Selection::Rows(rows) => {
                let rows = &rows[first.min(rows.len() as u64) as usize..];
                repeat_rows(rows, row, range.start - first * row, out);
            }
            Selection::LargestElements(largest) => largest.fill(range.start, tau, out),
        }
        if self.complement {
            out.iter_mut().for_each(|trainable| *trainable = !*trainable);
        }
    }
}

impl LargestElements {
    fn fill(&self, start: u64, values: &[f32], out: &mut [bool]) {
        assert_eq!(start % self.part, 0, "ranges begin where parts begin");
        let ties = self.ties_before.get((start / self.part) as usize).copied().unwrap_or(0);
        self.threshold.apply(ties, values, out);
    }
}

/// The share of rows with the largest norms.
pub(crate) fn largest_rows(norms: &[f32], share: f64) -> Selection {
    let keep = (norms.len() as f64 * share).round() as u64;
    let mut coarse = Histogram::coarse();
    coarse.add(norms);
    let (mut fine, wanted) = coarse.refine(keep);
    fine.add(norms);
    let mut rows = vec![false; norms.len()];
    fine.threshold(wanted).apply(0, norms, &mut rows);
    Selection::Rows(rows)
}

/// Gives every element the flag of its row; `out` begins `skip` elements into the first row.
fn repeat_rows(rows: &[bool], row: u64, skip: u64, out: &mut [bool]) {
    let first = ((row - skip) as usize).min(out.len());
    let (head, rest) = out.split_at_mut(first);
    let mut flags = rows.iter();
    for slice in std::iter::once(head).chain(rest.chunks_mut(row as usize)) {
        if let Some(flag) = flags.next() {
            slice.fill(*flag);
        }
    }
}
