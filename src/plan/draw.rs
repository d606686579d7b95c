//! The random numbers of one draw.

use super::philox::Key;

/// Seed and round of a draw, and the share that it takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draw {
    pub(super) seed: u64,
    pub(super) round: u32,
    /// The share, 0 to 1.
    pub(super) ratio: f64,
}

impl Draw {
    /// 64 random bits: sorted by them, names are in a random order.
    pub(super) fn score(&self, name: &str) -> u64 {
        self.key(name).score()
    }

    /// A Bernoulli draw with the probability `ratio`.
    pub(super) fn bernoulli(&self, name: &str) -> bool {
        self.key(name).uniform() < self.ratio
    }

    /// A Bernoulli draw with the probability ½, which settles a tie.
    pub(super) fn settles_tie(&self, name: &str) -> bool {
        self.key(name).uniform() < 0.5
    }

    fn key(&self, name: &str) -> Key {
        Key::new(self.seed, self.round, name)
    }
}
