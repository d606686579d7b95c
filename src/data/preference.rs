//! Preference rows: read here, learnt elsewhere.

use std::path::Path;

use serde_json::Value;

use crate::data::fault::Fault;
use crate::data::json_lines::Found;
use crate::data::record::Record;
use crate::data::row::Source;
use crate::data::{files, load};
use crate::{Faults, Result};

/// A prompt with a better and a worse answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Preference {
    /// What both answer.
    pub prompt: Side,
    /// The better answer.
    pub chosen: Side,
    /// The worse answer.
    pub rejected: Side,
}

/// One part of a [`Preference`]; all three parts of a row are of one kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Side {
    /// A text.
    Text(String),
    /// Messages: objects with a `role`.
    Messages(Vec<Value>),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// Reads the preference rows of `path`, a file or a directory of files, with their places; nothing is
/// tokenized.
///
/// # Errors
/// As [`load`](load()), and where a row has another format.
pub fn load_preferences(path: &Path) -> Result<Vec<(Preference, Source)>> {
    let (mut all, mut faults) = (Vec::new(), Faults::default());
    for (file, kind) in files::files(path)? {
        let shared = std::sync::Arc::<Path>::from(file.as_path());
        for found in load::open(&file, kind)? {
            let Found { line, row, .. } = found?;
            let source = Source { path: shared.clone(), line };
            match row.and_then(Record::parse) {
                Ok(Record::Preference(preference)) => all.push((preference, source)),
                Ok(_) => faults.push(source.error(not_preference())),
                Err(fault) => faults.push(source.error(fault)),
            }
            if faults.first().len() >= load::MOST_FAULTS {
                break;
            }
        }
    }
    faults.into_result()?;
    if all.is_empty() { Err(load::no_rows(path)) } else { Ok(all) }
}

fn not_preference() -> Fault {
    Fault::hinted("no preference row", "a preference row has `prompt`, `chosen` and `rejected`")
}
