//! Tiny models of every family against PyTorch: `fixtures/llama`, made by `make_llama.py` there.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test that cannot go on fails")]

#[path = "parity/bf16.rs"]
mod bf16;
#[path = "parity/bf16_gradients.rs"]
mod bf16_gradients;
#[path = "parity/cached.rs"]
mod cached;
#[path = "parity/dpo.rs"]
mod dpo;
#[path = "parity/label_smoothing.rs"]
mod label_smoothing;
#[path = "common/numbers.rs"]
mod numbers;
#[path = "parity/optimizers.rs"]
mod optimizers;
#[path = "parity/rivals.rs"]
mod rivals;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use hft_surgery::backend::{Backend, Cpu, Head, HeadGradients, Sequences, Targets, Updates};
use hft_surgery::checkpoint::{Access, Checkpoint, Dtype, Known, decode_f64};
use hft_surgery::data;
use hft_surgery::eval::next_token_targets;
use hft_surgery::model::{
    Activations, Batch, Capacity, Model, ModelConfig, Recompute, Trained, backward, forward,
};
use hft_surgery::optimizer::{Adam, Optimizer};
use hft_surgery::train::{Objective, OptimizerOptions, StepBuffers, Update, step};

const FAMILIES: [&str; 48] = [
    "llama2",
    "llama3",
    "llama-bias",
    "mistral",
    "qwen2",
    "qwen2-window",
    "qwen3",
    "qwen3-pad",
    "llama-pad",
    "llama-yarn",
    "ministral",
    "seed-oss",
    "smollm3",
    "granite",
    "helium",
    "olmo2",
    "olmo3",
    "exaone4",
    "exaone4-full",
    "gemma",
    "gemma3",
    "gemma3-vision",
    "llava",
    "qwen2-5-vl",
    "qwen2-vl-flat",
    "qwen3-vl",
    "gemma2",
    "phi3",
    "phi4-longrope",
    "glm",
    "glm4",
    "olmo",
    "stablelm",
    "stablelm-parallel",
    "cohere",
    "cohere2",
    "arcee",
    "nemotron",
    "llama-proportional",
    "qwen2-moe",
    "qwen3-moe",
    "mixtral",
    "olmoe",
    "mixtral-router-loss",
    "llama-dynamic",
    "phi4-longrope-long",
    "gpt-oss",
    "gpt-oss-mxfp4",
];
/// The optimizer of the golden runs.
const ADAMW: OptimizerOptions = OptimizerOptions {
    optimizer: Optimizer::AdamW(Adam { beta1: 0.9, beta2: 0.999, eps: 1e-5 }),
    weight_decay: 0.1,
    max_grad_norm: 1.0,
};
const MODES: [Recompute; 3] = [Recompute::None, Recompute::Selective, Recompute::Full];

fn family(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/llama").join(name)
}

/// What PyTorch found.
struct Golden {
    values: BTreeMap<String, Vec<f64>>,
    half: HashSet<String>,
}

impl Golden {
    fn read(name: &str) -> Self {
        Self::of(&family(name).join("golden.safetensors"))
    }

    fn of(path: &Path) -> Self {
        let file = Checkpoint::open(path, Access::Map).unwrap();
        let mut values = BTreeMap::new();
        for tensor in file.tensors() {
            let bytes = file.shards()[0].mapped(tensor.info.bytes.clone()).unwrap();
            let mut out = vec![0.0; tensor.info.elements() as usize];
            decode_f64(&tensor.info.dtype, bytes, &mut out).unwrap();
            values.insert(tensor.info.name.clone(), out);
        }
        let bytes = std::fs::read(path).unwrap();
        let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
        let half = header["__metadata__"]["trainable"].as_str().unwrap();
        Self { values, half: serde_json::from_str(half).unwrap() }
    }

    fn get(&self, name: &str) -> &[f64] {
        &self.values[name]
    }

    fn offsets(&self) -> Vec<u32> {
        let mut offsets = vec![0];
        for n in self.get("lengths") {
            offsets.push(offsets[offsets.len() - 1] + *n as u32);
        }
        offsets
    }

    fn ids(&self) -> Vec<u32> {
        self.get("ids").iter().map(|x| *x as u32).collect()
    }

    fn labels(&self) -> Vec<i32> {
        self.get("labels").iter().map(|x| *x as i32).collect()
    }
}

fn load<'a>(checkpoint: &'a Checkpoint, trains: &dyn Fn(&str) -> bool) -> Model<Cpu<'a>> {
    let config = ModelConfig::read(checkpoint).unwrap();
    let cpu = Cpu::default();
    Model::load(config, checkpoint, &cpu, |name, stored| {
        let parts = ADAMW.optimizer.state_parts(stored.rows, stored.cols);
        // Codes of MXFP4 are always frozen.
        let on = trains(name) && *stored.dtype != Dtype::Known(Known::U8);
        let train = on.then(|| Trained::new(cpu.zeros(stored.rows * stored.cols), cpu.state(&parts)));
        Some((if on { Cpu::trainable(stored)? } else { Cpu::frozen(stored)? }, train))
    })
    .unwrap()
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&family(name).join("model.safetensors"), Access::Map).unwrap()
}

/// Largest |got − expected| as a share of the largest |expected|.
fn error(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let scale = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let worst = got.iter().zip(expected).map(|(g, e)| (f64::from(*g) - e).abs()).fold(0.0, f64::max);
    worst / scale.max(1e-30)
}

#[test]
fn logits_loss_and_every_gradient_agree() {
    for name in FAMILIES {
        let golden = Golden::read(name);
        let (ids, labels, offsets) = (golden.ids(), golden.labels(), golden.offsets());
        let checkpoint = open(name);
        for mode in MODES {
            let mut cpu = Cpu::default();
            let mut model = load(&checkpoint, &|_| true);
            let (d, v) = (model.config.hidden_size, model.config.vocab_size);
            let sizes = Capacity { tokens: ids.len(), positions: 16 };
            let mut acts = Activations::new(&cpu, &model.config, sizes, mode, true);
            let batch = Batch { ids: &ids, sequences: Sequences { offsets: &offsets } };
            let hidden = forward(&mut cpu, &model, batch, &mut acts).clone();
            let soft_cap = model.config.logit_cap;
            let head = model.lm_head.as_mut().unwrap_or(&mut model.embed_tokens);
            let mut logits = vec![0.0; ids.len() * v];
            cpu.linear_forward(&hidden, &head.weight, ids.len(), &mut logits, false);
            if let Some(cap) = soft_cap {
                logits.iter_mut().for_each(|z| *z = cap * (*z / cap).tanh());
            }
            for (i, range) in batch.sequences.ranges().enumerate() {
                let expected = golden.get(&format!("logits.{i}"));
                let e = error(&logits[range.start * v..range.end * v], expected);
                assert!(e < 1e-4, "{name}: logits of row {i}: {e:e}");
            }
            let (rows, targets) = next_token_targets(&labels, &offsets);
            let mut dhidden = cpu.zeros(ids.len() * d);
            let scale = 1.0 / rows.len() as f32;
            let gradients = HeadGradients {
                factors: &vec![scale; rows.len()],
                hidden: Some(&mut dhidden),
                weight: head.train.as_mut().map(|t| &mut t.grad),
                accumulate: false,
            };
            let targets = Targets { rows: &rows, ids: &targets, label_smoothing: 0.0 };
            let head = Head { weight: &head.weight, soft_cap };
            cpu.cross_entropy(&hidden, head, targets, Some(gradients));
            let losses = cpu.losses();
            let loss = f64::from(losses.iter().sum::<f32>() * scale) + acts.router_loss(&cpu).unwrap();
            assert!((loss - golden.get("loss")[0]).abs() < 1e-5, "{name}: loss {loss}");
            backward(&mut cpu, &mut model, batch, &mut acts, &mut dhidden, false);
            for param in model.params() {
                let Some(train) = &param.train else {
                    assert!(
                        param.name.ends_with("_blocks") || param.name.ends_with("_scales"),
                        "{name}: {}",
                        param.name
                    );
                    continue;
                };
                let e = error(&train.grad, golden.get(&format!("grad.{}", param.name)));
                assert!(e < 1e-4, "{name} {mode:?}: gradient of {}: {e:e}", param.name);
            }
        }
    }
}

#[test]
fn ten_steps_agree_full_and_masked() {
    for name in FAMILIES {
        let golden = Golden::read(name);
        let (ids, labels, offsets) = (golden.ids(), golden.labels(), golden.offsets());
        let middle = offsets[2] as usize;
        let second: Vec<u32> = offsets[2..].iter().map(|o| o - offsets[2]).collect();
        let micros = [
            data::Batch {
                input_ids: ids[..middle].to_vec(),
                labels: labels[..middle].to_vec(),
                cu_seqlens: offsets[..3].to_vec(),
                rows: Vec::new(),
            },
            data::Batch {
                input_ids: ids[middle..].to_vec(),
                labels: labels[middle..].to_vec(),
                cu_seqlens: second,
                rows: Vec::new(),
            },
        ];
        let checkpoint = open(name);
        for key in ["full", "half"] {
            let trains = |tensor: &str| key == "full" || golden.half.contains(tensor);
            let start = load(&checkpoint, &|_| true);
            for mode in MODES {
                let mut cpu = Cpu::default();
                let mut model = load(&checkpoint, &trains);
                let capacity = Capacity { tokens: ids.len(), positions: 16 };
                let mut buffers = StepBuffers::new(&cpu, &model, capacity, mode);
                for (i, expected) in golden.get(&format!("losses.{key}")).iter().enumerate() {
                    let update = Update {
                        objective: Objective::CrossEntropy { label_smoothing: 0.0 },
                        optimizer: &ADAMW,
                        lr: 3e-3,
                        count: i as u64 + 1,
                    };
                    let report = step(&mut cpu, &mut model, &mut buffers, &micros, update);
                    let e = (report.loss - expected).abs() / expected;
                    assert!(e < 1e-5, "{name} {key} {mode:?}: loss of step {i}: {} ({e:e})", report.loss);
                }
                for (param, start) in model.params().zip(start.params()) {
                    if param.train.is_none() {
                        let codes = param.name.ends_with("_blocks") || param.name.ends_with("_scales");
                        assert!(codes || !trains(&param.name), "{name}: {} is frozen", param.name);
                        continue;
                    }
                    let before = cpu.weight_to_host(&start.weight).unwrap();
                    let after = cpu.weight_to_host(&param.weight).unwrap();
                    let expected = golden.get(&format!("{key}.{}", param.name));
                    let moved: f64 =
                        expected.iter().zip(before.iter()).map(|(e, b)| (e - f64::from(*b)).powi(2)).sum();
                    let off: f64 =
                        expected.iter().zip(after.iter()).map(|(e, a)| (e - f64::from(*a)).powi(2)).sum();
                    let e = (off / moved).sqrt();
                    // Where keys are not rotated, their bias moves all scores of a query alike: its gradient is rounding.
                    let bound = if param.name.ends_with("k_proj.bias") { 1e-3 } else { 1e-4 };
                    assert!(e < bound, "{name} {key} {mode:?}: {}: off by {e:e} of its update", param.name);
                }
            }
        }
    }
}
