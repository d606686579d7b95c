//! Every operation on a GPU against the CPU, on odd shapes.
//!
//! The GPU is the mock of `tests/mock_cuda`, which runs each kernel on the CPU under three orders of threads and
//! compares the results bit by bit. With `HFT_TEST_GPU=1` it is the GPU of this machine; then no GPU is a failure.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test that cannot go on fails")]

#[path = "cuda/cases.rs"]
mod cases;
#[path = "cuda/float8.rs"]
mod float8;
#[path = "common/mock_cuda.rs"]
mod mock_cuda;
#[path = "common/numbers.rs"]
mod numbers;

use std::path::Path;
use std::process::Command;

use cases::{CASES, Case};
use hft_surgery::backend::cuda::{BernoulliDraws, Cuda, Directories, set_directories};
use hft_surgery::backend::{Backend, ComputeDtype, Cpu, Stored};
use hft_surgery::checkpoint::{Dtype, Known};
use hft_surgery::plan::{Domain, Key, bernoulli};
use numbers::numbers;

/// The GPU under test.
fn gpu(compute_dtype: ComputeDtype) -> Cuda {
    if std::env::var_os("HFT_TEST_GPU").is_none() {
        let libraries = mock_cuda::libraries().to_owned();
        set_directories(Directories { cache: libraries.join("cache"), libraries });
    }
    Cuda::open(compute_dtype).unwrap_or_else(|error| panic!("{error}"))
}

/// Largest difference of any result, as a share of the largest number in it.
fn error(case: &Case, cpu: &[Vec<f32>], cuda: &[Vec<f32>]) -> f64 {
    assert_eq!(cpu.len(), cuda.len(), "{}", case.name);
    let mut worst = 0.0f64;
    for (expected, got) in cpu.iter().zip(cuda) {
        assert_eq!(expected.len(), got.len(), "{}", case.name);
        let largest = expected.iter().fold(0.0f64, |m, x| m.max(f64::from(x.abs())));
        assert!(largest > 0.0, "{}: a test of zeros says nothing", case.name);
        for (e, g) in expected.iter().zip(got) {
            let difference = (f64::from(*e) - f64::from(*g)).abs();
            assert!(difference.is_finite(), "{}: got {g}, expected {e}", case.name);
            worst = worst.max(difference / largest);
        }
    }
    worst
}

fn agree(compute_dtype: ComputeDtype, bound: impl Fn(&Case) -> f64) {
    for case in CASES {
        let (mut cpu, mut cuda) = (Cpu::default(), gpu(compute_dtype));
        let (expected, got) = ((case.cpu)(&mut cpu), (case.cuda)(&mut cuda));
        cuda.check().unwrap_or_else(|fault| panic!("{}: {fault}", case.name));
        let (e, bound) = (error(case, &expected, &got), bound(case));
        println!("{:24} {compute_dtype:?} error {e:.1e} (at most {bound:.0e})", case.name);
        assert!(e <= bound, "{}: {e:e}", case.name);
    }
}

#[test]
fn operations_agree_in_f32() {
    agree(ComputeDtype::F32, |_| 1e-5);
}

#[test]
fn operations_agree_in_bf16() {
    agree(ComputeDtype::Bf16, |case| case.bf16);
}

/// Stochastic rounding has the draws of the CPU: values in bfloat16 are the same bits, where the sums before them are.
#[test]
fn weights_without_a_master_are_those_of_the_cpu() {
    let (mut cpu, mut cuda) = (Cpu::default(), gpu(ComputeDtype::Bf16));
    let (expected, got) = (cases::rounded(&mut cpu), cases::rounded(&mut cuda));
    cuda.check().unwrap();
    assert_eq!(expected.len(), got.len());
    for (i, (expected, got)) in expected.iter().zip(&got).enumerate() {
        let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let others = expected.iter().zip(got).filter(|(e, g)| (*e - *g).abs() > 1e-5 * largest).count();
        // Sums that a GPU rounds otherwise may fall on the other side of a draw.
        assert!(others * 1000 <= expected.len(), "result {i}: {others} of {} differ", expected.len());
    }
}

#[test]
fn masks_have_the_bits_of_the_cpu() {
    let cuda = gpu(ComputeDtype::F32);
    for (len, each, ratio, complement) in
        [(1000, 1, 0.5, false), (77, 7, 0.3, true), (64, 64, 1.0, false), (65, 1, 0.0, true)]
    {
        let key = Key::new(3, 1, "model.layers.0.mlp.up_proj.weight");
        let domain = if each == 1 { Domain::Element } else { Domain::Row };
        let mut expected = vec![false; len / each + 1];
        bernoulli(&key, domain, 0, ratio, &mut expected);
        let threshold = (ratio * (1u64 << 32) as f64).round() as u64;
        let (key, domain, elements_per_draw) = (key.words(), domain as u32, each as u64);
        let draws = BernoulliDraws { key, domain, threshold, complement, elements_per_draw };
        let bits = cuda.mask_bits(&cuda.bernoulli_mask(draws, len)).unwrap();
        for i in 0..len {
            assert_eq!(
                bits[i / 64] >> (i % 64) & 1 == 1,
                expected[i / each] != complement,
                "element {i} of {len}"
            );
        }
    }
}

#[test]
fn a_masked_merge_rounds_once() {
    for compute_dtype in [ComputeDtype::F32, ComputeDtype::Bf16] {
        let cuda = gpu(compute_dtype);
        let n = 131;
        let (base, tuned) = (numbers(n, 1), numbers(n, 2));
        let bits: Vec<u64> = (0..n.div_ceil(64) as u64).map(|i| 0xa5a5_0ff0_1234_5678 ^ i).collect();
        let mask = cuda.mask(bits.clone());
        let upload = |values: &[f32]| {
            let mut buffer = cuda.activations(n);
            cuda.set(&mut buffer, values).unwrap();
            buffer
        };
        for scale in [1.0f32, 0.3] {
            let mut out = cuda.activations(n);
            cuda.masked_merge(&upload(&base), &upload(&tuned), &mask, scale, &mut out);
            for (i, got) in cuda.to_host(&out).unwrap().iter().enumerate() {
                let merged = if scale == 1.0 { tuned[i] } else { base[i] + scale * (tuned[i] - base[i]) };
                let exact = if bits[i / 64] >> (i % 64) & 1 == 1 { merged } else { base[i] };
                let rounded = if compute_dtype == ComputeDtype::F32 {
                    exact
                } else {
                    half::bf16::from_f32(exact).to_f32()
                };
                assert_eq!(got.to_bits(), rounded.to_bits(), "{compute_dtype:?} element {i}");
            }
        }
    }
}

#[test]
fn a_head_that_is_too_wide_is_the_fault_of_every_later_check() {
    let mut cuda = gpu(ComputeDtype::F32);
    cases::attention_of_width(&mut cuda, 257);
    let fault = cuda.check().unwrap_err().to_string();
    assert!(fault.contains("head_dim 257"), "{fault}");
    assert!(cuda.to_host(&cuda.zeros(3)).is_err());
}

/// Copies to and from the GPU of more than the transfer buffer holds, with a conversion between types.
#[test]
fn large_copies_keep_their_order() {
    let cuda = gpu(ComputeDtype::F32);
    let n = 8_400_003;
    let (first, second) = (numbers(n, 1), numbers(n, 2));
    let (mut a, mut b) = (cuda.zeros(n), cuda.zeros(n));
    cuda.set(&mut a, &first).unwrap();
    cuda.set(&mut b, &second).unwrap();
    // These numbers are exact in bf16.
    let bytes: Vec<u8> =
        first.iter().flat_map(|x| half::bf16::from_f32(*x).to_bits().to_le_bytes()).collect();
    let dtype = Dtype::Known(Known::BF16);
    let weight = cuda.trainable(Stored { dtype: &dtype, bytes: &bytes, rows: 1, cols: n }).unwrap();
    assert!(*cuda.to_host(&a).unwrap() == first && *cuda.to_host(&b).unwrap() == second);
    assert!(*cuda.weight_to_host(&weight).unwrap() == first);
}

/// Bytes per second of a copy and of masked AdamW; on a GPU, of as much memory as a large tensor has.
#[test]
fn bandwidth_of_a_copy_and_of_adamw() {
    let (rows, cols, times) =
        if std::env::var_os("HFT_TEST_GPU").is_some() { (1 << 14, 1 << 14, 20) } else { (16, 40, 1) };
    let mut cuda = gpu(ComputeDtype::Bf16);
    let seconds = cases::adamw_seconds(&mut cuda, (rows, cols), times);
    cuda.check().unwrap();
    let elements = (rows * cols) as f64;
    // A copy reads and writes 4 bytes. AdamW reads gradient, moments, values and a bit, and writes moments,
    // values and their copy in bf16.
    let [copy, adamw] = [(seconds[0], 8.0), (seconds[1], 30.125)].map(|(s, each)| elements * each / s / 1e9);
    assert!(copy > 0.0 && adamw > 0.0 && copy.is_finite() && adamw.is_finite());
    println!("bandwidth copy {copy:.3} GB/s, adamw {adamw:.3} GB/s");
}

/// A recorded graph gives the bits of the operations that it was recorded from, on other tokens and after other
/// shapes.
#[test]
fn a_graph_gives_the_bits_of_its_operations() {
    for compute_dtype in [ComputeDtype::F32, ComputeDtype::Bf16] {
        let (mut direct, mut recorded) = (gpu(compute_dtype), gpu(compute_dtype));
        let (expected, got) = (cases::passes(&mut direct, false), cases::passes(&mut recorded, true));
        direct.check().unwrap();
        recorded.check().unwrap();
        assert_eq!(expected.len(), got.len());
        for (i, (expected, got)) in expected.iter().zip(&got).enumerate() {
            assert!(expected.iter().any(|x| *x != 0.0), "a test of zeros says nothing");
            let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(expected), bits(got), "{compute_dtype:?}: result {i}");
        }
    }
}

/// Each fault that is planted in `faults.cpp` is found under some order of threads.
#[test]
fn planted_faults_are_caught() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("faults");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mock_cuda/faults.cpp");
    let options = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wno-unknown-pragmas"];
    let built = Command::new("g++").args(options).arg(&source).arg("-o").arg(&program).status().unwrap();
    assert!(built.success());
    let output = Command::new(&program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let result = |name: &str| -> Vec<&str> {
        let line = text.lines().find(|line| line.split(' ').next() == Some(name)).unwrap();
        line.split(' ').skip(1).collect()
    };
    assert_eq!(result("sound"), ["129024"; 3]);
    assert_eq!(result("copy_waited_for"), ["2016"; 3]);
    assert_eq!(result("copy_not_waited_for"), ["-64"; 3]);
    let racing = result("missing_barrier");
    assert!(racing.iter().any(|sum| *sum != racing[0]) && racing.len() == 3, "{racing:?}");
    for name in ["barrier_in_a_branch", "two_barriers", "shuffle_outside_the_mask", "half_a_warp"] {
        assert_eq!(result(name), ["stopped"; 3], "{name}");
    }
}
