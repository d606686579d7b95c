//! The factors of one module of several adapters into one pair, as `add_weighted_adapter` of PEFT computes them.
//!
//! Source: `peft/tuners/lora/model.py` of PEFT 0.21.2.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

use crate::checkpoint::Sha256Hex;
use crate::lora::adapter_file::FactorPair;
use crate::lora::task_tensors::{TaskMerge, TaskRule};
use crate::plan::Key;
use crate::{Error, Result};

/// Most elements of a product in memory.
const MOST_ELEMENTS: usize = 1 << 30;

/// How adapters become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CombinationType {
    /// The factors of all, one after the other: the rank is the sum of the ranks.
    Cat,
    /// The rule over A and over B, each with the square root of the weight: PEFT's `linear`, `ties` and so on.
    Factors(TaskRule),
    /// The rule over the products s · B A, and the singular value decomposition of the result: `svd`, `ties_svd` and so on.
    Products(TaskRule),
}

/// The factors of one module of one adapter.
#[derive(Debug)]
pub(super) struct Term {
    /// The factor w of the adapter.
    pub(super) weight: f64,
    /// The scale s of the module.
    pub(super) scale: f64,
    pub(super) rank: usize,
    /// `[r, in]`.
    pub(super) a: Vec<f32>,
    /// `[out, r]`.
    pub(super) b: Vec<f32>,
}

/// The terms of one module, of adapters in their order.
#[derive(Debug)]
pub(super) struct ModuleTerms {
    pub(super) module: String,
    pub(super) is_embedding: bool,
    pub(super) terms: Vec<Term>,
}

/// What all modules share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Combination {
    pub(super) kind: CombinationType,
    pub(super) merge: TaskMerge,
    /// The rank of a result that concatenates or decomposes.
    pub(super) rank: usize,
    pub(super) seed: u64,
}

impl ModuleTerms {
    /// `out` and `in`.
    fn shape(&self) -> [usize; 2] {
        self.terms.first().map_or([0, 0], |term| [term.b.len() / term.rank, term.a.len() / term.rank])
    }

    /// The combined factors, of scale 1.
    ///
    /// # Errors
    /// [`Error::Pairing`] for results that are not finite, or without a decomposition.
    pub(super) fn combined(self, how: &Combination) -> Result<FactorPair> {
        let (rank, a, b) = match how.kind {
            CombinationType::Cat => self.concatenated(how.rank),
            CombinationType::Factors(_) => self.of_factors(how),
            CombinationType::Products(TaskRule::Linear) => self.of_sum(how.rank)?,
            CombinationType::Products(_) => self.of_products(how)?,
        };
        if !a.iter().chain(&b).all(|x| x.is_finite()) {
            return Err(self.fault("infinite or NaN values in the combined factors"));
        }
        Ok(FactorPair { module: self.module, is_embedding: self.is_embedding, rank, a, b })
    }

    fn fault(&self, fault: &str) -> Error {
        Error::Pairing { tensor: Some(self.module.clone()), fault: fault.to_owned(), hint: None }
    }

    /// `A = [w s A_1; …; 0]` and `B = [B_1, …, 0]`, filled with zeros up to `rank`.
    fn concatenated(&self, rank: usize) -> (usize, Vec<f32>, Vec<f32>) {
        let [m, n] = self.shape();
        let mut a: Vec<f32> = Vec::with_capacity(rank * n);
        let mut b = vec![0.0; m * rank];
        let mut at = 0;
        for term in &self.terms {
            let (w, s) = (term.weight as f32, term.scale as f32);
            a.extend(term.a.iter().map(|x| x * w * s));
            for (row, own) in b.chunks_mut(rank).zip(term.b.chunks(term.rank)) {
                row[at..at + term.rank].copy_from_slice(own);
            }
            at += term.rank;
        }
        a.resize(rank * n, 0.0);
        (rank, a, b)
    }

    /// The rule over A with `sign(w s) √|w s|`, and over B with `√|w s|`.
    fn of_factors(&self, how: &Combination) -> (usize, Vec<f32>, Vec<f32>) {
        let product = |term: &Term| term.weight * term.scale;
        let root = |term: &Term| product(term).abs().sqrt() as f32;
        let signed = |term: &Term| if product(term) >= 0.0 { root(term) } else { -root(term) };
        let a: Vec<f32> = self.terms.iter().map(signed).collect();
        let b: Vec<f32> = self.terms.iter().map(root).collect();
        let tensors =
            |factor: fn(&Term) -> &Vec<f32>| self.terms.iter().map(|term| factor(term).clone()).collect();
        let rank = self.terms.first().map_or(0, |term| term.rank);
        (
            rank,
            how.merge.merge(tensors(|term| &term.a), &a, &self.keys(how.seed, "lora_A")),
            how.merge.merge(tensors(|term| &term.b), &b, &self.keys(how.seed, "lora_B")),
        )
    }

    /// The rule over the products, then `B = U Σ` and `A = Vᵀ` of the largest singular values.
    fn of_products(&self, how: &Combination) -> Result<(usize, Vec<f32>, Vec<f32>)> {
        let [m, n] = self.shape();
        if m.checked_mul(n).is_none_or(|elements| elements > MOST_ELEMENTS) {
            let what =
                format!("its update has the shape {:?}, expected at most {MOST_ELEMENTS} elements", [m, n]);
            return Err(self.fault(&what));
        }
        let products = self.terms.iter().map(|term| term.product(m, n)).collect();
        let weights: Vec<f32> = self.terms.iter().map(|term| term.weight as f32).collect();
        let merged = how.merge.merge(products, &weights, &self.keys(how.seed, "delta"));
        let rank = how.rank.min(m).min(n);
        let svd = MatRef::from_row_major_slice(&merged, m, n).thin_svd();
        let svd = svd.map_err(|_| self.fault("the combined update has no singular value decomposition"))?;
        let (u, v, sigma) = (svd.U(), svd.V(), svd.S().column_vector());
        let b = (0..m * rank).map(|i| u[(i / rank, i % rank)] * sigma[i % rank]).collect();
        let a = (0..rank * n).map(|i| v[(i % n, i / n)]).collect();
        Ok((rank, a, b))
    }

    /// The decomposition of `Σ w s B A` without the product: of `[w s B_1, …] = Q R` and `[A_1; …]ᵀ = P T`, that of the
    /// small `R Tᵀ`.
    fn of_sum(&self, rank: usize) -> Result<(usize, Vec<f32>, Vec<f32>)> {
        let [m, n] = self.shape();
        let all: usize = self.terms.iter().map(|term| term.rank).sum();
        let (mut left, mut right) = (Mat::<f32>::zeros(m, all), Mat::<f32>::zeros(n, all));
        let mut at = 0;
        for term in &self.terms {
            let factor = (term.weight * term.scale) as f32;
            for j in 0..term.rank {
                (0..m).for_each(|i| left[(i, at + j)] = term.b[i * term.rank + j] * factor);
                (0..n).for_each(|i| right[(i, at + j)] = term.a[j * n + i]);
            }
            at += term.rank;
        }
        let (left, right) = (left.qr(), right.qr());
        let (q, p) = (left.compute_thin_Q(), right.compute_thin_Q());
        let small = times(left.thin_R(), right.thin_R().transpose());
        let svd = small.thin_svd();
        let svd = svd.map_err(|_| self.fault("the combined update has no singular value decomposition"))?;
        let (u, v, sigma) = (times(q.as_ref(), svd.U()), times(p.as_ref(), svd.V()), svd.S().column_vector());
        let rank = rank.min(m).min(n);
        // Beyond the ranks of the sum, singular values are zero.
        let column = |x: &Mat<f32>, i: usize, j: usize| if j < x.ncols() { x[(i, j)] } else { 0.0 };
        let value = |j: usize| if j < sigma.nrows() { sigma[j] } else { 0.0 };
        let b = (0..m * rank).map(|i| column(&u, i / rank, i % rank) * value(i % rank)).collect();
        let a = (0..rank * n).map(|i| column(&v, i % n, i / n)).collect();
        Ok((rank, a, b))
    }

    /// The keys of the draws over a part of each adapter: by the contents of its factors, and by how many equal ones
    /// come before it.
    fn keys(&self, seed: u64, part: &str) -> Vec<Key> {
        let bytes = |x: &Vec<f32>| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let digest = |term: &Term| Sha256Hex::of(&[bytes(&term.a), bytes(&term.b)].concat()).to_string();
        let digests: Vec<String> = self.terms.iter().map(digest).collect();
        let key = |(i, digest): (usize, &String)| {
            let before = digests[..i].iter().filter(|other| *other == digest).count();
            Key::new(seed, 0, &format!("{}.{part} {digest} {before}", self.module))
        };
        digests.iter().enumerate().map(key).collect()
    }
}

impl Term {
    /// `s · B A`, `[m, n]`.
    fn product(&self, m: usize, n: usize) -> Vec<f32> {
        let b = MatRef::from_row_major_slice(&self.b, m, self.rank);
        let a = MatRef::from_row_major_slice(&self.a, self.rank, n);
        let (product, scale) = (times(b, a), self.scale as f32);
        (0..m * n).map(|i| product[(i / n, i % n)] * scale).collect()
    }
}

/// `X Y`.
fn times(x: MatRef<'_, f32>, y: MatRef<'_, f32>) -> Mat<f32> {
    let mut out = Mat::zeros(x.nrows(), y.ncols());
    matmul(out.as_mut(), Accum::Replace, x, y, 1.0, Par::Seq);
    out
}
