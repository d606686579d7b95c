//! LoRA adapters: applied against the product written out, extracted against a difference of known rank.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::Path;

use common::{Tensor, fails, ok, path, read_tensors, run, tensor, write_checkpoint, write_file};

const Q: &str = "model.layers.0.self_attn.q_proj.weight";
const EMBED: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";

fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 2f32.powi(24) - 0.5
    };
    (0..n).map(|_| next()).collect()
}

fn f32s(name: &str, shape: &[u64], x: &[f32]) -> Tensor {
    tensor(name, "F32", shape, x.iter().flat_map(|x| x.to_le_bytes()).collect())
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// B A, with B [m, r] and A [r, n].
fn product(b: &[f32], a: &[f32], [m, r, n]: [usize; 3]) -> Vec<f64> {
    let term = |i: usize, j: usize, k: usize| f64::from(b[i * r + k]) * f64::from(a[k * n + j]);
    (0..m * n).map(|e| (0..r).map(|k| term(e / n, e % n, k)).sum()).collect()
}

fn base(dir: &Path) -> [Vec<f32>; 3] {
    let (q, e, n) = (numbers(12 * 8, 1), numbers(10 * 8, 2), numbers(8, 3));
    let tensors = [f32s(EMBED, &[10, 8], &e), f32s(Q, &[12, 8], &q), f32s(NORM, &[8], &n)];
    write_checkpoint(&dir.join("base"), &tensors, 1, r#"{"architectures":["X"]}"#);
    [q, e, n]
}

fn adapter(dir: &Path, config: &str, tensors: &[Tensor]) {
    std::fs::create_dir_all(dir.join("adapter")).unwrap();
    std::fs::write(dir.join("adapter/adapter_config.json"), config).unwrap();
    write_file(&dir.join("adapter/adapter_model.safetensors"), tensors, r#"{"format":"pt"}"#);
}

fn apply(dir: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    write(dir);
    read_tensors(&dir.join("out"))
}

fn write(dir: &Path) {
    let out = dir.join("out");
    ok(&[
        "merge",
        "--lora",
        path(&dir.join("adapter")),
        "--base",
        path(&dir.join("base")),
        "--out",
        path(&out),
        "--force",
    ]);
}

fn near(got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    assert!(got.iter().zip(expected).all(|(g, e)| (f64::from(*g) - e).abs() < 1e-6));
}

#[test]
fn an_adapter_adds_its_product() {
    let dir = tempfile::tempdir().unwrap();
    let [q, e, _] = base(dir.path());
    let (a, b) = (numbers(2 * 8, 4), numbers(12 * 2, 5));
    let (ea, eb) = (numbers(3 * 10, 6), numbers(8 * 3, 7));
    let saved = numbers(8, 8);
    let tensors = [
        f32s("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", &[2, 8], &a),
        f32s("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight", &[12, 2], &b),
        f32s("base_model.model.model.embed_tokens.lora_embedding_A", &[3, 10], &ea),
        f32s("base_model.model.model.embed_tokens.lora_embedding_B", &[8, 3], &eb),
        f32s("base_model.model.model.norm.weight", &[8], &saved),
    ];
    for (rslora, scales) in [(false, [4.0 / 2.0, 6.0 / 3.0]), (true, [4.0 / 2f64.sqrt(), 6.0 / 3f64.sqrt()])]
    {
        let config = format!(
            r#"{{"peft_type":"LORA","r":2,"lora_alpha":4,"use_rslora":{rslora},"rank_pattern":{{"embed_tokens":3}},"alpha_pattern":{{"embed_tokens":6}}}}"#
        );
        adapter(dir.path(), &config, &tensors);
        let got = apply(dir.path());
        let update = product(&b, &a, [12, 2, 8]);
        let expected: Vec<f64> = q.iter().zip(&update).map(|(w, u)| f64::from(*w) + scales[0] * u).collect();
        near(&floats(&got[Q]), &expected);
        // The embedding takes the transpose: [vocabulary, width].
        let update = product(&eb, &ea, [8, 3, 10]);
        let expected: Vec<f64> =
            (0..80).map(|i| f64::from(e[i]) + scales[1] * update[(i % 8) * 10 + i / 8]).collect();
        near(&floats(&got[EMBED]), &expected);
        assert_eq!(floats(&got[NORM]), saved);
    }
}

#[test]
fn fan_in_fan_out_is_the_transpose() {
    let dir = tempfile::tempdir().unwrap();
    let [q, ..] = base(dir.path());
    let (a, b) = (numbers(2 * 12, 4), numbers(8 * 2, 5));
    let name = |part: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.{part}.weight");
    let tensors = [f32s(&name("lora_A"), &[2, 12], &a), f32s(&name("lora_B"), &[8, 2], &b)];
    adapter(dir.path(), r#"{"r":2,"lora_alpha":2,"fan_in_fan_out":true}"#, &tensors);
    let update = product(&b, &a, [8, 2, 12]);
    let expected: Vec<f64> = (0..96).map(|i| f64::from(q[i]) + update[(i % 8) * 12 + i / 8]).collect();
    near(&floats(&apply(dir.path())[Q]), &expected);
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    base(dir.path());
    let (a, b) = (numbers(2 * 8, 4), numbers(12 * 2, 5));
    let pair = |module: &str, a_shape: &[u64]| {
        let name = |part: &str| format!("base_model.model.{module}.{part}.weight");
        [f32s(&name("lora_A"), a_shape, &a), f32s(&name("lora_B"), &[12, 2], &b)]
    };
    let q = "model.layers.0.self_attn.q_proj";
    let cases = [
        (r#"{"peft_type":"IA3","r":2,"lora_alpha":4}"#, pair(q, &[2, 8]), "IA3"),
        (r#"{"r":2,"lora_alpha":4,"use_dora":true}"#, pair(q, &[2, 8]), "use_dora"),
        (r#"{"r":2}"#, pair(q, &[2, 8]), "lora_alpha"),
        (r#"{"r":3,"lora_alpha":4}"#, pair(q, &[2, 8]), "rank differs"),
        (r#"{"r":2,"lora_alpha":4}"#, pair(q, &[1, 16]), "shapes do not fit"),
        (r#"{"r":2,"lora_alpha":4}"#, pair("model.layers.7.x", &[2, 8]), "has no `model.layers.7.x.weight`"),
    ];
    for (config, tensors, word) in cases {
        adapter(dir.path(), config, &tensors);
        let out = dir.path().join("none");
        let stderr = fails(&[
            "merge",
            "--lora",
            path(&dir.path().join("adapter")),
            "--base",
            path(&dir.path().join("base")),
            "--out",
            path(&out),
        ]);
        assert!(stderr.contains(word) && !out.exists(), "{word}: {stderr}");
    }
}

/// Parts for tensors of a shape that they cannot have.
#[test]
fn parts_for_other_shapes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    base(dir.path());
    let zeros = |name: &str, shape: &[u64]| {
        let count = shape.iter().product::<u64>() as usize;
        f32s(&format!("base_model.model.{name}"), shape, &vec![0.0; count])
    };
    let rows = "token_adapter.trainable_tokens_delta";
    let pair = |module: &str, a: [u64; 2], b: [u64; 2]| {
        let name = |part: &str| format!("{module}.{part}.weight");
        vec![zeros(&name("lora_A"), &a), zeros(&name("lora_B"), &b)]
    };
    let bias = |shape: &[u64]| {
        let q = "model.layers.0.self_attn.q_proj";
        let mut tensors = pair(q, [2, 8], [12, 2]);
        tensors.push(zeros(&format!("{q}.lora_B.bias"), shape));
        tensors
    };
    let cases = [
        ("[0]", vec![zeros(&format!("model.norm.{rows}"), &[1, 8])], "rows for a tensor of shape [8]"),
        (
            "[10]",
            vec![zeros(&format!("model.embed_tokens.{rows}"), &[1, 8])],
            "token id 10, but the base has 10 rows",
        ),
        ("[1]", vec![zeros(&format!("model.embed_tokens.{rows}"), &[1, 7])], "asks for [1, 8]"),
        ("[]", pair("model.norm", [2, 8], [1, 2]), "shapes do not fit"),
        ("[]", pair("model.layers.0.self_attn.q_proj", [2, 0], [12, 2]), "shapes do not fit"),
        ("[]", bias(&[12]), "has no `model.layers.0.self_attn.q_proj.bias`"),
    ];
    for (ids, tensors, words) in cases {
        let lora_bias = words.contains("bias");
        let config =
            format!(r#"{{"r":2,"lora_alpha":2,"lora_bias":{lora_bias},"trainable_token_indices":{ids}}}"#);
        adapter(dir.path(), &config, &tensors);
        let stderr = refused(dir.path());
        assert!(stderr.contains(words), "{words}: {stderr}");
    }
}

/// A difference of rank 3 is found exactly, and applied it gives the fine-tune back.
#[test]
fn extraction_finds_a_difference_of_its_rank() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (m, r, n) = (70usize, 3usize, 50usize);
    let w = numbers(m * n, 1);
    let update = product(&numbers(m * r, 2), &numbers(r * n, 3), [m, r, n]);
    let tuned: Vec<f32> = w.iter().zip(&update).map(|(w, u)| (f64::from(*w) + u) as f32).collect();
    let (norm, moved) = (numbers(n, 4), numbers(n, 5));
    for (name, w, norm) in [("base", &w, &norm), ("tuned", &tuned, &moved)] {
        let tensors = [f32s(Q, &[m as u64, n as u64], w), f32s(NORM, &[n as u64], norm)];
        write_checkpoint(&dir.join(name), &tensors, 1, r#"{"architectures":["X"]}"#);
    }
    let (base, ft) = (dir.join("base"), dir.join("tuned"));
    for threads in ["1", "4"] {
        let out = dir.join(format!("adapter{threads}"));
        let text = ok(&[
            "lora",
            "extract",
            path(&base),
            path(&ft),
            "--rank",
            "3",
            "--out",
            path(&out),
            "--threads",
            threads,
        ]);
        assert!(text.contains("1 matrices at rank 3: 100.0 %"), "{text}");
    }
    let weights = |t: &str| std::fs::read(dir.join(format!("adapter{t}/adapter_model.safetensors"))).unwrap();
    assert!(weights("1") == weights("4"));
    std::fs::rename(dir.join("adapter1"), dir.join("adapter")).unwrap();
    let got = apply(dir);
    let most = floats(&got[Q]).iter().zip(&tuned).fold(0f32, |most, (g, t)| most.max((g - t).abs()));
    assert!(most < 1e-5, "{most}");
    assert_eq!(floats(&got[NORM]), moved);
}

/// Scales that f32 cannot hold, patterns that are no numbers, factors that are not finite: refused by name.
#[test]
fn numbers_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    base(dir.path());
    let (a, b) = (numbers(2 * 8, 4), numbers(12 * 2, 5));
    let mut nan = a.clone();
    nan[3] = f32::NAN;
    let name = |part: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.{part}.weight");
    let pair = |a: &[f32]| [f32s(&name("lora_A"), &[2, 8], a), f32s(&name("lora_B"), &[12, 2], &b)];
    let cases = [
        (r#"{"r":2,"lora_alpha":1e308}"#, pair(&a), "is not finite: lora_alpha"),
        (r#"{"r":2,"lora_alpha":4,"alpha_pattern":{"q_proj":1e300}}"#, pair(&a), "is not finite: lora_alpha"),
        (r#"{"r":0,"lora_alpha":4}"#, pair(&a), "`r`: got 0"),
        (r#"{"r":2,"lora_alpha":"4"}"#, pair(&a), "`lora_alpha`: got \"4\""),
        (r#"{"r":2,"lora_alpha":4,"alpha_pattern":{"q_proj":"x"}}"#, pair(&a), "`alpha_pattern.q_proj`"),
        (r#"{"r":2,"lora_alpha":4,"rank_pattern":{"q_proj":null}}"#, pair(&a), "`rank_pattern.q_proj`"),
        (r#"{"r":2,"lora_alpha":4}"#, pair(&nan), "lora_A.weight`: infinite or NaN values: 1"),
    ];
    for (config, tensors, word) in cases {
        adapter(dir.path(), config, &tensors);
        let stderr = refused(dir.path());
        assert!(stderr.contains(word), "{word}: {stderr}");
    }
}

fn refused(dir: &Path) -> String {
    let (adapter, base, out) = (dir.join("adapter"), dir.join("base"), dir.join("none"));
    let stderr = fails(&["merge", "--lora", path(&adapter), "--base", path(&base), "--out", path(&out)]);
    assert!(!out.exists());
    stderr
}

/// Results that overflow although the scale does not are said.
#[test]
fn an_adapter_that_overflows_is_said() {
    let dir = tempfile::tempdir().unwrap();
    base(dir.path());
    let name = |part: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.{part}.weight");
    let tensors = [f32s(&name("lora_A"), &[1, 8], &[1.0; 8]), f32s(&name("lora_B"), &[12, 1], &[4.0; 12])];
    adapter(dir.path(), r#"{"r":1,"lora_alpha":3e38}"#, &tensors);
    let (adapter, base, out) = (dir.path().join("adapter"), dir.path().join("base"), dir.path().join("out"));
    let output = run(&["merge", "--lora", path(&adapter), "--base", path(&base), "--out", path(&out)]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && stderr.contains("where the inputs have none: 96, the first in"),
        "{stderr}"
    );
}

/// Types that no arithmetic is defined on: copied as bytes where both sides have them, refused by name otherwise.
#[test]
fn types_that_cannot_be_computed_with_are_copied_or_refused() {
    // Bytes of [4, 8] and of [8]; of U3 nobody knows.
    for (dtype, whole, vector) in
        [("F4", 16, 4), ("F6_E2M3", 24, 6), ("F6_E3M2", 24, 6), ("C64", 256, 64), ("U3", 12, 3)]
    {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        for (name, byte) in [("base", 1), ("tuned", 2)] {
            let norm = f32s(NORM, &[8], &[f32::from(byte); 8]);
            let tensors = [tensor(Q, dtype, &[4, 8], vec![byte; whole]), norm];
            write_checkpoint(&dir.join(name), &tensors, 1, r#"{"architectures":["X"]}"#);
        }
        let (base, tuned) = (dir.join("base"), dir.join("tuned"));
        let made = dir.join("adapter");
        ok(&["lora", "extract", path(&base), path(&tuned), "--rank", "2", "--out", path(&made)]);
        write(dir);
        ok(&["diff", path(&tuned), path(&dir.join("out"))]);

        // Saved in another type than the base has.
        let config = r#"{"r":2,"lora_alpha":2}"#;
        adapter(dir, config, &[tensor(&format!("base_model.model.{NORM}"), dtype, &[8], vec![0; vector])]);
        let stderr = refused(dir);
        assert!(stderr.contains(&format!("types differ: the adapter has {dtype}")), "{stderr}");
        // An update of a tensor of that type.
        let name = |part: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.{part}.weight");
        let (a, b) = (f32s(&name("lora_A"), &[2, 8], &[1.0; 16]), f32s(&name("lora_B"), &[4, 2], &[1.0; 8]));
        adapter(dir, config, &[a, b]);
        let stderr = refused(dir);
        assert!(
            stderr.contains(&format!("can be computed with: A is F32, B is F32, the base {dtype}")),
            "{stderr}"
        );
    }
}

/// An adapter that saves the embedding and a head of a type that nobody knows, on a tied base.
#[test]
fn a_saved_head_of_an_unknown_type_is_compared_by_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let odd = |name: &str, byte: u8| tensor(name, "U3", &[10, 8], vec![byte; 30]);
    for (name, byte) in [("base", 1), ("expected", 2)] {
        let config = r#"{"architectures":["X"],"tie_word_embeddings":true}"#;
        write_checkpoint(&dir.join(name), &[odd(EMBED, byte)], 1, config);
    }
    let saved = |head: u8| {
        [odd("base_model.model.model.embed_tokens.weight", 2), odd("base_model.model.lm_head.weight", head)]
    };
    adapter(dir, r#"{"r":2,"lora_alpha":2}"#, &saved(2));
    write(dir);
    ok(&["diff", path(&dir.join("expected")), path(&dir.join("out"))]);
    adapter(dir, r#"{"r":2,"lora_alpha":2}"#, &saved(3));
    assert!(refused(dir).contains("embedding and head share one weight: the adapter stores two that differ"));
}
