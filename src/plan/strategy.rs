//! Which units of a pool a strategy draws.
//!
//! Source of the rule by category: HFT, Hui et al. 2024, arXiv:2404.18466, section 3 and figure 2.

use std::collections::BTreeMap;

use super::draw::Draw;
use super::inventory::Unit;
use super::selection::{Balance, Selection, Strategy};
use super::tensor_name::Category;
use super::{quota, subset_sum};

/// Draws from `pool`: every unit's name, and whether it is trainable.
pub(super) fn draw<'a>(selection: &Selection, pool: &[&'a Unit]) -> Vec<(&'a str, bool)> {
    let Selection { seed, round, ratio, balance, .. } = *selection;
    let draw = Draw { seed, round, ratio };
    match selection.strategy {
        Strategy::Category => by_category(&draw, balance, pool),
        Strategy::Layer => by_layer(&draw, balance, pool),
        Strategy::Model => by_unit(&draw, balance, "model", pool),
        Strategy::RandomTensor => {
            pool.iter().map(|unit| (unit.name.as_str(), draw.bernoulli(&unit.name))).collect()
        }
        Strategy::Explicit => Vec::new(),
    }
}

/// Marks a share of `names`, which have `sizes`. `label` keeps the random numbers of different pools apart.
fn share(draw: &Draw, balance: Balance, label: &str, names: &[&str], sizes: &[u64]) -> Vec<bool> {
    match balance {
        Balance::Count => quota::lowest(draw, names, quota::total(draw, label, names.len() as u64)),
        Balance::Params => subset_sum::closest(draw, label, names, sizes),
    }
}

/// Draws the share from one pool, unit by unit.
fn by_unit<'a>(draw: &Draw, balance: Balance, label: &str, pool: &[&'a Unit]) -> Vec<(&'a str, bool)> {
    let names: Vec<&str> = pool.iter().map(|unit| unit.name.as_str()).collect();
    let sizes: Vec<u64> = pool.iter().map(|unit| unit.parameters).collect();
    let chosen = share(draw, balance, label, &names, &sizes);
    names.into_iter().zip(chosen).collect()
}

/// Draws whole blocks; each unit outside of blocks has a Bernoulli draw of its own.
fn by_layer<'a>(draw: &Draw, balance: Balance, pool: &[&'a Unit]) -> Vec<(&'a str, bool)> {
    let mut blocks: BTreeMap<String, Vec<&'a Unit>> = BTreeMap::new();
    let mut out = Vec::new();
    for unit in pool {
        match unit.tensor_name.layer {
            Some(layer) => {
                blocks.entry(format!("{}.{layer}", unit.tensor_name.stack)).or_default().push(unit)
            }
            None => out.push((unit.name.as_str(), draw.bernoulli(&unit.name))),
        }
    }
    let names: Vec<&str> = blocks.keys().map(String::as_str).collect();
    let sizes: Vec<u64> = blocks.values().map(|units| units.iter().map(|u| u.parameters).sum()).collect();
    let chosen = share(draw, balance, "layer", &names, &sizes);
    for (units, chosen) in blocks.values().zip(chosen) {
        out.extend(units.iter().map(|unit| (unit.name.as_str(), chosen)));
    }
    out
}

/// Draws from every category of `pool` on its own.
///
/// By count, each group of a block (its attention, its MLP or one expert, its norms) has its quota. By
/// parameters, the share is taken over all blocks of the category. Embeddings, heads and norms outside of
/// blocks have no group: each has a Bernoulli draw with the probability of the ratio.
fn by_category<'a>(draw: &Draw, balance: Balance, pool: &[&'a Unit]) -> Vec<(&'a str, bool)> {
    let mut categories: BTreeMap<Category, Vec<&'a Unit>> = BTreeMap::new();
    let mut out = Vec::new();
    for unit in pool {
        if is_outside_groups(unit) {
            out.push((unit.name.as_str(), draw.bernoulli(&unit.name)));
        } else {
            categories.entry(unit.tensor_name.category).or_default().push(unit);
        }
    }
    for (category, units) in categories {
        let label = category.to_string();
        out.extend(match balance {
            Balance::Count => by_group(draw, &label, &units),
            Balance::Params => by_unit(draw, balance, &label, &units),
        });
    }
    out
}

/// Embeddings, heads and norms outside of blocks.
fn is_outside_groups(unit: &Unit) -> bool {
    match unit.tensor_name.category {
        Category::Embedding | Category::LmHead => true,
        Category::Norm => unit.tensor_name.layer.is_none(),
        Category::Attention | Category::Mlp | Category::Other => false,
    }
}

/// Gives each group of a block its quota.
fn by_group<'a>(draw: &Draw, label: &str, units: &[&'a Unit]) -> Vec<(&'a str, bool)> {
    let mut groups: BTreeMap<String, Vec<&'a str>> = BTreeMap::new();
    for unit in units {
        let name = &unit.tensor_name;
        let layer = name.layer.map_or_else(String::new, |layer| layer.to_string());
        let group = format!("{}.{layer}.{}", name.stack, name.group);
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
