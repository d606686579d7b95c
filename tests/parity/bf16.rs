//! Products of operands in bfloat16 against PyTorch: `fixtures/bf16`, made by `make_bf16.py` there.
//!
//! Both sides sum in `f32`, in other orders. Where a number lies next to the middle of two of bfloat16, its last bit decides to
//! which it is rounded, and one operand then differs by 2⁻⁸ of itself: results agree to a part of what rounding to bfloat16
//! changes, which is measured beside it.

use std::path::Path;

use hft_surgery::backend::{Backend, Cpu, CpuPrecision, Head, HeadGradients, Sequences, Targets};
use hft_surgery::data;
use hft_surgery::eval::next_token_targets;
use hft_surgery::model::{Activations, Batch, Capacity, Recompute, backward, forward};
use hft_surgery::train::{Objective, StepBuffers, Update, step};

use super::{ADAMW, Golden, error, load, open};

const FAMILIES: [&str; 2] = ["llama-bias", "qwen3"];

fn golden(name: &str) -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/bf16").join(name);
    Golden::of(&path.with_extension("safetensors"))
}

/// `None`, which is said, on a processor without the instructions.
#[expect(clippy::print_stderr, reason = "a test that is not run says so")]
fn bf16() -> Option<CpuPrecision> {
    let found = CpuPrecision::bf16();
    if found.is_none() {
        eprintln!("not run: no instructions for products in bfloat16");
    }
    found
}

/// Loss and gradients by name.
fn gradients(name: &str, golden: &Golden, precision: CpuPrecision) -> (f64, Vec<(String, Vec<f32>)>) {
    let (ids, labels, offsets) = (golden.ids(), golden.labels(), golden.offsets());
    let (checkpoint, mut cpu) = (open(name), Cpu::new(precision));
    let mut model = load(&checkpoint, &|_| true);
    let sizes = Capacity { tokens: ids.len(), positions: 16 };
    let mut acts = Activations::new(&cpu, &model.config, sizes, Recompute::None, true);
    let batch = Batch { ids: &ids, sequences: Sequences { offsets: &offsets } };
    let hidden = forward(&mut cpu, &model, batch, &mut acts).clone();
    let (rows, targets) = next_token_targets(&labels, &offsets);
    let mut dhidden = cpu.zeros(hidden.len());
    let scale = 1.0 / rows.len() as f32;
    let head = model.lm_head.as_mut().unwrap_or(&mut model.embed_tokens);
    let gradients = HeadGradients {
        factors: &vec![scale; rows.len()],
        hidden: Some(&mut dhidden),
        weight: head.train.as_mut().map(|train| &mut train.grad),
        accumulate: false,
    };
    let targets = Targets { rows: &rows, ids: &targets, label_smoothing: 0.0 };
    cpu.cross_entropy(&hidden, Head { weight: &head.weight, soft_cap: None }, targets, Some(gradients));
    let loss = f64::from(cpu.losses().iter().sum::<f32>() * scale);
    backward(&mut cpu, &mut model, batch, &mut acts, &mut dhidden, false);
    let of = model.params().map(|param| (param.name.clone(), param.train.as_ref().unwrap().grad.clone()));
    (loss, of.collect())
}

#[test]
fn loss_and_every_gradient_agree() {
    let Some(bf16) = bf16() else { return };
    for name in FAMILIES {
        let golden = golden(name);
        let expected = golden.get("loss")[0];
        let ((loss, gradients), (f32_loss, f32_gradients)) =
            (self::gradients(name, &golden, bf16), self::gradients(name, &golden, CpuPrecision::F32));
        assert!((loss - expected).abs() < 1e-5, "{name}: loss {loss}, expected {expected}");
        assert!((f32_loss - expected).abs() > 1e-4, "{name}: rounding changes the loss");
        for ((tensor, got), (_, in_f32)) in gradients.iter().zip(&f32_gradients) {
            let expected = golden.get(&format!("grad.{tensor}"));
            let (e, rounding) = (error(got, expected), error(in_f32, expected));
            let bound = 1e-3f64.min(rounding / 3.0);
            assert!(e < bound, "{name}: gradient of {tensor}: {e:e}, in float32 {rounding:e}");
        }
    }
}

#[test]
fn ten_steps_agree_full_and_masked() {
    let Some(bf16) = bf16() else { return };
    for name in FAMILIES {
        let golden = golden(name);
        for key in ["full", "half"] {
            let (losses, updates) = ten_steps(name, &golden, key, bf16);
            // The first step begins at the same weights to the bit.
            assert!(losses[0] < 1e-5 && losses.iter().all(|e| *e < 1e-3), "{name} {key}: {losses:?}");
            let worst = updates.iter().copied().fold(0.0, f64::max);
            let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
            let (mean, in_f32) = (mean(&updates), mean(&ten_steps(name, &golden, key, CpuPrecision::F32).1));
            let text = format!("{worst:e} of an update at most, {mean:e} in the mean, in float32 {in_f32:e}");
            println!("{name} {key}: {text}");
            assert!(worst < 2e-2 && mean < in_f32 / 3.0, "{name} {key}: {text}");
        }
    }
}

/// By what share of itself the loss of each step is off, and by what share of its update each trained tensor is afterwards.
fn ten_steps(name: &str, golden: &Golden, key: &str, precision: CpuPrecision) -> (Vec<f64>, Vec<f64>) {
    let (ids, labels, offsets) = (golden.ids(), golden.labels(), golden.offsets());
    let micro = |range: std::ops::Range<usize>| {
        let ends = &offsets[range.start..=range.end];
        let tokens = ends[0] as usize..ends[ends.len() - 1] as usize;
        data::Batch {
            input_ids: ids[tokens.clone()].to_vec(),
            labels: labels[tokens].to_vec(),
            cu_seqlens: ends.iter().map(|end| end - ends[0]).collect(),
            rows: Vec::new(),
        }
    };
    let micros = [micro(0..2), micro(2..4)];
    let trains = |tensor: &str| key == "full" || golden.half.contains(tensor);
    let checkpoint = open(name);
    let (start, mut model, mut cpu) =
        (load(&checkpoint, &|_| true), load(&checkpoint, &trains), Cpu::new(precision));
    let capacity = Capacity { tokens: ids.len(), positions: 16 };
    let mut buffers = StepBuffers::new(&cpu, &model, capacity, Recompute::None);
    let mut losses = Vec::new();
    for (i, expected) in golden.get(&format!("losses.{key}")).iter().enumerate() {
        let objective = Objective::CrossEntropy { label_smoothing: 0.0 };
        let update = Update { objective, optimizer: &ADAMW, lr: 3e-3, count: i as u64 + 1 };
        let report = step(&mut cpu, &mut model, &mut buffers, &micros, update);
        losses.push((report.loss - expected).abs() / expected);
    }
    let trained = model.params().zip(start.params()).filter(|(param, _)| trains(&param.name));
    let off = trained.map(|(param, start)| {
        let expected = golden.get(&format!("{key}.{}", param.name));
        let distance = |values: &[f32]| -> f64 {
            expected.iter().zip(values).map(|(e, x)| (e - f64::from(*x)).powi(2)).sum::<f64>().sqrt()
        };
        let (before, after) = (cpu.weight_to_host(&start.weight), cpu.weight_to_host(&param.weight));
        distance(&after.unwrap()) / distance(&before.unwrap())
    });
    (losses, off.collect())
}
