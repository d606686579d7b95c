//! One tokenized training row.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Error;
use crate::data::fault::Fault;

/// The label of a token that the loss ignores.
pub const IGNORED: i32 = -100;

/// The file and line that a row came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The file.
    pub path: Arc<Path>,
    /// Line of a JSON lines file, or row of a Parquet file or JSON list, from 1.
    pub line: u64,
}

impl Location {
    /// The error that names this location.
    pub(crate) fn error(&self, fault: Fault) -> Error {
        Error::Data {
            path: PathBuf::from(&*self.path),
            line: Some(self.line),
            fault: fault.fault,
            hint: fault.hint,
        }
    }
}

/// One tokenized training sequence.
///
/// `labels` has the length of `input_ids` and is not shifted: a target's label is its token id, every
/// other label is [`IGNORED`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Token ids.
    pub input_ids: Vec<u32>,
    /// The label of each position, not shifted.
    pub labels: Vec<i32>,
    /// The file and line of the row.
    pub location: Location,
}

impl Row {
    /// A row whose targets are the positions in `targets`: by position, never by id, so an
    /// end-of-sequence token stays a target where it is also the padding token.
    pub(crate) fn with_targets(
        input_ids: Vec<u32>,
        targets: impl IntoIterator<Item = std::ops::Range<usize>>,
        location: Location,
    ) -> Self {
        let mut labels = vec![IGNORED; input_ids.len()];
        for range in targets {
            let end = range.end.min(labels.len());
            for at in range.start.min(end)..end {
                labels[at] = input_ids[at] as i32;
            }
        }
        Self { input_ids, labels, location }
    }

    /// Refuses token ids outside `vocab_size`, and a row without a target.
    pub(crate) fn check(&self, vocab_size: u32) -> Result<(), Fault> {
        check_ids(&self.input_ids, vocab_size)?;
        let label = self.labels.iter().find(|l| **l != IGNORED && (**l < 0 || **l as u32 >= vocab_size));
        if let Some(label) = label {
            let mut fault = outside(i64::from(*label), vocab_size);
            fault.fault = format!("label: {} (only {IGNORED} is ignored)", fault.fault);
            return Err(fault);
        }
        if self.targets() == 0 {
            return Err(Fault::new(format!(
                "no target token: none of {} tokens after the first is to be learnt",
                self.input_ids.len()
            )));
        }
        Ok(())
    }

    /// Labels that are not ignored, the first position's among them.
    pub fn labelled(&self) -> usize {
        self.labels.iter().filter(|label| **label != IGNORED).count()
    }

    /// Tokens whose loss counts: targets after the first position, which nothing predicts.
    pub fn targets(&self) -> usize {
        targets(&self.labels)
    }
}

/// Refuses token ids outside `vocab_size`.
pub(crate) fn check_ids(ids: &[u32], vocab_size: u32) -> Result<(), Fault> {
    match ids.iter().find(|id| **id >= vocab_size) {
        Some(id) => Err(outside(i64::from(*id), vocab_size)),
        None => Ok(()),
    }
}

fn outside(id: i64, vocab_size: u32) -> Fault {
    let fault = format!("token id {id} is outside of the vocabulary of {vocab_size} tokens");
    Fault::hinted(fault, "use the tokenizer that belongs to this model")
}

/// Labels after the first position that are not ignored.
pub(crate) fn targets(labels: &[i32]) -> usize {
    labels.iter().skip(1).filter(|label| **label != IGNORED).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location() -> Location {
        Location { path: Path::new("rows").into(), line: 1 }
    }

    #[test]
    fn targets_are_positions_and_never_ids() {
        let row = Row::with_targets(vec![7, 2, 7, 2], Some(2..9), location());
        assert_eq!(row.labels, [IGNORED, IGNORED, 7, 2]);
    }

    #[test]
    fn ids_and_labels_are_checked() {
        let row =
            |labels: &[i32]| Row { input_ids: vec![0, 1, 2], labels: labels.to_vec(), location: location() };
        let fault = |row: Row| row.check(3).map_err(|f| f.fault);
        assert_eq!(fault(row(&[0, 1, IGNORED])), Ok(()));
        assert!(fault(row(&[0, IGNORED, IGNORED])).is_err_and(|f| f.starts_with("no target token")));
        assert!(fault(row(&[0, 3, 2])).is_err_and(|f| f.contains("label: token id 3 is outside")));
        assert!(fault(row(&[0, -1, 2])).is_err_and(|f| f.contains("token id -1")));
        assert!(row(&[0, 1, 2]).check(2).is_err_and(|f| f.fault.contains("token id 2 is outside")));
    }
}
