//! Cross-entropy with label smoothing against transformers' `Trainer`: `fixtures/smoothing`, made by `make_smoothing.py`
//! there.

use std::path::Path;
use std::sync::Arc;

use hft_surgery::backend::{Backend, Cpu};
use hft_surgery::data::{Arrangement, Batch, BatchOptions, Batches, Location, Row};
use hft_surgery::eval::mean_loss;
use hft_surgery::model::{Capacity, Recompute};
use hft_surgery::train::{Objective, StepBuffers, Update, step};

use super::{ADAMW, Golden, load, open};

fn rows(golden: &Golden) -> Vec<Row> {
    let location = || Location { path: Arc::from(Path::new("golden")), line: 1 };
    let (ids, labels, offsets) = (golden.ids(), golden.labels(), golden.offsets());
    let row = |ends: &[u32]| {
        let range = ends[0] as usize..ends[1] as usize;
        let (input_ids, labels) = (ids[range.clone()].to_vec(), labels[range].to_vec());
        Row { input_ids, labels, location: location() }
    };
    offsets.windows(2).map(row).collect()
}

#[test]
fn ten_smoothed_steps_are_those_of_transformers() {
    for family in ["llama3", "mistral"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/smoothing").join(family);
        let golden = Golden::of(&path.with_extension("safetensors"));
        let checkpoint = open(family);
        for key in ["full", "half"] {
            let trains = |name: &str| key == "full" || golden.half.contains(name);
            let (start, mut model) = (load(&checkpoint, &|_| true), load(&checkpoint, &trains));
            let all = rows(&golden);
            let eval = [Batch::from_rows(&all)];
            let options =
                BatchOptions { batch_size: 2, arrangement: Arrangement::Plain, shuffle: false, seed: 0 };
            let batches = Batches::new(all, options).unwrap();
            let mut cpu = Cpu::default();
            let capacity = Capacity { tokens: 64, positions: 32 };
            let mut buffers = StepBuffers::new(&cpu, &model, capacity, Recompute::None);
            for (i, expected) in golden.get(&format!("{key}.losses")).iter().enumerate() {
                let epoch = batches.epoch(0);
                let places = if i % 2 == 0 { 0..2 } else { 2..3 };
                let micros: Vec<_> = places.map(|place| epoch.batch(place).unwrap()).collect();
                let objective = Objective::CrossEntropy { label_smoothing: 0.1 };
                let update = Update { objective, optimizer: &ADAMW, lr: 3e-3, count: i as u64 + 1 };
                let report = step(&mut cpu, &mut model, &mut buffers, &micros, update);
                let e = (report.loss - expected).abs() / expected;
                assert!(e < 1e-5, "{family} {key}: loss of step {i}: {}, expected {expected}", report.loss);
            }
            // Trainer smooths the loss on the evaluation rows too.
            let got = mean_loss(&mut cpu, &model, &mut buffers.acts, &eval, 0.1).unwrap().nats;
            let expected = golden.get(&format!("{key}.eval_loss"))[0];
            assert!((got - expected).abs() < 1e-5 * expected, "{family} {key}: {got}, expected {expected}");
            for (param, start) in model.params().zip(start.params()).filter(|(p, _)| trains(&p.name)) {
                let before = cpu.weight_to_host(&start.weight).unwrap();
                let after = cpu.weight_to_host(&param.weight).unwrap();
                let expected = golden.get(&format!("{key}.weight.{}", param.name));
                let distance = |values: &[f32]| -> f64 {
                    expected.iter().zip(values).map(|(e, x)| (e - f64::from(*x)).powi(2)).sum::<f64>().sqrt()
                };
                let off = distance(&after) / distance(&before);
                assert!(off < 1e-4, "{family} {key}: {}: off by {off:e} of its update", param.name);
            }
        }
    }
}
