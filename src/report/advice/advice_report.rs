//! Comparisons of fine-tunes in pairs, with the sums that their views share.

use std::collections::BTreeMap;

use crate::diff::{Advice, Overlap, PairOverlap, TensorOverlap, advise, total};
use crate::error::Escaped;
use crate::plan::{Category, TensorName};
use crate::report::grid::{Grid, Row};

/// The sums over groups of the tensors of one pair.
#[derive(Debug)]
pub(super) struct PairSums {
    pub(super) all: Overlap,
    pub(super) categories: BTreeMap<Category, Overlap>,
    pub(super) blocks: BTreeMap<Row, Overlap>,
    pub(super) kinds: BTreeMap<(Row, Category), Overlap>,
}

impl PairSums {
    fn new(pair: &PairOverlap) -> Self {
        let (mut categories, mut blocks, mut kinds) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for TensorOverlap { name, overlap } in &pair.tensors {
            let name = TensorName::of(name);
            let block = Row { stack: name.stack, layer: name.layer };
            categories.entry(name.category).or_insert_with(Overlap::default).append(overlap);
            blocks.entry(block.clone()).or_insert_with(Overlap::default).append(overlap);
            kinds.entry((block, name.category)).or_insert_with(Overlap::default).append(overlap);
        }
        Self { all: total(pair), categories, blocks, kinds }
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

    /// The paths of the two of a pair.
    pub(super) fn names(&self, pair: &PairOverlap) -> [&str; 2] {
        pair.of.map(|i| self.models[i].as_str())
    }
}
