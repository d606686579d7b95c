//! Rows of token ids: their labels, or the masks that say what is learnt, and the sequences that they pack.

use serde_json::{Map, Value};

use crate::data::columns::{integers, mismatch};
use crate::data::fault::Fault;
use crate::data::message_weight::zero_or_one;
use crate::data::row::IGNORED;

/// Columns that such a row may have.
pub(crate) const COLUMNS: [&str; 7] = [
    "input_ids",
    "labels",
    "attention_mask",
    "assistant_masks",
    "completion_mask",
    "seq_lengths",
    "position_ids",
];

/// Columns that weigh tokens or divide them into sequences, in ways on which trainers differ.
const REFUSED: [&str; 12] = [
    "loss_mask",
    "loss_weight",
    "loss_weights",
    "weights",
    "segment_ids",
    "document_ids",
    "sequence_ids",
    "seq_idx",
    "cu_seqlens",
    "cu_seq_lens",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
];

/// One sequence: as many labels as token ids, not shifted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sequence {
    pub(crate) input_ids: Vec<u32>,
    pub(crate) labels: Vec<i32>,
}

/// The sequences of a row with `input_ids`: several where `seq_lengths` or `position_ids` say that it is packed.
///
/// `labels` decide what is learnt. Without them all tokens do, or those that are 1 in `assistant_masks` and in
/// `completion_mask`, as in TRL. Tokens that are 0 in `attention_mask` are padding and are left out.
///
/// # Errors
/// A column of another length or with other values, padding that has labels or stands between tokens, a column
/// that is known and not obeyed.
pub(crate) fn sequences(row: &Map<String, Value>) -> Result<Vec<Sequence>, Fault> {
    if let Some(name) = REFUSED.iter().find(|name| row.contains_key(**name)) {
        return Err(Fault::hinted(
            format!("`{name}` beside `input_ids`: trainers read it in different ways"),
            "write `labels` with -100 for what is not learnt, and `seq_lengths` for packed sequences",
        ));
    }
    let mut input_ids: Vec<u32> = integers(row, "input_ids")?;
    let tokens = input_ids.len();
    let mut labels = labels(row, &input_ids)?;
    let mut positions: Option<Vec<u64>> = match row.contains_key("position_ids") {
        true => Some(integers(row, "position_ids")?),
        false => None,
    };
    if let Some(positions) = &positions {
        check_length("position_ids", positions.len(), tokens)?;
    }
    if row.contains_key("attention_mask") {
        let attended = attended(&bits(row, "attention_mask", tokens)?)?;
        let padding = |at: &usize| !attended.contains(at);
        let is_label = |at: &usize| labels[*at] != IGNORED;
        if row.contains_key("labels") && (0..tokens).filter(padding).any(|at| is_label(&at)) {
            return Err(Fault::hinted(
                "padding (0 in `attention_mask`) has labels",
                "give padding the label -100",
            ));
        }
        input_ids = input_ids[attended.clone()].to_vec();
        labels = labels[attended.clone()].to_vec();
        positions = positions.map(|positions| positions[attended].to_vec());
    }
    let from_positions = positions.map(|positions| lengths_of(&positions)).transpose()?;
    let lengths = match row.contains_key("seq_lengths") {
        true => Some(seq_lengths(row, input_ids.len())?),
        false => None,
    };
    if lengths.is_some() && from_positions.is_some() && lengths != from_positions {
        return Err(Fault::new("`seq_lengths` and `position_ids` divide the row differently"));
    }
    let lengths = lengths.or(from_positions).filter(|lengths| !lengths.is_empty());
    let lengths = lengths.unwrap_or_else(|| vec![input_ids.len()]);
    Ok(divide(&input_ids, &labels, &lengths))
}

fn labels(row: &Map<String, Value>, input_ids: &[u32]) -> Result<Vec<i32>, Fault> {
    if row.contains_key("labels") {
        let labels: Vec<i32> = integers(row, "labels")?;
        if labels.len() != input_ids.len() {
            let fault = format!("{} labels for {} input_ids", labels.len(), input_ids.len());
            return Err(Fault::hinted(fault, "give one label per token, not shifted; -100 is ignored"));
        }
        return Ok(labels);
    }
    // An id beyond i32 is outside of every vocabulary and refused as an input id.
    let mut labels: Vec<i32> = input_ids.iter().map(|id| i32::try_from(*id).unwrap_or(i32::MAX)).collect();
    for name in ["assistant_masks", "completion_mask"] {
        if row.contains_key(name) {
            let mask = bits(row, name, labels.len())?;
            labels.iter_mut().zip(mask).filter(|(_, learnt)| !learnt).for_each(|(label, _)| *label = IGNORED);
        }
    }
    Ok(labels)
}

/// A mask: one 0 or 1 for each token.
fn bits(row: &Map<String, Value>, name: &str, tokens: usize) -> Result<Vec<bool>, Fault> {
    let list = row.get(name).and_then(Value::as_array);
    let list = list.ok_or_else(|| mismatch(name, "a list of 0 and 1", row.get(name)))?;
    check_length(name, list.len(), tokens)?;
    let bit = |value| zero_or_one(value).ok_or_else(|| mismatch(name, "a list of 0 and 1", Some(value)));
    list.iter().map(bit).collect()
}

fn check_length(name: &str, got: usize, tokens: usize) -> Result<(), Fault> {
    if got == tokens {
        return Ok(());
    }
    Err(Fault::new(format!("`{name}` has {got} entries for {tokens} input_ids")))
}

/// The tokens that are not padding.
fn attended(mask: &[bool]) -> Result<std::ops::Range<usize>, Fault> {
    let start = mask.iter().position(|one| *one).unwrap_or(mask.len());
    let end = mask.iter().rposition(|one| *one).map_or(start, |last| last + 1);
    if mask[start..end].contains(&false) {
        return Err(Fault::hinted(
            "`attention_mask`: 0 between tokens that are 1",
            "only padding before and after a sequence can be left out",
        ));
    }
    Ok(start..end)
}

/// Lengths of the sequences whose positions count from 0 each.
fn lengths_of(positions: &[u64]) -> Result<Vec<usize>, Fault> {
    let mut lengths: Vec<usize> = Vec::new();
    for (at, position) in positions.iter().enumerate() {
        match lengths.last_mut() {
            _ if *position == 0 => lengths.push(1),
            Some(length) if *position == *length as u64 => *length += 1,
            last => {
                let expected =
                    last.map_or("0".to_owned(), |length| format!("{length}, or 0 for a new sequence"));
                let fault = format!("`position_ids[{at}]`: expected {expected}, got {position}");
                return Err(Fault::hinted(fault, "leave `position_ids` out where they count from 0"));
            }
        }
    }
    Ok(lengths)
}

fn seq_lengths(row: &Map<String, Value>, tokens: usize) -> Result<Vec<usize>, Fault> {
    let lengths: Vec<u32> = integers(row, "seq_lengths")?;
    let sum: u64 = lengths.iter().map(|length| u64::from(*length)).sum();
    if sum != tokens as u64 {
        return Err(Fault::new(format!("`seq_lengths`: {sum} tokens in all, expected {tokens}")));
    }
    Ok(lengths.into_iter().map(|length| length as usize).filter(|length| *length > 0).collect())
}

fn divide(input_ids: &[u32], labels: &[i32], lengths: &[usize]) -> Vec<Sequence> {
    let mut start = 0;
    let sequence = |length: &usize| {
        let range = start..start + length;
        start = range.end;
        Sequence { input_ids: input_ids[range.clone()].to_vec(), labels: labels[range].to_vec() }
    };
    lengths.iter().map(sequence).collect()
}
