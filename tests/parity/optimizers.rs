//! Ten steps of each optimizer on bare tensors against PyTorch, bitsandbytes and lion-pytorch: `fixtures/optimizers`, made by
//! `make_optimizers.py` there.

use std::path::Path;

use hft_surgery::backend::{Cpu, MaskedGrad, Stored, UpdateTensor, Updates, WeightKind};
use hft_surgery::checkpoint::{Dtype, Known};
use hft_surgery::optimizer::{
    Adafactor, Adam, DynamicMap, Lion, Optimizer, OptimizerStep, Rounding, Sgd, StateValues,
};

use super::Golden;
use super::numbers::numbers;

const SHAPES: [(&str, usize, usize); 3] = [("matrix", 64, 67), ("small", 12, 20), ("vector", 1, 33)];
const ADAM: Adam = Adam { beta1: 0.9, beta2: 0.99, eps: 1e-8 };
const LION: Lion = Lion { beta1: 0.9, beta2: 0.99 };

fn golden() -> Golden {
    Golden::of(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/optimizers/optimizers.safetensors"))
}

fn tensor(rows: usize, cols: usize, seed: u64) -> Vec<f32> {
    let mut values = numbers(rows * cols, seed);
    let scale = |at: usize| 0.5f32.powi((at / cols % 6) as i32);
    values.iter_mut().enumerate().for_each(|(at, x)| *x *= scale(at));
    values
}

/// As in `make_optimizers.py`.
fn gradient(rows: usize, cols: usize, seed: u64) -> Vec<f32> {
    let factor = numbers(rows * cols, seed + 50);
    tensor(rows, cols, seed).iter().zip(factor).map(|(x, factor)| x * (1.0 + factor * 0.37)).collect()
}

fn mask(n: usize) -> Vec<u64> {
    let word = |on: &[f32]| on.iter().rev().fold(0, |word, x| word << 1 | u64::from(*x > 0.0));
    numbers(n, 77).chunks(64).map(word).collect()
}

fn is_on(mask: &[u64], at: usize) -> bool {
    mask[at / 64] >> (at % 64) & 1 == 1
}

/// What is done with a tensor beside the optimizer's step.
#[derive(Clone, Copy, Default)]
struct Setting {
    masked: bool,
    momentum_share: Option<f64>,
    /// Weights in bfloat16 alone, under this seed.
    rounded: Option<u64>,
}

/// Values and state of the tensor after ten steps.
fn ten_steps(which: usize, optimizer: Optimizer, lr: f64, setting: Setting) -> (Vec<f32>, Vec<StateValues>) {
    let (name, rows, cols) = SHAPES[which];
    let (mut cpu, n) = (Cpu::default(), rows * cols);
    let values = tensor(rows, cols, 1 + which as u64);
    let (kind, known) = match setting.rounded {
        None => (WeightKind::Trainable, Known::F32),
        Some(_) => (WeightKind::Rounded, Known::BF16),
    };
    let bytes: Vec<u8> = match known {
        Known::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        // The numbers are exact in bfloat16.
        _ => values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
    };
    let dtype = Dtype::Known(known);
    let stored = Stored { dtype: &dtype, bytes: bytes.leak(), rows, cols };
    let mut weight = Cpu::weight(stored, kind).unwrap();
    let mut state = cpu.state(&optimizer.state_parts(rows, cols));
    let mask = setting.masked.then(|| mask(n));
    let weight_decay = if rows == 1 { 0.0 } else { 0.1 };
    for count in 1..=10 {
        let mut grad = gradient(rows, cols, 100 * count + which as u64);
        cpu.mask_and_square_sum(&mut [MaskedGrad { grad: &mut grad, mask: mask.as_ref(), pull: None }]);
        let tensor = UpdateTensor {
            weight: &mut weight,
            grad: &grad,
            state: &mut state,
            mask: mask.as_ref(),
            weight_decay,
            momentum_share: setting.momentum_share,
            rounding: setting.rounded.map(|seed| Rounding::new(seed, 0, name)),
        };
        cpu.update(&mut [tensor], &OptimizerStep { optimizer, lr, count, grad_scale: 1.0 });
    }
    use hft_surgery::backend::Backend;
    (cpu.weight_to_host(&weight).unwrap().into_owned(), state)
}

/// Largest |got − expected| as a share of the largest |expected − start|.
fn error(which: usize, got: &[f32], expected: &[f64]) -> f64 {
    let (_, rows, cols) = SHAPES[which];
    let start = tensor(rows, cols, 1 + which as u64);
    let most = |differences: &mut dyn Iterator<Item = f64>| differences.fold(0.0f64, |m, d| m.max(d.abs()));
    let moved = most(&mut expected.iter().zip(&start).map(|(e, s)| e - f64::from(*s)));
    assert!(moved > 1e-3, "a tensor that stays says nothing");
    most(&mut expected.iter().zip(got).map(|(e, g)| e - f64::from(*g))) / moved
}

fn sgd(momentum: f64) -> Optimizer {
    Optimizer::Sgd(Sgd { momentum })
}

#[test]
fn ten_steps_are_those_of_the_references() {
    let golden = golden();
    let adafactor = Optimizer::Adafactor(Adafactor::default());
    let masked = Setting { masked: true, ..Setting::default() };
    for (case, optimizer, lr, setting) in [
        ("adamw", Optimizer::AdamW(ADAM), 1e-2, Setting::default()),
        ("adamw8bit", Optimizer::AdamW8bit(ADAM), 1e-2, Setting::default()),
        ("adafactor", adafactor, 1e-2, Setting::default()),
        ("adafactor_mask", adafactor, 1e-2, masked),
        ("lion", Optimizer::Lion(LION), 1e-3, Setting::default()),
        ("sgd", sgd(0.0), 1e-1, Setting::default()),
        ("sgd_momentum", sgd(0.9), 1e-1, Setting::default()),
    ] {
        for (which, (name, ..)) in SHAPES.iter().enumerate() {
            let (got, _) = ten_steps(which, optimizer, lr, setting);
            let e = error(which, &got, golden.get(&format!("{case}.{name}")));
            assert!(e < 2e-5, "{case} {name}: off by {e:e} of the largest move");
        }
    }
}

/// The codes and magnitudes of bitsandbytes, but for values that lie within rounding of the middle of two codes; the
/// compiled library of bitsandbytes takes another neighbour for two values in a thousand.
#[test]
fn moments_of_8_bits_are_those_of_bitsandbytes() {
    let golden = golden();
    for (map, name) in [(DynamicMap::signed(), "map.signed"), (DynamicMap::unsigned(), "map.unsigned")] {
        assert_eq!(map.values.map(f64::from).to_vec(), golden.get(name), "{name}");
    }
    let (got, state) = ten_steps(0, Optimizer::AdamW8bit(ADAM), 1e-2, Setting::default());
    for (part, values) in ["exp_avg", "exp_avg_absmax", "exp_avg_sq", "exp_avg_sq_absmax"].iter().zip(&state)
    {
        let expected = golden.get(&format!("adamw8bit.matrix.{part}"));
        match values {
            StateValues::Codes(codes) => {
                let others = codes.iter().zip(expected).filter(|(code, e)| f64::from(**code) != **e).count();
                assert!(others * 1000 <= codes.len(), "{part}: {others} codes of {} differ", codes.len());
            }
            StateValues::Floats(values) => {
                for (x, e) in values.iter().zip(expected) {
                    assert!((f64::from(*x) - e).abs() <= 2e-6 * e, "{part}: {x}, expected {e}");
                }
            }
        }
    }
    let e = error(0, &got, golden.get("adamw8bit_cpu.matrix"));
    assert!(e < 0.1, "off by {e:e} of the largest move from the compiled library");
    // The moments are not those of 32 bits.
    assert!(error(0, &got, golden.get("adamw.matrix")) > 1e-3);
}

fn all() -> [(Optimizer, f64); 6] {
    let adafactor = Optimizer::Adafactor(Adafactor::default());
    [
        (Optimizer::AdamW(ADAM), 1e-2),
        (Optimizer::AdamW8bit(ADAM), 1e-2),
        (adafactor, 1e-2),
        (Optimizer::Lion(LION), 1e-3),
        (sgd(0.0), 1e-1),
        (sgd(0.9), 1e-1),
    ]
}

/// An element mask freezes to the bit; what is trainable moves as without it, where elements do not know each other.
#[test]
fn a_mask_freezes_to_the_bit() {
    for (optimizer, lr) in all() {
        for (which, (_, rows, cols)) in SHAPES.into_iter().enumerate() {
            let (mask, start) = (mask(rows * cols), tensor(rows, cols, 1 + which as u64));
            let (free, _) = ten_steps(which, optimizer, lr, Setting::default());
            let (masked, _) = ten_steps(which, optimizer, lr, Setting { masked: true, ..Setting::default() });
            let alone = matches!(optimizer, Optimizer::AdamW(_) | Optimizer::Lion(_) | Optimizer::Sgd(_));
            for at in 0..rows * cols {
                if !is_on(&mask, at) {
                    assert_eq!(masked[at].to_bits(), start[at].to_bits(), "{} at {at}", optimizer.name());
                } else if alone {
                    assert_eq!(masked[at].to_bits(), free[at].to_bits(), "{} at {at}", optimizer.name());
                }
            }
            assert!(masked.iter().zip(&start).any(|(m, s)| m != s), "{}", optimizer.name());
        }
    }
}

/// MoFO over all entries changes nothing; over a tenth, no more than a tenth moves at each step.
#[test]
fn a_share_of_the_entries_moves() {
    for (optimizer, lr) in all().into_iter().filter(|(optimizer, _)| optimizer.has_first_moment()) {
        let setting = |share| Setting { momentum_share: Some(share), ..Setting::default() };
        let (free, state) = ten_steps(0, optimizer, lr, Setting::default());
        let (whole, state_of_whole) = ten_steps(0, optimizer, lr, setting(1.0));
        assert!(free == whole && state == state_of_whole, "{}", optimizer.name());
        let start = tensor(64, 67, 1);
        let moved = |values: &[f32]| values.iter().zip(&start).filter(|(a, b)| a != b).count();
        let (some, _) = ten_steps(0, optimizer, lr, setting(0.02));
        let most = 10 * (0.02f64 * 64.0 * 67.0).round() as usize;
        assert!((1..=most).contains(&moved(&some)) && moved(&free) > 4000, "{}", optimizer.name());
    }
}

/// Weights in bfloat16 alone: reproducible under a seed, other under another, and near those with a master.
#[test]
fn weights_without_a_master_follow_those_with_one() {
    for (optimizer, lr) in all() {
        let with =
            |seed| ten_steps(0, optimizer, lr, Setting { rounded: Some(seed), ..Setting::default() }).0;
        let (first, again, other) = (with(1), with(1), with(2));
        assert!(first == again && first != other, "{}", optimizer.name());
        assert!(first.iter().all(|x| half::bf16::from_f32(*x).to_f32() == *x), "{}", optimizer.name());
        let (free, _) = ten_steps(0, optimizer, lr, Setting::default());
        let sum = |values: &[f32]| values.iter().map(|x| f64::from(*x)).sum::<f64>();
        let start = tensor(64, 67, 1);
        let distance = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
        };
        let (off, moved) = (distance(&first, &free), distance(&free, &start));
        assert!(off < 0.5 * moved, "{}: off by {off}, moved by {moved}", optimizer.name());
        // The mean of the roundings is far smaller than one of them.
        let mean = (0..40).map(|seed| sum(&with(seed)) - sum(&free)).sum::<f64>() / 40.0;
        let each = off / (64.0f64 * 67.0).sqrt();
        assert!(mean.abs() < 5.0 * each * (64.0f64 * 67.0 / 40.0).sqrt(), "{}: {mean}", optimizer.name());
    }
}

/// The result does not depend on the number of threads.
#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for (optimizer, lr) in all() {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| ten_steps(0, optimizer, lr, Setting { rounded: Some(5), ..Setting::default() }))
        };
        assert!(run(1) == run(3), "{}", optimizer.name());
    }
}
