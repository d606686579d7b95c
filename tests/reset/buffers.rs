//! Buffers are in no draw, are frozen in every plan, and stay what the tuned side has.

use serde_json::Value;

use crate::common::{Tensor, counted, ok, path, read_tensors, tensor, write_checkpoint};

/// Buffers of GPT-2, Llama and GPT-NeoX as their classes of transformers saved them.
const BUFFERS: [&str; 5] = [
    "transformer.h.0.attn.bias",
    "transformer.h.0.attn.masked_bias",
    "transformer.h.0.attn.rotary_emb.inv_freq",
    "transformer.h.1.attn.bias",
    "transformer.position_ids",
];
const WEIGHTS: [&str; 4] = [
    "transformer.h.0.attn.c_attn.bias",
    "transformer.h.0.attn.c_attn.weight",
    "transformer.h.0.mlp.c_fc.weight",
    "transformer.h.1.mlp.c_fc.weight",
];

fn side(first: u16, positions: u64) -> Vec<Tensor> {
    let mut all: Vec<Tensor> = WEIGHTS.iter().map(|name| counted(name, &[4], first)).collect();
    for name in BUFFERS {
        let bytes = vec![first as u8; positions as usize];
        all.push(tensor(name, "U8", &[1, 1, positions], bytes));
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

#[test]
fn buffers_are_never_drawn_and_always_carried() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // The tuned side has a longer context.
    let (base, tuned) = (side(0x3c01, 2), side(0x3c82, 3));
    write_checkpoint(&at("base"), &base, 1, "{}");
    write_checkpoint(&at("tuned"), &tuned, 1, "{}");
    for options in [
        &["--ratio", "1"][..],
        &["--ratio", "0.5", "--granularity", "element"],
        &["--ratio", "0.5", "--strategy", "random-tensor", "--seed", "3"],
        &["--strategy", "explicit", "--freeze", "*"],
    ] {
        let (from, to, out) = (at("base"), at("tuned"), at("out"));
        let sides = ["reset", "--base", path(&from), "--tuned", path(&to), "--out", path(&out)];
        ok(&[&sides[..], &["--force", "--json"], options].concat());
        let found = read_tensors(&out);
        for buffer in tuned.iter().filter(|t| BUFFERS.contains(&t.name.as_str())) {
            assert_eq!(found[&buffer.name], buffer.bytes, "{options:?}: {}", buffer.name);
        }
    }
    for options in [&["--ratio", "1"][..], &["--train", "*"], &["--ratio", "0.5", "--granularity", "row"]] {
        ok(&[&["plan", path(&at("tuned")), "--out", path(&at("plan.json")), "--force"], options].concat());
        let plan: Value = serde_json::from_slice(&std::fs::read(at("plan.json")).unwrap()).unwrap();
        for name in BUFFERS {
            assert!(plan["frozen"].as_array().unwrap().contains(&name.into()), "{options:?}: {name}");
        }
        for name in WEIGHTS.iter().filter(|_| options[1] != "0.5") {
            assert!(plan["trainable"].as_array().unwrap().contains(&(*name).into()), "{options:?}: {name}");
        }
    }
}

#[test]
fn a_side_may_lack_its_buffers() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let without = |side: Vec<Tensor>| -> Vec<Tensor> {
        side.into_iter().filter(|t| WEIGHTS.contains(&t.name.as_str())).collect()
    };
    write_checkpoint(&at("base"), &side(0x3c01, 2), 1, "{}");
    write_checkpoint(&at("bare"), &without(side(0x3c82, 2)), 1, "{}");
    for (base, tuned) in [("base", "bare"), ("bare", "base")] {
        let sides = ["--base", path(&at(base)), "--tuned", path(&at(tuned))].map(str::to_owned);
        let sides: Vec<&str> = sides.iter().map(String::as_str).collect();
        let out = at(&format!("out-{tuned}"));
        ok(&[&["reset"][..], &sides, &["--out", path(&out), "--ratio", "1"]].concat());
        let (found, expected) = (read_tensors(&out), read_tensors(&at(base)));
        assert!(found.keys().eq(read_tensors(&at(tuned)).keys()));
        assert!(WEIGHTS.iter().all(|name| found[*name] == expected[*name]));
    }
}

/// A merge computes no buffer: it is that of the base.
#[test]
fn a_merge_takes_the_buffers_of_its_base() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let names = ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.self_attn.q_proj.weight"];
    for (name, first) in [("base", 0x3c00), ("one", 0x3d00), ("two", 0x3e00)] {
        let tensors: Vec<Tensor> = names.iter().map(|name| counted(name, &[2, 2], first)).collect();
        // One model has no buffers, as transformers 5 saves none.
        write_checkpoint(&at(name), &tensors[usize::from(name == "two")..], 1, "{}");
    }
    let [base, one, two] = ["base", "one", "two"].map(at);
    let recipe = format!(
        "merge_method: task_arithmetic\nbase_model: {}\nparameters: {{weight: 0.5}}\nmodels: [{{model: {}}}, {{model: {}}}]\n",
        path(&base),
        path(&one),
        path(&two)
    );
    std::fs::write(at("recipe.yml"), recipe).unwrap();
    ok(&["merge", path(&at("recipe.yml")), "--out", path(&at("out"))]);
    let (found, base) = (read_tensors(&at("out")), read_tensors(&base));
    assert_eq!(found[names[0]], base[names[0]]);
    assert_ne!(found[names[1]], base[names[1]]);
}
