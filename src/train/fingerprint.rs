//! A digest of the training rows, by which `--resume` recognizes its data.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::data::Row;

/// SHA-256 over the ids and labels of all rows, in hexadecimal.
pub fn rows_digest(rows: &[Row]) -> String {
    let mut hash = Sha256::new();
    for row in rows {
        hash.update((row.input_ids.len() as u64).to_le_bytes());
        let pairs = row.input_ids.iter().zip(&row.labels);
        let bytes: Vec<u8> =
            pairs.flat_map(|(id, label)| [id.to_le_bytes(), label.to_le_bytes()]).flatten().collect();
        hash.update(bytes);
    }
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
