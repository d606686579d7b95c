//! Recipes that mergekit runs: parameters of other methods, mixed types, stacks, chat templates.
//!
//! `fixtures/merge/make_drop_in.py` made `fixtures/merge/drop_in.json` with mergekit 0.1.5, transformers and PyTorch.

use std::path::{Path, PathBuf};

use minijinja::{Environment, context};
use serde_json::{Value, json};

use super::{at_root, fixture, path, values};
use crate::common::{tensor, write_checkpoint};

fn golden(key: &str) -> Value {
    let text = std::fs::read_to_string(fixture("merge/drop_in.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()[key].clone()
}

/// Runs a recipe; gives exit code and stderr.
fn run(dir: &Path, recipe: &str, flags: &[&str]) -> (Option<i32>, String) {
    let (file, out) = (dir.join("r.yml"), dir.join("out"));
    std::fs::write(&file, recipe).unwrap();
    let args = [&["merge", "--no-sync", "--force", path(&file), "--out", path(&out)], flags].concat();
    let output = at_root(&args).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A recipe of `slerp` with parameters that only other methods have.
const SLERP: &str = "merge_method: slerp\nbase_model: fixtures/merge/base\nparameters: {t: 0.5, density: [0, 1]}\nmodels:\n  - model: fixtures/merge/base\n  - model: fixtures/merge/a\n    parameters: {weight: 0.4}\n";

#[test]
fn parameters_of_other_methods_are_warned_about() {
    let dir = tempfile::tempdir().unwrap();
    let (code, stderr) = run(dir.path(), SLERP, &[]);
    assert_eq!(code, Some(0), "{stderr}");
    for warning in ["slerp does not use `density`: parameters\n", "slerp does not use `weight`: models[1]\n"]
    {
        assert!(stderr.contains(&format!("warning: {warning}")), "{stderr}");
    }
    let weights = dir.path().join("out/model.safetensors");
    let with = std::fs::read(&weights).unwrap();
    let without = SLERP.replace(", density: [0, 1]", "").replace("\n    parameters: {weight: 0.4}", "");
    let (code, stderr) = run(dir.path(), &without, &["--strict"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(!stderr.contains("warning"), "{stderr}");
    assert!(with == std::fs::read(&weights).unwrap(), "they change nothing");
}

#[test]
fn strict_refuses_parameters_of_other_methods_and_a_slip_is_always_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (code, stderr) = run(dir.path(), SLERP, &["--strict"]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("`density`: parameters") && stderr.contains("`weight`: models[1]"), "{stderr}");
    assert!(!dir.path().join("out").exists());
    let (code, stderr) = run(dir.path(), &SLERP.replace("density", "tt"), &[]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("unknown parameter of slerp at parameters `tt`"), "{stderr}");
    assert!(stderr.contains("did you mean `t`?"), "{stderr}");
}

/// Of elements of equal magnitude at the border, those of the smallest index stay, as where mergekit's sort is stable.
#[test]
fn of_equal_magnitudes_ties_keeps_the_first() {
    let golden = golden("equal_magnitudes");
    let floats = |list: &Value| -> Vec<f32> {
        list.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
    };
    let dir = tempfile::tempdir().unwrap();
    let models: Vec<PathBuf> = (0..3).map(|k| dir.path().join(k.to_string())).collect();
    for (path, values) in models.iter().zip(golden["models"].as_array().unwrap()) {
        let bytes: Vec<u8> = floats(values).iter().flat_map(|x| x.to_le_bytes()).collect();
        write_checkpoint(path, &[tensor("w", "F32", &[64], bytes)], 1, "{}");
    }
    let [base, a, b] = [0, 1, 2].map(|k| path(&models[k]));
    let recipe = format!(
        "merge_method: ties\nbase_model: {base}\nmodels: [{{model: {a}}}, {{model: {b}}}]\nparameters: {{weight: {}, density: {}}}\n",
        golden["weight"], golden["density"]
    );
    let (code, stderr) = run(dir.path(), &recipe, &[]);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(values(&dir.path().join("out"))["w"], floats(&golden["result"]));
}

fn model_of_type(dir: &Path, dtype: &'static str) -> PathBuf {
    let one: Vec<u8> = match dtype {
        "F64" => 1f64.to_le_bytes().to_vec(),
        "F32" => 1f32.to_le_bytes().to_vec(),
        "F16" => vec![0x00, 0x3c],
        "BF16" => vec![0x80, 0x3f],
        _ => vec![0x38],
    };
    let dir = dir.join(dtype);
    let _ = std::fs::remove_dir_all(&dir);
    write_checkpoint(&dir, &[tensor("w", dtype, &[2], one.repeat(2))], 1, r#"{"dtype":"old"}"#);
    dir
}

fn dtype_of(file: &Path) -> String {
    let bytes = std::fs::read(file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    tensors.tensor("w").unwrap().dtype().to_string()
}

/// Without `dtype`, a tensor gets the type that holds those of all models, whatever their order.
#[test]
fn mixed_types_are_promoted_as_by_torch() {
    let dir = tempfile::tempdir().unwrap();
    for case in golden("promoted").as_array().unwrap() {
        let types = [0, 1].map(|i| case[i].as_str().unwrap().to_owned());
        let [base, model] = types.clone().map(|dtype| model_of_type(dir.path(), dtype.leak()));
        let recipes = [
            format!(
                "merge_method: task_arithmetic\nbase_model: {}\nmodels: [{{model: {}, parameters: {{weight: 1}}}}]\n",
                path(&base),
                path(&model)
            ),
            format!(
                "merge_method: linear\nmodels: [{{model: {}}}, {{model: {}}}]\nparameters: {{weight: 0.5}}\n",
                path(&base),
                path(&model)
            ),
        ];
        for recipe in recipes.iter().filter(|_| base != model) {
            let (code, stderr) = run(dir.path(), recipe, &[]);
            let Some(expected) = case[2].as_str() else {
                assert_eq!(code, Some(2), "{types:?}: {stderr}");
                assert!(stderr.contains("`w`") && stderr.contains("have no common one"), "{stderr}");
                continue;
            };
            assert_eq!(code, Some(0), "{types:?}: {stderr}");
            assert_eq!(dtype_of(&dir.path().join("out/model.safetensors")), expected, "{types:?}");
            assert_eq!(stderr.contains("differ in type"), types[0] != expected, "{types:?}: {stderr}");
            // The configuration follows a type that is not the reference's.
            let config = std::fs::read_to_string(dir.path().join("out/config.json")).unwrap();
            assert_eq!(config.contains("old"), types[0] == expected, "{types:?}: {config}");
        }
    }
}

/// The number of layers, lists with one entry per layer and lists of indices follow a stack in every family.
#[test]
fn the_configuration_follows_a_stack() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    let layers = [0, 1, 2].map(|i| tensor(&format!("model.layers.{i}.w"), "F32", &[1], vec![0; 4]));
    let slice = |end: u32, first: u32| {
        format!("  - sources: [{{model: {}, layer_range: [{first}, {end}]}}]\n", path(&model))
    };
    let recipe = format!("merge_method: passthrough\nslices:\n{}{}", slice(3, 0), slice(3, 1));
    let merged = |config: &Value| {
        let _ = std::fs::remove_dir_all(&model);
        write_checkpoint(&model, &layers, 1, &config.to_string());
        let (code, stderr) = run(dir.path(), &recipe, &[]);
        assert_eq!(code, Some(0), "{stderr}");
        let written = std::fs::read(dir.path().join("out/config.json")).unwrap();
        (serde_json::from_slice::<Value>(&written).unwrap(), stderr)
    };
    let families = golden("configs");
    for (family, config) in families.as_object().unwrap() {
        let (after, stderr) = merged(&config["before"]);
        assert_eq!(after, config["after"], "{family}");
        assert!(!stderr.contains("number of layers"), "{family}: {stderr}");
    }
    assert_eq!(families.as_object().unwrap().len(), 9);
    for unnamed in [json!({"depth": 3}), json!({"is_encoder_decoder": true, "num_layers": 3})] {
        let (after, stderr) = merged(&unnamed);
        assert_eq!(after, unnamed);
        assert!(stderr.contains("warning: config.json: no known key for the number of layers"), "{stderr}");
    }
}

/// A copy of fixtures/merge/union/base with this template in `tokenizer_config.json`.
fn with_template(dir: &Path, name: &str, template: &Value) -> PathBuf {
    let copy = dir.join(name);
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(fixture("merge/union/base")).unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, copy.join(from.file_name().unwrap())).unwrap();
    }
    let file = copy.join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config["chat_template"] = template.clone();
    std::fs::write(file, config.to_string()).unwrap();
    copy
}

/// What a merge with `chat_template: asked` writes: the template, and `tokenizer_config.json`.
fn template_of(dir: &Path, models: &[PathBuf], asked: &str, more: &str) -> (String, Value) {
    let models: Vec<String> = models.iter().map(|m| format!("  - model: {}\n", path(m))).collect();
    let recipe = format!(
        "merge_method: linear\nparameters: {{weight: 1}}\nchat_template: '{asked}'\n{more}models:\n{}",
        models.concat()
    );
    let (code, stderr) = run(dir, &recipe, &[]);
    assert_eq!(code, Some(0), "{stderr}");
    let config = std::fs::read(dir.join("out/tokenizer_config.json")).unwrap();
    let template = std::fs::read_to_string(dir.join("out/chat_template.jinja")).unwrap();
    (template, serde_json::from_slice(&config).unwrap())
}

#[test]
fn auto_takes_the_template_that_most_models_have() {
    let dir = tempfile::tempdir().unwrap();
    let model = |name: &str, template: Value| with_template(dir.path(), name, &template);
    let rare = model("rare", json!("{{ 'rare' }}"));
    let list = model(
        "list",
        json!([{"name": "tool_use", "template": "{{ 1 }}"}, {"name": "default", "template": "{{ 'x' }} "}]),
    );
    let file = model("file", json!("{{ 'left' }}"));
    std::fs::write(file.join("chat_template.jinja"), "{{ 'x' }}").unwrap();
    let models = [rare.clone(), list, file];
    for more in ["", "tokenizer_source: union\n"] {
        let (template, config) = template_of(dir.path(), &models, "auto", more);
        assert_eq!(template, "{{ 'x' }}");
        assert_eq!(config.get("chat_template"), None, "one template, in one place");
        assert_eq!(config["tokenizer_class"], json!("PreTrainedTokenizerFast"));
    }
    // Of several as frequent ones, the first.
    assert_eq!(template_of(dir.path(), &models[..2], "auto", "").0, "{{ 'rare' }}");
    // A model's own, from tokenizer_config.json too.
    assert_eq!(template_of(dir.path(), &models, path(&rare), "").0, "{{ 'rare' }}");
}

#[test]
fn named_templates_render_as_those_of_mergekit_and_of_their_publishers() {
    let dir = tempfile::tempdir().unwrap();
    let model = with_template(dir.path(), "model", &json!("{{ 'old' }}"));
    let cases = golden("chat_templates");
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    for name in ["alpaca", "chatml", "exaone", "llama3", "mistral"] {
        let (template, _) = template_of(dir.path(), std::slice::from_ref(&model), name, "");
        let cases: Vec<&Value> =
            cases.as_array().unwrap().iter().filter(|case| case["template"] == name).collect();
        assert_eq!(cases.len(), 8, "{name}");
        for case in cases {
            let given = context! {
                messages => case["messages"],
                add_generation_prompt => case["add_generation_prompt"].as_bool().unwrap(),
                bos_token => "<s>",
                eos_token => "</s>",
            };
            assert_eq!(environment.render_str(&template, given).unwrap(), case["text"], "{name}: {case}");
        }
    }
}

#[test]
fn an_unknown_template_is_refused_and_auto_without_any_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let model = with_template(dir.path(), "model", &json!(null));
    let recipe =
        format!("merge_method: passthrough\nmodels: [{{model: {}}}]\nchat_template: auto\n", path(&model));
    let (code, stderr) = run(dir.path(), &recipe, &[]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("warning: chat_template: auto: no model has one"), "{stderr}");
    for (asked, expected) in [("chatmll", "did you mean `chatml`?"), (path(&model), "has none")] {
        let recipe = format!(
            "merge_method: passthrough\nmodels: [{{model: {}}}]\nchat_template: {asked}\n",
            path(&model)
        );
        let (code, stderr) = run(dir.path(), &recipe, &[]);
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(expected), "{stderr}");
    }
}
