//! Whether an index and the shards beside it agree.

use std::path::Path;

use super::index::Index;
use super::shard::Shard;
use crate::error::Escaped;
use crate::{Error, Faults, Result};

/// Every mapped name must be in its shard, and every tensor of a shard must be mapped to it, unless `allow_unindexed`.
/// Gives the names that are not mapped.
pub(super) fn check_index(
    path: &Path,
    index: &Index,
    shards: &[Shard],
    allow_unindexed: bool,
) -> Result<Vec<String>> {
    let fault = |tensor: &str, fault: String| Error::Index {
        path: path.to_owned(),
        tensor: Some(tensor.to_owned()),
        fault,
    };
    let mut faults = Faults::default();
    let by_name = shards.iter().map(|s| (s.file_name(), s));
    let by_name: std::collections::HashMap<String, &Shard> = by_name.collect();
    for (tensor, shard) in index.weight_map() {
        let found = by_name.get(shard).and_then(|s| s.header().find(tensor));
        if found.is_none() {
            faults.push(fault(tensor, format!("listed in `{}`, but not in that file", Escaped(shard))));
        }
    }
    let in_shards =
        shards.iter().flat_map(|shard| shard.header().tensors().iter().map(move |t| (shard, &t.name)));
    let unlisted: Vec<_> = in_shards.filter(|(_, name)| !index.weight_map().contains_key(*name)).collect();
    if let (Some((shard, name)), false) = (unlisted.first(), allow_unindexed) {
        let (name, file, rest) = (Escaped(*name), shard.file_name(), unlisted.len() - 1);
        let more = if rest > 0 { format!(", as are {rest} more") } else { String::new() };
        faults.push(Error::Checkpoint {
            path: path.to_owned(),
            fault: format!("tensor `{name}` is in `{}`, but not listed in the index{more}", Escaped(&file)),
            hint: Some("take the tensors that the index does not list with --allow-unindexed".to_owned()),
        });
    }
    faults.into_result()?;
    Ok(unlisted.into_iter().map(|(_, name)| name.clone()).collect())
}
