//! Speed of the products of linear layers on the CPU, in float32 (the `gemm` crate) and in bfloat16, in turn: GFLOP/s of both,
//! their ratio, and the share of what the instructions for bfloat16 give at most.
//!
//! usage: products [ROWSxOUTxIN...]

#![allow(
    clippy::print_stdout,
    unsafe_code,
    reason = "a command of the benchmarks, with a loop of one instruction"
)]

use std::time::Instant;

use hft_surgery::backend::{Backend, Cpu, CpuPrecision, LinearShape, Stored};
use hft_surgery::checkpoint::{Dtype, Known};

const SHAPES: [&str; 5] =
    ["512x2048x512", "512x1376x512", "512x512x1376", "2048x4096x11008", "512x32000x512"];

/// GFLOP of one measurement.
const WORK: f64 = 60.0;

fn seconds(mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

/// GFLOP/s of AVX512-BF16 on one thread, with all operands in registers.
#[cfg(target_arch = "x86_64")]
fn limit() -> f64 {
    use std::arch::x86_64::*;
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn run(rounds: usize) -> f32 {
        // SAFETY: both types are vectors of 512 bits, of which all are valid.
        let x: __m512bh =
            unsafe { std::mem::transmute(_mm512_set1_epi32(std::hint::black_box(0x3f80_3f80))) };
        let mut sums = [_mm512_setzero_ps(); 28];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, x, x);
            }
        }
        sums.iter().fold(0.0, |all, sum| all + _mm512_reduce_add_ps(*sum))
    }
    const ROUNDS: usize = 1 << 21;
    let once = |_| {
        seconds(|| {
            // SAFETY: the caller found the instructions.
            std::hint::black_box(unsafe { run(ROUNDS) });
        })
    };
    64.0 * 28.0 * ROUNDS as f64 / (0..5).map(once).fold(f64::INFINITY, f64::min) / 1e9
}

#[cfg(not(target_arch = "x86_64"))]
fn limit() -> f64 {
    f64::NAN
}

fn numbers(n: usize) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

fn shape_of(text: &str) -> Option<LinearShape> {
    let mut sizes = text.split('x').map(|size| size.parse().ok());
    let shape =
        LinearShape { rows: sizes.next()??, out_features: sizes.next()??, in_features: sizes.next()?? };
    sizes.next().is_none().then_some(shape)
}

/// Prints a line for each product of a linear layer.
fn measure(text: &str, shape: LinearShape, bf16: CpuPrecision, limit: f64) {
    let LinearShape { rows, out_features, in_features } = shape;
    let (x, dout) = (numbers(rows * in_features), numbers(rows * out_features));
    let bytes: Vec<u8> = numbers(out_features * in_features).iter().flat_map(|x| x.to_le_bytes()).collect();
    let dtype = Dtype::Known(Known::F32);
    let stored = Stored { dtype: &dtype, bytes: &bytes, rows: out_features, cols: in_features };
    let Some(weight) = Cpu::trainable(stored) else { unreachable!("float32 is a number") };
    let (mut out, mut dx) = (vec![0.0; dout.len()], vec![0.0; x.len()]);
    let mut dweight = vec![0.0; out_features * in_features];
    let gflop = 2.0 * (rows * out_features * in_features) as f64 / 1e9;
    let mut cpus = [Cpu::new(CpuPrecision::F32), Cpu::new(bf16)];
    for (i, name) in ["x W^T", "dout W", "dout^T x"].into_iter().enumerate() {
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..((WORK / gflop) as usize).clamp(3, 25) {
            for (cpu, times) in cpus.iter_mut().zip(&mut times) {
                times.push(seconds(|| match i {
                    0 => cpu.linear_forward(&x, &weight, rows, &mut out, false),
                    1 => cpu.linear_backward_input(&dout, &weight, rows, &mut dx, false),
                    _ => cpu.linear_backward_weight(&dout, &x, shape, &mut dweight, false),
                }));
            }
        }
        let [f32, bf16] = times.map(|times| gflop / median(times));
        println!(
            "| {text} | {name} | {f32:.0} | {bf16:.0} | {:.2} x | {:.0} % |",
            bf16 / f32,
            100.0 * bf16 / limit
        );
    }
}

fn main() {
    let Some(bf16) = CpuPrecision::bf16() else {
        return println!("no instructions for products in bfloat16");
    };
    let threads = rayon::current_num_threads();
    let limit = limit();
    println!("{threads} threads; {limit:.0} GFLOP/s of one thread at most\n");
    println!(
        "| rows x out x in | product | float32 | bfloat16 | ratio | of the limit |\n|---|---|--:|--:|--:|--:|"
    );
    let given: Vec<String> = std::env::args().skip(1).collect();
    let shapes: Vec<&str> =
        if given.is_empty() { SHAPES.to_vec() } else { given.iter().map(|s| &**s).collect() };
    rayon::scope(|_| {
        for text in shapes {
            match shape_of(text) {
                Some(shape) => measure(text, shape, bf16, limit * threads as f64),
                None => println!("{text}: expected ROWSxOUTxIN"),
            }
        }
    });
}
