//! A share of the parameters, as close as whole units allow: the subset-sum problem over the distinct unit sizes.

use std::collections::BTreeMap;

use super::draw::Draw;
use super::quota;

/// Bits of all reachability tables together: 256 MiB.
const MOST_BITS: u64 = 1 << 31;
/// Bits of one table. Beyond, sizes are rounded to total/2²⁴, which costs less than 10⁻⁶ of the share.
const MOST_SUM: u64 = 1 << 26;

/// Marks the units whose sizes add up closest to ratio × total. Among the closest sums, the count taken
/// of each size is the one nearest to its own share; which units of a size, the lowest scores decide.
pub(super) fn closest(draw: &Draw, label: &str, names: &[&str], sizes: &[u64]) -> Vec<bool> {
    let mut classes: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (i, size) in sizes.iter().enumerate() {
        classes.entry(*size).or_default().push(i);
    }
    let unit = unit_of(&classes);
    let steps: Vec<(u64, u64)> =
        classes.iter().map(|(size, members)| ((size + unit / 2) / unit, members.len() as u64)).collect();
    let counts = counts(draw, label, &steps);
    let mut chosen = vec![false; names.len()];
    for (members, count) in classes.values().zip(counts) {
        let of_class: Vec<&str> = members.iter().map(|i| names[*i]).collect();
        for (i, on) in members.iter().zip(quota::lowest(draw, &of_class, count)) {
            chosen[*i] = on;
        }
    }
    chosen
}

/// The size that sums are counted in: the greatest common divisor, or coarser where tables would be too big.
fn unit_of(classes: &BTreeMap<u64, Vec<usize>>) -> u64 {
    let gcd = classes.keys().fold(0, |a, b| gcd(a, *b)).max(1);
    let total = classes.iter().map(|(size, members)| u128::from(*size) * members.len() as u128).sum::<u128>();
    let most = MOST_SUM.min(MOST_BITS / (classes.len() as u64 + 1));
    if total / u128::from(gcd) < u128::from(most) {
        return gcd;
    }
    u64::try_from(total / u128::from(most / 4)).unwrap_or(u64::MAX).max(1)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The number of units to take of each class of (size, number of units).
fn counts(draw: &Draw, label: &str, classes: &[(u64, u64)]) -> Vec<u64> {
    let total: u64 = classes.iter().map(|(size, n)| size * n).sum();
    let mut reach = vec![Bits::only_zero(total)];
    for (size, n) in classes {
        let mut next = reach[reach.len() - 1].clone();
        // Any count up to n is a sum of some of 1, 2, 4, …, rest.
        let (mut left, mut step) = (*n, 1);
        while left > 0 {
            let take = step.min(left);
            next.or_shifted(size * take);
            left -= take;
            step *= 2;
        }
        reach.push(next);
    }
    let up = draw.settles_tie(&format!("closest of {label}"));
    let mut sum = reach[classes.len()].nearest(draw.ratio * total as f64, up);
    let mut out = vec![0; classes.len()];
    for (i, (size, n)) in classes.iter().enumerate().rev() {
        let mut tries: Vec<u64> = (0..=*n).collect();
        let wish = draw.ratio * *n as f64;
        tries.sort_by(|a, b| (*a as f64 - wish).abs().total_cmp(&(*b as f64 - wish).abs()));
        let fits = |count: &u64| count * size <= sum && reach[i].get(sum - count * size);
        let count = tries.into_iter().find(fits);
        assert!(count.is_some(), "a reachable sum has a way to it");
        out[i] = count.unwrap_or(0);
        sum -= out[i] * size;
    }
    out
}

/// A set of sums.
#[derive(Clone)]
struct Bits {
    words: Vec<u64>,
    most: u64,
}

impl Bits {
    fn only_zero(most: u64) -> Self {
        let mut words = vec![0; (most / 64 + 1) as usize];
        words[0] = 1;
        Self { words, most }
    }

    fn get(&self, sum: u64) -> bool {
        sum <= self.most && self.words[(sum / 64) as usize] >> (sum % 64) & 1 == 1
    }

    /// Adds every sum plus `by`.
    fn or_shifted(&mut self, by: u64) {
        let (words, bits) = ((by / 64) as usize, (by % 64) as u32);
        for i in (words..self.words.len()).rev() {
            let low = self.words[i - words] << bits;
            let high = if bits > 0 && i > words { self.words[i - words - 1] >> (64 - bits) } else { 0 };
            self.words[i] |= low | high;
        }
    }

    /// The sum closest to `target`; of two equally close, the upper one if `up`.
    fn nearest(&self, target: f64, up: bool) -> u64 {
        let middle = target.round().clamp(0.0, self.most as f64) as u64;
        let below = (0..=middle).rev().find(|sum| self.get(*sum)).unwrap_or(0);
        let Some(above) = (middle..=self.most).find(|sum| self.get(*sum)) else {
            return below;
        };
        let (down, over) = (target - below as f64, above as f64 - target);
        let tie = (down - over).abs() < 1e-6;
        if over < down && !tie || tie && up { above } else { below }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against all subsets.
        #[test]
        fn is_as_close_as_any_subset(sizes in prop::collection::vec(0u64..40, 1..10), ratio in 0.0f64..=1.0, seed in 0u64..9) {
            let names: Vec<String> = (0..sizes.len()).map(|i| format!("u{i}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let draw = Draw { seed, round: 0, ratio };
            let chosen = closest(&draw, "x", &names, &sizes);
            let target = ratio * sizes.iter().sum::<u64>() as f64;
            let sum = |pick: &dyn Fn(usize) -> bool| (0..sizes.len()).filter(|i| pick(*i)).map(|i| sizes[i]).sum::<u64>() as f64;
            let got = (sum(&|i| chosen[i]) - target).abs();
            let best = (0u32..1 << sizes.len()).map(|set| (sum(&|i| set >> i & 1 == 1) - target).abs()).fold(f64::MAX, f64::min);
            prop_assert!(got <= best + 1e-6, "{got} against {best}");
        }
    }
}
