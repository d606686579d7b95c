//! Columns that no format reads, though their names say that they weigh or mask what is learnt.

use serde_json::{Map, Value};

use crate::data::message_weight::is_weight;

/// Parts of a name that say so wherever they stand.
const PARTS: [&str; 2] = ["mask", "weight"];

/// Words of a name that say so.
const WORDS: [&str; 9] =
    ["loss", "label", "labels", "train", "trainable", "training", "learn", "ignore", "skip"];

/// Columns that hold messages.
const MESSAGES: [&str; 6] = ["messages", "conversations", "prompt", "completion", "chosen", "rejected"];

/// The names of the columns of `row`, and of the fields of its messages, that look like a mask or a weight; without
/// the columns in `read` and the fields that messages are weighed by.
pub(crate) fn ignored(row: &Map<String, Value>, read: &[&str]) -> Vec<String> {
    let columns = row.keys().filter(|name| !read.contains(&name.as_str()) && looks_like_weight(name));
    let mut names: Vec<String> = columns.cloned().collect();
    for column in MESSAGES {
        let messages = row.get(column).and_then(Value::as_array).into_iter().flatten();
        for field in messages.filter_map(Value::as_object).flat_map(Map::keys) {
            if field != "content" && field != "role" && !is_weight(field) && looks_like_weight(field) {
                names.push(format!("{column}[].{field}"));
            }
        }
    }
    names
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
    fn columns_and_fields_that_are_read_are_not_named() {
        let row = serde_json::json!({
            "completion_mask": [1], "loss_weight": 1, "id": 2,
            "messages": [{"role": "user", "content": "a", "weight": 0, "skip": true, "mask": null}],
        });
        let ignored = ignored(row.as_object().unwrap(), &["completion_mask"]);
        assert_eq!(ignored, ["loss_weight", "messages[].skip"]);
    }

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
