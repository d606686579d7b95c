//! Stacks of the layers of every architecture that mergekit has a file for.
//!
//! `fixtures/merge/make_architectures.py` made `fixtures/merge/architectures.json` with mergekit 0.1.5 and transformers, and held it
//! to what mergekit makes of the same stacks.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{at_root, fixture, path, values};
use crate::common::{tensor, write_checkpoint};

/// Layers of each model.
const LAYERS: u32 = 4;
/// Model and layer that each layer of the stack comes from.
const STACK: [(u16, u32); 6] = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (1, 3)];

/// The names of a module: before the layers, in layer `{i}`, after the layers.
struct Module {
    pre: Vec<String>,
    layers: Vec<String>,
    post: Vec<String>,
}

impl Module {
    fn of(module: &Value) -> Self {
        let names = |key: &str| -> Vec<String> {
            module[key].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
        };
        Self { pre: names("pre"), layers: names("layers"), post: names("post") }
    }

    fn of_layer(&self, i: u32) -> impl Iterator<Item = String> {
        self.layers.iter().map(move |name| name.replace("{i}", &i.to_string()))
    }

    fn names(&self) -> Vec<String> {
        let layers = (0..LAYERS).flat_map(|i| self.of_layer(i));
        self.pre.iter().cloned().chain(layers).chain(self.post.iter().cloned()).collect()
    }

    /// By name in the result, the model and the name there.
    fn stacked(&self) -> Vec<(String, (u16, String))> {
        let last = u16::from(!self.layers.is_empty());
        let own = |k: u16| move |name: &String| (name.clone(), (k, name.clone()));
        let mut all: Vec<_> = self.pre.iter().map(own(0)).chain(self.post.iter().map(own(last))).collect();
        for (out, (k, i)) in (0..).zip(STACK) {
            all.extend(self.of_layer(out).zip(self.of_layer(i).map(|name| (k, name))));
        }
        all
    }
}

/// Writes model `k`, whose tensors hold their number among `names`, and gives the numbers.
fn model(dir: &Path, k: u16, names: &[String], config: &Value) {
    let value = |n: u16| f32::from(n + 1000 * k).to_le_bytes().to_vec();
    let tensors: Vec<_> = (0..).zip(names).map(|(n, name)| tensor(name, "F32", &[1], value(n))).collect();
    write_checkpoint(dir, &tensors, 1, &config.to_string());
}

fn recipe(modules: &Map<String, Value>, [a, b]: [&Path; 2]) -> Value {
    let slice = |model: &Path, first: u32, end: u32| json!({"sources": [{"model": path(model), "layer_range": [first, end]}]});
    let slices = json!([slice(a, 0, 3), slice(b, 1, 4)]);
    if modules.len() == 1 {
        return json!({"merge_method": "passthrough", "slices": slices});
    }
    let part = |(name, module): (&String, &Value)| {
        let layered = !Module::of(module).layers.is_empty();
        let part = if layered { json!({"slices": slices}) } else { json!({"models": [{"model": path(a)}]}) };
        (name.clone(), part)
    };
    json!({"merge_method": "passthrough", "modules": modules.iter().map(part).collect::<Map<_, _>>()})
}

#[test]
fn a_stack_of_every_architecture_of_mergekit() {
    let text = std::fs::read_to_string(fixture("merge/architectures.json")).unwrap();
    let all: Map<String, Value> = serde_json::from_str(&text).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut stacked = 0;
    // Its file of phi-1 counts the embedding as layer 0 and as none, so that no checkpoint fits it.
    for (family, case) in all.iter().filter(|(family, _)| *family != "phi-1") {
        let modules = case["modules"].as_object().unwrap();
        let parsed: Vec<Module> = modules.values().map(Module::of).collect();
        let mut names: Vec<String> = Vec::new();
        for name in parsed.iter().flat_map(Module::names) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let [a, b, out] = ["a", "b", "out"].map(|name| dir.path().join(family).join(name));
        model(&a, 0, &names, &case["config"]);
        model(&b, 1, &names, &case["config"]);
        let file = dir.path().join("r.yml");
        std::fs::write(&file, recipe(modules, [&a, &b]).to_string()).unwrap();
        let said = at_root(&["merge", "--no-sync", path(&file), "--out", path(&out)]).output().unwrap();
        let stderr = String::from_utf8_lossy(&said.stderr);
        assert_eq!(said.status.code(), Some(0), "{family}: {stderr}");
        assert!(!stderr.contains("number of layers"), "{family}: {stderr}");
        let mut expected: BTreeMap<String, (u16, String)> = parsed.iter().flat_map(Module::stacked).collect();
        if family == "lfm2" {
            // mergekit takes it for a norm of the embedding; it is the norm after the last layer.
            let name = "model.embedding_norm.weight".to_owned();
            expected.insert(name.clone(), (1, name));
        }
        let ours = values(&out);
        assert_eq!(ours.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{family}");
        for (name, (k, from)) in &expected {
            let n = names.iter().position(|name| name == from).unwrap();
            assert_eq!(
                ours[name],
                [(n + 1000 * usize::from(*k)) as f32],
                "{family}: {name} is {from} of {k}"
            );
        }
        let written = std::fs::read(out.join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&written).unwrap();
        for key in case["counts"].as_array().unwrap() {
            assert_eq!(config.pointer(key.as_str().unwrap()), Some(&json!(6)), "{family}: {key}");
        }
        stacked += 1;
    }
    assert_eq!(stacked, 61);
}
