//! An order in which neighbours have about one length.

use std::cmp::Reverse;

/// Batches of a group at most.
const MOST_BATCHES: usize = 50;

/// Sorts `order`, indexes into `lengths`, by length within groups of `min(rows / (4 · batch), 50)` batches, longest
/// first, and puts the longest row of all first, so that a lack of memory shows at once.
///
/// Source: `get_length_grouped_indices` of transformers, where `batch` is the rows of an optimizer step.
pub(crate) fn group_by_length(order: &mut [u32], lengths: &[usize], batch: usize) {
    let batches = (order.len() / batch.saturating_mul(4).max(1)).clamp(1, MOST_BATCHES);
    let group = batches.saturating_mul(batch).max(1);
    let length = |row: u32| lengths[row as usize];
    order.chunks_mut(group).for_each(|rows| rows.sort_by_key(|row| Reverse(length(*row))));
    let longest =
        (0..order.len()).step_by(group).max_by_key(|start| (length(order[*start]), Reverse(*start)));
    if let Some(longest) = longest {
        order.swap(0, longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What transformers makes of the same permutation (`fixtures/data/make_rows.py`).
    #[test]
    fn groups_are_those_of_transformers() {
        let golden = include_str!("../../fixtures/data/length_groups.json");
        let cases: Vec<serde_json::Value> = serde_json::from_str(golden).unwrap();
        assert!(cases.len() >= 6);
        for case in cases {
            let list = |name: &str| -> Vec<u64> { serde_json::from_value(case[name].clone()).unwrap() };
            let lengths: Vec<usize> = list("lengths").into_iter().map(|length| length as usize).collect();
            let mut order: Vec<u32> = list("permutation").into_iter().map(|row| row as u32).collect();
            group_by_length(&mut order, &lengths, case["batch"].as_u64().unwrap() as usize);
            let expected: Vec<u32> = list("expected").into_iter().map(|row| row as u32).collect();
            assert_eq!(order, expected, "{} rows, batch {}", lengths.len(), case["batch"]);
        }
    }
}
