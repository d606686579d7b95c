//! Finite differences for the backward pass of every operation, each with its weight trainable and frozen.

use super::Cpu;
use super::weight::Weight;
use crate::backend::*;
use crate::checkpoint::{Dtype, Known};

/// Numbers between −1 and 1 that look random.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Runs `f` with the values as a weight, frozen or trainable.
fn with_weight<T>(
    values: &[f32],
    (rows, cols): (usize, usize),
    trainable: bool,
    f: impl for<'w> FnOnce(&mut Cpu<'w>, &Weight<'w>) -> T,
) -> T {
    let (bytes, dtype) = (bytes(values), Dtype::Known(Known::F32));
    let stored = Stored { dtype: &dtype, bytes: &bytes, rows, cols };
    let mut cpu = Cpu::default();
    let weight = if trainable { Cpu::trainable(stored) } else { Cpu::frozen(stored) };
    f(&mut cpu, &weight.unwrap_or_else(|| panic!("the shape fits")))
}

/// `Σ c · out` with fixed numbers c: a scalar whose gradient of `out` is c.
fn scalar(out: &[f32]) -> f64 {
    out.iter().zip(numbers(out.len(), 99)).map(|(o, c)| f64::from(*o) * f64::from(c)).sum()
}

/// Compares a gradient with central differences of `f` at `x`.
fn check(what: &str, x: &[f32], gradient: &[f32], f: impl Fn(&[f32]) -> f64) {
    const H: f32 = 1.0 / 128.0;
    assert_eq!(x.len(), gradient.len(), "{what}");
    let mut nonzero = 0;
    for i in 0..x.len() {
        let at = |h: f32| {
            let mut moved = x.to_vec();
            moved[i] += h;
            f(&moved)
        };
        // Fourth-order differences, so that H can be large against the rounding of f32.
        let slope = |h: f32| (at(h) - at(-h)) / f64::from(2.0 * h);
        let exact = (4.0 * slope(H) - slope(2.0 * H)) / 3.0;
        let got = f64::from(gradient[i]);
        assert!(
            (got - exact).abs() < 2e-3 * (1.0 + exact.abs()),
            "{what} at {i}: got {got}, expected {exact}"
        );
        nonzero += usize::from(exact.abs() > 1e-3);
    }
    assert!(nonzero * 2 > x.len(), "{what}: a test of zeros says nothing");
}

#[test]
fn norm() {
    for centered in [false, true] {
        for (offset, has_weight, trainable) in [
            (0.0, true, true),
            (0.0, true, false),
            (1.0, true, true),
            (1.0, true, false),
            (0.0, false, false),
        ] {
            norm_of(centered, offset, has_weight, trainable);
        }
    }
}

fn norm_of(centered: bool, offset: f32, has_weight: bool, trainable: bool) {
    let (rows, cols) = (3, 5);
    let (x, w, c) = (numbers(rows * cols, 1), numbers(cols, 2), numbers(rows * cols, 99));
    let run = |x: &[f32], w: &[f32]| {
        with_weight(w, (1, cols), false, |cpu, w| {
            let mean = centered.then(|| vec![0.0; rows]);
            let (mut out, mut statistics) =
                (vec![0.0; rows * cols], Statistics { rstd: vec![0.0; rows], mean });
            let (weight, norm) = (has_weight.then_some(w), RowNorm { eps: 1e-3, offset });
            cpu.norm_forward(&x.to_vec(), weight, (rows, cols), norm, &mut out, &mut statistics);
            (scalar(&out), statistics)
        })
    };
    let statistics = run(&x, &w).1;
    let (mut dx, mut dw) = (vec![0.0; rows * cols], vec![0.0; cols]);
    with_weight(&w, (1, cols), trainable, |cpu, w| {
        let weight = has_weight.then_some(w);
        let (shape, statistics) = ((rows, cols), &statistics);
        let inputs = NormInputs { dout: &c, x: &x, weight, offset, statistics, shape };
        cpu.norm_backward(inputs, Some(&mut dx), trainable.then_some(&mut dw));
    });
    check("norm dx", &x, &dx, |x| run(x, &w).0);
    if trainable {
        check("norm dweight", &w, &dw, |w| run(&x, w).0);
    }
}

#[test]
fn relu_squared() {
    let n = 24;
    let (x, c) = (numbers(n, 1), numbers(n, 99));
    let run = |x: &[f32]| {
        let mut out = vec![0.0; n];
        Cpu::default().relu_squared_forward(&x.to_vec(), n, &mut out);
        scalar(&out)
    };
    let mut dx = x.clone();
    Cpu::default().relu_squared_backward(&c, n, &mut dx);
    assert!(x.iter().zip(&dx).all(|(x, dx)| *x > 0.0 || *dx == 0.0));
    check_any("relu squared", &x, &dx, run);
}

#[test]
fn columns_are_copied() {
    let (from, mut to) = (numbers(3 * 5, 1), vec![9.0; 3 * 4]);
    let (source, target) = (Columns { first: 2, of: 5 }, Columns { first: 1, of: 4 });
    Cpu::default().copy_columns((&from, source), (&mut to, target), (3, 2));
    for row in 0..3 {
        assert_eq!(to[4 * row..4 * row + 4], [9.0, from[5 * row + 2], from[5 * row + 3], 9.0]);
    }
}

#[test]
fn linear_with_bias() {
    let (rows, inner, outer) = (4, 3, 5);
    let (x, w, b) = (numbers(rows * inner, 1), numbers(outer * inner, 2), numbers(outer, 3));
    let c = numbers(rows * outer, 99);
    let run = |x: &[f32], w: &[f32], b: &[f32]| {
        let mut out = vec![0.0; rows * outer];
        with_weight(w, (outer, inner), false, |cpu, w| {
            cpu.linear_forward(&x.to_vec(), w, rows, &mut out, false);
        });
        with_weight(b, (1, outer), false, |cpu, b| cpu.bias_forward(b, rows, &mut out));
        scalar(&out)
    };
    let (mut dw, mut db) = (numbers(outer * inner, 7), vec![0.0; outer]);
    for trainable in [true, false] {
        let mut dx = vec![0.0; rows * inner];
        with_weight(&w, (outer, inner), trainable, |cpu, weight| {
            cpu.linear_backward_input(&c, weight, rows, &mut dx, false);
        });
        check("linear dx", &x, &dx, |x| run(x, &w, &b));
    }
    let mut cpu = Cpu::default();
    let shape = LinearShape { rows, out_features: outer, in_features: inner };
    cpu.linear_backward_weight(&c, &x, shape, &mut dw, false);
    check("linear dweight", &w, &dw, |w| run(&x, w, &b));
    let once = dw.clone();
    cpu.linear_backward_weight(&c, &x, shape, &mut dw, true);
    assert!(dw.iter().zip(&once).all(|(two, one)| (two - 2.0 * one).abs() < 1e-5), "accumulate adds");
    cpu.bias_backward(&c, rows, &mut db);
    check("bias", &b, &db, |b| run(&x, &w, b));
}

#[test]
fn rope() {
    let (heads, half, offsets) = (2, 2, [0u32, 3, 4]);
    let angles = |f: fn(f32) -> f32| (0..3 * half).map(|i| f(i as f32 * 0.7)).collect();
    let sequences = Sequences { offsets: &offsets };
    for (head_dim, interleaved) in [(4, false), (4, true), (6, false), (6, true)] {
        let x = numbers(4 * heads * head_dim, 1);
        let (cos, sin) = (angles(f32::cos), angles(f32::sin));
        let table = RopeTable { cos, sin, half, head_dim, interleaved };
        let run = |x: &[f32]| {
            let mut x = x.to_vec();
            Cpu::default().rope(&mut x, heads, sequences, &table, Rotation::Forward);
            scalar(&x)
        };
        let mut dx = numbers(x.len(), 99);
        Cpu::default().rope(&mut dx, heads, sequences, &table, Rotation::Backward);
        check("rope dx", &x, &dx, run);
    }
}

#[test]
fn swiglu() {
    let n = 12;
    let (gate, up, c) = (numbers(n, 1), numbers(n, 2), numbers(n, 99));
    let run = |gate: &[f32], up: &[f32]| {
        let mut out = vec![0.0; n];
        Cpu::default().swiglu_forward(&gate.to_vec(), &up.to_vec(), n, &mut out);
        scalar(&out)
    };
    let (mut dgate, mut dup) = (gate.clone(), up.clone());
    Cpu::default().swiglu_backward(&c, n, &mut dgate, &mut dup);
    check("swiglu dgate", &gate, &dgate, |gate| run(gate, &up));
    check("swiglu dup", &up, &dup, |up| run(&gate, up));
}

#[test]
fn geglu() {
    let n = 12;
    let (gate, up, c) = (numbers(n, 1), numbers(n, 2), numbers(n, 99));
    let run = |gate: &[f32], up: &[f32]| {
        let mut out = vec![0.0; n];
        Cpu::default().geglu_forward(&gate.to_vec(), &up.to_vec(), n, &mut out);
        scalar(&out)
    };
    let (mut dgate, mut dup) = (gate.clone(), up.clone());
    Cpu::default().geglu_backward(&c, n, &mut dgate, &mut dup);
    check("geglu dgate", &gate, &dgate, |gate| run(gate, &up));
    check("geglu dup", &up, &dup, |up| run(&gate, up));
}

#[test]
fn attention_with_groups_and_windows() {
    let offsets = [0u32, 5, 6, 9];
    let sequences = Sequences { offsets: &offsets };
    for (window, soft_cap) in [(None, None), (Some(2), None), (Some(1), None), (None, Some(0.4))] {
        let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 2, window, soft_cap };
        let layout = AttentionLayout { shape, sequences };
        let (q, k, v) = (numbers(9 * 8, 1), numbers(9 * 4, 2), numbers(9 * 4, 3));
        let run = |q: &[f32], k: &[f32], v: &[f32]| {
            let (mut out, mut lse) = (vec![0.0; 9 * 8], vec![0.0; 9 * 4]);
            let [q, k, v] = [q.to_vec(), k.to_vec(), v.to_vec()];
            let inputs = QueryKeyValue { q: &q, k: &k, v: &v };
            Cpu::default().attention_forward(inputs, layout, &mut out, &mut lse);
            (out, lse)
        };
        let (out, lse) = run(&q, &k, &v);
        let (mut dq, mut dk, mut dv) = (q.clone(), k.clone(), v.clone());
        let c = numbers(9 * 8, 99);
        let inputs = QueryKeyValueMut { q: &mut dq, k: &mut dk, v: &mut dv };
        Cpu::default().attention_backward(AttentionOutput { dout: &c, out: &out, lse: &lse }, layout, inputs);
        check("attention dv", &v, &dv, |v| scalar(&run(&q, &k, v).0));
        if window == Some(1) {
            // A query that sees only itself does not depend on scores.
            assert!(dq.iter().chain(&dk).all(|g| g.abs() < 1e-6));
            continue;
        }
        check("attention dk", &k, &dk, |k| scalar(&run(&q, k, &v).0));
        // The first query of a sequence has one key, so its gradient is zero: more zeros than elsewhere.
        check_any("attention dq", &q, &dq, |q| scalar(&run(q, &k, &v).0));
    }
}

/// As [`check`], where zeros are expected.
fn check_any(what: &str, x: &[f32], gradient: &[f32], f: impl Fn(&[f32]) -> f64) {
    let moving: Vec<usize> = (0..x.len()).filter(|i| gradient[*i].abs() > 1e-4).collect();
    assert!(moving.len() >= 8, "{what}");
    let pick = |from: &[f32]| moving.iter().map(|i| from[*i]).collect::<Vec<_>>();
    check(what, &pick(x), &pick(gradient), |values| {
        let mut all = x.to_vec();
        moving.iter().zip(values).for_each(|(i, v)| all[*i] = *v);
        f(&all)
    });
}

#[test]
fn cross_entropy() {
    let (tokens, vocab, cols) = (5, 7, 3);
    let factors = [0.5f32, -0.25, 2.0];
    let (x, w) = (numbers(tokens * cols, 1), numbers(vocab * cols, 2));
    for (label_smoothing, soft_cap) in [(0.0, None), (0.3, None), (0.0, Some(0.7)), (0.3, Some(0.7))] {
        let targets = Targets { rows: &[0, 2, 3], ids: &[6, 0, 3], label_smoothing };
        cross_entropy_of(targets, soft_cap, &factors, (tokens, vocab, cols), (&x, &w));
    }
}

fn cross_entropy_of(
    targets: Targets<'_>,
    soft_cap: Option<f32>,
    factors: &[f32],
    (tokens, vocab, cols): (usize, usize, usize),
    (x, w): (&[f32], &[f32]),
) {
    let run = |x: &[f32], w: &[f32]| {
        let x = x.to_vec();
        let losses = with_weight(w, (vocab, cols), false, |cpu, w| {
            cpu.cross_entropy(&x, Head { weight: w, soft_cap }, targets, None);
            cpu.losses()
        });
        losses.iter().zip(factors).map(|(l, f)| f64::from(*l) * f64::from(*f)).sum::<f64>()
    };
    for trainable in [true, false] {
        let (mut dx, mut dw) = (vec![9.0; tokens * cols], vec![9.0; vocab * cols]);
        with_weight(w, (vocab, cols), trainable, |cpu, weight| {
            let weight_gradient = trainable.then_some(&mut dw);
            let gradients =
                HeadGradients { factors, hidden: Some(&mut dx), weight: weight_gradient, accumulate: false };
            let head = Head { weight, soft_cap };
            cpu.cross_entropy(&x.to_vec(), head, targets, Some(gradients));
        });
        check("cross-entropy dhidden", x, &dx, |x| run(x, w));
        if trainable {
            check("cross-entropy dweight", w, &dw, |w| run(x, w));
        }
    }
}

#[test]
fn embedding() {
    let (ids, cols) = ([2u32, 0, 2], 4);
    let table = numbers(3 * cols, 1);
    let c = numbers(3 * cols, 99);
    let mut gradient = vec![0.0; 3 * cols];
    Cpu::default().embedding_backward(&c, &ids, None, &mut gradient, cols);
    for trainable in [true, false] {
        check_any("embedding", &table, &gradient, |table| {
            let mut out = vec![0.0; 3 * cols];
            with_weight(table, (3, cols), trainable, |cpu, t| cpu.embedding_forward(t, &ids, &mut out));
            scalar(&out)
        });
    }
    assert!(gradient[cols..2 * cols].iter().all(|g| *g == 0.0), "token 1 does not occur");
}
