//! What singular values say of a matrix.

/// How the singular values were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Eigenvalues of the Gram matrix of the smaller side, in `f64`.
    Gram,
    /// Singular value decomposition of the matrix, in `f64`.
    Svd,
    /// The largest only, by subspace iteration from a random start.
    Randomized,
}

/// The spectrum of one matrix, of singular values σ1 ≥ σ2 ≥ ….
#[derive(Debug, Clone, PartialEq)]
pub struct Spectrum {
    /// How they were found.
    pub method: Method,
    /// A bound on the relative error of `effective_rank`; with [`Method::Randomized`] on that of each σ².
    pub error: f64,
    /// ‖X‖ = √Σσ².
    pub norm: f64,
    /// σ1.
    pub largest: f64,
    /// exp(−Σ p ln p), p = σ / Σσ: Roy & Vetterli 2007, "The effective rank". `None` where not all σ are known.
    pub effective_rank: Option<f64>,
    /// Σσ² / σ1².
    pub stable_rank: f64,
    /// The smallest k with Σ σ² up to k at least 90 % of all; `None` where it lies beyond the σ that are known.
    pub rank_90: Option<usize>,
    /// The same for 99 %.
    pub rank_99: Option<usize>,
    /// Σ σ² of the k largest, of all, for each k that was asked for and is known.
    pub energy: Vec<(usize, Option<f64>)>,
    /// σk / σ1, for each k.
    pub decay: Vec<(usize, Option<f64>)>,
    /// Of ‖X‖², the part that rounding to bf16 or f16 alone is expected to give: Σ ulp²/12 over the elements that changed.
    /// `None` for other types.
    pub rounding_share: Option<f64>,
    /// How many σ exceed s(√m + √n), the largest singular value of m × n independent errors of the size s that rounding
    /// gives (Marchenko-Pastur). `None` for other types.
    pub rank_above_rounding: Option<usize>,
}

/// What is known of a matrix besides its singular values.
pub(crate) struct Whole {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Σ x².
    pub(crate) squares: f64,
    /// As [`super::matrix::Survey::rounding`]; `None` where rounding is not measured.
    pub(crate) rounding: Option<f64>,
}

impl Spectrum {
    /// The measures of singular values, the largest first, of which there may be fewer than all; `ks` are the ranks at which
    /// energy and decay are wanted.
    pub(crate) fn new(
        values: &[f64],
        all: bool,
        whole: &Whole,
        ks: &[usize],
        (method, error): (Method, f64),
    ) -> Self {
        let largest = values.first().copied().unwrap_or(0.0);
        let squares = if all { values.iter().map(|x| x * x).sum() } else { whole.squares };
        let mut sum = 0.0;
        let cumulative: Vec<f64> = values
            .iter()
            .map(|x| {
                sum += x * x;
                sum / squares
            })
            .collect();
        let rank = |share: f64| {
            // The last sum may round to less than all.
            let enough = |x: &f64| *x >= share * (1.0 - 1e-12);
            cumulative.iter().position(enough).map(|at| at + 1)
        };
        let most = whole.rows.min(whole.columns);
        let energy = |k: &usize| {
            let beyond = (all || *k >= most).then_some(1.0);
            (*k, cumulative.get(k - 1).copied().or(beyond).map(|x| x.min(1.0)))
        };
        let decay = |k: &usize| {
            let beyond = (all && *k <= most).then_some(0.0);
            (*k, values.get(k - 1).map(|x| x / largest).or(beyond))
        };
        let noise = whole.rounding.map(|rounding| {
            let (m, n) = (whole.rows as f64, whole.columns as f64);
            (rounding / (m * n)).sqrt() * (m.sqrt() + n.sqrt())
        });
        let above = |edge: f64| {
            let count = values.iter().filter(|x| **x > edge).count();
            (all || count < values.len()).then_some(count)
        };
        Self {
            method,
            error,
            norm: squares.sqrt(),
            largest,
            effective_rank: all.then(|| entropy(values).exp()),
            stable_rank: squares / (largest * largest),
            rank_90: rank(0.9),
            rank_99: rank(0.99),
            energy: ks.iter().map(energy).collect(),
            decay: ks.iter().map(decay).collect(),
            rounding_share: whole.rounding.map(|rounding| rounding / squares),
            rank_above_rounding: noise.and_then(above),
        }
    }
}

/// −Σ p ln p, p = σ / Σσ.
fn entropy(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    let terms = values.iter().map(|x| x / sum).filter(|p| *p > 0.0).map(|p| -p * p.ln());
    terms.sum()
}

/// A bound on the relative error of the effective rank where each σ² is known to `of_squares`, or each σ to `of_values`.
///
/// With H = −Σ p ln p, dH = −Σ dσ (ln p + H) / Σσ; σ from σ² has the error min(√δ, δ / 2σ).
pub(crate) fn effective_rank_error(values: &[f64], of_squares: f64, of_values: f64) -> f64 {
    let sum: f64 = values.iter().sum();
    let entropy = entropy(values);
    let term = |x: &f64| {
        let error = (of_squares / (2.0 * x)).min(of_squares.sqrt()) + of_values;
        let p = x.max(error) / sum;
        error * ((p.ln() + entropy).abs() + 1.0)
    };
    values.iter().map(term).sum::<f64>() / sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(squares: f64) -> Whole {
        Whole { rows: 4, columns: 4, squares, rounding: None }
    }

    fn of(values: &[f64]) -> Spectrum {
        let squares = values.iter().map(|x| x * x).sum();
        Spectrum::new(values, true, &whole(squares), &[1, 2, 4, 9], (Method::Gram, 0.0))
    }

    #[test]
    fn equal_values_have_full_rank() {
        let found = of(&[2.0; 4]);
        assert!((found.effective_rank.unwrap() - 4.0).abs() < 1e-12);
        assert_eq!((found.stable_rank, found.rank_90, found.rank_99), (4.0, Some(4), Some(4)));
        assert_eq!(found.energy, [(1, Some(0.25)), (2, Some(0.5)), (4, Some(1.0)), (9, Some(1.0))]);
        assert_eq!(found.decay[3], (9, None));
    }

    #[test]
    fn one_value_has_rank_one() {
        let found = of(&[3.0]);
        assert_eq!((found.effective_rank, found.stable_rank, found.rank_99), (Some(1.0), 1.0, Some(1)));
        assert_eq!(found.decay[1], (2, Some(0.0)));
    }

    /// Of two of four values: what needs the others is not known.
    #[test]
    fn what_a_part_does_not_tell_is_left_out() {
        let found = Spectrum::new(&[3.0, 2.0], false, &whole(14.0), &[1, 2, 3], (Method::Randomized, 0.0));
        assert_eq!((found.effective_rank, found.rank_90, found.stable_rank), (None, Some(2), 14.0 / 9.0));
        assert_eq!(found.rank_99, None);
        assert_eq!(found.energy[2], (3, None));
        assert_eq!(found.energy[0], (1, Some(9.0 / 14.0)));
    }

    /// Against a perturbation: moving each σ² by δ moves the effective rank by less than the bound.
    #[test]
    fn the_bound_holds() {
        let values: Vec<f64> = (0..40).map(|i| 10f64.powf(-f64::from(i) / 5.0)).collect();
        let delta = 1e-12;
        let moved: Vec<f64> = values
            .iter()
            .enumerate()
            .map(|(i, x)| {
                let sign = if i % 2 == 0 { 1.0 } else { -1.0 };
                (x * x + sign * delta).max(0.0).sqrt()
            })
            .collect();
        let (a, b) = (entropy(&values).exp(), entropy(&moved).exp());
        let bound = effective_rank_error(&values, delta, 0.0);
        assert!((a - b).abs() / a <= bound && bound < 1e-2, "{} {bound}", (a - b).abs() / a);
    }
}
