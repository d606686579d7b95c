//! The splits of a data set, told by the names of its files, as the `datasets` library does.

use std::path::{Path, PathBuf};

/// A part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Split {
    Train,
    HeldOut,
}

const TRAIN: [&str; 2] = ["train", "training"];
/// The words for validation, then those for test.
const HELD_OUT: [&str; 8] = ["validation", "valid", "dev", "val", "test", "testing", "eval", "evaluation"];

/// The split that the words of a file name tell.
fn split_of(path: &Path) -> Option<Split> {
    let name = path.file_name()?.to_str()?.to_lowercase();
    let separates = |c: char| matches!(c, '-' | '.' | '_' | ' ') || c.is_ascii_digit();
    let mut words = name.split(separates);
    words.find_map(|word| match word {
        word if TRAIN.contains(&word) => Some(Split::Train),
        word if HELD_OUT.contains(&word) => Some(Split::HeldOut),
        _ => None,
    })
}

/// Divides the files of a directory into those of the training split and those that are left out: where some are
/// named after it, all others; else those that are named after another split. Files of one split are all taken.
pub(crate) fn training_split<T>(files: Vec<(PathBuf, T)>) -> (Vec<(PathBuf, T)>, Vec<PathBuf>) {
    let any = |split: Option<Split>| files.iter().any(|(path, _)| split_of(path) == split);
    let taken = match (any(Some(Split::Train)), any(None)) {
        (true, _) => Some(Split::Train),
        (false, true) => None,
        (false, false) => return (files, Vec::new()),
    };
    let (taken, left): (Vec<_>, Vec<_>) = files.into_iter().partition(|(path, _)| split_of(path) == taken);
    (taken, left.into_iter().map(|(path, _)| path).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_training_split_is_taken_where_there_are_others() {
        for (files, taken) in [
            ("train.jsonl test.jsonl", "train.jsonl"),
            (
                "train-00000-of-00002.parquet validation-00000-of-00001.parquet",
                "train-00000-of-00002.parquet",
            ),
            ("my_train.json my_val.json rest.json", "my_train.json"),
            ("Training.jsonl dev.jsonl", "Training.jsonl"),
            ("part-1.jsonl test.jsonl", "part-1.jsonl"),
            ("test.jsonl validation.jsonl", "test.jsonl validation.jsonl"),
            ("constrain.jsonl latest.jsonl", "constrain.jsonl latest.jsonl"),
        ] {
            let paths = files.split(' ').map(|name| (PathBuf::from(name), ())).collect();
            let (found, left) = training_split(paths);
            let found: Vec<_> = found.iter().map(|(path, ())| path.to_str().unwrap()).collect();
            assert_eq!(found.join(" "), taken);
            assert_eq!(found.len() + left.len(), files.split(' ').count());
        }
    }
}
