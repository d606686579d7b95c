//! Vocabularies that conflict, merged by token: against mergekit's own output, and what is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{at_root, fixture, merge, path, read_tensors, values};

const HERE: &str = "fixtures/merge/union";
const WIDTH: usize = 8;

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The number of every token of a `tokenizer.json`, added ones included.
fn vocabulary(tokenizer: &Value) -> BTreeMap<String, u64> {
    let vocab = tokenizer["model"]["vocab"].as_object().unwrap();
    let model = vocab.iter().map(|(token, id)| (token.clone(), id.as_u64().unwrap()));
    let added = tokenizer["added_tokens"].as_array().unwrap().iter();
    let added =
        added.map(|entry| (entry["content"].as_str().unwrap().to_owned(), entry["id"].as_u64().unwrap()));
    model.chain(added).collect()
}

/// Added tokens by content, without their numbers.
fn settings(added: &Value) -> BTreeMap<String, Value> {
    let entries = added.as_array().unwrap().iter().map(|entry| {
        let mut entry = entry.as_object().unwrap().clone();
        entry.remove("id");
        (entry["content"].as_str().unwrap().to_owned(), Value::Object(entry))
    });
    entries.collect()
}

fn recipes() -> Vec<PathBuf> {
    let dir = std::fs::read_dir(fixture("merge/union/recipes")).unwrap();
    let mut all: Vec<PathBuf> = dir.map(|entry| entry.unwrap().path()).collect();
    all.sort();
    assert!(all.len() >= 7);
    all
}

fn close(what: &str, ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let largest = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
    let most = ours.iter().zip(theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(most <= 1e-6 * largest, "{what}: {most} of {largest}");
}

/// fixtures/merge/make_union.py made the golden outputs with mergekit 0.1.5, in f32. The numbers that mergekit gives to
/// tokens which only other models than the base have change from run to run, so rows are compared by token.
#[test]
fn the_row_of_every_token_is_mergekits() {
    let dir = tempfile::tempdir().unwrap();
    for recipe in recipes() {
        let name = recipe.file_stem().unwrap().to_str().unwrap().to_owned();
        let out = dir.path().join(&name);
        merge(&[path(&recipe)], &out);
        let golden = json_of(&fixture(&format!("merge/union/golden/{name}.json")));
        let tokenizer = json_of(&out.join("tokenizer.json"));
        let (ours, theirs) = (vocabulary(&tokenizer), golden["vocab"].as_object().unwrap());
        assert_eq!(
            ours.keys().collect::<Vec<_>>(),
            theirs.keys().collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>(),
            "{name}"
        );
        let united = name.contains("union") || name.contains("tokens");
        for (token, id) in ours.iter().filter(|(_, id)| !united || **id < 9) {
            assert_eq!(*id, theirs[token], "{name} {token}");
        }
        assert_eq!(settings(&tokenizer["added_tokens"]), settings(&golden["added_tokens"]), "{name}");
        assert_eq!(json_of(&out.join("config.json"))["vocab_size"], golden["vocab_size"], "{name}");
        let (weights, expected) =
            (values(&out), values(&fixture(&format!("merge/union/golden/{name}.safetensors"))));
        for (tensor, theirs_all) in &expected {
            let row = |values: &[f32], id: u64| values[id as usize * WIDTH..][..WIDTH].to_vec();
            let ours_all = &weights[tensor];
            assert_eq!(ours_all.len(), theirs_all.len(), "{name} {tensor}");
            for (token, id) in &ours {
                let expected = row(theirs_all, theirs[token].as_u64().unwrap());
                close(&format!("{name} {tensor} {token}"), &row(ours_all, *id), &expected);
            }
            for id in ours.len() as u64..golden["vocab_size"].as_u64().unwrap() {
                close(&format!("{name} {tensor} padding"), &row(ours_all, id), &row(theirs_all, id));
            }
        }
    }
}
