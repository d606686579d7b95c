//! Preference losses against TRL's `DPOTrainer`, `CPOTrainer` and `ORPOTrainer`: `fixtures/dpo` and
//! `fixtures/reference_free`, made by the scripts there.

use std::path::Path;
use std::sync::Arc;

use hft_surgery::backend::{Backend, Cpu, CpuPrecision, Device};
use hft_surgery::checkpoint::Checkpoint;
use hft_surgery::data::{Arrangement, BatchOptions, Batches, Location, Row};
use hft_surgery::eval::checkpoint_log_probs;
use hft_surgery::model::{Capacity, Recompute};
use hft_surgery::train::{
    LossType, Objective, PreferenceLoss, ReferenceAnswer, StepBuffers, StepReport, Update, step,
};

use super::{ADAMW, Golden, load, open};

const METRICS: [&str; 6] = [
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
];

const OF_ORPO: [&str; 3] = ["nll_loss", "log_odds_ratio", "log_odds_chosen"];

fn golden(family: &str, loss: LossType) -> Golden {
    let folder = if loss.has_reference() { "fixtures/dpo" } else { "fixtures/reference_free" };
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    Golden::of(&fixtures.join(family).with_extension("safetensors"))
}

/// The chosen and the rejected answers by turns, each behind its prompt.
fn rows(golden: &Golden) -> Vec<Row> {
    let location = || Location { path: Arc::from(Path::new("golden")), line: 1 };
    let lists = |name: &str| -> Vec<Vec<u32>> {
        let mut ids = golden.get(&format!("{name}_ids")).iter().map(|id| *id as u32);
        let lengths = golden.get(&format!("{name}_lengths"));
        lengths.iter().map(|length| ids.by_ref().take(*length as usize).collect()).collect()
    };
    let (prompts, chosen, rejected) = (lists("prompt"), lists("chosen"), lists("rejected"));
    let row = |prompt: &[u32], answer: &[u32]| {
        let learnt = answer.iter().map(|id| id.cast_signed());
        let labels = prompt.iter().map(|_| -100).chain(learnt).collect();
        Row { input_ids: [prompt, answer].concat(), labels, location: location() }
    };
    let mut rows = Vec::new();
    for (prompt, (chosen, rejected)) in prompts.iter().zip(chosen.iter().zip(&rejected)) {
        rows.extend([row(prompt, chosen), row(prompt, rejected)]);
    }
    rows
}

fn reference(checkpoint: &Checkpoint, rows: &[Row], loss: LossType) -> Vec<ReferenceAnswer> {
    if !loss.has_reference() {
        return rows.iter().map(ReferenceAnswer::without_model).collect();
    }
    let found = checkpoint_log_probs(&mut Device::Cpu(CpuPrecision::F32), checkpoint, rows, &mut |_| true)
        .unwrap()
        .unwrap();
    let answer = |(row, log_prob): (&Row, f64)| ReferenceAnswer { log_prob, tokens: row.labelled() };
    rows.iter().zip(found).map(answer).collect()
}

/// Holds ten steps of `family` to what TRL found with `loss`, under the name `case` and `key`.
fn check_steps(family: &str, case: &str, key: &str, loss: PreferenceLoss) {
    let golden = golden(family, loss.loss_type);
    let checkpoint = open(family);
    let rows = rows(&golden);
    let reference = reference(&checkpoint, &rows, loss.loss_type);
    let scale_of_rewards = loss.beta;
    let metrics = METRICS.iter().chain(if loss.loss_type == LossType::Orpo { &OF_ORPO[..] } else { &[] });
    let metrics: Vec<&str> = metrics.copied().collect();
    let options = BatchOptions { batch_size: 2, arrangement: Arrangement::Pairs, shuffle: false, seed: 0 };
    let batches = Batches::new(rows, options).unwrap();
    let trains = |name: &str| key == "full" || golden.half.contains(name);
    let (start, mut model) = (load(&checkpoint, &|_| true), load(&checkpoint, &trains));
    let mut cpu = Cpu::default();
    let capacity = Capacity { tokens: 64, positions: 32 };
    let mut buffers = StepBuffers::new(&cpu, &model, capacity, Recompute::None);
    let expected = |name: &str| golden.get(&format!("{case}.{key}.{name}"));
    for i in 0..10 {
        let epoch = batches.epoch(0);
        let places = if i % 2 == 0 { 0..2 } else { 2..3 };
        let micros: Vec<_> = places.map(|place| epoch.batch(place).unwrap()).collect();
        let objective = Objective::Preference { loss, reference: &reference };
        let update = Update { objective, optimizer: &ADAMW, lr: 3e-3, count: i + 1 };
        let StepReport { loss, preference, .. } = step(&mut cpu, &mut model, &mut buffers, &micros, update);
        let named = preference.unwrap().named();
        assert_eq!(named.iter().map(|(name, _)| *name).collect::<Vec<_>>(), metrics);
        // A reward is a difference of log-probabilities, times beta: as exact as they are.
        let largest =
            |names: [&str; 2]| names.iter().map(|name| expected(name)[i as usize].abs()).fold(1.0, f64::max);
        let of_rewards = scale_of_rewards * largest(["logps/chosen", "logps/rejected"]);
        for (name, got) in [("loss", loss)].into_iter().chain(named) {
            // An expert rounds otherwise with other rows beside its own, which decides between rewards of 0.
            if i == 0 && model.config.mixtures.is_some() && name == "rewards/accuracies" {
                continue;
            }
            let expected = expected(name)[i as usize];
            let scale = if name.starts_with("rewards/") { of_rewards } else { expected.abs() };
            let off = (got - expected).abs() / scale.max(1.0);
            assert!(off < 2e-5, "{family} {case} {key}: {name} of step {i}: {got}, expected {expected}");
        }
    }
    for (param, start) in model.params().zip(start.params()).filter(|(param, _)| trains(&param.name)) {
        let before = cpu.weight_to_host(&start.weight).unwrap();
        let after = cpu.weight_to_host(&param.weight).unwrap();
        let expected = expected(&format!("weight.{}", param.name));
        let distance = |values: &[f32]| -> f64 {
            expected.iter().zip(values).map(|(e, x)| (e - f64::from(*x)).powi(2)).sum::<f64>().sqrt()
        };
        let off = distance(&after) / distance(&before);
        assert!(off < 1e-4, "{family} {case} {key}: {}: off by {off:e} of its update", param.name);
    }
}

#[test]
fn ten_steps_of_every_family_are_those_of_trl() {
    for family in ["llama3", "mistral", "qwen2", "qwen3", "qwen2-moe", "mixtral-router-loss"] {
        for key in ["full", "half"] {
            let loss = PreferenceLoss { loss_type: LossType::Sigmoid, beta: 0.5, label_smoothing: 0.0 };
            check_steps(family, "sigmoid", key, loss);
        }
    }
}

/// No reference model, log-probabilities per token; the chosen answers' likelihood for ORPO.
#[test]
fn ten_steps_without_a_reference_are_those_of_trl() {
    let simpo = LossType::Simpo { gamma: 1.0 };
    for key in ["full", "half"] {
        for family in ["llama3", "mistral"] {
            let loss = PreferenceLoss { loss_type: simpo, beta: 2.0, label_smoothing: 0.0 };
            check_steps(family, "simpo", key, loss);
            let loss = PreferenceLoss { loss_type: LossType::Orpo, beta: 0.5, label_smoothing: 0.0 };
            check_steps(family, "orpo", key, loss);
        }
        let loss = PreferenceLoss { loss_type: simpo, beta: 2.0, label_smoothing: 0.1 };
        check_steps("llama3", "simpo_smoothed", key, loss);
    }
}

#[test]
fn ten_steps_of_every_loss_are_those_of_trl() {
    let cases =
        [("hinge", LossType::Hinge, 0.0), ("ipo", LossType::Ipo, 0.0), ("robust", LossType::Robust, 0.1)];
    for (case, loss_type, label_smoothing) in cases {
        for key in ["full", "half"] {
            check_steps("llama3", case, key, PreferenceLoss { loss_type, beta: 0.5, label_smoothing });
        }
    }
}

/// The log-probabilities that the rewards are measured from.
#[test]
fn the_reference_is_the_model_before_the_first_step() {
    let golden = golden("llama3", LossType::Sigmoid);
    let reference = reference(&open("llama3"), &rows(&golden), LossType::Sigmoid);
    let mean =
        |first: usize| reference.iter().skip(first).step_by(2).take(4).map(|a| a.log_prob).sum::<f64>() / 4.0;
    for (got, name) in [(mean(0), "logps/chosen"), (mean(1), "logps/rejected")] {
        let expected = golden.get(&format!("sigmoid.full.{name}"))[0];
        assert!((got - expected).abs() < 2e-5 * expected.abs(), "{name}: {got}, expected {expected}");
    }
}
