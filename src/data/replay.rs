//! Replay: rows of earlier stages among those of a later one.

use crate::data::row::Row;
use crate::plan::{Domain, Key};

/// The rows of a stage with those that are replayed.
#[derive(Debug, PartialEq, Eq)]
pub struct Replayed {
    /// The rows, the replayed ones evenly spread among the stage's own.
    pub rows: Vec<Row>,
    /// How many of them are replayed.
    pub replayed: usize,
}

/// Adds rows of `earlier` stages to the `own` rows of stage `stage`, so that the share `share` of all rows is replayed:
/// `round(n · share / (1 − share))` beside `n` own ones. Rows count by groups of `size` consecutive ones, 2 for pairs.
///
/// They are drawn over the rows of all earlier stages, each with the same probability and without replacement, by words
/// keyed by `seed` and `stage`; where more are wanted than there are, all are taken and the draw begins again.
pub fn replay(
    own: Vec<Row>,
    earlier: &[&[Row]],
    share: f64,
    (seed, stage): (u64, u32),
    size: usize,
) -> Replayed {
    let pool: Vec<&[Row]> = earlier.iter().flat_map(|rows| rows.chunks(size)).collect();
    let n = own.len() / size;
    let wanted = (n as f64 * share / (1.0 - share)).round() as usize;
    if pool.is_empty() || wanted == 0 {
        return Replayed { rows: own, replayed: 0 };
    }
    let key = Key::new(seed, stage, "train/replay");
    let mut drawn: Vec<usize> = Vec::with_capacity(wanted);
    for pass in 0.. {
        let mut order: Vec<usize> = (0..pool.len()).collect();
        order.sort_by_cached_key(|at| {
            let [low, high, ..] = key.block(Domain::Shuffle, (pass * pool.len() + at) as u64);
            (u64::from(high) << 32 | u64::from(low), *at)
        });
        order.truncate(wanted - drawn.len());
        drawn.append(&mut order);
        if drawn.len() == wanted {
            break;
        }
    }
    let (mut own, mut drawn, all) = (own.into_iter(), drawn.into_iter(), n + wanted);
    let mut rows = Vec::with_capacity(all * size);
    for at in 0..all {
        if (at + 1) * wanted / all > at * wanted / all {
            drawn.next().into_iter().for_each(|at| rows.extend_from_slice(pool[at]));
        } else {
            rows.extend(own.by_ref().take(size));
        }
    }
    Replayed { rows, replayed: wanted }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::row::Location;

    fn rows(ids: std::ops::Range<u32>) -> Vec<Row> {
        let location = Location { path: Path::new("rows").into(), line: 1 };
        ids.map(|id| Row { input_ids: vec![id], labels: vec![0], location: location.clone() }).collect()
    }

    fn ids(rows: &[Row]) -> Vec<u32> {
        rows.iter().map(|row| row.input_ids[0]).collect()
    }

    #[test]
    fn the_share_is_of_all_rows_and_own_rows_keep_their_order() {
        let (first, second) = (rows(0..30), rows(30..50));
        for (share, wanted) in [(0.1, 11), (0.2, 25), (0.5, 100), (0.0, 0)] {
            let found = replay(rows(100..200), &[&first, &second], share, (7, 2), 1);
            assert_eq!((found.replayed, found.rows.len()), (wanted, 100 + wanted), "{share}");
            let own: Vec<u32> = ids(&found.rows).into_iter().filter(|id| *id >= 100).collect();
            assert_eq!(own, (100..200).collect::<Vec<_>>());
            let mut drawn: Vec<u32> = ids(&found.rows).into_iter().filter(|id| *id < 100).collect();
            // No row again before every row was taken.
            drawn.sort_unstable();
            let most = wanted.div_ceil(50);
            assert!(drawn.chunk_by(|a, b| a == b).all(|same| same.len() <= most), "{share}: {drawn:?}");
            assert_eq!(found, replay(rows(100..200), &[&first, &second], share, (7, 2), 1));
        }
        let of = |seed, stage| replay(rows(100..200), &[&first], 0.1, (seed, stage), 1).rows;
        assert!(of(7, 1) != of(8, 1) && of(7, 1) != of(7, 2));
    }

    #[test]
    fn replayed_rows_are_spread_and_pairs_stay_together() {
        let found = replay(rows(100..116), &[&rows(0..20)], 0.5, (1, 1), 2);
        assert_eq!((found.replayed, found.rows.len()), (8, 32));
        for pair in ids(&found.rows).chunks(2) {
            assert!(pair[0] % 2 == 0 && pair[1] == pair[0] + 1, "{pair:?}");
        }
        let places: Vec<bool> = ids(&found.rows).chunks(2).map(|pair| pair[0] < 100).collect();
        assert!(places.chunks(2).all(|two| two == [false, true]), "{places:?}");
    }
}
