//! `tokenizer.json`, checked before the tokenizers crate reads it: some files make that crate take memory or stack
//! without bound, which nothing can catch. Its panics are caught.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::data::catch_panic::catch_panic;
use crate::error::Escaped;

/// Bytes of a piece of a Unigram vocabulary at most: its trie is as deep, and is freed recursively.
const MOST_PIECE_BYTES: usize = 1024;
/// Bytes of all pieces at most: each may take a node of the trie.
const MOST_VOCABULARY_BYTES: usize = 16 << 20;
/// The factor by which all replacements of a file together may lengthen a text.
const MOST_GROWTH: usize = 4096;
/// For recursion over the nesting of the file, which its reader bounds by 128 levels.
const STACK: usize = 64 << 20;

/// Reads a tokenizer; padding and truncation that the file asks for are not applied.
///
/// # Errors
/// The fault of the file, safe to show.
pub(crate) fn read(bytes: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    let checked = || {
        check(bytes)?;
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| e.to_string())?;
        tokenizer.with_padding(None).with_truncation(None).map_err(|e| e.to_string())?;
        Ok(tokenizer)
    };
    let read = || catch_panic(checked).unwrap_or_else(|panic| Err(format!("its reader fails: {panic}")));
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, read);
        let thread = thread.map_err(|e| format!("cannot start a thread: {e}"))?;
        thread.join().unwrap_or_else(|_| Err("its reader fails".to_owned()))
    })
    .map_err(|e: String| Escaped(&e).to_string())
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(rename = "model")]
    _model: Model,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default, rename = "vocab")]
    _vocab: Vocabulary,
}

/// A vocabulary whose pieces are short enough, if it is a Unigram model's list.
#[derive(Default)]
struct Vocabulary;

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Pieces)
    }
}

struct Pieces;

impl<'de> Visitor<'de> for Pieces {
    type Value = Vocabulary;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a vocabulary")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Vocabulary)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vocabulary, A::Error> {
        let mut total = 0;
        while let Some((piece, _)) = list.next_element::<(String, f64)>()? {
            total += piece.len();
            if piece.len() > MOST_PIECE_BYTES {
                let found = piece.len();
                return Err(A::Error::custom(format!(
                    "a piece of the vocabulary has {found} bytes, expected at most {MOST_PIECE_BYTES}"
                )));
            }
            if total > MOST_VOCABULARY_BYTES {
                return Err(A::Error::custom(format!(
                    "the pieces of the vocabulary have more than {MOST_VOCABULARY_BYTES} bytes"
                )));
            }
        }
        Ok(Vocabulary)
    }
}

fn check(bytes: &[u8]) -> Result<(), String> {
    let file: File = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    for part in [&file.normalizer, &file.pre_tokenizer, &file.decoder] {
        let growth = growth(part)?;
        if growth > MOST_GROWTH {
            return Err(format!(
                "its replacements make a text {growth} times longer, expected at most {MOST_GROWTH}"
            ));
        }
    }
    Ok(())
}

/// The factor by which the replacements in a part, one after the other, lengthen a text at most.
fn growth(part: &Value) -> Result<usize, String> {
    let inner = match part {
        Value::Array(list) => product(list.iter())?,
        Value::Object(fields) => product(fields.values())?,
        _ => return Ok(1),
    };
    if let Some(map) = part["precompiled_charsmap"].as_str() {
        check_charsmap(map)?;
    }
    let Some(content) = part["content"].as_str().filter(|_| part["pattern"].is_object()) else {
        return Ok(inner);
    };
    let pattern = part["pattern"]["String"].as_str().map_or(1, |pattern| pattern.len().max(1));
    Ok(inner.saturating_mul(content.len().div_ceil(pattern).max(1)))
}

fn product<'a>(parts: impl Iterator<Item = &'a Value>) -> Result<usize, String> {
    parts.map(growth).try_fold(1_usize, |all, part| Ok(all.saturating_mul(part?)))
}

/// The first four bytes of a charsmap are the length of its trie, which is allocated before it is read.
fn check_charsmap(base64: &str) -> Result<(), String> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => Some(c - b'A'),
        b'a'..=b'z' => Some(c - b'a' + 26),
        b'0'..=b'9' => Some(c - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let digits = base64.bytes().take(6).map_while(digit).fold(0_u64, |all, d| all << 6 | u64::from(d));
    // Six digits of base64 are 36 bits: the four bytes, and four bits of the next.
    let trie = u64::from(((digits >> 4) as u32).swap_bytes());
    let most = base64.len() as u64 / 4 * 3;
    if base64.len() < 6 || trie > most {
        return Err(format!("precompiled_charsmap: a trie of {trie} bytes in a map of {most} bytes"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn replacements_multiply() {
        let replace =
            |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        assert_eq!(growth(&replace(" ", "▁")), Ok(3));
        assert_eq!(growth(&replace("▁", " ")), Ok(1));
        let doubling = vec![replace("a", "aa"); 13];
        assert_eq!(growth(&json!({"type": "Sequence", "normalizers": doubling})), Ok(8192));
        let file =
            json!({"normalizer": {"type": "Sequence", "normalizers": doubling}, "model": {"vocab": {}}});
        assert!(check(file.to_string().as_bytes()).is_err_and(|e| e.contains("8192 times longer")));
    }

    /// The bytes are `04 00 00 00 41 42 43 44`, then `ff ff ff 7f …`.
    #[test]
    fn a_charsmap_holds_its_trie() {
        assert_eq!(check_charsmap("BAAAAEFCQ0Q="), Ok(()));
        let fault = check_charsmap("////f0FCQ0Q=").unwrap_err();
        assert_eq!(fault, "precompiled_charsmap: a trie of 2147483647 bytes in a map of 9 bytes");
        let empty = check_charsmap("").unwrap_err();
        assert_eq!(empty, "precompiled_charsmap: a trie of 0 bytes in a map of 0 bytes");
    }

    #[test]
    fn pieces_are_short() {
        let file = |piece: String| json!({"model": {"vocab": [[piece, -1.0]]}}).to_string();
        assert_eq!(check(file("a".repeat(1024)).as_bytes()), Ok(()));
        assert!(check(file("a".repeat(1025)).as_bytes()).is_err_and(|e| e.contains("has 1025 bytes")));
    }
}
