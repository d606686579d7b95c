//! Laws that hold for every method.

use std::collections::BTreeMap;
use std::path::Path;

use super::{at_root, merge, path};
use crate::common::{fixture, read_tensors, tensor, write_checkpoint};

/// Every method with a base, with parameters that move something.
const WITH_BASE: [(&str, &str, &[&str]); 16] = [
    ("task_arithmetic", "weight=0.6", &["lambda=0.9"]),
    ("ties", "weight=0.6,density=0.4", &[]),
    ("dare_linear", "weight=0.6,density=0.4", &[]),
    ("dare_ties", "weight=0.6,density=0.4", &[]),
    ("della", "weight=0.6,density=0.4", &[]),
    ("della_linear", "weight=0.6,density=0.4", &[]),
    ("breadcrumbs", "weight=0.6,density=0.4", &[]),
    ("breadcrumbs_ties", "weight=0.6,density=0.4", &[]),
    ("model_stock", "", &[]),
    ("sce", "", &["select_topk=0.5"]),
    ("ram", "", &["epsilon=0.01"]),
    ("ramplus_tl", "", &["epsilon=0.01"]),
    ("mask", "density=0.5", &[]),
    ("mask", "density=0.5,select=top-magnitude", &[]),
    ("multislerp", "weight=0.6", &[]),
    ("ties", "weight=0.6,density=0.4", &["trim=global", "elect=unweighted"]),
];

/// The base of the fixtures and two models of it, in BF16 with negative zeros, infinities and NaN.
fn checkpoints(dir: &Path) {
    let shapes: [(&str, &[u64]); 4] = [
        ("model.embed_tokens.weight", &[96, 64]),
        ("model.layers.0.mlp.up_proj.weight", &[300, 257]),
        ("model.layers.0.input_layernorm.weight", &[64]),
        ("model.layers.1.mlp.up_proj.weight", &[300, 257]),
    ];
    for (model, name) in ["base", "a", "b", "c"].iter().enumerate() {
        let mut tensors = Vec::new();
        for (t, (tensor_name, shape)) in shapes.iter().enumerate() {
            let n: u64 = shape.iter().product();
            let value = |i: u64| {
                let hash =
                    |x: u64| (x.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f32 / 2f32.powi(24) - 0.5;
                let base = hash(i + 1_000_003 * t as u64);
                // Every third element is left as in the base.
                let moved =
                    if (i + model as u64).is_multiple_of(3) { 0.0 } else { hash(i * 4 + model as u64 + 77) };
                let x = if model == 0 { base } else { base + 0.1 * moved };
                half::bf16::from_f32(x)
            };
            let mut bytes: Vec<u8> = (0..n).flat_map(|i| value(i).to_le_bytes()).collect();
            // The same in all: −0, ∞ and a signalling NaN.
            bytes[..6].copy_from_slice(&[0x00, 0x80, 0x80, 0x7f, 0x81, 0x7f]);
            tensors.push(tensor(tensor_name, "BF16", shape, bytes));
        }
        write_checkpoint(&dir.join(name), &tensors, 2, r#"{"architectures":["X"],"torch_dtype":"bfloat16"}"#);
    }
}

fn args(dir: &Path, method: &str, parameters: &str, set: &[&str], models: &[&str]) -> Vec<String> {
    let mut args = vec!["--method".to_owned(), method.to_owned(), "--base".to_owned()];
    args.push(path(&dir.join("base")).to_owned());
    for model in models {
        let separator = if parameters.is_empty() { "" } else { ":" };
        args.push("--model".to_owned());
        args.push(format!("{}{separator}{parameters}", path(&dir.join(model))));
    }
    for s in set {
        args.extend(["--set".to_owned(), (*s).to_owned()]);
    }
    args
}

fn run(args: &[String], more: &[&str], out: &Path) -> BTreeMap<String, Vec<u8>> {
    let all: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
    merge(&all, out);
    read_tensors(out)
}

/// Copies of the base, under other names, merge to the bytes of the base.
#[test]
fn equal_inputs_give_the_base() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    checkpoints(dir);
    let expected = read_tensors(&dir.join("base"));
    for copy in ["a", "b"] {
        for (name, bytes) in crate::common::files(&dir.join("base")) {
            std::fs::write(dir.join(copy).join(name), bytes).unwrap();
        }
    }
    let one: [(&str, &str, &[&str]); 3] =
        [("slerp", "", &["t=0.3"]), ("nearswap", "", &["t=0.01"]), ("arcee_fusion", "", &[])];
    let two: [(&str, &str, &[&str]); 4] = [
        ("karcher", "", &[]),
        ("linear", "weight=0.3", &[]),
        ("nuslerp", "weight=0.3", &[]),
        ("nuslerp", "weight=0.3", &["nuslerp_flatten=false"]),
    ];
    let out = dir.join("out");
    for (method, parameters, set) in one {
        assert!(run(&args(dir, method, parameters, set, &["a"]), &[], &out) == expected, "{method}");
    }
    for (method, parameters, set) in WITH_BASE.into_iter().chain(two) {
        assert!(run(&args(dir, method, parameters, set, &["a", "b"]), &[], &out) == expected, "{method}");
    }
}

/// One model at weight 1 and density 1 is itself.
#[test]
fn one_whole_model_gives_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    checkpoints(dir);
    let expected = read_tensors(&dir.join("a"));
    let cases: [(&str, &str, &[&str]); 16] = [
        ("linear", "weight=1", &[]),
        ("linear", "weight=1", &["normalize=false"]),
        ("task_arithmetic", "weight=1", &[]),
        ("ties", "weight=1,density=1", &[]),
        ("ties", "weight=0.7", &[]),
        ("dare_linear", "weight=1", &[]),
        ("dare_ties", "weight=1", &[]),
        ("della", "weight=0.2", &[]),
        ("breadcrumbs", "weight=1", &[]),
        ("sce", "", &[]),
        ("ram", "", &["epsilon=0"]),
        ("slerp", "", &["t=1"]),
        ("multislerp", "weight=0.3", &[]),
        ("mask", "", &[]),
        ("nearswap", "", &["t=1e30"]),
        ("passthrough", "", &[]),
    ];
    for (method, parameters, set) in cases {
        let mut got = run(&args(dir, method, parameters, set, &["a"]), &[], &dir.join("out"));
        if method == "nearswap" || method == "mask" {
            // The NaN of all inputs is read as a number here, and comes out quiet.
            for (tensor, bytes) in &mut got {
                bytes[4..6].copy_from_slice(&expected[tensor][4..6]);
            }
        }
        assert!(got == expected, "{method} {parameters}");
    }
}

#[test]
fn order_threads_and_shards_change_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    checkpoints(dir);
    for (method, parameters, set) in WITH_BASE.into_iter().chain([("linear", "weight=0.3", &[][..])]) {
        let first =
            run(&args(dir, method, parameters, set, &["a", "b", "c"]), &["--threads", "1"], &dir.join("x"));
        for (models, more) in [
            (["c", "a", "b"], &["--threads", "2"][..]),
            (["b", "c", "a"], &["--threads", "7", "--out-shard-size", "32k"][..]),
            (["a", "b", "c"], &["--no-mmap", "--shard-size", "1GB"][..]),
        ] {
            let got = run(&args(dir, method, parameters, set, &models), more, &dir.join("y"));
            assert!(got == first, "{method} {parameters} {set:?} {more:?}");
        }
    }
}

/// The elements of a mask from one model and those of its complement from another: every element is one of the two.
#[test]
fn a_mask_and_its_complement_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    checkpoints(dir);
    let plan = dir.join("plan.json");
    let base = dir.join("base");
    let made =
        at_root(&["plan", path(&base), "--ratio", "0.5", "--granularity", "element", "--out", path(&plan)]);
    let made = { made }.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for picks in ["density=0.4".to_owned(), format!("mask={}", path(&plan))] {
        let (a, out) = (dir.join("a"), dir.join("out"));
        let mask = format!("{}:{picks}", path(&a));
        let rest = format!("{}:{picks},complement=true", path(&a));
        merge(&["--method", "mask", "--base", path(&base), "--model", &mask, "--model", &rest], &out);
        let (got, tuned) = (read_tensors(&out), read_tensors(&a));
        for (name, bytes) in &got {
            assert!(bytes[6..] == tuned[name][6..], "{picks} {name}");
        }
    }
}

/// Half-reset is the mask merge of one model: the same plan, the same elements.
#[test]
fn a_plan_gives_what_reset_gives() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    checkpoints(dir);
    let (base, a, plan) = (dir.join("base"), dir.join("a"), dir.join("plan.json"));
    for more in [
        &["--granularity", "row"][..],
        &["--granularity", "element"],
        &["--granularity", "element", "--selector", "top-magnitude"],
        &["--granularity", "row", "--selector", "top-magnitude"],
        &[],
    ] {
        let _ = std::fs::remove_file(&plan);
        let made =
            [&["plan", path(&base), "--ratio", "0.5", "--seed", "4", "--out", path(&plan)], more].concat();
        assert!(at_root(&made).output().unwrap().status.success(), "{more:?}");
        let (merged, reset) = (dir.join("merged"), dir.join("reset"));
        let model = format!("{}:mask={}", path(&a), path(&plan));
        merge(&["--method", "mask", "--base", path(&base), "--model", &model], &merged);
        let args = [
            "reset",
            "--base",
            path(&base),
            "--tuned",
            path(&a),
            "--plan",
            path(&plan),
            "--out",
            path(&reset),
            "--force",
        ];
        assert!(at_root(&args).output().unwrap().status.success());
        let (merged, reset) = (read_tensors(&merged), read_tensors(&reset));
        for (name, bytes) in &merged {
            assert!(bytes[6..] == reset[name][6..], "{more:?} {name}");
        }
    }
}

/// Every tensor of every input is in the output, or the merge is refused.
#[test]
fn no_tensor_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    checkpoints(dir);
    let extra = dir.join("a/model-00003-of-00003.safetensors");
    let _ = std::fs::remove_file(dir.join("a/model.safetensors.index.json"));
    crate::common::write_file(&extra, &[tensor("visual.odd.weight", "F16", &[2], vec![1, 2, 3, 4])], "{}");
    for (i, name) in
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"].iter().enumerate()
    {
        let to = format!("model-0000{}-of-00003.safetensors", i + 1);
        std::fs::rename(dir.join("a").join(name), dir.join("a").join(to)).unwrap();
    }
    let out = dir.join("out");
    let all = args(dir, "ties", "weight=1,density=0.5", &[], &["a", "b"]);
    let mut refused: Vec<&str> = vec!["merge", "--out", path(&out)];
    refused.extend(all.iter().map(String::as_str));
    let output = at_root(&refused).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && stderr.contains("visual.odd.weight"), "{stderr}");
    let got = run(&all, &["--on-missing", "keep"], &out);
    assert_eq!(got["visual.odd.weight"], [1, 2, 3, 4]);
    assert_eq!(got.len(), 5);
}

/// Rows that all have are merged; the others are refused, dropped or kept, as asked.
#[test]
fn vocabularies_of_different_size_follow_the_policy() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let write = |name: &str, rows: u64, value: f32| {
        let bytes = (0..rows * 4).flat_map(|_| value.to_le_bytes()).collect();
        let t = [tensor("model.embed_tokens.weight", "F32", &[rows, 4], bytes)];
        write_checkpoint(
            &dir.join(name),
            &t,
            1,
            &format!(r#"{{"architectures":["X"],"vocab_size":{rows}}}"#),
        );
    };
    write("base", 6, 1.0);
    write("a", 8, 3.0);
    let all = args(dir, "task_arithmetic", "weight=0.5", &[], &["a"]);
    let out = dir.join("out");
    let mut refused: Vec<&str> = vec!["merge", "--out", path(&out)];
    refused.extend(all.iter().map(String::as_str));
    let stderr = String::from_utf8_lossy(&at_root(&refused).output().unwrap().stderr).into_owned();
    assert!(stderr.contains("--vocab common"), "{stderr}");
    for (policy, rows, last) in [("common", 6, 2.0), ("union", 8, 3.0)] {
        run(&all, &["--vocab", policy], &out);
        let got = super::values(&out).into_values().next().unwrap();
        assert_eq!((got.len(), got[0], got[got.len() - 1]), (rows * 4, 2.0, last), "{policy}");
        let config = std::fs::read_to_string(out.join("config.json")).unwrap();
        assert!(
            config.contains(&format!("\"vocab_size\":{rows}"))
                || config.contains(&format!("\"vocab_size\": {rows}"))
        );
    }
}

#[test]
fn the_type_of_the_output_is_the_one_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    checkpoints(dir);
    let all = args(dir, "linear", "weight=1", &[], &["a", "b"]);
    for (name, dtype) in [("float32", "F32"), ("float16", "F16"), ("float64", "F64"), ("bfloat16", "BF16")] {
        let out = dir.join(name);
        run(&all, &["--dtype", name], &out);
        let shard = std::fs::read(out.join("model-00001-of-00002.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&shard).unwrap();
        assert!(file.tensors().iter().all(|(_, view)| view.dtype().to_string() == dtype), "{name}");
        let config = std::fs::read_to_string(out.join("config.json")).unwrap();
        assert!(config.contains(&format!("\"{name}\"")), "{config}");
    }
}

/// Provenance tells the recipe; sidecars of the base are carried.
#[test]
fn the_recipe_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    merge(&["fixtures/merge/recipes/ties.yml", "--hash"], &out);
    let text = std::fs::read(out.join("hft_surgery.json")).unwrap();
    let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(value["plan"]["merge_method"], "ties");
    assert_eq!(value["inputs"].as_array().map(Vec::len), Some(4));
    assert!(fixture("merge/base/config.json").is_file() && out.join("config.json").is_file());
}

#[test]
fn explain_names_every_tensor_and_writes_nothing() {
    let output =
        at_root(&["merge", "fixtures/merge/recipes/slerp_gradient.yml", "--explain"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.lines().count() == 31
            && text.contains("model.layers.1.self_attn.q_proj.weight F32 [8, 8]: slerp t=0.3"),
        "{text}"
    );
}

/// Tiles of another size, through the library: the command has no option for them.
#[test]
fn the_size_of_a_tile_changes_no_bit() {
    use hft_surgery::checkpoint::{Access, Link};
    use hft_surgery::merge::{Merge, MergeOptions, Models, Recipe};
    use hft_surgery::surgery::{Output, Provenance};
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    checkpoints(dir);
    for (method, parameters) in [
        ("ties", r#"{"weight": 0.6, "density": 0.4}"#),
        ("della", r#"{"weight": 0.6, "density": 0.4}"#),
        ("breadcrumbs", r#"{"weight": 0.6, "density": 0.4, "rescale": true}"#),
        ("dare_linear", r#"{"weight": 0.6, "density": 0.4}"#),
        ("model_stock", "{}"),
        ("sce", r#"{"select_topk": 0.4}"#),
        ("multislerp", r#"{"weight": 0.6}"#),
    ] {
        let mut value = serde_json::json!({"merge_method": method, "base_model": path(&dir.join("base"))});
        value["models"] =
            ["a", "b"].map(|m| serde_json::json!({"model": path(&dir.join(m))})).to_vec().into();
        value["parameters"] = serde_json::from_str(parameters).unwrap();
        let recipe = Recipe::new(value).unwrap();
        let models = Models::open(&recipe, Access::Map).unwrap();
        let mut seen = Vec::new();
        for tile in [4096, 12_288, 1 << 16] {
            let options = MergeOptions { tile: Some(tile), ..MergeOptions::default() };
            let merge = Merge::new(&recipe, &models, options).unwrap();
            let out = dir.join("tiled");
            let output = Output { path: &out, force: true, also_read: &[], sync: false, link: Link::Copy };
            let provenance =
                Provenance { command: "merge", options: serde_json::Map::new(), inputs: Vec::new() };
            merge.write(&output, &provenance, &|_| ()).unwrap();
            seen.push(read_tensors(&out));
        }
        assert!(seen[0] == seen[1] && seen[1] == seen[2], "{method}");
    }
}
