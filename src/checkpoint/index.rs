//! The shard index of Hugging Face checkpoints, `model.safetensors.index.json`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::bounded_list::MOST_TENSORS;
use super::json_bounds::Discarded;
use crate::error::Escaped;
use crate::{Error, Faults, Result};

/// Which shard holds which tensor. Every shard is a plain file name, safe to join to a directory.
#[derive(Debug, Clone)]
pub struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Index {
    /// Reads and validates the index file at `path`.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Index`] listing every unsafe shard name.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(path, &super::small_file::read_small(path)?)
    }

    /// Parses and validates the text of an index; `path` is for messages only.
    ///
    /// # Errors
    /// [`Error::Index`] listing every unsafe shard name.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self> {
        if super::json_bounds::too_deep(json) {
            return Err(fault_in(path, None, "index is nested too deeply".to_owned()));
        }
        let raw: RawIndex = serde_json::from_slice(json)
            .map_err(|e| fault_in(path, None, format!("index is not valid: {}", Escaped(&e))))?;
        let Some(pairs) = raw.weight_map else {
            return Err(fault_in(path, None, "index has no `weight_map`".to_owned()));
        };
        if pairs.is_empty() {
            return Err(fault_in(path, None, "index has an empty `weight_map`".to_owned()));
        }
        let mut weight_map = BTreeMap::new();
        let mut faults = Faults::default();
        for (tensor, shard) in pairs {
            if let Some(why) = unsafe_shard_name(&shard) {
                let shown = Escaped(&shard);
                let fault = format!("unsafe shard name `{shown}`: {why}");
                faults.push(fault_in(path, Some(tensor.clone()), fault));
            }
            if weight_map.insert(tensor.clone(), shard).is_some() {
                faults.push(fault_in(path, Some(tensor), "duplicate name".to_owned()));
            }
        }
        faults.into_result()?;
        Ok(Self { weight_map })
    }

    /// The text of the index at `path` with further `entries` of tensor and shard, `total_size` bytes in all.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Index`].
    pub(super) fn completed(
        path: &Path,
        entries: impl Iterator<Item = (String, String)>,
        total_size: u64,
    ) -> Result<String> {
        let json = super::small_file::read_small(path)?;
        let mut index: Value = serde_json::from_slice(&json)
            .map_err(|e| fault_in(path, None, format!("index is not valid: {}", Escaped(&e))))?;
        if let Some(map) = index["weight_map"].as_object_mut() {
            map.extend(entries.map(|(tensor, shard)| (tensor, shard.into())));
        }
        if let Some(total) = index.get_mut("metadata").and_then(|metadata| metadata.get_mut("total_size")) {
            *total = total_size.into();
        }
        Ok(format!("{index:#}\n"))
    }

    /// Tensor name → shard file name, sorted by tensor name.
    pub fn weight_map(&self) -> &BTreeMap<String, String> {
        &self.weight_map
    }

    /// The distinct shard file names, sorted.
    pub fn shards(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.weight_map.values().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

fn fault_in(path: &Path, tensor: Option<String>, fault: String) -> Error {
    Error::Index { path: path.to_owned(), tensor, fault }
}

/// Why a shard name must not be joined to a directory, if it must not.
///
/// Windows forms are refused on every system: an index travels.
pub fn unsafe_shard_name(name: &str) -> Option<&'static str> {
    if let Some(why) = unsafe_name(name) {
        return Some(why);
    }
    if !name.ends_with(".safetensors") {
        return Some("expected the extension .safetensors");
    }
    None
}

/// Why a name is not that of a plain visible file, if it is not.
pub(super) fn unsafe_name(name: &str) -> Option<&'static str> {
    if name.contains(['/', '\\']) {
        return Some("contains a path separator");
    }
    if name.contains(':') {
        return Some("contains a drive or stream separator");
    }
    if name.starts_with('.') {
        return Some("starts with a dot");
    }
    if name.chars().any(char::is_control) {
        return Some("contains a control character");
    }
    None
}

struct RawIndex {
    weight_map: Option<Vec<(String, String)>>,
}

impl<'de> Deserialize<'de> for RawIndex {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> std::result::Result<Self, D::Error> {
        reader.deserialize_map(IndexVisitor)
    }
}

struct IndexVisitor;

impl<'de> Visitor<'de> for IndexVisitor {
    type Value = RawIndex;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a `weight_map`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawIndex, A::Error> {
        let mut raw = RawIndex { weight_map: None };
        while let Some(key) = map.next_key::<String>()? {
            if key != "weight_map" {
                map.next_value::<Discarded>()?;
            } else if raw.weight_map.is_some() {
                return Err(serde::de::Error::custom("duplicate `weight_map`"));
            } else {
                raw.weight_map = Some(map.next_value::<Pairs>()?.0);
            }
        }
        Ok(raw)
    }
}

/// The `weight_map` with its duplicates, which a map type would swallow.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> std::result::Result<Self, D::Error> {
        reader.deserialize_map(PairsVisitor)
    }
}

struct PairsVisitor;

impl<'de> Visitor<'de> for PairsVisitor {
    type Value = Pairs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`weight_map`: an object of shard names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Pairs, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            if pairs.len() == MOST_TENSORS {
                let fault = format!("too many tensors: expected at most {MOST_TENSORS}");
                return Err(serde::de::Error::custom(fault));
            }
            pairs.push(pair);
        }
        Ok(Pairs(pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(json: &str) -> String {
        Index::parse(Path::new("i.json"), json.as_bytes())
            .map_or_else(|e| e.to_string(), |_| "accepted".into())
    }

    #[test]
    fn unsafe_shard_names_are_refused() {
        let bad = [
            "../x.safetensors",
            "/x.safetensors",
            "a/x.safetensors",
            "C:\\\\x.safetensors",
            "\\\\\\\\host\\\\x.safetensors",
            "C:x.safetensors",
            ".x.safetensors",
            "x.bin",
            "x\\u0000.safetensors",
            "",
        ];
        for name in bad {
            let message = fault(&format!(r#"{{"weight_map": {{"t": "{name}"}}}}"#));
            assert!(message.contains("unsafe shard name") && message.contains("`t`"), "{name}: {message}");
        }
    }

    proptest::proptest! {
        /// Whatever the bytes: an error, or an index whose names are safe to join to a directory.
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = Index::parse(Path::new("i"), &bytes);
        }

        #[test]
        fn an_accepted_name_stays_in_its_directory(name in "[./\\\\:a-c]{0,6}(\\.safetensors)?") {
            let json = serde_json::json!({"weight_map": {"t": name}}).to_string();
            if Index::parse(Path::new("i"), json.as_bytes()).is_ok() {
                let joined = Path::new("/dir").join(&name);
                proptest::prop_assert_eq!(joined.parent(), Some(Path::new("/dir")));
            }
        }
    }

    #[test]
    fn every_fault_is_listed() {
        let message = fault(r#"{"weight_map": {"a": "x.bin", "b": "y.safetensors", "b": "z.safetensors"}}"#);
        assert!(message.contains("`a`") && message.contains("`b`: duplicate"), "{message}");
    }

    #[test]
    fn shape_of_the_document_is_checked() {
        assert!(fault("[]").contains("expected an object with a `weight_map`"));
        assert!(fault("{}").contains("no `weight_map`"));
        assert!(fault(r#"{"weight_map": {}}"#).contains("empty"));
        assert!(
            fault(r#"{"weight_map": {"a": "x.safetensors"}, "weight_map": {}}"#)
                .contains("duplicate `weight_map`")
        );
        assert!(fault(r#"{"weight_map": {"a": 1}}"#).contains("expected a string"));
        assert_eq!(
            fault(r#"{"metadata": {"total_size": 1.5}, "weight_map": {"a": "x.safetensors"}}"#),
            "accepted"
        );
    }
}
