//! L2-SP and MoFO against PyTorch: `fixtures/rivals`, made by `make_rivals.py` there.

use std::path::Path;

use hft_surgery::backend::{Backend, Cpu};
use hft_surgery::data;
use hft_surgery::model::{Capacity, Pull, Recompute};
use hft_surgery::train::{Objective, OptimizerOptions, StepBuffers, Update, step};

use super::{ADAMW, Golden, load, open};

const FAMILY: &str = "llama3";

/// The rows of the family in two micro-batches, as `make_llama.py` divides them.
fn micro_batches() -> [data::Batch; 2] {
    let golden = Golden::read(FAMILY);
    let (ids, labels, offsets) = (golden.ids(), golden.labels(), golden.offsets());
    let batch = |first: usize, last: usize| {
        let (from, to) = (offsets[first] as usize, offsets[last] as usize);
        data::Batch {
            input_ids: ids[from..to].to_vec(),
            labels: labels[from..to].to_vec(),
            cu_seqlens: offsets[first..=last].iter().map(|offset| offset - offsets[first]).collect(),
            rows: Vec::new(),
        }
    };
    [batch(0, 2), batch(2, offsets.len() - 1)]
}

/// Bits of a mask from its elements.
fn bits(mask: &[f64]) -> Vec<u64> {
    let word = |elements: &[f64]| elements.iter().rev().fold(0, |word, on| word << 1 | u64::from(*on > 0.5));
    mask.chunks(64).map(word).collect()
}

/// Ten steps of `case` with the penalty and the share that its script used.
fn check(case: &str, penalty: Option<f32>, share: Option<f64>, masked: bool) {
    let weight_decay = if case == "l2sp" { 0.0 } else { 0.1 };
    let golden =
        Golden::of(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/rivals/rivals.safetensors"));
    let optimizer = OptimizerOptions { weight_decay, ..ADAMW };
    let (checkpoint, micros) = (open(FAMILY), micro_batches());
    for key in ["full", "half"] {
        let trains = |name: &str| key == "full" || golden.half.contains(name);
        let (start, mut model) = (load(&checkpoint, &|_| true), load(&checkpoint, &trains));
        let mut cpu = Cpu::default();
        for (param, start) in model.params_mut().zip(start.params()) {
            let Some(train) = &mut param.train else { continue };
            let values = cpu.weight_to_host(&start.weight).unwrap().into_owned();
            train.pull = penalty.map(|strength| Pull { start: values, strength });
            train.momentum_share = share;
            if masked {
                train.mask = Some(cpu.mask(bits(golden.get(&format!("element_mask.{}", param.name)))));
            }
        }
        let capacity = Capacity { tokens: 64, positions: 16 };
        let mut buffers = StepBuffers::new(&cpu, &model, capacity, Recompute::None);
        let expected = |name: &str| golden.get(&format!("{case}.{key}.{name}"));
        for i in 0..10 {
            let update = Update {
                objective: Objective::CrossEntropy { label_smoothing: 0.0 },
                optimizer: &optimizer,
                lr: 3e-3,
                count: i + 1,
            };
            let report = step(&mut cpu, &mut model, &mut buffers, &micros, update);
            // The loss is told without the penalty; the norm is that of the whole gradient.
            for (name, got) in [("losses", report.loss), ("norms", report.grad_norm)] {
                let expected = expected(name)[i as usize];
                let e = (got - expected).abs() / expected;
                assert!(e < 2e-5, "{case} {key}: {name} of step {i}: {got}, expected {expected}");
            }
        }
        let mut compared = 0;
        for (param, start) in model.params().zip(start.params()) {
            let name = format!("{case}.{key}.weight.{}", param.name);
            let Some(expected) = golden.values.get(&name) else { continue };
            let before = cpu.weight_to_host(&start.weight).unwrap();
            let after = cpu.weight_to_host(&param.weight).unwrap();
            let distance = |values: &[f32]| -> f64 {
                expected.iter().zip(values).map(|(e, x)| (e - f64::from(*x)).powi(2)).sum::<f64>().sqrt()
            };
            let off = distance(&after) / distance(&before);
            assert!(off < 1e-4, "{case} {key}: {}: off by {off:e} of its update", param.name);
            // What PyTorch left where it was stands to the bit.
            let stays = expected.iter().zip(before.iter()).filter(|(e, b)| **e == f64::from(**b)).count();
            let stayed = after.iter().zip(before.iter()).filter(|(a, b)| a == b).count();
            assert_eq!(stayed, stays, "{case} {key}: {}", param.name);
            compared += 1;
        }
        assert!(compared >= 2, "{case} {key}: {compared} tensors compared");
    }
}

#[test]
fn ten_steps_of_l2_sp_are_those_of_pytorch() {
    check("l2sp", Some(0.5), None, false);
}

#[test]
fn ten_steps_of_mofo_are_those_of_pytorch() {
    check("mofo", None, Some(0.1), false);
}

#[test]
fn ten_steps_of_mofo_under_an_element_mask_are_those_of_pytorch() {
    check("mofo_mask", None, Some(0.25), true);
}

#[test]
fn ten_steps_of_both_are_those_of_pytorch() {
    check("both", Some(0.5), Some(0.3), false);
}
