//! One tensor under two spellings of its name, in every command that takes two checkpoints. The spellings are those of
//! `torch.compile`, data-parallel training, FSDP, a base model without its head, and transformers 4 and 5.

use std::path::Path;

use serde_json::Value;

use crate::common::{Tensor, counted, fails, ok, path, read_tensors, run, write_checkpoint};

const CONFIG: &str = r#"{"tie_word_embeddings": false}"#;
const SHAPES: [(&str, &[u64]); 5] = [
    ("embed_tokens.weight", &[8, 4]),
    ("layers.0.mlp.down_proj.weight", &[4, 12]),
    ("layers.0.self_attn.q_proj.weight", &[4, 4]),
    ("layers.1.self_attn.q_proj.weight", &[4, 4]),
    ("norm.weight", &[4]),
];
/// Prefixes of the model's tensors, in base and in tuned.
const SPELLINGS: [[&str; 2]; 8] = [
    ["model.", ""],
    ["", "model."],
    ["model.", "_orig_mod.model."],
    ["model.", "module.model."],
    ["module._orig_mod.model.", "model."],
    ["model.", "_fsdp_wrapped_module.model."],
    ["language_model.model.", "model.language_model."],
    ["model.language_model.", "language_model.model."],
];

fn side(prefix: &str, first: u16) -> Vec<Tensor> {
    SHAPES.iter().map(|(name, shape)| counted(&format!("{prefix}{name}"), shape, first)).collect()
}

fn with_plain_names(dir: &Path, prefix: &str) -> Vec<(String, Vec<u8>)> {
    let plain = |name: String| name.strip_prefix(prefix).unwrap().to_owned();
    read_tensors(dir).into_iter().map(|(name, bytes)| (plain(name), bytes)).collect()
}

#[test]
fn every_command_pairs_the_spellings_of_one_tensor() {
    for [of_base, of_tuned] in SPELLINGS {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (base, tuned) = (at("base"), at("tuned"));
        write_checkpoint(&base, &side(of_base, 0x3c00), 1, CONFIG);
        write_checkpoint(&tuned, &side(of_tuned, 0x3c80), 2, CONFIG);
        let sides = ["--base", path(&base), "--tuned", path(&tuned)];
        let of = |name: &str| with_plain_names(&at(name), of_tuned);

        // All returns: base bytes under the names of the tuned side.
        let all = ["--ratio", "1", "--embeddings", "select"];
        let said = run(&[&["reset"][..], &sides, &["--out", path(&at("all"))], &all].concat());
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        assert!(String::from_utf8_lossy(&said.stderr).contains("paired under two spellings"));
        assert_eq!(of("all"), with_plain_names(&base, of_base), "{of_base} {of_tuned}");

        // Against a base with the names of the tuned side, every result has the same bytes.
        let renamed = at("renamed");
        write_checkpoint(&renamed, &side(of_tuned, 0x3c00), 1, CONFIG);
        for (name, base) in [("half", &base), ("half-renamed", &renamed)] {
            let out = at(name);
            let sides = ["--base", path(base), "--tuned", path(&tuned), "--out", path(&out)];
            ok(&[&["reset"][..], &sides, &["--ratio", "0.5", "--granularity", "element"]].concat());
        }
        assert_eq!(of("half"), of("half-renamed"));
        let merge = |name: &str, base: &Path| {
            let recipe = format!(
                "merge_method: ties\nbase_model: {}\nmodels:\n  - model: {}\n    parameters: {{weight: 1.0, density: 0.5}}\n",
                path(&tuned),
                path(base)
            );
            std::fs::write(at("recipe.yml"), recipe).unwrap();
            ok(&["merge", path(&at("recipe.yml")), "--out", path(&at(name))]);
        };
        merge("merged", &base);
        merge("merged-renamed", &renamed);
        assert_eq!(of("merged"), of("merged-renamed"));

        // `diff` compares every tensor, under the name of b.
        let json = |a: &Path| -> Value {
            let found = run(&["diff", path(a), path(&tuned), "--json"]);
            assert_eq!(found.status.code(), Some(1));
            serde_json::from_slice(&found.stdout).unwrap()
        };
        let (found, plain) = (json(&base), json(&renamed));
        for (i, tensor) in found["tensors"].as_array().unwrap().iter().enumerate() {
            let mut tensor = tensor.clone();
            let other = tensor.as_object_mut().unwrap().remove("renamed").unwrap();
            assert!(other.as_str().unwrap().starts_with(of_base));
            assert_eq!(tensor, plain["tensors"][i]);
        }
        assert_eq!(found["tensors"].as_array().unwrap().len(), SHAPES.len());
        let same = run(&["diff", path(&base), path(&renamed)]);
        assert_eq!(same.status.code(), Some(1), "names differ");
        assert!(String::from_utf8_lossy(&same.stderr).contains("another spelling of their name"));
        ok(&["diff", path(&tuned), path(&tuned), "--base", path(&base)]);

        // A patch and an adapter carry the tuned side over.
        let patch = at("p.hftpatch");
        ok(&["patch", "create", path(&base), path(&tuned), "--out", path(&patch)]);
        ok(&["patch", "apply", path(&base), path(&patch), "--out", path(&at("patched"))]);
        assert_eq!(read_tensors(&at("patched")), read_tensors(&tuned));
        ok(&["lora", "extract", path(&base), path(&tuned), "--rank", "2", "--out", path(&at("adapter"))]);
        // PEFT puts an adapter on the base, and takes no other names.
        for name in read_tensors(&at("adapter")).keys() {
            let plain = name.strip_prefix(&format!("base_model.model.{of_base}"));
            let known = ["embed_tokens.", "layers.", "norm."];
            assert!(plain.is_some_and(|plain| known.iter().any(|at| plain.starts_with(at))), "{name}");
        }
    }
}

#[test]
fn what_has_two_twins_pairs_with_neither() {
    let dir = tempfile::tempdir().unwrap();
    let (base, tuned, out) = (dir.path().join("base"), dir.path().join("tuned"), dir.path().join("out"));
    write_checkpoint(&base, &side("model.", 0x3c00), 1, CONFIG);
    let both = [side("_orig_mod.model.", 0x3c80), side("module.model.", 0x3d00)].concat();
    write_checkpoint(&tuned, &both, 1, CONFIG);
    let sides = ["reset", "--base", path(&base), "--tuned", path(&tuned), "--out", path(&out)];
    for more in [&[][..], &["--on-missing", "keep-tuned"]] {
        let said = fails(&[&sides[..], more].concat());
        assert!(
            said.contains("fit several parts") && said.contains("`_orig_mod.model`, `module.model`"),
            "{said}"
        );
    }
    assert!(!out.exists());
}

/// Tensors without a base value stay, and are not reported as returned.
#[test]
fn only_what_returns_is_reported_as_returned() {
    let dir = tempfile::tempdir().unwrap();
    let (base, tuned) = (dir.path().join("base"), dir.path().join("tuned"));
    write_checkpoint(&base, &side("model.", 0x3c00)[4..], 1, CONFIG);
    write_checkpoint(&tuned, &side("model.", 0x3c80), 1, CONFIG);
    let sides = ["reset", "--base", path(&base), "--tuned", path(&tuned), "--dry-run", "--json"];
    let options = ["--on-missing", "keep-tuned", "--ratio", "1", "--embeddings", "select"];
    for more in [&[][..], &["--granularity", "row"]] {
        let found: Value = serde_json::from_str(&ok(&[&sides[..], &options, more].concat())).unwrap();
        // Only the norm of 4 elements has a base value.
        assert_eq!(found["total"]["parameters_chosen"], 4, "{found}");
    }
    // The plan's own shares are not those of the result.
    let table = ok(&[&sides[..6], &options].concat());
    assert!(!table.contains("of what was drawn"), "{table}");
}

/// Tensors that the reference of a merge lacks, and that two models spell in two ways, are one tensor each.
#[test]
fn a_merge_writes_a_tensor_once_where_only_two_models_have_it() {
    const TIED: &str = r#"{"tie_word_embeddings": true}"#;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write_checkpoint(&at("base"), &side("model.", 0x3c00), 1, TIED);
    let spelled = |head: &str, model: &str, first: u16| {
        let more = [
            counted(&format!("{head}lm_head.weight"), SHAPES[0].1, first),
            counted(&format!("{model}extra.weight"), &[4], first),
        ];
        [side(model, first), more.to_vec()].concat()
    };
    write_checkpoint(&at("one"), &spelled("_orig_mod.", "_orig_mod.model.", 0x3c80), 1, TIED);
    write_checkpoint(&at("two"), &spelled("module.", "module.model.", 0x3d00), 1, TIED);
    let [one, two] = ["one", "two"].map(|name| format!("{}:weight=0.5", path(&at(name))));
    let (base, out) = (at("base"), at("out"));
    let args = ["merge", "--method", "task_arithmetic", "--base", path(&base), "--model", &one];
    let args = [&args[..], &["--model", &two, "--on-missing", "keep", "--out", path(&out)]].concat();
    ok(&args);
    let merged = read_tensors(&out);
    let plain = |name: &str| merged.keys().filter(|key| key.ends_with(name)).cloned().collect::<Vec<_>>();
    assert_eq!(merged.len(), SHAPES.len() + 2, "{:?}", merged.keys());
    assert_eq!(plain("extra.weight"), ["_orig_mod.model.extra.weight"]);
    let values = [0x3c80, 0x3d00].map(|first| counted("extra.weight", &[4], first).bytes);
    assert!(values.contains(&merged["_orig_mod.model.extra.weight"]));
    assert_eq!(merged[&plain("lm_head.weight")[0]], merged["model.embed_tokens.weight"]);
}

/// A plan names the tensors of one side; the proof holds for the other spelling of the other side too.
#[test]
fn a_plan_is_checked_under_both_spellings() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write_checkpoint(&at("base"), &side("model.", 0x3c00), 1, CONFIG);
    let plan = serde_json::json!({
        "format": "hft-surgery/plan", "version": 1,
        "trainable": ["model.norm.weight"],
        "frozen": SHAPES[..4].iter().map(|(name, _)| format!("model.{name}")).collect::<Vec<_>>(),
    });
    std::fs::write(at("plan.json"), plan.to_string()).unwrap();
    for (moved, expected) in [(&[4][..], ""), (&[1, 4], "`_orig_mod.model.layers.0.mlp.down_proj.weight`")] {
        let mut tuned = side("_orig_mod.model.", 0x3c00);
        moved.iter().for_each(|i| tuned[*i].bytes[0] += 1);
        write_checkpoint(&at("tuned"), &tuned, 1, CONFIG);
        let [base, tuned, plan] = ["base", "tuned", "plan.json"].map(at);
        let said = run(&["diff", path(&base), path(&tuned), "--plan", path(&plan), "--strict", "-q"]);
        let failures = String::from_utf8_lossy(&said.stdout).into_owned();
        assert_eq!(said.status.code(), Some(i32::from(!expected.is_empty())), "{failures}");
        assert_eq!(failures.lines().count(), usize::from(!expected.is_empty()), "{failures}");
        assert!(failures.contains(expected) || expected.is_empty(), "{failures}");
    }
}

/// `reset` takes what the tuned side has of buffers, so the proof of its plan does not ask for those of base.
#[test]
fn a_buffer_that_one_side_lacks_breaks_no_plan() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let with = |first: u16, more: &[Tensor]| [side("model.", first), more.to_vec()].concat();
    let buffer = counted("model.layers.0.self_attn.rotary_emb.inv_freq", &[2], 0x3c00);
    let weight = counted("model.layers.0.self_attn.rotary_emb.weight", &[2], 0x3c00);
    let buffer = std::slice::from_ref(&buffer);
    for (of_base, of_tuned) in [(buffer, &[][..]), (&[], buffer)] {
        write_checkpoint(&at("base"), &with(0x3c00, of_base), 1, CONFIG);
        write_checkpoint(&at("tuned"), &with(0x3c80, of_tuned), 1, CONFIG);
        let [base, tuned, out] = ["base", "tuned", "out"].map(at);
        ok(&["reset", "--force", "--base", path(&base), "--tuned", path(&tuned), "--out", path(&out)]);
        let plan = out.join("hft_surgery.json");
        ok(&["diff", path(&base), path(&out), "--plan", path(&plan)]);
        // What is no buffer is asked for.
        write_checkpoint(&base, &with(0x3c00, std::slice::from_ref(&weight)), 1, CONFIG);
        let said = run(&["diff", path(&base), path(&out), "--plan", path(&plan), "-q"]);
        assert_eq!(said.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&said.stdout).contains("only in a"));
    }
}
