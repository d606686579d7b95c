//! Coefficients of the methods whose result is a combination `y = [b +] Σ c_i z_i` of the inputs, found from
//! their Gram matrix `G[i][j] = z_i · z_j` alone.
//!
//! All of them are pure functions of small numbers; the tensors are read once for G and once for y.

use crate::Result;
use crate::merge::tiles::values::{BLOCK, Values, dot};

/// Dot products of every pair of inputs.
#[derive(Debug, Clone)]
pub(crate) struct Gram(Vec<Vec<f64>>);

impl Gram {
    /// Over whole tensors, in f64, block by block in order.
    pub(crate) fn of(values: &Values<'_>) -> Result<Self> {
        let n = values.models.len();
        let parts = values.over(|buffers, range| {
            values.load(range.clone(), buffers)?;
            let len = (range.end - range.start) as usize;
            let block = |at: usize| Self::of_slices(n, |i| &buffers.z[i][at..len.min(at + BLOCK)]);
            Ok((0..len).step_by(BLOCK).map(block).collect::<Vec<_>>())
        })?;
        let mut total = Self(vec![vec![0.0; n]; n]);
        parts.iter().flatten().for_each(|part| total.add(part));
        Ok(total)
    }

    /// Of vectors in memory.
    pub(crate) fn of_slices<'s>(n: usize, z: impl Fn(usize) -> &'s [f32]) -> Self {
        let mut gram = Self::zero(n);
        (0..n).for_each(|i| (0..=i).for_each(|j| gram.add_product(i, j, dot(z(i), z(j)))));
        gram
    }

    pub(crate) fn zero(n: usize) -> Self {
        Self(vec![vec![0.0; n]; n])
    }

    /// Adds the product of one element of inputs `i` and `j`, in both places.
    pub(crate) fn add_product(&mut self, i: usize, j: usize, product: f64) {
        self.0[i][j] += product;
        if i != j {
            self.0[j][i] += product;
        }
    }

    fn add(&mut self, other: &Self) {
        for (row, other) in self.0.iter_mut().zip(&other.0) {
            row.iter_mut().zip(other).for_each(|(a, b)| *a += b);
        }
    }

    fn norm(&self, i: usize) -> f64 {
        self.0[i][i].max(0.0).sqrt()
    }

    /// `Σ a_i z_i · Σ b_j z_j`.
    fn product(&self, a: &[f64], b: &[f64]) -> f64 {
        let row = |g: &Vec<f64>| g.iter().zip(b).map(|(g, b)| g * b).sum::<f64>();
        self.0.iter().zip(a).map(|(g, a)| a * row(g)).sum()
    }
}

/// slerp: θ = acos(û·v̂); `[sin((1−t)θ) a + sin(tθ) b] / sin θ`, linear where |û·v̂| > 0.9995.
///
/// Norms up to 1e-8 count as 1. Source: Shoemake 1985, "Animating rotation with quaternion curves".
pub(crate) fn slerp(g: &Gram, t: f64) -> Vec<f64> {
    let norm = |i: usize| Some(g.norm(i)).filter(|n| *n > 1e-8).unwrap_or(1.0);
    let d = (g.0[0][1] / (norm(0) * norm(1))).clamp(-1.0, 1.0);
    if d.abs() > 0.9995 { vec![1.0 - t, t] } else { arc(d, t) }
}

/// nuslerp of two vectors: as slerp, linear only where they are parallel; t = w₂ / (w₁ + w₂), ½ where the
/// weights cancel.
pub(crate) fn nuslerp(g: &Gram, w: &[f64]) -> Vec<f64> {
    let sum = w[0] + w[1];
    let t = if sum.abs() < 1e-6 { 0.5 } else { w[1] / sum };
    let norm = |i: usize| g.norm(i).max(1e-7);
    let d = (g.0[0][1] / (norm(0) * norm(1))).clamp(-1.0, 1.0);
    // Parallel within the rounding of f32, in which mergekit computes the cosine.
    if 1.0 - d * d <= 1e-14 { vec![1.0 - t, t] } else { arc(d, t) }
}

fn arc(d: f64, t: f64) -> Vec<f64> {
    let theta = d.acos();
    let sin = theta.sin();
    vec![((1.0 - t) * theta).sin() / sin, (t * theta).sin() / sin]
}

/// multislerp: the weighted mean of the directions, moved by the weighted mean of their tangents, scaled by the
/// weighted mean of the norms. `None` where the directions cancel.
///
/// u_i = z_i/(r_i+ε); m = Σw_i u_i / ‖·‖; g = Σw_i (u_i − (u_i·m) m); γ = ‖g‖+ε;
/// y = (m cos γ + g sin γ / γ) Σ w_i r_i.
pub(crate) fn multislerp(g: &Gram, w: &[f64], normalize: bool, eps: f64) -> Option<Vec<f64>> {
    let n = w.len();
    if n == 1 {
        return Some(vec![1.0]);
    }
    let sum: f64 = if normalize { w.iter().sum() } else { 1.0 };
    let w: Vec<f64> = w.iter().map(|w| w / sum).collect();
    let unit: Vec<f64> = (0..n).map(|i| 1.0 / (g.norm(i) + eps)).collect();
    let mut mean: Vec<f64> = (0..n).map(|i| w[i] * unit[i]).collect();
    let length = g.product(&mean, &mean).max(0.0).sqrt();
    if length < eps {
        return (n == 2).then_some(w);
    }
    mean.iter_mut().for_each(|m| *m /= length);
    let mut tangent = vec![0.0; n];
    for i in 0..n {
        let mut u = vec![0.0; n];
        u[i] = unit[i];
        let along = g.product(&u, &mean);
        tangent[i] += w[i] * unit[i];
        tangent.iter_mut().zip(&mean).for_each(|(t, m)| *t -= w[i] * along * m);
    }
    let gamma = g.product(&tangent, &tangent).max(0.0).sqrt() + eps;
    let scale: f64 = (0..n).map(|i| w[i] * g.norm(i)).sum();
    let mixed = mean.iter().zip(&tangent).map(|(m, t)| m * gamma.cos() + t * gamma.sin() / gamma);
    Some(mixed.map(|c| c * scale).collect())
}

/// karcher: the mean on the sphere, by gradient steps, times the mean norm.
///
/// Inputs with a norm up to `tol` have no direction, but count in the mean norm. Steps: T = Σ α θ_i / sin θ_i
/// (u_i − cos θ_i u); u ← cos‖T‖ u + sin‖T‖ T/‖T‖; until ‖T‖ < tol. Source: Karcher 1977; Grove & Karcher 1973.
pub(crate) fn karcher(g: &Gram, max_iter: u32, tol: f64) -> Vec<f64> {
    let n = g.0.len();
    let valid: Vec<usize> = (0..n).filter(|i| g.norm(*i) > tol).collect();
    let Some(first) = valid.first() else {
        return vec![0.0; n];
    };
    if n == 1 {
        return vec![1.0];
    }
    let alpha = 1.0 / valid.len() as f64;
    let unit = |i: usize| 1.0 / g.norm(i);
    let mut u = vec![0.0; n];
    valid.iter().for_each(|i| u[*i] = alpha * unit(*i));
    let length = g.product(&u, &u).max(0.0).sqrt();
    if length < tol {
        u = vec![0.0; n];
        u[*first] = unit(*first);
    } else {
        u.iter_mut().for_each(|u| *u /= length);
    }
    for _ in 0..max_iter {
        let mut tangent = vec![0.0; n];
        for i in &valid {
            let mut e = vec![0.0; n];
            e[*i] = unit(*i);
            let d = g.product(&u, &e).clamp(-1.0, 1.0);
            let theta = d.acos();
            if theta < tol {
                continue;
            }
            let c = alpha * theta / theta.sin();
            tangent[*i] += c * unit(*i);
            tangent.iter_mut().zip(&u).for_each(|(t, u)| *t -= c * d * u);
        }
        let length = g.product(&tangent, &tangent).max(0.0).sqrt();
        if length < tol {
            break;
        }
        let step = u.iter().zip(&tangent).map(|(u, t)| length.cos() * u + length.sin() * t / length);
        u = step.collect();
        let length = g.product(&u, &u).max(0.0).sqrt();
        if length > tol {
            u.iter_mut().for_each(|u| *u /= length);
        }
    }
    let scale: f64 = (0..n).map(|i| g.norm(i) / n as f64).sum();
    u.iter().map(|u| u * scale).collect()
}

/// model stock, on deltas: t = N cos θ / (1 + (N−1) cos θ) with the mean cosine of all pairs; y = b + t · mean(Δ).
///
/// Norm products below 1e-6 count as 1e-6; t = 0 where the denominator vanishes. Source: Jang et al. 2024, eq. 7.
pub(crate) fn model_stock(g: &Gram) -> Vec<f64> {
    let n = g.0.len();
    let pairs = (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j)));
    let cosine = |(i, j): (usize, usize)| (g.0[i][j] / (g.norm(i) * g.norm(j)).max(1e-6)).clamp(-1.0, 1.0);
    let all: Vec<f64> = pairs.map(cosine).collect();
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    let count = n as f64;
    let denominator = 1.0 + (count - 1.0) * mean;
    let t = if denominator.abs() < 1e-6 { 0.0 } else { count * mean / denominator };
    vec![t / count; n]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gram(vectors: &[&[f32]]) -> Gram {
        Gram::of_slices(vectors.len(), |i| vectors[i])
    }

    fn near(a: &[f64], b: &[f64]) {
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12), "{a:?} {b:?}");
    }

    #[test]
    fn slerp_ends_where_its_inputs_are_and_halves_the_right_angle() {
        let g = gram(&[&[2.0, 0.0], &[0.0, 3.0]]);
        near(&slerp(&g, 0.0), &[1.0, 0.0]);
        near(&slerp(&g, 1.0), &[0.0, 1.0]);
        near(&slerp(&g, 0.5), &[0.5f64.sqrt(), 0.5f64.sqrt()]);
        near(&nuslerp(&g, &[1.0, 1.0]), &[0.5f64.sqrt(), 0.5f64.sqrt()]);
    }

    #[test]
    fn orthogonal_task_vectors_leave_the_base() {
        near(&model_stock(&gram(&[&[1.0, 0.0], &[0.0, 1.0]])), &[0.0, 0.0]);
        near(&model_stock(&gram(&[&[1.0, 1.0], &[1.0, 1.0]])), &[0.5, 0.5]);
    }

    #[test]
    fn the_karcher_mean_of_a_right_angle_is_its_bisector() {
        let h = 0.5f64.sqrt();
        near(&karcher(&gram(&[&[1.0, 0.0], &[0.0, 1.0]]), 10, 1e-9), &[h, h]);
        near(&karcher(&gram(&[&[0.0], &[0.0]]), 10, 1e-5), &[0.0, 0.0]);
    }

    #[test]
    fn opposite_directions_have_no_mean() {
        let opposite = gram(&[&[1.0, 0.0], &[-1.0, 0.0]]);
        assert_eq!(multislerp(&opposite, &[1.0, 1.0], true, 1e-8), Some(vec![0.5, 0.5]));
        let four = gram(&[&[1.0, 0.0], &[-1.0, 0.0], &[0.0, 1.0], &[0.0, -1.0]]);
        assert_eq!(multislerp(&four, &[1.0; 4], true, 1e-8), None);
    }
}
