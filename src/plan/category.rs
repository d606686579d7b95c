//! The paper's rule: the share of each category within every block.
//!
//! Source: HFT, Hui et al. 2024, arXiv:2404.18466, section 3 and figure 2.

use std::collections::BTreeMap;

use super::select::{Balance, Draw, choose};
use super::tensor_name::Category;
use super::{Unit, quota};

/// Draws from every category of `pool` on its own.
///
/// By count, each group of a block (its attention, its MLP or one expert, its norms) has its quota. By
/// parameters, the share is taken over all blocks of the category. Embeddings, heads and norms outside of
/// blocks are lone matrices, drawn with the probability of the ratio.
pub(super) fn draw<'a>(draw: &Draw, pool: &[&'a Unit]) -> Vec<(&'a str, bool)> {
    let mut categories: BTreeMap<Category, Vec<&'a Unit>> = BTreeMap::new();
    let mut out = Vec::new();
    for unit in pool {
        if is_lone(unit) {
            out.push((unit.name.as_str(), draw.lone(&unit.name)));
        } else {
            categories.entry(unit.place.category).or_default().push(unit);
        }
    }
    for (category, units) in categories {
        let label = category.to_string();
        out.extend(match draw.balance {
            Balance::Count => by_group(draw, &label, &units),
            Balance::Params => choose(draw, &label, &units),
        });
    }
    out
}

fn is_lone(unit: &Unit) -> bool {
    match unit.place.category {
        Category::Embedding | Category::LmHead => true,
        Category::Norm => unit.place.layer.is_none(),
        Category::Attention | Category::Mlp | Category::Other => false,
    }
}

fn by_group<'a>(draw: &Draw, label: &str, units: &[&'a Unit]) -> Vec<(&'a str, bool)> {
    let mut groups: BTreeMap<String, Vec<&'a str>> = BTreeMap::new();
    for unit in units {
        let place = &unit.place;
        let layer = place.layer.map_or_else(String::new, |layer| layer.to_string());
        let group = format!("{}.{layer}.{}", place.stack, place.group);
        groups.entry(group).or_default().push(&unit.name);
    }
    let names: Vec<String> = groups.keys().cloned().collect();
    let sizes: Vec<u64> = groups.values().map(|units| units.len() as u64).collect();
    let quotas = quota::divide(draw, label, &names, &sizes);
    let mut out = Vec::with_capacity(units.len());
    for (members, quota) in groups.into_values().zip(quotas) {
        let chosen = quota::lowest(draw, &members, quota);
        out.extend(members.into_iter().zip(chosen));
    }
    out
}
