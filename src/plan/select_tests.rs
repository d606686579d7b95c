//! Counts by closed forms, over every depth and many ratios.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::plan::{Category, Granularity, Selector};
use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

fn llama(layers: u32, tied: bool) -> Inventory {
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![100, 8]),
        ("model.norm.weight".to_owned(), vec![8]),
    ];
    tensors.push(("lm_head.weight".to_owned(), vec![100, 8]));
    for i in 0..layers {
        let mut add = |name: &str, shape: &[u64]| {
            tensors.push((format!("model.layers.{i}.{name}.weight"), shape.to_vec()))
        };
        add("self_attn.q_proj", &[8, 8]);
        add("self_attn.k_proj", &[2, 8]);
        add("self_attn.v_proj", &[2, 8]);
        add("self_attn.o_proj", &[8, 8]);
        add("mlp.gate_proj", &[22, 8]);
        add("mlp.up_proj", &[22, 8]);
        add("mlp.down_proj", &[8, 22]);
        add("input_layernorm", &[8]);
        add("post_attention_layernorm", &[8]);
    }
    Inventory::new(Some("LlamaForCausalLM"), tied, tensors)
}

/// The message with which a selection is refused.
fn refusal(inventory: &Inventory, selection: &Selection) -> String {
    select(inventory, selection).unwrap_err().to_string()
}

/// Trainable units of a category in each block.
fn per_block(inventory: &Inventory, plan: &Plan, category: Category) -> Vec<u64> {
    let mut blocks: BTreeMap<u32, u64> = BTreeMap::new();
    for unit in inventory.units().iter().filter(|u| u.tensor_name.category == category) {
        if let Some(layer) = unit.tensor_name.layer {
            *blocks.entry(layer).or_default() += u64::from(plan.is_trainable(&unit.tensors[0]) == Some(true));
        }
    }
    blocks.into_values().collect()
}

#[test]
fn the_paper_half_of_llama_2_7b() {
    let inventory = llama(32, false);
    let plan = select(&inventory, &Selection::default()).unwrap();
    assert_eq!(per_block(&inventory, &plan, Category::Attention), vec![2; 32]);
    assert_eq!(per_block(&inventory, &plan, Category::Norm), vec![1; 32]);
    let mlp = per_block(&inventory, &plan, Category::Mlp);
    assert_eq!((mlp.iter().filter(|n| **n == 1).count(), mlp.iter().filter(|n| **n == 2).count()), (16, 16));
    assert_eq!(plan.is_trainable("model.embed_tokens.weight"), Some(true));
    assert_eq!(plan.is_trainable("lm_head.weight"), Some(true));
}

#[test]
fn rounds_and_seeds_draw_anew_and_the_same_draw_is_the_same() {
    let inventory = llama(32, false);
    let at = |seed, round| select(&inventory, &Selection { seed, round, ..Selection::default() }).unwrap();
    assert_eq!(at(0, 0), at(0, 0));
    let trainable = |plan: Plan| plan.trainable().iter().cloned().collect::<BTreeSet<_>>();
    assert_ne!(trainable(at(0, 0)), trainable(at(0, 1)));
    assert_ne!(trainable(at(0, 0)), trainable(at(1, 0)));
}

#[test]
fn experts_are_drawn_one_by_one() {
    let mut tensors = Vec::new();
    for layer in 0..3 {
        let block = format!("model.layers.{layer}.block_sparse_moe");
        tensors.push((format!("{block}.gate.weight"), vec![4, 8]));
        for expert in 0..4 {
            tensors.extend(
                ["w1", "w2", "w3"].map(|w| (format!("{block}.experts.{expert}.{w}.weight"), vec![8, 8])),
            );
        }
    }
    let inventory = Inventory::new(None, false, tensors);
    let plan = select(&inventory, &Selection::default()).unwrap();
    let mut experts: BTreeMap<(Option<u32>, String), u64> = BTreeMap::new();
    for unit in inventory.units().iter().filter(|u| u.tensor_name.group.starts_with("experts.")) {
        let key = (unit.tensor_name.layer, unit.tensor_name.group.clone());
        *experts.entry(key).or_default() += u64::from(plan.is_trainable(&unit.tensors[0]) == Some(true));
    }
    assert_eq!(experts.len(), 12);
    assert!(experts.values().all(|n| *n == 1 || *n == 2), "{experts:?}");
    // 39 matrices: the nearest whole numbers to half are 19 and 20.
    assert!([19, 20].contains(&plan.trainable().len()));
}

#[test]
fn globs_force_and_contradictions_are_named() {
    let inventory = llama(4, true);
    let globs = |train: &[&str], freeze: &[&str]| Selection {
        train: train.iter().map(|s| (*s).to_owned()).collect(),
        freeze: freeze.iter().map(|s| (*s).to_owned()).collect(),
        ..Selection::default()
    };
    let plan = select(&inventory, &globs(&["*.q_proj.*"], &["lm_head.*"])).unwrap();
    assert!(
        (0..4).all(|i| plan.is_trainable(&format!("model.layers.{i}.self_attn.q_proj.weight")) == Some(true))
    );
    // The tied pair is one tensor.
    assert_eq!(plan.is_trainable("model.embed_tokens.weight"), Some(false));
    let error = select(&inventory, &globs(&["*embed*"], &["lm_head.*"])).unwrap_err().to_string();
    assert!(error.contains("`lm_head.weight`") && error.contains("`model.embed_tokens.weight`"), "{error}");
    let error = select(&inventory, &globs(&["model.layers.0.self_attn.qproj.weight"], &[])).unwrap_err();
    assert!(error.to_string().contains("matches no tensor"));
    assert_eq!(error.hint().as_deref(), Some("the nearest name is `model.layers.0.self_attn.q_proj.weight`"));
    let explicit = Selection { strategy: Strategy::Explicit, ..globs(&["model.layers.*.self_attn.*"], &[]) };
    assert_eq!(select(&inventory, &explicit).unwrap().trainable().len(), 16);
    let explicit = Selection { strategy: Strategy::Explicit, ..globs(&[], &["model.layers.*.self_attn.*"]) };
    assert_eq!(select(&inventory, &explicit).unwrap().frozen().len(), 16);
    let nothing = Selection { strategy: Strategy::Explicit, ..Selection::default() };
    assert_eq!(refusal(&inventory, &nothing), "the explicit strategy needs globs");
}

#[test]
fn balance_by_parameters_beats_the_count_under_gqa() {
    let inventory = llama(8, false);
    for strategy in [Strategy::Category, Strategy::Layer, Strategy::Model] {
        let selection = Selection { strategy, balance: Balance::Params, ..Selection::default() };
        let plan = select(&inventory, &selection).unwrap();
        let attention = inventory.units().iter().filter(|u| u.tensor_name.category == Category::Attention);
        if strategy == Strategy::Category {
            let on = attention.clone().filter(|u| plan.is_trainable(&u.tensors[0]) == Some(true));
            assert_eq!(
                on.map(|u| u.parameters).sum::<u64>() * 2,
                attention.map(|u| u.parameters).sum::<u64>()
            );
        }
        let shares = plan.shares().unwrap();
        assert!((shares.parameters - 0.5).abs() < 0.01, "{strategy:?} {shares:?}");
    }
}

#[test]
fn a_mask_covers_what_would_be_drawn() {
    let inventory = llama(2, false);
    let mask = Some((Granularity::Element, Selector::Bernoulli));
    let plan = select(&inventory, &Selection { mask, ratio: 0.3, ..Selection::default() }).unwrap();
    assert_eq!(plan.frozen().len(), 0);
    assert_eq!(plan.mask().map(|m| (m.ratio, m.tensors.len())), Some((0.3, 2 * 9 + 1)));
    assert!(plan.mask_of("lm_head.weight").is_none());
    let twice = plan.complement().unwrap().complement().unwrap();
    assert_eq!(twice.mask(), plan.mask());
}

#[test]
fn plan_algebra_is_set_algebra() {
    let inventory = llama(3, false);
    let at = |seed| select(&inventory, &Selection { seed, ..Selection::default() }).unwrap();
    let (a, b) = (at(1), at(2));
    let not_b = b.complement().unwrap();
    assert_eq!(a.difference(&b).unwrap().trainable(), a.intersect(&not_b).unwrap().trainable());
    let all = a.union(&a.complement().unwrap()).unwrap();
    assert_eq!((all.trainable().len(), all.frozen().len()), (inventory.tensors(), 0));
    let other = select(&llama(2, false), &Selection::default()).unwrap();
    assert!(a.union(&other).unwrap_err().to_string().contains("only in the first"));
}

#[test]
fn impossible_options_are_refused() {
    let inventory = llama(2, false);
    for ratio in [-0.1, 1.1, f64::NAN] {
        let fault = refusal(&inventory, &Selection { ratio, ..Selection::default() });
        assert_eq!(fault, format!("ratio out of range: got {ratio}, expected 0 to 1"));
    }
    for strategy in [Strategy::RandomTensor, Strategy::Explicit] {
        let selection = Selection { strategy, balance: Balance::Params, ..Selection::default() };
        let fault = refusal(&inventory, &selection);
        assert_eq!(fault, "a balance by parameters needs a quota; this strategy has none");
    }
}

#[test]
fn a_plan_for_another_model_names_what_does_not_fit() {
    let plan = select(&llama(2, false), &Selection::default()).unwrap();
    let error = plan.check_against(&llama(3, false)).unwrap_err().to_string();
    assert!(error.contains("`model.layers.2.mlp.down_proj.weight`: in the checkpoint"), "{error}");
    let error = plan.check_against(&llama(1, false)).unwrap_err().to_string();
    assert!(error.contains("`model.layers.1.mlp.down_proj.weight`: in the plan"), "{error}");
}

proptest! {
    /// For every depth and ratio: each block has the floor or the ceiling of its quota, and the category
    /// has the nearest whole number to its share.
    #[test]
    fn counts_are_exact_for_every_depth_and_ratio(layers in 1u32..81, percent in 0u32..101, seed in 0u64..1000, round in 0u32..5) {
        let inventory = llama(layers, false);
        let ratio = f64::from(percent) / 100.0;
        let plan = select(&inventory, &Selection { ratio, seed, round, ..Selection::default() }).unwrap();
        for (category, k) in [(Category::Attention, 4u64), (Category::Mlp, 3), (Category::Norm, 2)] {
            let counts = per_block(&inventory, &plan, category);
            // In hundredths, so that the bounds are whole numbers.
            let share = u64::from(percent) * k;
            prop_assert!(counts.iter().all(|n| n * 100 >= share / 100 * 100 && *n <= share.div_ceil(100)), "{counts:?}");
            let total: u64 = counts.iter().sum();
            let exact = share * u64::from(layers);
            prop_assert!((total * 100).abs_diff(exact) <= 50, "{category} {total} of {exact}/100");
        }
        prop_assert_eq!(plan.trainable().len() + plan.frozen().len(), inventory.tensors());
    }

    #[test]
    fn blocks_and_units_keep_their_quota_and_bernoulli_draws_their_limits(layers in 1u32..81, percent in 0u32..101, seed in 0u64..1000) {
        let inventory = llama(layers, false);
        let ratio = f64::from(percent) / 100.0;
        let at = |strategy| select(&inventory, &Selection { strategy, ratio, seed, ..Selection::default() }).unwrap();
        let layer = per_block(&inventory, &at(Strategy::Layer), Category::Attention);
        prop_assert!(layer.iter().all(|n| *n == 0 || *n == 4));
        prop_assert!((layer.iter().sum::<u64>() * 25).abs_diff(u64::from(percent * layers)) <= 50);
        let model = at(Strategy::Model).trainable().len() as u64 - 2;
        prop_assert!((model * 100).abs_diff(u64::from(percent * (layers * 9 + 1))) <= 50);
        let drawn = at(Strategy::RandomTensor).trainable().len() - 2;
        prop_assert!(percent > 0 || drawn == 0);
        prop_assert!(percent < 100 || drawn == (layers * 9 + 1) as usize);
    }

    /// A tied pair is never split, whatever is drawn.
    #[test]
    fn tied_pairs_stay_together(seed in 0u64..1000) {
        let inventory = llama(2, true);
        let plan = select(&inventory, &Selection { embeddings: Policy::Select, seed, ..Selection::default() }).unwrap();
        prop_assert_eq!(plan.is_trainable("lm_head.weight"), plan.is_trainable("model.embed_tokens.weight"));
        plan.check_against(&inventory).unwrap();
    }
}
