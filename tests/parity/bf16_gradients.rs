//! Gradients in bfloat16 over the micro-batches of a step against PyTorch: `fixtures/bf16_gradients`, made by
//! `make_bf16_gradients.py` there.

use std::path::Path;

use hft_surgery::backend::{Backend, Cpu, LinearShape, Updates};

use super::Golden;
use super::numbers::numbers;

const SHAPE: LinearShape = LinearShape { rows: 5, out_features: 24, in_features: 40 };
const ELEMENTS: usize = SHAPE.out_features * SHAPE.in_features;

fn golden() -> Golden {
    let path = "fixtures/bf16_gradients/bf16_gradients.safetensors";
    Golden::of(&Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
}

/// The same bits as PyTorch's sums of the same gradients, and within one rounding of each micro-batch of its `.grad`, whose
/// every gradient is rounded before it is added, too.
#[test]
fn sums_of_micro_batches_are_those_of_pytorch() {
    let (golden, mut cpu) = (golden(), Cpu::default());
    let (mut sum, mut grad) = (cpu.bf16_gradient(ELEMENTS), cpu.zeros(ELEMENTS));
    let mut widened = cpu.zeros(ELEMENTS);
    for n in 1..=8u64 {
        let (x, dout) = (numbers(5 * 40, n), numbers(5 * 24, n + 100));
        cpu.linear_backward_weight(&dout, &x, SHAPE, &mut grad, false);
        cpu.add_to_bf16_gradient(&grad, n > 1, &mut sum);
        cpu.widen_bf16_gradient(&sum, &mut widened);
        for (got, expected) in widened.iter().zip(golden.get(&format!("sums.{n}"))) {
            assert_eq!(f64::from(*got), *expected, "after {n} micro-batches");
        }
        let grad = golden.get(&format!("grad.{n}"));
        let largest = grad.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        for (got, expected) in widened.iter().zip(grad) {
            let off = (f64::from(*got) - expected).abs();
            assert!(off <= n as f64 * largest / 256.0, "after {n}: {got}, expected {expected}");
        }
    }
    let distance = |values: &mut dyn Iterator<Item = f64>| -> f64 {
        values.zip(golden.get("exact")).map(|(x, exact)| (x - exact).powi(2)).sum::<f64>().sqrt()
    };
    let ours = distance(&mut widened.iter().map(|x| f64::from(*x)));
    let theirs = distance(&mut golden.get("grad.8").iter().copied());
    assert!(ours > 0.0 && ours < theirs, "{ours} from the exact sum, PyTorch {theirs}");
}

/// Why sums are rounded to nearest and not stochastically: over 2 to 64 micro-batches the relative error of a sum is the
/// smaller one, for gradients of zero mean and for such with a mean of half their deviation.
#[test]
fn rounding_to_nearest_is_nearer_than_stochastic_rounding() {
    let mut cpu = Cpu::default();
    let n = 1 << 14;
    let normal = |seed: u64| -> Vec<f32> {
        let parts: Vec<Vec<f32>> = (0..4).map(|part| numbers(n, 10 * seed + part + 1)).collect();
        (0..n).map(|i| parts.iter().map(|part| part[i]).sum::<f32>() * 0.318_309_87).collect()
    };
    for mean in [0.0f32, 0.25] {
        for micro_batches in [2u64, 8, 64] {
            let (mut nearest, mut stochastic) = (cpu.bf16_gradient(n), vec![0u8; 2 * n]);
            let (mut exact, mut widened) = (vec![0.0f64; n], cpu.zeros(n));
            let rounding = hft_surgery::optimizer::Rounding::new(1, 0, "gradient");
            let widen = |bytes: &[u8]| -> Vec<f32> {
                bytes.chunks(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
            };
            for micro_batch in 0..micro_batches {
                let grad: Vec<f32> = normal(micro_batch).iter().map(|x| x + mean).collect();
                cpu.add_to_bf16_gradient(&grad, micro_batch > 0, &mut nearest);
                let sums: Vec<f32> = widen(&stochastic).iter().zip(&grad).map(|(a, b)| a + b).collect();
                rounding.round(micro_batch as u32, 0, &sums, &mut stochastic);
                exact.iter_mut().zip(&grad).for_each(|(sum, x)| *sum += f64::from(*x));
            }
            cpu.widen_bf16_gradient(&nearest, &mut widened);
            let length = exact.iter().map(|x| x * x).sum::<f64>().sqrt();
            let error = |values: &[f32]| -> f64 {
                let squares = values.iter().zip(&exact).map(|(x, exact)| (f64::from(*x) - exact).powi(2));
                squares.sum::<f64>().sqrt() / length
            };
            let [nearest, stochastic] = [error(&widened), error(&widen(&stochastic))];
            println!(
                "mean {mean}, {micro_batches} micro-batches: nearest {nearest:.1e}, stochastic {stochastic:.1e}"
            );
            assert!(nearest < stochastic && nearest < 2e-2, "{nearest}, stochastic {stochastic}");
        }
    }
}
