//! The tensors of a checkpoint, grouped into units that move together.

use std::collections::BTreeMap;

use super::place::{Category, Place, module_of};
use crate::checkpoint::{Checkpoint, Config, natural_order};

/// A module: its matrix with bias and scales, or a tied pair of embedding and head.
#[derive(Debug, Clone)]
pub struct Unit {
    /// The module's name.
    pub name: String,
    /// Where it stands.
    pub place: Place,
    /// Its tensors, in natural order; never empty.
    pub tensors: Vec<String>,
    /// Elements of its tensors; a tied head counts once.
    pub parameters: u64,
}

/// All tensors of a checkpoint, each in exactly one unit.
#[derive(Debug, Clone)]
pub struct Inventory {
    architecture: Option<String>,
    tied: bool,
    units: Vec<Unit>,
    unit_of: BTreeMap<String, usize>,
}

impl Inventory {
    /// Groups `tensors`, given in any order as (name, shape). With `tied`, token embedding and output
    /// head become one unit.
    pub fn new(
        architecture: Option<&str>,
        tied: bool,
        tensors: impl IntoIterator<Item = (String, Vec<u64>)>,
    ) -> Self {
        let mut modules: BTreeMap<String, Vec<(String, Vec<u64>)>> = BTreeMap::new();
        let tensors: Vec<_> = tensors.into_iter().collect();
        let embedding = tensors.iter().find(|(name, _)| Place::of(name).is_token_embedding());
        let tied_to = embedding.filter(|_| tied).map(|(name, _)| module_of(name).to_owned());
        for (name, shape) in tensors {
            let place = Place::of(&name);
            let joins = place.category == Category::LmHead || place.is_token_embedding();
            let module = match &tied_to {
                Some(embedding) if joins => embedding.clone(),
                _ => module_of(&name).to_owned(),
            };
            modules.entry(module).or_default().push((name, shape));
        }
        let mut units: Vec<Unit> = modules.into_iter().map(|(name, tensors)| unit(name, tensors)).collect();
        units.sort_by(|a, b| natural_order(&a.name, &b.name));
        let names = units.iter().enumerate().flat_map(|(i, u)| u.tensors.iter().map(move |t| (t.clone(), i)));
        Self { architecture: architecture.map(str::to_owned), tied, unit_of: names.collect(), units }
    }

    /// The inventory of an open checkpoint.
    pub fn of(checkpoint: &Checkpoint) -> Self {
        let architecture = checkpoint.config().and_then(Config::architecture);
        let tensors = checkpoint.tensors().map(|t| (t.info.name.clone(), t.info.shape.clone()));
        Self::new(architecture, checkpoint.tied(), tensors)
    }

    /// The units, in natural order.
    pub fn units(&self) -> &[Unit] {
        &self.units
    }

    /// The unit that holds a tensor.
    pub fn unit_of(&self, tensor: &str) -> Option<&Unit> {
        self.unit_of.get(tensor).map(|i| &self.units[*i])
    }

    /// All tensor names, in natural order.
    pub fn tensor_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.unit_of.keys().map(String::as_str).collect();
        names.sort_by(|a, b| natural_order(a, b));
        names
    }

    /// Number of tensors.
    pub fn tensors(&self) -> usize {
        self.unit_of.len()
    }

    /// Elements of all tensors; a tied head counts once.
    pub fn parameters(&self) -> u64 {
        self.units.iter().map(|unit| unit.parameters).fold(0, u64::saturating_add)
    }

    /// `architectures[0]` of the configuration.
    pub fn architecture(&self) -> Option<&str> {
        self.architecture.as_deref()
    }

    /// Whether token embedding and output head are one.
    pub fn tied(&self) -> bool {
        self.tied
    }

    /// Tensors whose names do not tell their category.
    pub fn other_names(&self) -> Vec<&str> {
        let other = self.units.iter().filter(|unit| unit.place.category == Category::Other);
        other.flat_map(|unit| unit.tensors.iter().map(String::as_str)).collect()
    }
}

fn unit(name: String, mut tensors: Vec<(String, Vec<u64>)>) -> Unit {
    tensors.sort_by(|a, b| natural_order(&a.0, &b.0));
    let embedding = tensors.iter().find(|(name, _)| Place::of(name).is_token_embedding()).cloned();
    let aliases = |(name, shape): &&(String, Vec<u64>)| {
        embedding.as_ref().is_some_and(|(first, its)| first != name && its == shape)
    };
    // A hostile shape may have passed as a type of unknown size: saturate, do not overflow.
    let elements = |shape: &[u64]| shape.iter().fold(1u64, |n, d| n.saturating_mul(*d));
    let counted = tensors.iter().filter(|tensor| !aliases(tensor));
    let parameters = counted.map(|(_, shape)| elements(shape)).fold(0u64, u64::saturating_add);
    let first = embedding.as_ref().unwrap_or(&tensors[0]);
    Unit {
        place: Place::of(&first.0),
        name,
        parameters,
        tensors: tensors.into_iter().map(|(name, _)| name).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(tied: bool) -> Inventory {
        let tensors = [
            ("lm_head.weight", vec![8, 4]),
            ("model.embed_tokens.weight", vec![8, 4]),
            ("model.layers.0.self_attn.q_proj.bias", vec![4]),
            ("model.layers.0.self_attn.q_proj.weight", vec![4, 4]),
        ];
        Inventory::new(None, tied, tensors.map(|(n, s)| (n.to_owned(), s)))
    }

    #[test]
    fn a_bias_goes_with_its_matrix() {
        let inventory = inventory(false);
        assert_eq!(inventory.units().len(), 3);
        let unit = inventory.unit_of("model.layers.0.self_attn.q_proj.bias").unwrap();
        assert_eq!((unit.tensors.len(), unit.parameters), (2, 20));
        assert_eq!(inventory.parameters(), 32 + 32 + 20);
    }

    #[test]
    fn a_tied_head_is_one_unit_with_its_embedding_and_counts_once() {
        let inventory = inventory(true);
        assert_eq!(inventory.units().len(), 2);
        let unit = inventory.unit_of("lm_head.weight").unwrap();
        assert_eq!(unit.tensors, ["lm_head.weight", "model.embed_tokens.weight"]);
        assert_eq!((unit.place.category, unit.parameters), (Category::Embedding, 32));
    }
}
