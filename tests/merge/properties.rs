//! The laws of merging, on generated checkpoints: any type, shapes, methods, parameters and seed.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use proptest::prelude::*;

use super::{merge, path};
use crate::common::{read_tensors, tensor, write_checkpoint};

const DTYPES: [&str; 4] = ["BF16", "F16", "F32", "F64"];

/// Methods over a base, with their options, that need no more than a weight and a density.
const METHODS: [(&str, &[&str]); 12] = [
    ("task_arithmetic", &[]),
    ("task_arithmetic", &["lambda=0.7"]),
    ("ties", &[]),
    ("ties", &["elect=unweighted", "normalize=false"]),
    ("ties", &["rescale=l1"]),
    ("dare_linear", &[]),
    ("dare_ties", &["rescale=inverse-density"]),
    ("della", &["rescale=none"]),
    ("della_linear", &[]),
    ("breadcrumbs", &[]),
    ("breadcrumbs_ties", &["rescale=l1"]),
    ("mask", &[]),
];

/// A base and models, and how they are merged.
#[derive(Debug, Clone)]
struct Case {
    dtype: &'static str,
    shapes: Vec<(u64, u64)>,
    method: usize,
    weight: f32,
    density: f32,
    seed: u64,
    /// The share of elements, in eighths, that fine-tuning moved.
    moved: u64,
    shard_thousands: u64,
}

prop_compose! {
    fn cases()(
        dtype in prop::sample::select(&DTYPES[..]),
        shapes in prop::collection::vec((1u64..60, 1u64..300), 1..4),
        method in 0..METHODS.len(),
        weight in 0.1f32..1.5,
        density in 0.25f32..0.75,
        seed: u64,
        moved in 0u64..9,
        shard_thousands in 1u64..200,
    ) -> Case {
        // Shares that are written the same wherever they stand.
        let round = |x: f32| (x * 64.0).round() / 64.0;
        Case { dtype, shapes, method, weight: round(weight), density: round(density), seed, moved, shard_thousands }
    }
}

impl Case {
    /// Writes the base (model 0) or one of its fine-tunes.
    fn write(&self, dir: &Path, name: &str, model: u64) {
        let tensors = self.shapes.iter().enumerate().map(|(t, (rows, cols))| {
            let hash = |i: u64, salt: u64| {
                let x = (i ^ salt << 40 ^ self.seed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                (x ^ x >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 40
            };
            let unit = |x: u64| x as f64 / 2f64.powi(24) - 0.5;
            let value = |i: u64| {
                let base = unit(hash(i, t as u64));
                let salt = 16 * model + t as u64;
                let moves = model > 0 && hash(i, salt + 1000) % 8 < self.moved;
                if moves { base + 0.1 * unit(hash(i, salt + 2000)) } else { base }
            };
            let mut bytes = Vec::new();
            for x in (0..rows * cols).map(value) {
                match self.dtype {
                    "BF16" => bytes.extend(bf16::from_f64(x).to_le_bytes()),
                    "F16" => bytes.extend(f16::from_f64(x).to_le_bytes()),
                    "F32" => bytes.extend((x as f32).to_le_bytes()),
                    _ => bytes.extend(x.to_le_bytes()),
                }
            }
            let shape = if *rows == 1 { vec![*cols] } else { vec![*rows, *cols] };
            tensor(&format!("model.layers.{t}.mlp.up_proj.weight"), self.dtype, &shape, bytes)
        });
        let tensors: Vec<_> = tensors.collect();
        write_checkpoint(&dir.join(name), &tensors, 1 + self.shapes.len() % 2, r#"{"architectures":["X"]}"#);
    }

    /// Merges the models, each with `parameters`.
    fn merge(&self, dir: &Path, models: &[(&str, &str)], more: &[&str]) -> BTreeMap<String, Vec<u8>> {
        let (method, set) = METHODS[self.method];
        let (base, out, seed) = (dir.join("base"), dir.join("out"), self.seed.to_string());
        let models: Vec<String> = models
            .iter()
            .map(|(name, parameters)| format!("{}:{parameters}", path(&dir.join(name))))
            .collect();
        let mut args = vec!["--method", method, "--base", path(&base), "--seed", &seed];
        models.iter().for_each(|model| args.extend(["--model", model]));
        set.iter().for_each(|set| args.extend(["--set", set]));
        args.extend(more);
        merge(&args, &out);
        read_tensors(&out)
    }

    fn parameters(&self) -> String {
        let weight = if METHODS[self.method].0 == "mask" { "scale" } else { "weight" };
        let epsilon = if METHODS[self.method].0.starts_with("della") { ",epsilon=0.125" } else { "" };
        let density = if METHODS[self.method].0 == "task_arithmetic" {
            String::new()
        } else {
            format!(",density={}", self.density)
        };
        format!("{weight}={}{density}{epsilon}", self.weight)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// All inputs equal the base: the bytes of the base, whatever the type, the method and the seed.
    #[test]
    fn equal_inputs_give_the_bytes_of_the_base(case in cases()) {
        let dir = tempfile::tempdir().unwrap();
        for name in ["base", "a", "b"] {
            case.write(dir.path(), name, 0);
        }
        let parameters = case.parameters();
        let got = case.merge(dir.path(), &[("a", &parameters), ("b", &parameters)], &[]);
        prop_assert!(got == read_tensors(&dir.path().join("base")));
    }

    /// One model of weight 1 and density 1: its bytes.
    #[test]
    fn one_whole_model_gives_its_own_bytes(mut case in cases()) {
        let dir = tempfile::tempdir().unwrap();
        case.method %= METHODS.len() - 1;
        if METHODS[case.method].1 == ["lambda=0.7"] {
            case.method = 0;
        }
        case.write(dir.path(), "base", 0);
        case.write(dir.path(), "a", 1);
        let got = case.merge(dir.path(), &[("a", "weight=1")], &[]);
        prop_assert!(got == read_tensors(&dir.path().join("a")));
    }

    /// Neither the order of models, nor threads, nor shards, nor how files are read change a bit.
    #[test]
    fn order_threads_and_shards_do_not_matter(case in cases()) {
        let dir = tempfile::tempdir().unwrap();
        case.write(dir.path(), "base", 0);
        for (name, model) in [("a", 1), ("b", 2), ("c", 3)] {
            case.write(dir.path(), name, model);
        }
        let (p, size) = (case.parameters(), format!("{}k", case.shard_thousands));
        let first = case.merge(dir.path(), &[("a", &p), ("b", &p), ("c", &p)], &["--threads", "1"]);
        let other = ["--threads", "3", "--out-shard-size", &size];
        prop_assert!(case.merge(dir.path(), &[("c", &p), ("a", &p), ("b", &p)], &other) == first);
        prop_assert!(case.merge(dir.path(), &[("b", &p), ("c", &p), ("a", &p)], &["--no-mmap"]) == first);
    }

    /// What a mask takes of a model and what its complement takes make the model.
    #[test]
    fn a_mask_and_its_complement_make_the_model(mut case in cases(), largest: bool) {
        let dir = tempfile::tempdir().unwrap();
        case.method = METHODS.len() - 1;
        if case.dtype == "F64" {
            // Arithmetic is f32.
            case.dtype = "F32";
        }
        case.write(dir.path(), "base", 0);
        case.write(dir.path(), "a", 1);
        let select = if largest { "top-magnitude" } else { "bernoulli" };
        let mask = format!("density={},select={select}", case.density);
        let rest = format!("{mask},complement=true");
        let got = case.merge(dir.path(), &[("a", &mask), ("a", &rest)], &[]);
        prop_assert!(got == read_tensors(&dir.path().join("a")));
    }
}
