//! Random methods: density, rescaling and expectation, against their closed forms.

use sha2::{Digest, Sha256};

use super::{merge, path, values};
use crate::common::{fixture, tensor, write_checkpoint};

const N: usize = 1 << 18;

fn floats(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// A base of zeros and a model whose deltas are ramps: |τ| of element i is (i mod 512 + 1)/512, signs alternate.
fn pair(dir: &std::path::Path) -> Vec<f32> {
    let tau: Vec<f32> =
        (0..N).map(|i| (((i * 37) % 512 + 1) as f32 / 512.0) * if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
    for (name, data) in [("base", vec![0.0; N]), ("ft", tau.clone())] {
        let t = [tensor("model.layers.0.mlp.up_proj.weight", "F32", &[512, 512], floats(&data))];
        write_checkpoint(&dir.join(name), &t, 1, r#"{"architectures":["X"]}"#);
    }
    tau
}

fn merged(method: &str, parameters: &str, set: &[&str]) -> (Vec<f32>, Vec<f32>) {
    let dir = tempfile::tempdir().unwrap();
    let tau = pair(dir.path());
    let (base, ft, out) = (dir.path().join("base"), dir.path().join("ft"), dir.path().join("out"));
    let model = format!("{}:weight=1,{parameters}", path(&ft));
    let mut args = vec!["--method", method, "--base", path(&base), "--model", &model, "--seed", "3"];
    set.iter().for_each(|s| args.extend(["--set", s]));
    merge(&args, &out);
    let got = values(&out).into_values().next().unwrap();
    (tau, got)
}

/// Five standard deviations of the mean of `n` Bernoulli draws.
fn bound(p: f64, n: usize) -> f64 {
    5.0 * (p * (1.0 - p) / n as f64).sqrt()
}

#[test]
fn dare_keeps_the_density_and_rescales_as_asked() {
    for (set, factor) in
        [("rescale=none", Some(1.0)), ("rescale=inverse-density", Some(1.0 / 0.3)), ("rescale=l1", None)]
    {
        let (tau, got) = merged("dare_linear", "density=0.3", &[set]);
        let kept = got.iter().filter(|x| **x != 0.0).count() as f64 / N as f64;
        assert!((kept - 0.3).abs() < bound(0.3, N), "{kept}");
        let l1 = |x: &[f32]| x.iter().map(|x| f64::from(x.abs())).sum::<f64>();
        // ‖τ‖₁ is restored; 1/p restores it in expectation.
        let factor = factor.unwrap_or_else(|| {
            assert!((l1(&got) / l1(&tau) - 1.0).abs() < 1e-4);
            f64::from(got.iter().zip(&tau).find(|(g, _)| **g != 0.0).map(|(g, t)| g / t).unwrap())
        });
        for (g, t) in got.iter().zip(&tau).filter(|(g, _)| **g != 0.0) {
            assert!((f64::from(*g) - factor * f64::from(*t)).abs() < 1e-5, "{set}: {g} {t}");
        }
    }
}

/// P(keep) rises from p − ε at the smallest of a row to p + ε at the largest.
#[test]
fn della_keeps_more_of_what_is_large() {
    let (tau, got) = merged("della_linear", "density=0.5,epsilon=0.2", &["rescale=none"]);
    let share = |from: f32, to: f32| {
        let inside: Vec<bool> = tau
            .iter()
            .zip(&got)
            .filter(|(t, _)| t.abs() > from && t.abs() <= to)
            .map(|(_, g)| *g != 0.0)
            .collect();
        (inside.iter().filter(|k| **k).count() as f64 / inside.len() as f64, inside.len())
    };
    for (from, to, p) in
        [(0.0, 1.0, 0.5), (0.0, 0.5, 0.4), (0.5, 1.0, 0.6), (0.0, 0.25, 0.35), (0.75, 1.0, 0.65)]
    {
        let (got, n) = share(from, to);
        assert!((got - p).abs() < bound(p, n), "{from}..{to}: {got}, expected {p}");
    }
}

#[test]
fn ties_keeps_exactly_the_largest() {
    let (tau, got) = merged("ties", "density=0.25", &[]);
    let kept: Vec<f32> = tau.iter().zip(&got).filter(|(_, g)| **g != 0.0).map(|(t, _)| t.abs()).collect();
    assert_eq!(kept.len(), N / 4);
    // 512 magnitudes, each equally often: a quarter of them are the upper 128.
    assert!(kept.iter().all(|t| *t > 0.75));
}

/// One threshold for the tensors of which the recipe says so, and a threshold of its own for each of the others: of n
/// elements of a tensor that is trimmed by itself, the ⌊p n⌋ largest stay, however large those of other tensors are.
#[test]
fn a_global_trim_counts_the_tensors_that_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let layer = |i: u8| format!("model.layers.{i}.mlp.up_proj.weight");
    let ramp = |scale: f32| (1..=64u8).map(|i| scale * f32::from(i)).collect::<Vec<f32>>();
    for (name, scales) in [("base", [0.0; 3]), ("ft", [1.0, 100.0, 10_000.0])] {
        let tensors =
            [0, 1, 2].map(|i| tensor(&layer(i), "F32", &[8, 8], floats(&ramp(scales[usize::from(i)]))));
        write_checkpoint(&at(name), &tensors, 1, r#"{"architectures":["X"]}"#);
    }
    let (base, out, recipe) = (at("base"), at("out"), at("r.yml"));
    let text = format!(
        "merge_method: ties\nbase_model: {}\nmodels:\n  - model: {}\n    parameters: {{weight: 1, density: 0.5}}\nparameters:\n  trim:\n    - filter: layers.2\n      value: tensor\n    - value: global\n",
        path(&base),
        path(&at("ft"))
    );
    std::fs::write(&recipe, text).unwrap();
    merge(&[path(&recipe)], &out);
    let kept = |i: u8| values(&out)[&layer(i)].iter().filter(|x| **x != 0.0).count();
    // Of the 128 elements of layers 0 and 1, the 64 largest are those of layer 1.
    assert_eq!([kept(0), kept(1), kept(2)], [0, 64, 32]);
}

#[test]
fn breadcrumbs_drops_outliers_and_the_smallest() {
    let (tau, got) = merged("breadcrumbs", "density=0.5,gamma=0.125", &[]);
    let kept: Vec<f32> = tau.iter().zip(&got).filter(|(_, g)| **g != 0.0).map(|(t, _)| t.abs()).collect();
    assert_eq!(kept.len(), N / 2);
    assert!(kept.iter().all(|t| *t > 0.375 && *t <= 0.875));
}

#[test]
fn seeds_change_the_draws_and_nothing_else_does() {
    let dir = tempfile::tempdir().unwrap();
    pair(dir.path());
    let (base, ft) = (dir.path().join("base"), dir.path().join("ft"));
    let model = format!("{}:weight=1,density=0.5", path(&ft));
    let run = |seed: &str, name: &str| {
        let out = dir.path().join(name);
        merge(&["--method", "dare_linear", "--base", path(&base), "--model", &model, "--seed", seed], &out);
        std::fs::read(out.join("model.safetensors")).unwrap()
    };
    assert!(run("1", "x") == run("1", "y") && run("1", "x") != run("2", "z"));
}

/// fixtures/merge/make_pinned.py says which elements stay, from the definition of the draws.
#[test]
fn draws_are_those_of_their_definition() {
    let text = std::fs::read(fixture("merge/pinned.json")).unwrap();
    let pinned: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let seed = pinned["seed"].to_string();
    let base = values(&fixture("merge/base"));
    for (method, case) in pinned["methods"].as_object().unwrap() {
        let mut model =
            format!("{}:{}", case["model"].as_str().unwrap(), pinned["parameters"].as_str().unwrap());
        if method.starts_with("della") {
            model += &format!(",epsilon={}", pinned["epsilon"]);
        }
        let out = dir.path().join(method);
        let model = ["--base", "fixtures/merge/base", "--model", &model];
        merge(&[&["--method", method, "--seed", &seed, "--set", "rescale=none"], &model[..]].concat(), &out);
        for (name, got) in values(&out) {
            let moved: Vec<u8> = got.iter().zip(&base[&name]).map(|(x, b)| u8::from(x != b)).collect();
            let digest: String = Sha256::digest(&moved).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(case["tensors"][&name], digest, "{method} {name}");
        }
    }
}

/// A tensor large enough that its threshold is looked for in a sample: as a stable sort of all magnitudes has it, also
/// where the sample lies about what is between.
#[test]
fn thresholds_of_large_tensors_are_exact() {
    const N: usize = 600_000;
    let mix = |i: usize| (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    let continuous = |i: usize| mix(i) as f32 / 2f32.powi(24) - 0.5;
    // The runs of the sample begin at multiples of ⌊(N − 64)/1024⌋ and are 64 long.
    let lying = |i: usize| if i % ((N - 64) / 1024) < 64 { 1.0 + continuous(i) } else { 0.1 * continuous(i) };
    let tied = |i: usize| (mix(i) % 3) as f32 - 1.0;
    let kinds: [(&str, &dyn Fn(usize) -> f32); 3] =
        [("continuous", &continuous), ("lying", &lying), ("tied", &tied)];
    let dir = tempfile::tempdir().unwrap();
    for (kind, value) in kinds {
        let tau: Vec<f32> = (0..N).map(value).collect();
        for (name, data) in [("base", vec![0.0; N]), ("ft", tau.clone())] {
            let t = [tensor("model.layers.0.mlp.up_proj.weight", "F32", &[600, 1000], floats(&data))];
            write_checkpoint(&dir.path().join(name), &t, 1, r#"{"architectures":["X"]}"#);
        }
        let (base, out) = (dir.path().join("base"), dir.path().join("out"));
        let model = format!("{}:weight=1,density=0.4", path(&dir.path().join("ft")));
        merge(&["--method", "ties", "--base", path(&base), "--model", &model], &out);
        let got = values(&out).into_values().next().unwrap();
        let mut order: Vec<usize> = (0..N).collect();
        order.sort_by(|a, b| tau[*b].abs().total_cmp(&tau[*a].abs()));
        let mut expected = vec![0.0; N];
        order[..N * 2 / 5].iter().for_each(|i| expected[*i] = tau[*i]);
        assert!(got == expected, "{kind}");
    }
}

/// Draws are keyed by the contents of a model, and models are taken in the order of their contents: another spelling of
/// a path, a copy under another name and other shards give the same bytes.
#[test]
fn the_path_of_a_model_changes_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let model = |name: &str, salt: usize, shards: usize| {
        let mix = |i: usize| ((i + salt) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        let tensors: Vec<_> = (0..2)
            .map(|layer| {
                let data: Vec<f32> = (0..4096).map(|i| mix(i + 5000 * layer) as f32 / 1e6).collect();
                tensor(&format!("model.layers.{layer}.mlp.up_proj.weight"), "F32", &[64, 64], floats(&data))
            })
            .collect();
        write_checkpoint(&at(name), &tensors, shards, r#"{"architectures":["X"]}"#);
    };
    [("base", 0), ("s1", 1), ("s2", 2), ("s3", 3)].iter().for_each(|(name, salt)| model(name, *salt, 1));
    [("zz", 1), ("aa", 3)].iter().for_each(|(name, salt)| model(name, *salt, 2));
    let run = |method: &str, models: [&str; 3]| {
        let models = models.map(|m| format!("{}:weight=0.4,density=0.5", path(&at(m))));
        let (base, out) = (at("base"), at("out"));
        let mut args = vec!["--method", method, "--base", path(&base), "--seed", "3"];
        models.iter().for_each(|m| args.extend(["--model", m.as_str()]));
        merge(&args, &out);
        crate::common::read_tensors(&out)
    };
    for method in ["dare_linear", "della", "ties"] {
        let first = run(method, ["s1", "s2", "s3"]);
        for models in [["./s1", "s2/", "s3"], ["s1/", "base/../s2", "./././s3"], ["zz", "s2", "aa"]] {
            assert!(run(method, models) == first, "{method} {models:?}");
        }
        assert!(run(method, ["s1", "s1", "s3"]) != first, "{method}");
    }
}

/// Models that are the same in the sample of their digest and not beyond have draws of their own, whatever their order.
#[test]
fn models_that_the_sample_does_not_tell_apart_draw_apart() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let base = vec![0.0; N];
    // 1 everywhere but for the last element, far from the middle.
    let (mut one, mut other) = (vec![1.0; N], vec![1.0; N]);
    (one[N - 1], other[N - 1]) = (2.0, 3.0);
    for (name, data) in [("base", base), ("one", one), ("other", other)] {
        let t = [tensor("model.layers.0.mlp.up_proj.weight", "F32", &[512, 512], floats(&data))];
        write_checkpoint(&at(name), &t, 1, r#"{"architectures":["X"]}"#);
    }
    let run = |models: [&str; 2]| {
        let models = models.map(|m| format!("{}:weight=1,density=0.5", path(&at(m))));
        let (base, out) = (at("base"), at("out"));
        let set = ["--method", "dare_linear", "--set", "rescale=none"];
        merge(
            &[&set[..], &["--base", path(&base), "--model", &models[0], "--model", &models[1]]].concat(),
            &out,
        );
        values(&out).into_values().next().unwrap()
    };
    let got = run(["one", "other"]);
    assert!(got == run(["other", "one"]));
    // Two independent draws of one half: 0, 1 and 2 with 1/4, 1/2 and 1/4.
    let share = got.iter().filter(|x| **x == 1.0).count() as f64 / N as f64;
    assert!((share - 0.5).abs() < bound(0.5, N), "{share}");
}
