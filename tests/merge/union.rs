//! Vocabularies that conflict, merged by token: against mergekit's own output, and what is refused.

use std::collections::{BTreeMap, BTreeSet};
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
        let (ours, theirs) = (vocabulary(&tokenizer), &golden["vocab"]);
        assert!(
            ours.keys().eq(theirs.as_object().unwrap().keys().collect::<BTreeSet<_>>()),
            "{name}: {ours:?}"
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

/// The recipe as JSON, which is YAML, into a file.
fn recipe_file(dir: &Path, value: &Value) -> PathBuf {
    let file = dir.join("recipe.yml");
    std::fs::write(&file, value.to_string()).unwrap();
    file
}

fn linear(models: &[&str], tokenizer: &Value) -> Value {
    let entry = |model: &&str| json!({"model": model, "parameters": {"weight": 1.0}});
    json!({
        "merge_method": "linear",
        "models": models.iter().map(entry).collect::<Vec<_>>(),
        "tokenizer": tokenizer,
    })
}

fn at(name: &str) -> String {
    format!("{HERE}/{name}")
}

/// A fixture in a directory of its own, to be spoilt.
fn copy(name: &str, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(fixture(&format!("merge/union/{name}"))).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// What stderr says of a merge that must fail before anything is written.
fn refused(value: &Value) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (file, out) = (recipe_file(dir.path(), value), dir.path().join("out"));
    let output = at_root(&["merge", path(&file), "--out", path(&out)]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(!out.exists() && !stderr.contains("panicked"), "{stderr}");
    stderr
}

/// What is written is a tokenizer that loads, with the numbers that the rows have.
#[test]
fn the_tokenizer_loads_with_the_numbers_of_the_rows() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["linear_tokens", "task_arithmetic_base", "slerp_model"] {
        let out = dir.path().join(name);
        merge(&[path(&fixture(&format!("merge/union/recipes/{name}.yml")))], &out);
        let tokenizer = tokenizers::Tokenizer::from_file(out.join("tokenizer.json")).unwrap();
        let ours = vocabulary(&json_of(&out.join("tokenizer.json")));
        assert_eq!(tokenizer.get_vocab_size(true), ours.len(), "{name}");
        for (token, id) in &ours {
            assert_eq!(tokenizer.token_to_id(token).map(u64::from), Some(*id), "{name} {token}");
        }
        if name != "slerp_model" {
            let config = json_of(&out.join("tokenizer_config.json"));
            let decoder = config["added_tokens_decoder"].as_object().unwrap();
            for (id, entry) in decoder {
                assert_eq!(ours[entry["content"].as_str().unwrap()].to_string(), *id, "{name}");
            }
            assert!(!decoder.values().any(|entry| entry["content"] == "<rowless>"), "{name}");
        }
    }
}

/// `<s>` and `</s>` are 6 and 7 in the base, 5 and 6 in `a`, whose tokenizer is taken.
#[test]
fn numbers_of_special_tokens_follow_the_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let (base, out) = (dir.path().join("base"), dir.path().join("out"));
    copy("base", &base);
    let generation = json!({"bos_token_id": 6, "eos_token_id": [7, 99], "max_length": 7});
    std::fs::write(base.join("generation_config.json"), generation.to_string()).unwrap();
    let value = linear(&[path(&base), &at("a")], &json!({"source": at("a")}));
    merge(&[path(&recipe_file(dir.path(), &value))], &out);
    let config = json_of(&out.join("config.json"));
    assert_eq!((&config["bos_token_id"], &config["eos_token_id"]), (&json!(5), &json!(6)));
    let generation = json_of(&out.join("generation_config.json"));
    assert_eq!(generation, json!({"bos_token_id": 5, "eos_token_id": [6, 99], "max_length": 7}));
}

/// Where nothing is computed, the rows are the bytes of their models, in any type of the result.
#[test]
fn a_single_model_is_permuted_and_not_rounded() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let value = json!({
        "merge_method": "passthrough",
        "models": [{"model": at("b")}],
        "base_model": at("base"),
        "tokenizer_source": "union",
    });
    merge(&[path(&recipe_file(dir.path(), &value))], &out);
    let ours = vocabulary(&json_of(&out.join("tokenizer.json")));
    let theirs = vocabulary(&json_of(&fixture("merge/union/b/tokenizer.json")));
    let (merged, b) = (read_tensors(&out), read_tensors(&fixture("merge/union/b")));
    for tensor in ["model.embed_tokens.weight", "lm_head.weight"] {
        let row = |bytes: &[u8], id: u64| bytes[id as usize * WIDTH * 4..][..WIDTH * 4].to_vec();
        for (token, id) in &ours {
            let expected = theirs.get(token).map_or(vec![0; WIDTH * 4], |id| row(&b[tensor], *id));
            assert_eq!(row(&merged[tensor], *id), expected, "{tensor} {token}");
        }
    }
}

#[test]
fn the_order_of_the_recipe_and_threads_change_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    for (models, threads) in [(["base", "a", "b"], "1"), (["b", "a", "base"], "3"), (["a", "base", "b"], "2")]
    {
        let out = dir.path().join("out");
        let mut value = linear(&models.map(at).each_ref().map(String::as_str), &json!({"source": "union"}));
        value["base_model"] = at("base").into();
        merge(&["--threads", threads, path(&recipe_file(dir.path(), &value))], &out);
        seen.push((read_tensors(&out), std::fs::read(out.join("tokenizer.json")).unwrap()));
    }
    assert!(seen.iter().all(|one| *one == seen[0]));
}

#[test]
fn tokenizers_that_agree_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    for tokenizer in [Value::Null, json!({"source": "base"}), json!({"source": "union"})] {
        let (other, out) = (dir.path().join("other"), dir.path().join("out"));
        copy("a", &other);
        let value = linear(&[&at("a"), path(&other)], &tokenizer);
        merge(&[path(&recipe_file(dir.path(), &value))], &out);
        seen.push((read_tensors(&out), std::fs::read(out.join("tokenizer.json")).unwrap()));
    }
    assert!(seen.iter().all(|one| *one == seen[0]));
    assert_eq!(seen[0].1, std::fs::read(fixture("merge/union/a/tokenizer.json")).unwrap());
}

#[test]
fn a_model_without_a_tokenizer_is_taken_for_the_base() {
    let dir = tempfile::tempdir().unwrap();
    let (bare, out) = (dir.path().join("bare"), dir.path().join("out"));
    copy("a", &bare);
    std::fs::remove_file(bare.join("tokenizer.json")).unwrap();
    let file = recipe_file(dir.path(), &linear(&[&at("a"), path(&bare)], &json!({"source": "union"})));
    let output = at_root(&["merge", path(&file), "--no-sync", "--out", path(&out)]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.contains("without a tokenizer"), "{stderr}");
    assert_eq!(
        read_tensors(&out)["model.embed_tokens.weight"],
        read_tensors(&bare)["model.embed_tokens.weight"]
    );
}

#[test]
fn explain_says_where_tokens_come_from() {
    let recipe = format!("{HERE}/recipes/linear_tokens.yml");
    let output = at_root(&["merge", "--explain", &recipe]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "tokenizer: union, 17 tokens; 9 in fixtures/merge/union/base; 3 more in fixtures/merge/union/a",
        "2 in no model",
        "fixtures/merge/union/b by token: 7 own, 8 of another, 2 zero",
        "fixtures/merge/union/base by token: 7 own, 8 of another, 1 mean, 1 zero",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.lines().any(|line| line.contains("layernorm") && line.contains("by token")), "{text}");
}

#[test]
fn tokenizers_that_cannot_be_merged_are_refused_with_the_other_faults() {
    let dir = tempfile::tempdir().unwrap();
    let models = |other: &Path| linear(&[&at("base"), path(other)], &json!({"source": "union"}));
    let plain = ["fixtures/merge/base", "fixtures/merge/a"];
    let stderr = refused(&linear(&plain, &json!({"source": "base"})));
    assert!(stderr.contains("`fixtures/merge/base` has no tokenizer.json"), "{stderr}");

    let spoil = |change: &dyn Fn(&mut Value)| {
        let to = dir.path().join("spoilt");
        copy("b", &to);
        let mut tokenizer = json_of(&to.join("tokenizer.json"));
        change(&mut tokenizer);
        std::fs::write(to.join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let mut value = models(&to);
        // A fault of another kind is said with it.
        value["models"][1]["parameters"] = json!({});
        refused(&value)
    };
    let kind = spoil(&|json| json["model"]["type"] = "Tiktoken".into());
    let twice = spoil(&|json| json["model"]["vocab"]["zz"] = 1.into());
    let number = spoil(&|json| json["added_tokens"][2]["id"] = 9.into());
    let text = spoil(&|json| *json = "x".into());
    for (stderr, part) in [
        (kind, "a tokenizer of kind Tiktoken"),
        (twice, "occurs twice"),
        (number, "`<b>` has id 9, but loaders give it 7"),
        (text, "no tokenizer that can be read"),
    ] {
        assert!(stderr.contains(part) && stderr.contains("linear needs `weight`"), "{part}: {stderr}");
    }

    let old = dir.path().join("old");
    copy("b", &old);
    std::fs::rename(old.join("tokenizer.json"), old.join("vocab.json")).unwrap();
    let stderr = refused(&models(&old));
    assert!(stderr.contains("has `vocab.json` but no tokenizer.json"), "{stderr}");
}

#[test]
fn rows_that_cannot_be_had_are_refused() {
    let both = [at("base"), at("b")];
    let both: Vec<&str> = both.iter().map(String::as_str).collect();
    let tokens = |tokens: Value| refused(&linear(&both, &json!({"source": "union", "tokens": tokens})));
    let model = |key: &str, value: Value| json!({"kind": "model_token", "model": at("b"), key: value});
    for (given, part) in [
        (json!({"x": {"source": at("a")}}), "`fixtures/merge/union/a` is no model of this recipe"),
        (json!({"x": {"source": at("b")}}), "`fixtures/merge/union/b` has no token `x`"),
        (json!({"x": {}}), "`x` needs a `source`"),
        (json!({"x": {"source": model("token", json!("y"))}}), "has no token `y`"),
        (
            json!({"x": {"source": model("token_id", json!(11))}}),
            "row 11 of `fixtures/merge/union/b`, which has 11",
        ),
        (json!({"x": {"source": {"kind": "model_token", "model": at("b")}}}), "one of `token`, `token_id`"),
        (json!({"x": {"source": {"kind": "zeros"}}}), "unknown `kind`"),
        (json!({"x": {"sourcee": at("b")}}), "did you mean `source`?"),
        (json!({"x": {"source": at("b"), "force": 1}}), "`force`: got 1"),
        (json!(["x"]), "`tokens` must be a mapping"),
    ] {
        let stderr = tokens(given.clone());
        assert!(stderr.contains(part), "{given}: {stderr}");
    }
    let stderr = refused(&linear(&both, &json!({"source": "elsewhere", "pad_to_multiple_of": -1})));
    assert!(stderr.contains("`pad_to_multiple_of`: got -1"), "{stderr}");
    let stderr = refused(&linear(&both, &json!({"source": "elsewhere"})));
    assert!(stderr.contains("elsewhere: no such file or directory"), "{stderr}");

    // A token whose number lies beyond the rows: taken out of the base, refused in any other model.
    let dir = tempfile::tempdir().unwrap();
    copy("base", &dir.path().join("rowless"));
    let other = dir.path().join("rowless");
    let stderr = refused(&linear(&[&at("a"), path(&other)], &json!({"source": path(&other)})));
    assert!(stderr.contains("token `<rowless>` has id 9, but the model has 9 rows"), "{stderr}");
}
