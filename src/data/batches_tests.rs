use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::data::{IGNORED, Location};

/// Rows whose tokens tell where they came from: row · 1000 + position.
fn rows(lengths: &[usize]) -> Vec<Row> {
    let row = |(i, length): (usize, &usize)| {
        let input_ids: Vec<u32> = (0..*length).map(|at| (i * 1000 + at) as u32).collect();
        let labels = input_ids.iter().map(|id| *id as i32).collect();
        let location = Location { path: std::path::Path::new("rows").into(), line: i as u64 + 1 };
        Row { input_ids, labels, location }
    };
    lengths.iter().enumerate().map(row).collect()
}

fn options(arrangement: Arrangement, batch_size: usize, shuffle: bool) -> BatchOptions {
    BatchOptions { batch_size, arrangement, shuffle, seed: 7 }
}

fn arrangements(max_length: usize) -> [Arrangement; 3] {
    [Arrangement::Plain, Arrangement::GroupByLength { rows_per_step: 6 }, Arrangement::Packed { max_length }]
}

/// The index of the row that each sequence of a batch is, after checking that it is whole.
fn sequences(batch: &Batch, lengths: &[usize]) -> Vec<usize> {
    assert_eq!(batch.cu_seqlens.first(), Some(&0));
    assert_eq!(batch.cu_seqlens.last(), Some(&(batch.input_ids.len() as u32)));
    assert_eq!(batch.labels.len(), batch.input_ids.len());
    let sequence = |w: &[u32]| {
        let range = w[0] as usize..w[1] as usize;
        let (ids, labels) = (&batch.input_ids[range.clone()], &batch.labels[range]);
        let row = ids[0] as usize / 1000;
        let whole: Vec<u32> = (0..lengths[row]).map(|at| (row * 1000 + at) as u32).collect();
        assert_eq!(ids, whole);
        assert_eq!(labels[0], IGNORED);
        assert!(labels[1..].iter().zip(&ids[1..]).all(|(label, id)| *label == *id as i32));
        row
    };
    batch.cu_seqlens.windows(2).map(sequence).collect()
}

proptest! {
    #[test]
    fn an_epoch_has_every_token_once_and_no_long_row(
        lengths in prop::collection::vec(2usize..50, 1..80),
        batch_size in 1usize..6,
        shuffle: bool,
        epoch in 0u32..3,
    ) {
        for arrangement in arrangements(64) {
            let batches = Batches::new(rows(&lengths), options(arrangement, batch_size, shuffle)).unwrap();
            let epoch = batches.epoch(epoch);
            let mut seen = Vec::new();
            for at in 0..batches.per_epoch() {
                let batch = epoch.batch(at).unwrap();
                prop_assert!(batch.input_ids.len() <= batch_size * 64);
                if arrangement == Arrangement::Plain {
                    prop_assert!(batch.cu_seqlens.len() - 1 == batch_size || at + 1 == batches.per_epoch());
                }
                seen.extend(sequences(&batch, &lengths));
            }
            prop_assert!(epoch.batch(batches.per_epoch()).is_none());
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
        }
    }
}

#[test]
fn epochs_and_seeds_have_their_own_order() {
    let lengths = vec![3; 100];
    let order = |seed: u64, epoch: u32, shuffle: bool| -> Vec<usize> {
        let options = BatchOptions { seed, ..options(Arrangement::Plain, 8, shuffle) };
        let batches = Batches::new(rows(&lengths), options).unwrap();
        let epoch = batches.epoch(epoch);
        (0..batches.per_epoch()).flat_map(|at| sequences(&epoch.batch(at).unwrap(), &lengths)).collect()
    };
    let file_order: Vec<usize> = (0..100).collect();
    assert_eq!(order(0, 0, false), file_order);
    assert_eq!(order(0, 1, false), file_order);
    assert_eq!(order(0, 0, true), order(0, 0, true));
    let orders = [order(0, 0, true), order(0, 1, true), order(1, 0, true), file_order];
    assert!(orders.iter().enumerate().all(|(i, a)| orders[..i].iter().all(|b| a != b)));
}

#[test]
fn the_first_row_of_an_epoch_is_any_row() {
    // A shuffle that favours a row shows here: 2000 draws of one in 10, each 200 ± 5 standard deviations.
    let batches = Batches::new(rows(&[2; 10]), options(Arrangement::Plain, 1, true)).unwrap();
    let mut count: BTreeMap<u32, u32> = BTreeMap::new();
    for epoch in 0..2000 {
        let first = batches.epoch(epoch).batch(0).unwrap().input_ids[0];
        *count.entry(first / 1000).or_default() += 1;
    }
    assert!(count.len() == 10 && count.values().all(|n| (133..=267).contains(n)), "{count:?}");
}

#[test]
fn length_groups_hold_rows_of_about_one_length() {
    let lengths: Vec<usize> = (0..400).map(|i| 2 + i * 37 % 100).collect();
    let batches =
        Batches::new(rows(&lengths), options(Arrangement::GroupByLength { rows_per_step: 4 }, 4, true))
            .unwrap();
    let epoch = batches.epoch(0);
    let spread = |at: usize| {
        let batch = epoch.batch(at).unwrap();
        let lengths = batch.cu_seqlens.windows(2).map(|w| w[1] - w[0]);
        lengths.clone().max().unwrap() - lengths.min().unwrap()
    };
    assert!((0..batches.per_epoch()).all(|at| spread(at) <= 12));
}

#[test]
fn a_batch_joins_rows_and_ignores_the_first_label_of_each() {
    let batch = Batch::from_rows(&rows(&[3, 2]));
    assert_eq!(batch.cu_seqlens, [0, 3, 5]);
    assert_eq!(batch.labels, [IGNORED, 1, 2, IGNORED, 1001]);
    assert_eq!(batch.max_seqlen(), 3);
}

#[test]
fn wrong_options_are_refused() {
    let refused = |rows: Vec<Row>, options| Batches::new(rows, options).unwrap_err().to_string();
    assert_eq!(refused(rows(&[2]), options(Arrangement::Plain, 0, true)), "a batch size of 0");
    assert_eq!(refused(Vec::new(), options(Arrangement::Plain, 1, true)), "0 training rows");
    let packed = options(Arrangement::Packed { max_length: 4 }, 1, true);
    assert_eq!(refused(rows(&[2, 5]), packed), "a row of 5 tokens in packed rows of 4");
}
