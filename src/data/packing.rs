//! Which sequences share a packed row.

use std::collections::BTreeSet;

/// Best-fit decreasing: puts sequences, longest first, into the packed row with the least room that
/// still takes them.
///
/// `lengths[i]` is the length of sequence `i`, at most `capacity`. Every sequence is in one packed row,
/// whole. Sequences stand in a packed row, and packed rows after each other, in the order of their
/// (first) index, so the result does not depend on how ties are met.
///
/// Source: Ding et al. 2024, "Fewer truncations improve language modeling", arXiv:2404.10830.
pub(crate) fn best_fit_decreasing(lengths: &[usize], capacity: usize) -> Vec<Vec<u32>> {
    let mut order: Vec<u32> = (0..lengths.len() as u32).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(lengths[*i as usize]), *i));
    let mut packed: Vec<Vec<u32>> = Vec::new();
    // (room left, packed row)
    let mut room: BTreeSet<(usize, usize)> = BTreeSet::new();
    for i in order {
        let length = lengths[i as usize];
        assert!(length <= capacity, "sequences are cut to the capacity before they are packed");
        let best = room.range((length, 0)..).next().copied();
        let (left, row) = match best {
            Some(best) => {
                room.remove(&best);
                best
            }
            None => {
                packed.push(Vec::new());
                (capacity, packed.len() - 1)
            }
        };
        packed[row].push(i);
        room.insert((left - length, row));
    }
    packed.iter_mut().for_each(|row| row.sort_unstable());
    packed.sort_unstable();
    packed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fills_the_tightest_row() {
        // 6 and 5 open a row each; 4 fills the row of 6, 3 and 1 go to the row of 5.
        assert_eq!(best_fit_decreasing(&[3, 6, 5, 4, 1], 10), [vec![0, 2, 4], vec![1, 3]]);
        assert!(best_fit_decreasing(&[], 10).is_empty());
    }

    proptest! {
        #[test]
        fn every_sequence_once_and_no_row_too_long(
            lengths in prop::collection::vec(1usize..40, 0..200),
            spare in 0usize..20,
        ) {
            let capacity = lengths.iter().max().unwrap_or(&1) + spare;
            let packed = best_fit_decreasing(&lengths, capacity);
            let mut seen: Vec<u32> = packed.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len() as u32).collect::<Vec<_>>());
            let sums: Vec<usize> = packed
                .iter()
                .map(|row| row.iter().map(|i| lengths[*i as usize]).sum())
                .collect();
            prop_assert!(sums.iter().all(|sum| *sum <= capacity));
            // No two rows fit into one: otherwise the later one had not been opened.
            let mut least = sums.clone();
            least.sort_unstable();
            prop_assert!(least.len() < 2 || least[0] + least[1] > capacity);
        }
    }
}
