//! Products with frozen matrices in eight-bit floats against PyTorch's rounding, products of the codes, and the CPU.
#![allow(clippy::unwrap_used, reason = "a part of a test")]

use hft_surgery::backend::cuda::Cuda;
use hft_surgery::backend::{Backend, ComputeDtype, Cpu, Float8Matrix, Stored, WeightKind};
use hft_surgery::checkpoint::{Dtype, Known, decode_f32};
use serde_json::Value;

use super::gpu;
use super::numbers::numbers;

fn golden() -> Value {
    // Part of the program, which also runs where there is no such file.
    serde_json::from_str(include_str!("../../fixtures/float8/float8.json")).unwrap()
}

/// The values of a matrix `[rows, cols]` as a checkpoint stores them.
fn stored(values: &[f32], cols: usize) -> Stored<'static> {
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let dtype = Box::leak(Box::new(Dtype::Known(Known::F32)));
    Stored { dtype, bytes: bytes.leak(), rows: values.len() / cols, cols }
}

fn acts<B: Backend>(b: &B, values: &[f32]) -> B::Buffer {
    let mut buffer = b.activations(values.len());
    b.set(&mut buffer, values).unwrap();
    buffer
}

/// What PyTorch makes of the finite cases up to `largest`, which is among them, so that the scale is 1.
fn rounded(name: &str, largest: f32) -> (Vec<f32>, Vec<f32>) {
    let golden = golden();
    let integers =
        |list: &Value| -> Vec<u64> { list.as_array().unwrap().iter().map(|x| x.as_u64().unwrap()).collect() };
    let (bits, codes) = (integers(&golden["cases"]["bits"]), integers(&golden["cases"][name]));
    let values = golden["values"][name].as_array().unwrap();
    let pairs = bits.iter().zip(&codes).map(|(bits, code)| (f32::from_bits(*bits as u32), *code as usize));
    let finite = pairs.filter(|(x, _)| x.abs() <= largest);
    let (mut x, mut expected): (Vec<f32>, Vec<f32>) =
        finite.map(|(x, code)| (x, values[code].as_f64().unwrap() as f32)).unzip();
    assert!(x.contains(&largest) && x.len() > 1000);
    let whole = x.len().next_multiple_of(16);
    x.resize(whole, 0.0);
    expected.resize(whole, 0.0);
    (x, expected)
}

/// Through 448 times the identity, whose scale is 1, a product gives what was rounded.
#[test]
fn the_casts_round_as_pytorch() {
    let mut cuda = gpu(ComputeDtype::F32);
    let diagonal = |i: usize| if i.is_multiple_of(17) { 448.0f32 } else { 0.0 };
    let identity = cuda.weight(stored(&(0..256).map(diagonal).collect::<Vec<_>>(), 16), WeightKind::Float8);
    let identity = identity.unwrap();
    for (name, largest) in [("e4m3", 448.0), ("e5m2", 57_344.0)] {
        let (x, expected) = rounded(name, largest);
        let (rows, x) = (x.len() / 16, acts(&cuda, &x));
        let mut out = cuda.zeros(rows * 16);
        if name == "e4m3" {
            cuda.linear_forward(&x, &identity, rows, &mut out, false);
        } else {
            cuda.linear_backward_input(&x, &identity, rows, &mut out, false);
        }
        let expected: Vec<f32> = expected.iter().map(|x| 448.0 * x).collect();
        assert_eq!(*cuda.to_host(&out).unwrap(), expected, "{name}");
    }
}

/// Of more pieces than there are blocks; the largest number comes last. Numbers of e4m3, which a cast leaves.
#[test]
fn a_long_input_is_cast_by_all_blocks() {
    let mut cuda = gpu(ComputeDtype::F32);
    let diagonal = |i: usize| if i.is_multiple_of(17) { 448.0f32 } else { 0.0 };
    let identity = cuda.weight(stored(&(0..256).map(diagonal).collect::<Vec<_>>(), 16), WeightKind::Float8);
    let identity = identity.unwrap();
    let rows = 1024 * 4096 / 16 + 300;
    let mut values: Vec<f32> =
        (0..rows * 16).map(|i| [0.0, -208.0, 1.5, 0.015_625, -30.0, 9.0, 104.0][i * i % 7]).collect();
    values[rows * 16 - 1] = -448.0;
    let (x, mut out) = (acts(&cuda, &values), cuda.zeros(rows * 16));
    cuda.linear_forward(&x, &identity, rows, &mut out, false);
    assert!(cuda.to_host(&out).unwrap().iter().zip(&values).all(|(out, x)| *out == 448.0 * x));
}

/// Of several sizes: blocks with more than one piece, tiles that are not whole, rows that are no multiple of 16.
const SHAPES: [(usize, usize, usize); 3] = [(5, 48, 32), (3, 16, 80), (67, 80, 144)];

/// The number of e5m2 that is nearest to `x`, by search.
fn nearest(x: f32, values: &[f32]) -> f32 {
    let apart = |v: &f32| (f64::from(*v) - f64::from(x)).abs();
    // Ties do not occur among the numbers of this test.
    values.iter().copied().min_by(|a, b| apart(a).total_cmp(&apart(b))).unwrap()
}

/// `x` after its cast, by the values of all codes.
fn cast(x: &[f32], name: &str, largest: f32) -> Vec<f32> {
    let golden = golden();
    let values = golden["values"][name].as_array().unwrap().iter().filter_map(Value::as_f64);
    let values: Vec<f32> = values.map(|v| v as f32).collect();
    let scale = x.iter().fold(0.0f32, |most, x| most.max(x.abs())) / largest;
    x.iter().map(|x| nearest(x * (1.0 / scale), &values) * scale).collect()
}

fn decoded(matrix: &Float8Matrix) -> Vec<f32> {
    let mut values = vec![0.0; matrix.codes.len()];
    decode_f32(&Dtype::Known(Known::F8_E4M3), &matrix.codes, &mut values).unwrap();
    values.iter().map(|x| x * matrix.scale).collect()
}

/// `x [rows, inner] · w`, where `w(o, i)` is the weight of output `o` and input `i`.
fn product(x: &[f32], (outer, inner): (usize, usize), w: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let row =
        |x: &[f32], o| -> f64 { x.iter().enumerate().map(|(i, x)| f64::from(*x) * f64::from(w(o, i))).sum() };
    x.chunks(inner).flat_map(|x| (0..outer).map(|o| row(x, o) as f32).collect::<Vec<_>>()).collect()
}

fn apart(expected: &[f32], got: &[f32]) -> f64 {
    assert_eq!(expected.len(), got.len());
    let largest = expected.iter().fold(0.0f64, |most, x| most.max(f64::from(x.abs())));
    let errors = expected.iter().zip(got).map(|(e, g)| (f64::from(*e) - f64::from(*g)).abs());
    assert!(largest > 0.0);
    errors.fold(0.0f64, |most, e| if e.is_nan() { f64::NAN } else { most.max(e) }) / largest
}

/// Numbers of many sizes that fit bfloat16, no two values of a cast equally near to any.
fn uneven(n: usize, seed: u64) -> Vec<f32> {
    let value =
        |(i, x): (usize, f32)| half::bf16::from_f32(x * 0.37 * 1.3f32.powi(-(i as i32 % 23))).to_f32();
    numbers(n, seed).into_iter().enumerate().map(value).collect()
}

/// Forward and backward of the backend: the output, and the gradient of the input added to another.
fn both<B: Backend>(
    b: &mut B,
    weight: &B::Weight,
    [x, dout, dx]: [&[f32]; 3],
    (rows, outer): (usize, usize),
) -> [Vec<f32>; 2] {
    let mut out = b.activations(rows * outer);
    let (x, dout, mut dx) = (acts(b, x), acts(b, dout), acts(b, dx));
    b.linears_forward(&x, rows, &mut [(weight, &mut out)]);
    b.linear_backward_input(&dout, weight, rows, &mut dx, true);
    [&out, &dx].map(|buffer| b.to_host(buffer).unwrap().into_owned())
}

#[test]
fn products_are_those_of_the_codes() {
    for (rows, outer, inner) in SHAPES {
        let w = uneven(outer * inner, 1);
        let (x, dout) = (uneven(rows * inner, 2), uneven(rows * outer, 3));
        let before = numbers(rows * inner, 4);
        let matrix = decoded(&Float8Matrix::quantize(stored(&w, inner)).unwrap());
        let out = product(&cast(&x, "e4m3", 448.0), (outer, inner), |o, i| matrix[o * inner + i]);
        let dx = product(&cast(&dout, "e5m2", 57_344.0), (inner, outer), |i, o| matrix[o * inner + i]);
        let dx: Vec<f32> = dx.iter().zip(&before).map(|(dx, before)| dx + before).collect();
        let weight = Cpu::weight(stored(&w, inner), WeightKind::Float8).unwrap();
        let cpu = both(&mut Cpu::default(), &weight, [&x, &dout, &before], (rows, outer));
        for (compute_dtype, bound) in [(ComputeDtype::F32, 1e-5), (ComputeDtype::Bf16, 8e-3)] {
            let mut cuda: Cuda = gpu(compute_dtype);
            let weight = cuda.weight(stored(&w, inner), WeightKind::Float8).unwrap();
            let got = both(&mut cuda, &weight, [&x, &dout, &before], (rows, outer));
            cuda.check().unwrap();
            for (expected, got) in [&out, &dx].into_iter().zip(&got) {
                let e = apart(expected, got);
                assert!(e <= bound, "{rows} {outer} {inner} {compute_dtype:?}: {e:e}");
            }
            // The CPU multiplies with the same matrix, and does not cast what it is multiplied with.
            let errors = [apart(&cpu[0], &got[0]), apart(&cpu[1], &got[1])];
            let [forward, backward] = errors;
            println!(
                "float8 {rows} x {outer} x {inner} {compute_dtype:?}: {forward:.1e} and {backward:.1e} from the CPU"
            );
            assert!(errors[0] > 1e-4 && errors[0] < 5e-2 && errors[1] < 1e-1, "{errors:?}");
        }
    }
}

/// Several layers of one input, one of them as it is stored.
#[test]
fn layers_of_one_input_share_its_cast() {
    let mut cuda = gpu(ComputeDtype::Bf16);
    let (rows, inner) = (7, 48);
    let x = acts(&cuda, &uneven(rows * inner, 5));
    let kinds = [WeightKind::Frozen, WeightKind::Float8, WeightKind::Float8];
    let weights: Vec<_> = (0u64..)
        .zip(kinds)
        .map(|(i, kind)| cuda.weight(stored(&uneven(32 * inner, i), inner), kind).unwrap())
        .collect();
    let mut alone: Vec<_> = (0..3).map(|_| cuda.activations(rows * 32)).collect();
    for (weight, out) in weights.iter().zip(&mut alone) {
        cuda.linear_forward(&x, weight, rows, out, false);
    }
    let mut together: Vec<_> = (0..3).map(|_| cuda.activations(rows * 32)).collect();
    let mut outputs: Vec<_> = weights.iter().zip(together.iter_mut()).collect();
    cuda.linears_forward(&x, rows, &mut outputs);
    for (alone, together) in alone.iter().zip(&together) {
        let alone = cuda.to_host(alone).unwrap();
        assert!(alone.iter().any(|x| *x != 0.0) && alone == cuda.to_host(together).unwrap());
    }
}

/// NaN and infinity in activations are not hidden by the cast.
#[test]
fn what_is_not_finite_stays_so() {
    let mut cuda = gpu(ComputeDtype::F32);
    let weight = cuda.weight(stored(&numbers(256, 1), 16), WeightKind::Float8).unwrap();
    for wrong in [f32::NAN, f32::INFINITY] {
        let mut x = numbers(32, 2);
        x[3] = wrong;
        let (x, mut out) = (acts(&cuda, &x), cuda.activations(32));
        cuda.linear_forward(&x, &weight, 2, &mut out, false);
        assert!(cuda.to_host(&out).unwrap()[..16].iter().all(|x| x.is_nan()), "{wrong}");
    }
}
