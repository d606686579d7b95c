//! Columns that no format reads, though their names say that they weigh or mask what is learnt.

use serde_json::{Map, Value};

/// Parts of a name that say so wherever they stand.
const PARTS: [&str; 2] = ["mask", "weight"];

/// Words of a name that say so.
const WORDS: [&str; 9] =
    ["loss", "label", "labels", "train", "trainable", "training", "learn", "ignore", "skip"];

/// The names of the columns of `row` that look like a mask or a weight, without those in `read`.
pub(crate) fn ignored<'a>(row: &'a Map<String, Value>, read: &[&str]) -> impl Iterator<Item = &'a String> {
    row.keys().filter(|name| looks_like_weight(name) && !read.contains(&name.as_str()))
}

fn looks_like_weight(name: &str) -> bool {
    let name = name.to_lowercase();
    let is_word = |word: &str| WORDS.contains(&word);
    PARTS.iter().any(|part| name.contains(part)) || name.split(|c: char| !c.is_alphanumeric()).any(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_masks_and_weights_are_told_from_others() {
        for name in ["loss_mask", "sample_weight", "is_train", "Label", "token-loss", "special_tokens_mask"] {
            assert!(looks_like_weight(name), "{name}");
        }
        for name in ["glossary", "id", "source", "constraint", "tokens"] {
            assert!(!looks_like_weight(name), "{name}");
        }
    }
}
