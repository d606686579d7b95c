//! A checkpoint may store its tied head as a copy of the embedding: both stay the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{at_root, merge, path};
use crate::common::{read_tensors, tensor, write_checkpoint};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const TIED: &str = r#"{"architectures":["X"],"tie_word_embeddings":true}"#;

/// Every method, with the parameters of each model and of the merge, and the number of models besides the base.
const METHODS: [(&str, &str, &str, usize); 24] = [
    ("arcee_fusion", "", "", 1),
    ("breadcrumbs", "weight=0.6,density=0.4", "", 2),
    ("breadcrumbs_ties", "weight=0.6,density=0.4", "", 2),
    ("dare_linear", "weight=0.6,density=0.4", "", 2),
    ("dare_ties", "weight=0.6,density=0.4", "", 2),
    ("della", "weight=0.6,density=0.4", "", 2),
    ("della_linear", "weight=0.6,density=0.4", "", 2),
    ("karcher", "", "", 2),
    ("linear", "weight=0.6", "", 2),
    ("mask", "density=0.5", "", 2),
    ("mask", "density=0.5,select=top-magnitude", "", 2),
    ("model_stock", "", "", 2),
    ("multislerp", "weight=0.6", "", 2),
    ("nearswap", "", "t=0.01", 1),
    ("nuslerp", "weight=0.6", "", 2),
    ("nuslerp", "weight=0.6", "nuslerp_flatten=false", 2),
    ("passthrough", "scale=0.5", "", 1),
    ("ram", "", "epsilon=0.01", 2),
    ("ramplus_tl", "", "epsilon=0.01", 2),
    ("sce", "", "select_topk=0.5", 2),
    ("slerp", "", "t=0.3", 1),
    ("task_arithmetic", "weight=0.6", "lambda=0.9", 2),
    ("ties", "weight=0.6,density=0.4", "", 2),
    ("ties", "weight=0.6,density=0.4", "trim=global", 2),
];

/// Values of a model; `salt` tells its tensors from those of others.
fn floats(n: u64, salt: u64) -> Vec<u8> {
    let value =
        |i: u64| (((i + 977 * salt).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f32) / 2f32.powi(24);
    (0..n).flat_map(|i| (value(i) - 0.5).to_le_bytes()).collect()
}

/// A checkpoint with a stored head: a copy of the embedding, or `head` of its own.
fn checkpoint(dir: &Path, salt: u64, head: Option<u64>, config: &str) {
    let embedding = floats(40 * 16, salt);
    let head = head.map_or_else(|| embedding.clone(), |salt| floats(40 * 16, salt));
    let tensors = [
        tensor(HEAD, "F32", &[40, 16], head),
        tensor(EMBEDDING, "F32", &[40, 16], embedding),
        tensor("model.layers.0.mlp.up_proj.weight", "F32", &[24, 16], floats(24 * 16, salt + 10)),
    ];
    write_checkpoint(dir, &tensors, 1, config);
}

/// Base and two models that store copies of their embeddings.
fn checkpoints(dir: &Path) {
    for (salt, name) in ["base", "a", "b"].iter().enumerate() {
        checkpoint(&dir.join(name), salt as u64, None, TIED);
    }
}

fn args(dir: &Path, (method, parameters, set, models): (&str, &str, &str, usize)) -> Vec<String> {
    let mut args = vec!["--method".to_owned(), method.to_owned(), "--seed".to_owned(), "3".to_owned()];
    if !["karcher", "linear", "passthrough"].contains(&method) {
        args.extend(["--base".to_owned(), path(&dir.join("base")).to_owned()]);
    }
    for model in ["a", "b"].iter().take(models) {
        let separator = if parameters.is_empty() { "" } else { ":" };
        args.extend(["--model".to_owned(), format!("{}{separator}{parameters}", path(&dir.join(model)))]);
    }
    if !set.is_empty() {
        args.extend(["--set".to_owned(), set.to_owned()]);
    }
    args
}

fn merged(dir: &Path, method: (&str, &str, &str, usize)) -> BTreeMap<String, Vec<u8>> {
    let (args, out) = (args(dir, method), dir.join("out"));
    merge(&args.iter().map(String::as_str).collect::<Vec<_>>(), &out);
    read_tensors(&out)
}

/// The methods that the command knows, from its own hint.
fn known_methods() -> BTreeSet<String> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let args = ["merge", "--method", "qqqqqqqqqqqq", "--model", "x", "--out", path(&out)];
    let stderr = String::from_utf8(at_root(&args).output().unwrap().stderr).unwrap();
    let (_, known) = stderr.split_once("known: ").unwrap();
    known.lines().next().unwrap().split(", ").map(str::to_owned).collect()
}

#[test]
fn a_stored_copy_of_the_embedding_stays_one_in_every_method() {
    let dir = tempfile::tempdir().unwrap();
    checkpoints(dir.path());
    let listed: BTreeSet<String> = METHODS.iter().map(|(method, ..)| (*method).to_owned()).collect();
    assert_eq!(listed, known_methods());
    let embeddings = ["base", "a", "b"].map(|name| read_tensors(&dir.path().join(name))[EMBEDDING].clone());
    for method in METHODS {
        let tensors = merged(dir.path(), method);
        assert!(tensors[HEAD] == tensors[EMBEDDING], "{method:?}");
        assert!(!embeddings.contains(&tensors[EMBEDDING]), "{method:?} merges nothing");
    }
}

/// A plan that does not know the copy holds for it, too; one that tells the two apart is refused.
#[test]
fn a_mask_of_the_embedding_holds_for_its_copy() {
    let dir = tempfile::tempdir().unwrap();
    checkpoints(dir.path());
    let write = |name: &str, frozen: &str| {
        let path = dir.path().join(name);
        let text = format!(
            r#"{{"format": "hft-surgery/plan", "version": 1, "strategy": "category", "ratio": 0.5, "seed": 0, "round": 0,
            "model": {{"architecture": "X", "tensors": 3, "parameters": 1664}},
            "trainable": ["{EMBEDDING}", "model.layers.0.mlp.up_proj.weight"], "frozen": [{frozen}]}}"#
        );
        std::fs::write(&path, text).unwrap();
        path
    };
    let mask = |plan: &Path| format!("mask={}", path(plan));
    let tensors = merged(dir.path(), ("mask", &mask(&write("without.json", "")), "", 1));
    assert!(tensors[EMBEDDING] == read_tensors(&dir.path().join("a"))[EMBEDDING]);
    assert!(tensors[HEAD] == tensors[EMBEDDING]);

    let apart = write("apart.json", &format!("\"{HEAD}\""));
    let args = args(dir.path(), ("mask", &mask(&apart), "", 1));
    let out = dir.path().join("refused");
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = at_root(&[&["merge", "--out", path(&out)], &args[..]].concat()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains(HEAD) && stderr.contains("in different lists of the mask"), "{stderr}");
    assert!(!out.exists());
}

/// One head that is not a copy, or one model that is not tied, and the two are tensors of their own.
#[test]
fn a_head_of_its_own_is_merged_by_itself() {
    let untied = r#"{"architectures":["X"],"tie_word_embeddings":false}"#;
    for (head, config) in [(Some(7), TIED), (None, untied)] {
        let dir = tempfile::tempdir().unwrap();
        checkpoints(dir.path());
        checkpoint(&dir.path().join("b"), 2, head, config);
        let tensors = merged(dir.path(), ("dare_linear", "weight=0.6,density=0.4", "", 2));
        assert!(tensors[HEAD] != tensors[EMBEDDING], "{head:?} {config}");
    }
}

/// Two tensors that are one cannot be merged in two ways.
#[test]
fn parameters_that_tell_a_head_from_its_embedding_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    checkpoints(dir.path());
    let (recipe, out) = (dir.path().join("r.yml"), dir.path().join("out"));
    let of = |name: &str| path(&dir.path().join(name)).to_owned();
    let text = format!(
        "merge_method: slerp\nbase_model: {}\nmodels:\n  - model: {}\nparameters:\n  t:\n    - filter: lm_head\n      value: 1\n    - value: 0.5\n",
        of("base"),
        of("a")
    );
    std::fs::write(&recipe, text).unwrap();
    let output = at_root(&["merge", path(&recipe), "--out", path(&out)]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    for part in [HEAD, EMBEDDING, "t=1", "t=0.5"] {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
    assert!(!out.exists());
}

/// T5 and BART are stored with and without copies of their embedding for the encoder and the decoder.
#[test]
fn embeddings_of_halves_that_one_model_does_not_store_are_the_shared_one() {
    for prefix in ["", "model."] {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, out] = ["a", "b", "out"].map(|name| dir.path().join(name));
        let names = ["shared", "encoder.embed_tokens", "decoder.embed_tokens"];
        let names = names.map(|name| format!("{prefix}{name}.weight"));
        let tensors = |names: &[String], salt: u64| -> Vec<_> {
            names.iter().map(|name| tensor(name, "F32", &[40, 16], floats(40 * 16, salt))).collect()
        };
        write_checkpoint(&a, &tensors(&names, 1), 1, TIED);
        write_checkpoint(&b, &tensors(&names[..1], 2), 1, TIED);
        for [first, second] in [[&a, &b], [&b, &a]] {
            let models = [
                "--method",
                "linear",
                "--set",
                "weight=0.5",
                "--model",
                path(first),
                "--model",
                path(second),
            ];
            merge(&models, &out);
            let merged = read_tensors(&out);
            assert_eq!(merged.keys().cloned().collect::<BTreeSet<_>>(), names.iter().cloned().collect());
            let halves = |salt: u64| -> Vec<f32> {
                let all = floats(40 * 16, salt);
                all.as_chunks::<4>().0.iter().map(|x| 0.5 * f32::from_le_bytes(*x)).collect()
            };
            let mean = halves(1).into_iter().zip(halves(2)).flat_map(|(a, b)| (a + b).to_le_bytes());
            let mean: Vec<u8> = mean.collect();
            assert!(merged.values().all(|bytes| *bytes == mean), "{prefix}: {first:?}");
        }
    }
}
