//! The meaning of tensor names, against the module trees of transformers (fixtures/names).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::fixture;
use hft_surgery::plan::{Category, Inventory, TensorName, module_of};

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
        let parsed = TensorName::of(name);
        let layer = parsed.layer.map_or("-".to_owned(), |layer| layer.to_string());
        [layer, parsed.category.to_string(), parsed.projection]
    };
    let wrong = goldens.iter().filter_map(|[family, name, expected @ ..]| {
        let got = read(name);
        // A label may say more or less of the path than a family needs, as long as it tells modules apart,
        // which is the next test: `gate_proj` of Llama and of Afmoe have one name, but only Afmoe has two.
        let label = is_end_of(&got[2], &expected[2]) || is_end_of(&expected[2], &got[2]);
        let right = got[..2] == expected[..2] && label;
        (!right).then(|| format!("{family}: {name}: got {}, expected {}", got.join(" "), expected.join(" ")))
    });
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}

/// Whether `end` is the last components of `path`, or all of them.
fn is_end_of(path: &str, end: &str) -> bool {
    path == end || path.ends_with(&format!(".{end}"))
}

/// In a block, a label stands for one module, or for one per expert.
#[test]
fn labels_tell_modules_apart() {
    let mut modules: BTreeMap<(String, Module), BTreeSet<String>> = BTreeMap::new();
    for [family, name, ..] in goldens() {
        let parsed = TensorName::of(&name);
        if let Some(layer) = parsed.layer {
            let key = (parsed.stack, layer, parsed.group, parsed.projection);
            // Mixtral's experts have a second name in memory.
            let module = module_of(&name).replace("block_sparse_moe", "mlp");
            modules.entry((family, key)).or_default().insert(module);
        }
    }
    let shared: Vec<_> = modules.iter().filter(|(_, modules)| modules.len() > 1).collect();
    assert!(shared.is_empty(), "{shared:#?}");
}

/// (stack, layer, group, projection).
type Module = (String, u32, String, String);

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
        ("h.0.attn.bias", Some(0), Category::Other, "attn.bias"),
        ("gpt_neox.layers.3.attention.masked_bias", Some(3), Category::Other, "attention.masked_bias"),
        ("h.2.attn.attention.bias", Some(2), Category::Other, "attn.attention.bias"),
        (
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            Some(0),
            Category::Other,
            "self_attn.rotary_emb.inv_freq",
        ),
        ("model.layers.1.mlp.gate_proj.qweight", Some(1), Category::Mlp, "gate_proj"),
        ("model.layers.1.mlp.experts.7.gate_proj.weight_scale_inv", Some(1), Category::Mlp, "gate_proj"),
        ("model.layers.0.self_attn.k_proj.k_scale", Some(0), Category::Attention, "k_proj"),
        ("model.layers.0.self_attn.k_scale", Some(0), Category::Other, "k_scale"),
        ("model.layers.61.eh_proj.weight", Some(61), Category::Other, "eh_proj"),
        ("model.layers.61.enorm.weight", Some(61), Category::Norm, "enorm"),
        ("model.layers.61.hnorm.weight", Some(61), Category::Norm, "hnorm"),
        ("model.layers.61.shared_head.head.weight", Some(61), Category::LmHead, "shared_head.head"),
        ("model.layers.61.shared_head.norm.weight", Some(61), Category::Norm, "shared_head.norm"),
        ("model.layers.61.embed_tokens.weight", Some(61), Category::Embedding, "embed_tokens"),
        ("backbone.layers.5.mixer.q_proj.weight", Some(5), Category::Attention, "mixer.q_proj"),
        ("backbone.layers.1.mixer.gate.weight", Some(1), Category::Mlp, "mixer.gate"),
        (
            "bert.encoder.layer.0.crossattention.self.key.bias",
            Some(0),
            Category::Attention,
            "crossattention.self.key",
        ),
        ("model.transformer.blocks.0.ff_proj.weight", Some(0), Category::Mlp, "ff_proj"),
        ("visual.merger.mlp.0.weight", None, Category::Other, "mlp.0"),
        ("output.weight", None, Category::LmHead, "output"),
        ("transformer.output_layer.weight", None, Category::LmHead, "output_layer"),
        ("electra.embeddings_project.weight", None, Category::Other, "embeddings_project"),
        ("model.layers.+5.mlp.gate_proj.weight", None, Category::Other, "gate_proj"),
        ("a.strange.name", None, Category::Other, "name"),
        ("", None, Category::Other, ""),
        (".weight", None, Category::Other, "weight"),
    ];
    for (name, layer, category, projection) in cases {
        let parsed = TensorName::of(name);
        assert_eq!(
            (parsed.layer, parsed.category, parsed.projection.as_str()),
            (layer, category, projection),
            "{name}"
        );
    }
}

/// Every part of a module, in the names of the libraries that store it so, is in the unit of its matrix.
#[test]
fn quantised_and_adapted_parts_stay_with_their_module() {
    let linear = "model.layers.0.mlp.down_proj";
    let parts = [
        // GPTQ and AWQ.
        "qweight qzeros scales g_idx",
        // FP8, NVFP4 and compressed-tensors.
        "weight_scale weight_scale_inv weight_scale_2 weight_packed weight_shape weight_global_scale",
        "weight_zero_point weight_g_idx input_scale input_global_scale input_zero_point output_scale",
        // bitsandbytes.
        "SCB weight_format weight.absmax weight.quant_map weight.nested_absmax weight.nested_quant_map",
        "weight.quant_state.bitsandbytes__nf4",
        // quanto.
        "weight._data weight._scale",
        // PEFT.
        "base_layer.weight lora_A.weight lora_B.default.weight lora_magnitude_vector ia3_l",
        "modules_to_save.default.weight original_module.weight",
        // torch.
        "weight bias parametrizations.weight.original0",
    ];
    let names = parts.iter().flat_map(|parts| parts.split(' ')).map(|part| format!("{linear}.{part}"));
    let apart: Vec<String> = names.filter(|name| module_of(name) != linear).collect();
    assert!(apart.is_empty(), "{apart:#?}");
    let fused = "model.layers.0.mlp.experts.gate_up_proj";
    for ending in
        ["", "_bias", "_blocks", "_scales", "_scale", "_scale_inv", "_weight_scale", ".weight_scale"]
    {
        assert_eq!(module_of(&format!("{fused}{ending}")), fused);
    }
}

/// A buffer is alone, whatever stands beside it, and a second weight is a matrix of its own.
#[test]
fn buffers_are_never_grouped_with_a_parameter() {
    let block = "transformer.h.0";
    let buffers = ["attn.bias", "attn.masked_bias", "attn.rotary_emb.inv_freq", "mlp.gate.tid2eid"];
    let others = ["attn.c_attn.weight", "attn.c_attn.bias", "mlp.gate.weight", "mlp.gate.weight_1"];
    let names = buffers.iter().chain(&others).map(|name| (format!("{block}.{name}"), vec![2]));
    let inventory = Inventory::new(None, false, names);
    for buffer in buffers {
        let unit = inventory.unit_of(&format!("{block}.{buffer}")).unwrap();
        assert_eq!((unit.tensors.len(), unit.tensor_name.category), (1, Category::Other), "{buffer}");
    }
    assert_eq!(inventory.units().len(), buffers.len() + 3);
}
