//! The tensors of a checkpoint, grouped into units that move together.

use std::collections::{HashMap, HashSet};

use super::tensor_name::{Category, TensorName, is_buffer, module_of};
use crate::checkpoint::{Checkpoint, Config, Quantization, natural_order};

/// A module: its matrix with bias and scales, or a tied pair of embedding and head.
#[derive(Debug, Clone)]
pub struct Unit {
    /// The module's name.
    pub name: String,
    /// The name of its matrix, parsed.
    pub tensor_name: TensorName,
    /// Its tensors, in natural order; never empty.
    pub tensors: Vec<String>,
    /// Elements of its tensors; a tied head counts once.
    pub parameters: u64,
    /// Saved with the model, but never trained: in no draw, and frozen in every plan.
    pub buffer: bool,
    /// Whether its weight is quantized: its tensors are one weight, and none of them is a number by itself.
    pub quantized: bool,
}

/// All tensors of a checkpoint, each in exactly one unit.
#[derive(Debug, Clone)]
pub struct Inventory {
    architecture: Option<String>,
    tied: bool,
    units: Vec<Unit>,
    /// (unit, position among its tensors), by natural order of the tensors' names.
    by_name: Vec<(u32, u32)>,
}

impl Inventory {
    /// Groups `tensors`, given in any order as (name, shape). With `tied`, token embedding and output
    /// head become one unit.
    pub fn new(
        architecture: Option<&str>,
        tied: bool,
        tensors: impl IntoIterator<Item = (String, Vec<u64>)>,
    ) -> Self {
        let tensors: Vec<_> = tensors.into_iter().collect();
        Self::grouped(architecture, tied, tensors, None)
    }

    fn grouped(
        architecture: Option<&str>,
        tied: bool,
        tensors: Vec<Shaped>,
        quantization: Option<&Quantization>,
    ) -> Self {
        let modules = modules(tensors, tied, quantization).into_iter();
        let mut units: Vec<Unit> = modules.map(|(name, tensors)| unit(name, tensors, quantization)).collect();
        units.sort_by(|a, b| natural_order(&a.name, &b.name));
        let positions =
            |(u, unit): (usize, &Unit)| (0..unit.tensors.len()).map(move |t| (u as u32, t as u32));
        let mut by_name: Vec<(u32, u32)> = units.iter().enumerate().flat_map(positions).collect();
        by_name.sort_by(|a, b| natural_order(named(&units, *a), named(&units, *b)));
        Self { architecture: architecture.map(str::to_owned), tied, by_name, units }
    }

    /// The inventory of an open checkpoint.
    pub fn of(checkpoint: &Checkpoint) -> Self {
        let architecture = checkpoint.config().and_then(Config::architecture);
        let tensors = checkpoint.tensors().map(|t| (t.info.name.clone(), t.info.shape.clone()));
        Self::grouped(architecture, checkpoint.tied(), tensors.collect(), checkpoint.quantization())
    }

    /// The units, in natural order.
    pub fn units(&self) -> &[Unit] {
        &self.units
    }

    /// The unit that holds a tensor.
    pub fn unit_of(&self, tensor: &str) -> Option<&Unit> {
        let order = |at: &(u32, u32)| natural_order(named(&self.units, *at), tensor);
        let found = self.by_name.binary_search_by(order).ok()?;
        Some(&self.units[self.by_name[found].0 as usize])
    }

    /// All tensor names, in natural order.
    pub fn tensor_names(&self) -> Vec<&str> {
        self.by_name.iter().map(|at| named(&self.units, *at)).collect()
    }

    /// Number of tensors.
    pub fn tensors(&self) -> usize {
        self.by_name.len()
    }

    /// Elements of all tensors; a tied head counts once.
    pub fn parameters(&self) -> u64 {
        self.units.iter().map(|unit| unit.parameters).fold(0, u64::saturating_add)
    }

    /// `architectures[0]` of the configuration.
    pub fn architecture(&self) -> Option<&str> {
        self.architecture.as_deref()
    }

    /// Whether token embedding and output head share their weights.
    pub fn tied(&self) -> bool {
        self.tied
    }

    /// Tensors whose names do not tell their category.
    pub fn other_names(&self) -> Vec<&str> {
        let other = self.units.iter().filter(|unit| unit.tensor_name.category == Category::Other);
        other.flat_map(|unit| unit.tensors.iter().map(String::as_str)).collect()
    }
}

fn named(units: &[Unit], (unit, tensor): (u32, u32)) -> &str {
    &units[unit as usize].tensors[tensor as usize]
}

/// A tensor's name and shape.
type Shaped = (String, Vec<u64>);

/// The tensors of each module; modules in the order of their first tensors.
fn modules(
    tensors: Vec<Shaped>,
    tied: bool,
    quantization: Option<&Quantization>,
) -> Vec<(String, Vec<Shaped>)> {
    let embeddings = tensors.iter().filter(|(name, _)| tied && TensorName::of(name).is_token_embedding());
    let embedding = embeddings.min_by(|a, b| natural_order(&a.0, &b.0));
    let tied_to = embedding.map(|(name, _)| module_of(name).to_owned());
    let joins = |name: &str| {
        let parsed = TensorName::of(name);
        parsed.category == Category::LmHead || parsed.is_token_embedding()
    };
    let weighted: HashSet<&str> =
        tensors.iter().filter_map(|(name, _)| name.strip_suffix(".weight")).collect();
    let module = |(name, _): &Shaped| match &tied_to {
        Some(embedding) if joins(name) => embedding.clone(),
        _ => quantization
            .and_then(|quantization| quantization.module_of(name))
            .unwrap_or_else(|| module_beside(name, &weighted))
            .to_owned(),
    };
    let names: Vec<String> = tensors.iter().map(module).collect();
    let mut at: HashMap<String, usize> = HashMap::with_capacity(names.len());
    let mut found: Vec<Vec<Shaped>> = Vec::new();
    for (module, tensor) in names.into_iter().zip(tensors) {
        let at = *at.entry(module).or_insert(found.len());
        if at == found.len() {
            found.push(vec![tensor]);
        } else {
            found[at].push(tensor);
        }
    }
    let mut named: Vec<(String, usize)> = at.into_iter().collect();
    named.sort_unstable_by_key(|(_, at)| *at);
    named.into_iter().zip(found).map(|((name, _), tensors)| (name, tensors)).collect()
}

/// The module of a tensor, among modules that have a weight: a `bias` beside the weight of a module that is
/// called `attention` is its bias, not a causal mask.
fn module_beside<'a>(name: &'a str, weighted: &HashSet<&str>) -> &'a str {
    let module = module_of(name);
    let own = name.strip_suffix(".bias").filter(|own| module == name && weighted.contains(own));
    own.unwrap_or(module)
}

fn unit(name: String, mut tensors: Vec<Shaped>, quantization: Option<&Quantization>) -> Unit {
    tensors.sort_by(|a, b| natural_order(&a.0, &b.0));
    // A tied unit has two tensors or more.
    let many = tensors.len() > 1;
    let embedding =
        tensors.iter().find(|(name, _)| many && TensorName::of(name).is_token_embedding()).cloned();
    let aliases = |(name, shape): &&(String, Vec<u64>)| {
        embedding.as_ref().is_some_and(|(first, its)| first != name && its == shape)
    };
    // A hostile shape may have passed as a type of unknown size: saturate, do not overflow.
    let elements = |shape: &[u64]| shape.iter().fold(1u64, |n, d| n.saturating_mul(*d));
    let counted = tensors.iter().filter(|tensor| !aliases(tensor));
    let parameters = counted.map(|(_, shape)| elements(shape)).fold(0u64, u64::saturating_add);
    let weight = tensors.iter().find(|(name, _)| name.ends_with(".weight"));
    let first = embedding.as_ref().or(weight).unwrap_or(&tensors[0]);
    let quantized = quantization.is_some_and(|found| tensors.iter().any(|(name, _)| found.covers(name)));
    let weight = format!("{name}.weight");
    let alone = embedding.is_none() && quantization.is_some_and(|found| found.module_of(&name).is_some());
    Unit {
        buffer: tensors.iter().all(|(name, _)| is_buffer(name)),
        tensor_name: TensorName::of(if alone { &weight } else { &first.0 }),
        quantized,
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
    fn a_bias_of_a_matrix_called_attention_is_no_mask() {
        let of =
            |names: &[&str]| Inventory::new(None, false, names.iter().map(|n| ((*n).to_owned(), vec![2])));
        let matrix = of(&["pooler.attention.bias", "pooler.attention.weight"]);
        assert_eq!(matrix.units().len(), 1);
        let mask = of(&["h.0.attn.bias", "h.0.attn.c_attn.bias", "h.0.attn.c_attn.weight"]);
        assert_eq!(mask.unit_of("h.0.attn.bias").unwrap().tensors, ["h.0.attn.bias"]);
        assert_eq!(mask.units().len(), 2);
    }

    #[test]
    fn counts_of_hostile_shapes_saturate() {
        let huge = ["a.weight", "b.weight"].map(|name| (name.to_owned(), vec![u64::MAX, 2]));
        assert_eq!(Inventory::new(None, false, huge).parameters(), u64::MAX);
    }

    #[test]
    fn only_embeddings_of_tokens_are_tied() {
        let names = ["lm_head", "model.embed_tokens", "model.embed_tokens_per_layer", "visual.pos_embed"];
        let tensors = names.map(|name| (format!("{name}.weight"), vec![8, 4]));
        assert_eq!(Inventory::new(None, true, tensors).units().len(), 3);
    }

    #[test]
    fn a_tied_head_is_one_unit_with_its_embedding_and_counts_once() {
        let inventory = inventory(true);
        assert_eq!(inventory.units().len(), 2);
        let unit = inventory.unit_of("lm_head.weight").unwrap();
        assert_eq!(unit.tensors, ["lm_head.weight", "model.embed_tokens.weight"]);
        assert_eq!((unit.tensor_name.category, unit.parameters), (Category::Embedding, 32));
    }
}
