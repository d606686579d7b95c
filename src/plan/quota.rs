//! Whole numbers of units for a share.

use super::draw::Draw;

/// The distance from a whole number that counts as none: shares come from decimal fractions.
const EPSILON: f64 = 1e-9;

/// The nearest whole number to ratio × `units`; a Bernoulli draw settles an exact half.
pub(super) fn total(draw: &Draw, label: &str, units: u64) -> u64 {
    let exact = draw.ratio * units as f64;
    let below = (exact + EPSILON).floor();
    let rest = exact - below;
    let up =
        if (rest - 0.5).abs() < EPSILON { draw.settles_tie(&format!("half of {label}")) } else { rest > 0.5 };
    below as u64 + u64::from(up)
}

/// Divides the total over groups of `sizes`: each gets the floor of its share, and of those with a
/// fraction left, random ones get one more, so that the sum is the total of all.
pub(super) fn divide(draw: &Draw, label: &str, names: &[String], sizes: &[u64]) -> Vec<u64> {
    let floors: Vec<u64> = sizes.iter().map(|k| (draw.ratio * *k as f64 + EPSILON).floor() as u64).collect();
    let wanted = total(draw, label, sizes.iter().sum());
    let missing = wanted.saturating_sub(floors.iter().sum());
    let has_fraction = |i: &usize| draw.ratio * sizes[*i] as f64 - floors[*i] as f64 > EPSILON;
    let mut candidates: Vec<usize> = (0..sizes.len()).filter(has_fraction).collect();
    candidates
        .sort_by_cached_key(|i| (draw.score(&format!("extra {label} {}", names[*i])), names[*i].clone()));
    let mut quotas = floors;
    for i in candidates.into_iter().take(missing as usize) {
        quotas[i] += 1;
    }
    quotas
}

/// Marks the `quota` names with the lowest scores.
pub(super) fn lowest(draw: &Draw, names: &[&str], quota: u64) -> Vec<bool> {
    let mut order: Vec<usize> = (0..names.len()).collect();
    order.sort_by_cached_key(|i| (draw.score(names[*i]), names[*i].to_owned()));
    let mut chosen = vec![false; names.len()];
    for i in order.into_iter().take(quota as usize) {
        chosen[i] = true;
    }
    chosen
}
