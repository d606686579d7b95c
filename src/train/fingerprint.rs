//! Digests of rows, by which `--resume` recognizes its data.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::data::Row;
use crate::eval::EvalRows;

/// SHA-256 over the ids and labels of all rows, in hexadecimal.
pub fn rows_digest<'a>(rows: impl IntoIterator<Item = &'a Row>) -> String {
    let mut hash = Sha256::new();
    rows.into_iter().for_each(|row| add(&mut hash, row));
    hexadecimal(hash)
}

/// As [`rows_digest`], of rows that are measured: over what their score depends on.
pub fn eval_digest(rows: &EvalRows) -> String {
    match rows {
        EvalRows::Loss(rows) => rows_digest(rows),
        EvalRows::Choice(questions) => {
            let mut hash = Sha256::new();
            for question in questions {
                question.choices.iter().for_each(|choice| add(&mut hash, choice));
                hash.update((question.answer as u64).to_le_bytes());
            }
            hexadecimal(hash)
        }
    }
}

fn add(hash: &mut Sha256, row: &Row) {
    hash.update((row.input_ids.len() as u64).to_le_bytes());
    let pairs = row.input_ids.iter().zip(&row.labels);
    let bytes: Vec<u8> =
        pairs.flat_map(|(id, label)| [id.to_le_bytes(), label.to_le_bytes()]).flatten().collect();
    hash.update(bytes);
}

fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
