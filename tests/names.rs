//! What tensor names mean, against the module trees of transformers (fixtures/names).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::fixture;
use hft_surgery::plan::{Category, Inventory, Place, module_of};

/// (family, name, layer, category, projection) of every golden line.
fn goldens() -> Vec<[String; 5]> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(fixture("names")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "txt") {
            let family = path.file_stem().unwrap().to_string_lossy().into_owned();
            for line in std::fs::read_to_string(&path).unwrap().lines() {
                let [name, layer, category, projection] = line.split('\t').collect::<Vec<_>>()[..] else {
                    panic!("{family}: {line}");
                };
                all.push([&family, name, layer, category, projection].map(str::to_owned));
            }
        }
    }
    all.sort();
    all
}

#[test]
fn every_family_reads_as_its_module_tree() {
    let goldens = goldens();
    assert!(goldens.len() > 1000);
    let read = |name: &str| {
        let place = Place::of(name);
        let layer = place.layer.map_or("-".to_owned(), |layer| layer.to_string());
        [layer, place.category.to_string(), place.projection]
    };
    let wrong = goldens.iter().filter_map(|[family, name, expected @ ..]| {
        let got = read(name);
        // A label may say more than it must, as long as it tells modules apart.
        let label = got[2] == expected[2] || got[2].ends_with(&format!(".{}", expected[2]));
        let right = got[..2] == expected[..2] && label;
        (!right).then(|| format!("{family}: {name}: got {}, expected {}", got.join(" "), expected.join(" ")))
    });
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}

/// In a block, a label stands for one module, or for one per expert.
#[test]
fn labels_tell_modules_apart() {
    let mut modules: BTreeMap<(String, Place2), BTreeSet<String>> = BTreeMap::new();
    for [family, name, ..] in goldens() {
        let place = Place::of(&name);
        if let Some(layer) = place.layer {
            let key = (place.stack, layer, place.group, place.projection);
            // Mixtral's experts have a second name in memory.
            let module = module_of(&name).replace("block_sparse_moe", "mlp");
            modules.entry((family, key)).or_default().insert(module);
        }
    }
    let shared: Vec<_> = modules.iter().filter(|(_, modules)| modules.len() > 1).collect();
    assert!(shared.is_empty(), "{shared:#?}");
}

type Place2 = (String, u32, String, String);

#[test]
fn every_tensor_is_in_one_unit_and_a_bias_is_in_that_of_its_weight() {
    let mut families: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for [family, name, ..] in goldens() {
        families.entry(family).or_default().push(name);
    }
    for (family, names) in families {
        let inventory = Inventory::new(None, false, names.iter().map(|name| (name.clone(), vec![2, 2])));
        let held: Vec<&String> = inventory.units().iter().flat_map(|unit| &unit.tensors).collect();
        assert_eq!(held.len(), names.len(), "{family}");
        assert_eq!(held.iter().collect::<BTreeSet<_>>().len(), names.len(), "{family}");
        for name in &names {
            let weight = name.strip_suffix(".bias").map(|module| format!("{module}.weight"));
            if let Some(weight) = weight.filter(|weight| names.contains(weight)) {
                let unit = |name: &str| inventory.unit_of(name).map(|unit| unit.name.clone());
                assert_eq!(unit(name), unit(&weight), "{family}");
            }
        }
    }
}

/// Names that no model of transformers has in memory, but checkpoints do.
#[test]
fn stored_forms_are_known_too() {
    let cases = [
        ("h.0.attn.bias", Some(0), Category::Other, "bias"),
        ("gpt_neox.layers.3.attention.masked_bias", Some(3), Category::Other, "masked_bias"),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", Some(0), Category::Other, "inv_freq"),
        ("model.layers.1.mlp.gate_proj.qweight", Some(1), Category::Mlp, "gate_proj"),
        ("model.layers.1.mlp.experts.7.gate_proj.weight_scale_inv", Some(1), Category::Mlp, "gate_proj"),
        (
            "base_model.model.model.layers.4.self_attn.q_proj.lora_A.weight",
            Some(4),
            Category::Attention,
            "q_proj",
        ),
        ("model.layers.61.eh_proj.weight", Some(61), Category::Other, "eh_proj"),
        ("model.layers.61.enorm.weight", Some(61), Category::Norm, "enorm"),
        ("model.layers.61.shared_head.head.weight", Some(61), Category::LmHead, "head"),
        ("model.layers.61.shared_head.norm.weight", Some(61), Category::Norm, "norm"),
        ("model.layers.61.embed_tokens.weight", Some(61), Category::Embedding, "embed_tokens"),
        ("visual.merger.mlp.0.weight", None, Category::Other, "mlp.0"),
        ("output.weight", None, Category::LmHead, "output"),
        ("a.strange.name", None, Category::Other, "name"),
    ];
    for (name, layer, category, projection) in cases {
        let place = Place::of(name);
        assert_eq!(
            (place.layer, place.category, place.projection.as_str()),
            (layer, category, projection),
            "{name}"
        );
    }
}
