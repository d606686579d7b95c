//! Counter-based random numbers: Philox4x32-10.
//!
//! Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A word is
//! a pure function of key and counter, so masks do not depend on threads, shards or the device.

use sha2::{Digest, Sha256};

/// The use of the words; separate domains never share words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Domain {
    /// Order of units in a draw.
    Score = 0,
    /// Element masks.
    Element = 1,
    /// Row masks.
    Row = 2,
    /// Order of training rows.
    Shuffle = 3,
    /// Tokens of a generated text.
    Token = 4,
    /// Resamples of a bootstrap.
    Bootstrap = 5,
    /// Few-shot examples of a row.
    FewShot = 7,
    /// Stochastic rounding of weights; the last word of the counter is the step.
    Rounding = 8,
}

/// The key of one name in one round: 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key([u32; 2]);

impl Key {
    /// The first 64 bits of SHA-256("hft-surgery/philox/1" ‖ seed ‖ round ‖ name), little-endian.
    pub fn new(seed: u64, round: u32, name: &str) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(b"hft-surgery/philox/1");
        hasher.update(seed.to_le_bytes());
        hasher.update(round.to_le_bytes());
        hasher.update(name.as_bytes());
        let sum = hasher.finalize();
        Self([0, 4].map(|at| u32::from_le_bytes([sum[at], sum[at + 1], sum[at + 2], sum[at + 3]])))
    }

    /// The key as the generator takes it.
    pub fn words(self) -> [u32; 2] {
        self.0
    }

    /// Words `4 · block` to `4 · block + 3` of a domain: the counter is (block low, block high, domain, 0).
    #[inline]
    pub fn block(self, domain: Domain, block: u64) -> [u32; 4] {
        philox4x32_10([block as u32, (block >> 32) as u32, domain as u32, 0], self.0)
    }

    /// Blocks `first` to `first + N − 1`: their first words, their second words and so on.
    #[inline(always)]
    pub(super) fn blocks<const N: usize>(self, domain: Domain, first: u64) -> [[u32; N]; 4] {
        let mut words = [[0; N]; 4];
        let [a, b, c, d] = &mut words;
        // One plain loop: the compiler makes it one of vectors.
        for (l, (((a, b), c), d)) in a.iter_mut().zip(b).zip(c).zip(d).enumerate() {
            let block = first + l as u64;
            [*a, *b, *c, *d] = philox4x32_10([block as u32, (block >> 32) as u32, domain as u32, 0], self.0);
        }
        words
    }

    /// Word `index` of a domain.
    pub fn word(self, domain: Domain, index: u64) -> u32 {
        self.block(domain, index / 4)[(index % 4) as usize]
    }

    /// 64 bits that place this key's name in a random order.
    pub(super) fn score(self) -> u64 {
        let [low, high, ..] = self.block(Domain::Score, 0);
        u64::from(high) << 32 | u64::from(low)
    }

    /// A number in [0, 1) with 53 random bits, independent of [`Key::score`].
    pub(super) fn uniform(self) -> f64 {
        let [.., low, high] = self.block(Domain::Score, 0);
        let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
        bits as f64 / (1u64 << 53) as f64
    }
}

/// The bijection of the paper: ten rounds over a counter of four words, under a key of two.
#[inline(always)]
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = next_key(key);
        }
        counter = round_of(counter, key);
    }
    counter
}

#[inline(always)]
fn next_key(key: [u32; 2]) -> [u32; 2] {
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])]
}

#[inline(always)]
fn round_of(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    let low = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
    let high = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
    [
        (high >> 32) as u32 ^ counter[1] ^ key[0],
        high as u32,
        (low >> 32) as u32 ^ counter[3] ^ key[1],
        low as u32,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution.
    #[test]
    fn gives_the_published_words() {
        let ones = u32::MAX;
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32_10([ones; 4], [ones; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32_10([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn keys_differ_in_every_part() {
        let key = Key::new(0, 0, "w");
        assert!(key != Key::new(1, 0, "w") && key != Key::new(0, 1, "w") && key != Key::new(0, 0, "v"));
    }
}
