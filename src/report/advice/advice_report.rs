//! Comparisons of fine-tunes in pairs, with the sums that their views share.

use std::collections::BTreeMap;

use crate::diff::{Advice, Overlap, PairOverlap, TensorOverlap, advise, total};
use crate::error::Escaped;
use crate::plan::{Category, TensorName};
use crate::report::grid::{Grid, Row};

/// The sums over groups of the tensors of one pair.
#[derive(Debug, Default)]
pub(super) struct PairSums {
    pub(super) all: Overlap,
    pub(super) categories: BTreeMap<Category, Overlap>,
    pub(super) blocks: BTreeMap<Row, Overlap>,
    pub(super) kinds: BTreeMap<(Row, Category), Overlap>,
    /// Of each projection of each block.
    pub(super) cells: BTreeMap<(Row, String), Overlap>,
}

impl PairSums {
    fn new(pair: &PairOverlap) -> Self {
        let mut sums = Self { all: total(pair), ..Self::default() };
        for TensorOverlap { name, overlap } in &pair.tensors {
            let name = TensorName::of(name);
            let block = Row { stack: name.stack, layer: name.layer };
            sums.categories.entry(name.category).or_default().append(overlap);
            sums.blocks.entry(block.clone()).or_default().append(overlap);
            sums.kinds.entry((block.clone(), name.category)).or_default().append(overlap);
            sums.cells.entry((block, name.projection)).or_default().append(overlap);
        }
        sums
    }
}

/// Fine-tunes of one base, compared in pairs, and the advice that follows.
#[derive(Debug)]
pub struct AdviceReport {
    pub(super) base: String,
    /// The paths of the fine-tunes, as given.
    pub(super) models: Vec<String>,
    pub(super) pairs: Vec<PairOverlap>,
    /// Of every pair.
    pub(super) sums: Vec<PairSums>,
    pub(super) advice: Advice,
    pub(super) grid: Grid,
}

impl AdviceReport {
    /// A report on the fine-tunes at the paths `models`, with the comparison of every two of them.
    pub fn new(base: String, models: Vec<String>, pairs: Vec<PairOverlap>) -> Self {
        let sums = pairs.iter().map(PairSums::new).collect();
        let names: Vec<String> = models.iter().map(|path| Escaped(path).to_string()).collect();
        let advice = advise(&names, &pairs);
        let tensors = pairs.first().map_or(&[][..], |pair| &pair.tensors);
        let grid = Grid::of(tensors.iter().map(|tensor| TensorName::of(&tensor.name)));
        Self { base, models, pairs, sums, advice, grid }
    }

    /// What should be known besides the numbers.
    pub fn warnings(&self) -> Vec<String> {
        let dropped = self.sums.iter().map(|sums| sums.all.nonfinite).max().unwrap_or(0);
        let text = || {
            format!("{dropped} elements are NaN or infinite in the base or in a fine-tune and are left out")
        };
        (dropped > 0).then(text).into_iter().collect()
    }

    /// The paths of the two of a pair.
    pub(super) fn names(&self, pair: &PairOverlap) -> [&str; 2] {
        pair.of.map(|i| self.models[i].as_str())
    }
}
