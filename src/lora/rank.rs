//! How many singular values of a difference an adapter keeps.

/// What decides the rank of a module.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RankChoice {
    /// This rank.
    Rank(usize),
    /// The smallest rank whose singular values hold this share of Σ σ², 0 to 1.
    Energy(f64),
    /// One for each singular value above this.
    Threshold(f64),
}

/// A choice and its limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RankRule {
    /// What decides.
    pub choice: RankChoice,
    /// The largest rank of a module; `None`: its smaller side.
    pub most: Option<usize>,
}

impl RankRule {
    /// The rank for the largest singular values `sigma`, falling, of a matrix with `‖Δ‖² = squares`; `all` where there
    /// are no others. `None` where others may be needed.
    pub(super) fn rank(&self, sigma: &[f32], squares: f64, all: bool) -> Option<usize> {
        /// Rounding of sums of f32 values.
        const ROUNDING: f64 = 1e-6;
        let most = self.most.unwrap_or(usize::MAX);
        let enough = all || sigma.len() >= most;
        let found = match self.choice {
            RankChoice::Rank(rank) => (rank <= sigma.len()).then_some(rank),
            RankChoice::Energy(share) => {
                let wanted = share * squares * (1.0 - ROUNDING);
                let sums = sigma.iter().scan(0.0, |sum, x| {
                    *sum += f64::from(*x).powi(2);
                    Some(*sum)
                });
                sums.zip(1..).find(|(sum, _)| *sum >= wanted).map(|(_, rank)| rank)
            }
            RankChoice::Threshold(least) => {
                let above = sigma.iter().filter(|x| f64::from(**x) > least).count();
                (above < sigma.len()).then_some(above)
            }
        };
        found.or(enough.then_some(sigma.len())).map(|rank| rank.min(most))
    }

    /// How many singular values are looked for first, of `all`.
    pub(super) fn first_guess(&self, all: usize) -> usize {
        /// Where only the values themselves tell how many are needed.
        const GUESS: usize = 64;
        let most = self.most.unwrap_or(usize::MAX).min(all);
        match self.choice {
            RankChoice::Rank(rank) => rank.min(most),
            _ => GUESS.min(most),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_follow_the_singular_values() {
        let sigma = [4.0, 2.0, 1.0];
        let rule = |choice, most| RankRule { choice, most };
        let cases = [
            (rule(RankChoice::Rank(2), None), true, Some(2)),
            (rule(RankChoice::Rank(5), None), true, Some(3)),
            (rule(RankChoice::Rank(5), None), false, None),
            (rule(RankChoice::Rank(2), Some(1)), true, Some(1)),
            // Squares 16, 20, 21 of 22.
            (rule(RankChoice::Energy(0.72), None), false, Some(1)),
            (rule(RankChoice::Energy(0.9), None), false, Some(2)),
            (rule(RankChoice::Energy(0.99), None), false, None),
            (rule(RankChoice::Energy(0.99), Some(3)), false, Some(3)),
            (rule(RankChoice::Energy(0.99), None), true, Some(3)),
            (rule(RankChoice::Threshold(1.5), None), false, Some(2)),
            (rule(RankChoice::Threshold(0.5), None), false, None),
            (rule(RankChoice::Threshold(0.5), None), true, Some(3)),
            (rule(RankChoice::Threshold(9.0), None), true, Some(0)),
        ];
        for (rule, all, expected) in cases {
            assert_eq!(rule.rank(&sigma, 22.0, all), expected, "{rule:?} {all}");
        }
    }
}
