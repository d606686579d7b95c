//! Vision-language models: text models merged into their language part, and recipes of modules. Names and shapes are those of
//! transformers (`fixtures/merge/make_composites.py`), results those of mergekit (`fixtures/merge/make_stages.py`) or plain
//! arithmetic.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::{at_root, fixture, path, values};
use crate::common::{Tensor, fails, files, ok, read_tensors, run, tensor, write_checkpoint};

fn families() -> serde_json::Map<String, Value> {
    let text = std::fs::read_to_string(fixture("merge/composites.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap().as_object().unwrap().clone()
}

/// Names and shapes of a list of the fixture.
fn list(value: &Value) -> Vec<(String, Vec<u64>)> {
    let shape = |shape: &Value| shape.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    let rows = value.as_array().unwrap().iter();
    rows.map(|row| (row[0].as_str().unwrap().to_owned(), shape(&row[1]))).collect()
}

/// The values of the fixtures' script: element i of tensor n of model k is sin(1 + i + 7 n + 1000 k) / 2.
fn model(dir: &Path, names: &[(String, Vec<u64>)], k: usize, config: &Value) {
    let tensors: Vec<Tensor> = names
        .iter()
        .enumerate()
        .map(|(n, (name, shape))| {
            let elements = shape.iter().product::<u64>();
            let value = |i: u64| ((1 + i + 7 * n as u64 + 1000 * k as u64) as f64).sin() / 2.0;
            let bytes = (0..elements).flat_map(|i| (value(i) as f32).to_le_bytes()).collect();
            tensor(name, "F32", shape, bytes)
        })
        .collect();
    write_checkpoint(dir, &tensors, 1, &config.to_string());
}

const TEXT_CONFIG: &str = r#"{"model_type": "text"}"#;

/// For every family, under the names of both versions of transformers: a text model is merged into the language part, under
/// the names of the base, and everything else is the base's.
#[test]
fn a_text_model_is_merged_into_the_language_part() {
    for (family, of) in families() {
        let (new, old, text) = (list(&of["new"]), list(&of["old"]), list(&of["text"]));
        let place = |name: &str| new.iter().position(|(new, _)| new == name).unwrap();
        let pairs: BTreeMap<usize, String> = of["pairs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|pair| (place(pair[1].as_str().unwrap()), pair[0].as_str().unwrap().to_owned()))
            .collect();
        assert!(pairs.len() == text.len() && pairs.len() < new.len(), "{family}");
        for spelling in [&new, &old] {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name);
            model(&at("vlm"), spelling, 0, &of["config"]);
            model(&at("text"), &text, 1, &serde_json::from_str(TEXT_CONFIG).unwrap());
            let [vlm, text, out] = ["vlm", "text", "out"].map(at);
            let parts = [format!("{}:weight=0.25", path(&vlm)), format!("{}:weight=0.75", path(&text))];
            let args = ["merge", "--method", "linear", "--base", path(&vlm), "--model", &parts[0]];
            let said = run(&[&args[..], &["--model", &parts[1], "--out", path(&out)]].concat());
            let stderr = String::from_utf8_lossy(&said.stderr);
            assert_eq!(said.status.code(), Some(0), "{family}: {stderr}");
            let (base, text, merged) = (values(&vlm), values(&text), values(&out));
            assert!(merged.keys().eq(base.keys()), "{family}");
            for (n, (name, _)) in spelling.iter().enumerate() {
                let Some(twin) = pairs.get(&n) else {
                    assert_eq!(merged[name], base[name], "{family}: {name} is the base's");
                    continue;
                };
                for ((x, b), t) in merged[name].iter().zip(&base[name]).zip(&text[twin]) {
                    let expected = 0.25 * f64::from(*b) + 0.75 * f64::from(*t);
                    assert!((f64::from(*x) - expected).abs() < 1e-7, "{family}: {name}: {x} {expected}");
                }
            }
            let towers = spelling.iter().enumerate().filter(|(n, _)| !pairs.contains_key(n)).count();
            let line = stderr.lines().find(|line| line.starts_with("carried from")).unwrap_or_default();
            let counts: usize =
                line.split('(').skip(1).map(|n| n.split(' ').next().unwrap().parse::<usize>().unwrap()).sum();
            assert_eq!(counts, towers, "{family}: every tensor is told: {line}");
        }
    }
}

/// Both spellings of one composite model pair with each other, in every command.
#[test]
fn both_spellings_of_a_composite_pair() {
    for (family, of) in families() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        model(&at("old"), &list(&of["old"]), 0, &of["config"]);
        model(&at("new"), &list(&of["new"]), 0, &of["config"]);
        model(&at("tuned"), &list(&of["new"]), 1, &of["config"]);
        let [old, new, tuned, out] = ["old", "new", "tuned", "out"].map(at);
        let said = run(&["diff", path(&old), path(&new), "--fail-on", "changed>0%", "--fail-on", "missing"]);
        assert_eq!(said.status.code(), Some(0), "{family}: {}", String::from_utf8_lossy(&said.stdout));
        ok(&[
            "reset",
            "--base",
            path(&old),
            "--tuned",
            path(&tuned),
            "--ratio",
            "1",
            "--embeddings",
            "select",
            "--lm-head",
            "select",
            "--out",
            path(&out),
        ]);
        assert!(read_tensors(&out) == read_tensors(&new), "{family}");
    }
}

/// The parts of a model of several parts, under prefixes that no version of transformers takes off.
fn omni(parts: &[(&str, usize)], of: &Value) -> Vec<(String, Vec<u64>)> {
    let text = list(&of["text"]);
    let named = |(prefix, _): &(&str, usize)| {
        text.iter().map(|(name, shape)| (format!("{prefix}.{name}"), shape.clone())).collect::<Vec<_>>()
    };
    let tower = ("thinker.visual.blocks.0.norm1.weight".to_owned(), vec![8]);
    parts.iter().flat_map(named).chain([tower]).collect()
}

/// A part under an unknown prefix is found by suffix and shape; of two, none is guessed, and `--map` says which.
#[test]
fn an_unknown_prefix_is_found_and_of_two_none_is_guessed() {
    let of = &families()["qwen2_vl"];
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let [text, out] = ["text", "out"].map(at);
    model(&text, &list(&of["text"]), 1, &json!({}));
    let merge = |whole: &str, more: &[&str]| {
        let (whole, parts) = (at(whole), format!("{}:weight=1", path(&text)));
        let args = ["merge", "--method", "task_arithmetic", "--base", path(&whole), "--model", &parts];
        run(&[&args[..], &["--force", "--out", path(&out)], more].concat())
    };
    let is_text = |prefix: &str| {
        let merged = read_tensors(&out);
        read_tensors(&text).iter().all(|(name, bytes)| merged[&format!("{prefix}.{name}")] == *bytes)
    };
    model(&at("one"), &omni(&[("thinker", 0)], of), 0, &json!({}));
    let said = merge("one", &[]);
    assert_eq!(said.status.code(), Some(0), "{}", String::from_utf8_lossy(&said.stderr));
    assert!(is_text("thinker"));

    model(&at("two"), &omni(&[("thinker", 0), ("talker", 0)], of), 0, &json!({}));
    let before = files(&out);
    let said = merge("two", &[]);
    let stderr = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.contains("`talker.model`, `thinker.model`") && stderr.contains("--map model="),
        "{stderr}"
    );
    assert!(files(&out) == before);
    for prefix in ["talker", "thinker"] {
        let said = merge("two", &["--map", &format!("={prefix}")]);
        assert_eq!(said.status.code(), Some(0), "{}", String::from_utf8_lossy(&said.stderr));
        assert!(is_text(prefix));
    }
    // The same in the other commands.
    let map = ["--map", "=talker"];
    let said = run(&[&["diff", path(&text), path(&out), "--fail-on", "changed>0%"][..], &map].concat());
    assert_eq!(said.status.code(), Some(1), "{}", String::from_utf8_lossy(&said.stdout));
    let half = at("half");
    let sides =
        ["--base", path(&text), "--tuned", path(&out), "--on-missing", "keep-tuned", "--out", path(&half)];
    ok(&[&["reset", "--ratio", "1", "--embeddings", "select", "--lm-head", "select"][..], &sides, &map]
        .concat());
    let (reset, text) = (read_tensors(&half), read_tensors(&text));
    assert!(text.iter().all(|(name, bytes)| reset[&format!("talker.{name}")] == *bytes));
    let stderr = fails(&[&["reset"][..], &sides[..4], &["--out", path(&at("none"))]].concat());
    assert!(stderr.contains("fit several parts"), "{stderr}");
}

#[test]
fn maps_that_fit_nothing_or_two_tensors_are_refused() {
    let of = &families()["llava"];
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    model(&at("vlm"), &list(&of["new"]), 0, &of["config"]);
    model(&at("text"), &list(&of["text"]), 1, &json!({}));
    let [vlm, text] = ["vlm", "text"].map(at);
    let args = ["diff", path(&text), path(&vlm), "--map"];
    for (map, expected) in [
        ("modle=model", "--map modle=model: no tensor has such a name"),
        ("model.layers.0=model.layers.1", "two tensors would have this name"),
        ("model", "expected FROM=TO"),
        ("model.*=x", "FROM has 1 `*`, TO has 0"),
    ] {
        let stderr = fails(&[&args[..], &[map]].concat());
        assert!(stderr.contains(expected), "{map}: {stderr}");
    }
}

/// Two spellings of one name in one model: none is guessed.
#[test]
fn two_spellings_of_a_name_in_one_model_are_both_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let named =
        |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), vec![2, 2])).collect::<Vec<_>>();
    model(&at("base"), &named(&["model.layers.0.mlp.up_proj.weight", "model.norm.weight"]), 0, &json!({}));
    model(
        &at("twice"),
        &named(&[
            "language_model.layers.0.mlp.up_proj.weight",
            "transformer.layers.0.mlp.up_proj.weight",
            "model.norm.weight",
        ]),
        1,
        &json!({}),
    );
    let [base, twice, out] = ["base", "twice", "out"].map(at);
    let expected =
        "could be `language_model.layers.0.mlp.up_proj.weight` or `transformer.layers.0.mlp.up_proj.weight`";
    let parts = format!("{}:weight=1", path(&twice));
    let merge = [
        "merge",
        "--method",
        "task_arithmetic",
        "--base",
        path(&base),
        "--model",
        &parts,
        "--out",
        path(&out),
    ];
    let stderr = fails(&merge);
    assert!(stderr.contains(expected), "{stderr}");
    let reset = ["reset", "--base", path(&twice), "--tuned", path(&base), "--out", path(&out)];
    assert!(fails(&reset).contains(expected));
    let map = ["--map", "language_model=model", "--on-missing"];
    ok(&[&reset[..], &map, &["keep-tuned"]].concat());
}

/// Without a module or a tower to explain it, a tensor that a model lacks is an error as before.
#[test]
fn what_is_missing_inside_the_language_part_is_still_refused() {
    let of = &families()["gemma3"];
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    model(&at("vlm"), &list(&of["new"]), 0, &of["config"]);
    let mut text = list(&of["text"]);
    text.retain(|(name, _)| !name.contains("layers.1.mlp"));
    model(&at("text"), &text, 1, &json!({}));
    let parts = [at("vlm"), at("text")].map(|model| format!("{}:weight=1", path(&model)));
    let args = ["merge", "--method", "linear", "--model", &parts[0], "--model", &parts[1]];
    let stderr = fails(&[&args[..], &["--out", path(&at("out"))]].concat());
    assert!(stderr.contains("model.language_model.layers.1.mlp.down_proj.weight"), "{stderr}");
    assert!(!stderr.contains("vision_tower"), "{stderr}");
}

#[test]
fn recipes_of_modules_are_mergekits() {
    let of = &families()["qwen2_vl"];
    let dir = tempfile::tempdir().unwrap();
    let mut config = of["config"].clone();
    config["num_hidden_layers"] = 2.into();
    for (k, name) in ["base", "a", "b"].iter().enumerate() {
        model(&dir.path().join(name), &list(&of["old"]), k, &config);
    }
    for recipe in ["all_models", "each"] {
        let text = std::fs::read_to_string(fixture(&format!("merge/modules/{recipe}.yml"))).unwrap();
        let (file, out) = (dir.path().join("r.yml"), dir.path().join(recipe));
        std::fs::write(&file, text.replace("MODELS", path(dir.path()))).unwrap();
        let said = at_root(&["merge", path(&file), "--out", path(&out)]).output().unwrap();
        assert_eq!(said.status.code(), Some(0), "{}", String::from_utf8_lossy(&said.stderr));
        let (ours, theirs) = (values(&out), values(&fixture(&format!("merge/modules/{recipe}.safetensors"))));
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{recipe}");
        for (name, theirs) in &theirs {
            let most = ours[name].iter().zip(theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(most <= 1e-6, "{recipe} {name}: {most}");
        }
    }
    let written = std::fs::read(dir.path().join("each/config.json")).unwrap();
    let config: Value = serde_json::from_slice(&written).unwrap();
    assert_eq!(
        (&config["num_hidden_layers"], &config["text_config"]["num_hidden_layers"]),
        (&json!(3), &json!(3))
    );
    assert_eq!(config["vision_config"]["depth"], 2, "the tower keeps its layers");
}

/// What no module of a recipe stands for is the base's, and is named; names of modules are checked.
#[test]
fn modules_are_checked_and_what_none_stands_for_is_named() {
    let of = &families()["llava"];
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (k, name) in ["base", "a"].iter().enumerate() {
        model(&at(name), &list(&of["new"]), k, &of["config"]);
    }
    let merge = |modules: &str| {
        let (base, a) = (at("base"), at("a"));
        let models = format!("{{models: [{{model: {}}}, {{model: {}}}]}}", path(&base), path(&a));
        let recipe = format!(
            "merge_method: linear\nparameters: {{weight: 0.5}}\nbase_model: {}\nmodules: {modules}\n",
            path(&base)
        )
        .replace("MODELS", &models);
        std::fs::write(at("r.yml"), recipe).unwrap();
        run(&["merge", path(&at("r.yml")), "--force", "--out", path(&at("out"))])
    };
    for tower in ["vision_tower", "model.vision_tower"] {
        let said = merge(&format!("{{{tower}: MODELS}}"));
        let stderr = String::from_utf8_lossy(&said.stderr);
        assert_eq!(said.status.code(), Some(0), "{stderr}");
        assert!(stderr.contains("warning: in no module of the recipe, copied: lm_head.weight"), "{stderr}");
        let (base, merged) = (read_tensors(&at("base")), read_tensors(&at("out")));
        for (name, bytes) in &base {
            assert_eq!(merged[name] == *bytes, !name.contains("vision_tower"), "{name}");
        }
    }
    let said = merge("{vision_tower: MODELS, default: MODELS}");
    assert!(said.status.success() && !String::from_utf8_lossy(&said.stderr).contains("in no module"));
    for (modules, expected) in [
        ("{visoin_tower: MODELS}", "has no tensors of a module `visoin_tower`"),
        ("{vision_tower: MODELS, model.vision_tower: MODELS}", "both have the tensor `model.vision_tower."),
        ("{}", "`modules` is empty"),
        ("{vision_tower: {}}", "modules.vision_tower has a list of `models` or a list of `slices`"),
        ("{vision_tower: MODELS}\nmodels: []", "and only one of them"),
    ] {
        let said = merge(modules);
        let stderr = String::from_utf8_lossy(&said.stderr);
        assert_eq!(said.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(expected), "{expected}: {stderr}");
    }
}
