//! What several adapters do to one base, together.
//!
//! Updates of one tensor add up. What depends on the order of the adapters is refused: PEFT merges one after the other,
//! so that norms of DoRA would be those of whatever was merged before.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::checkpoint::Checkpoint;
use crate::error::Escaped;
use crate::lora::adapter::WeightedAdapter;
use crate::lora::change::Change;
use crate::lora::changes::Changes;
use crate::merge::tiles::source::Source;
use crate::{Error, Faults, Result};

/// The changes of all adapters, joined by tensor.
///
/// # Errors
/// Everything that does not fit between an adapter and the base, or between two adapters.
pub(super) fn joined_changes<'a>(
    adapters: &[WeightedAdapter<'a>],
    base: &'a Checkpoint,
) -> Result<Changes<'a>> {
    let mut faults = Faults::default();
    let each: Vec<Changes<'a>> =
        adapters.iter().filter_map(|adapter| faults.keep(Changes::new(*adapter, base))).collect();
    faults.into_result()?;
    let mut faults = Faults::default();
    faults.extend(check_tie(&each).err());
    let mut all =
        Changes { by_name: BTreeMap::new(), new_head: None, untie: false, tied: None, notes: Vec::new() };
    for changes in each {
        all.new_head = all.new_head.or(changes.new_head);
        all.untie |= changes.untie;
        all.tied = all.tied.or(changes.tied);
        all.notes.extend(changes.notes);
        for (name, change) in changes.by_name {
            match all.by_name.entry(name) {
                Entry::Vacant(entry) => {
                    entry.insert(change);
                }
                Entry::Occupied(mut entry) => {
                    let joined = joined(entry.key(), entry.get(), change, base);
                    if let Some(joined) = faults.keep(joined) {
                        entry.insert(joined);
                    }
                }
            }
        }
    }
    let mut notes = std::collections::BTreeSet::new();
    all.notes.retain(|note| notes.insert(note.clone()));
    faults.into_result()?;
    Ok(all)
}

fn fault(name: &str, fault: &str) -> Error {
    Error::Pairing {
        tensor: Some(name.to_owned()),
        fault: format!("two adapters change it: {fault}"),
        hint: Some(
            "merge one adapter first, and the other into the result, in the order that is meant".to_owned(),
        ),
    }
}

/// Both changes of one tensor.
fn joined<'a>(
    name: &str,
    first: &Change<'a>,
    second: Change<'a>,
    base: &'a Checkpoint,
) -> Result<Change<'a>> {
    let saved = match (&first.saved, &second.saved) {
        (Some(a), Some(b)) => {
            if !a.same_bytes(b, a.info.elements())? {
                return Err(fault(name, "both save it whole, with other values"));
            }
            Some(a)
        }
        (Some(saved), None) => Some(check_saved(name, saved, &second, base)?),
        (None, Some(saved)) => Some(check_saved(name, saved, first, base)?),
        (None, None) => None,
    };
    let saved = saved.cloned();
    let ids = |change: &Change<'_>| -> Vec<u64> {
        change.tokens.iter().flat_map(|tokens| tokens.ids.iter().copied()).collect()
    };
    let known = ids(first);
    if let Some(id) = ids(&second).iter().find(|id| known.contains(id)) {
        return Err(fault(name, &format!("both have a new row of token id {id}")));
    }
    let mut change = Change { saved, ..first.clone() };
    change.updates.extend(second.updates);
    change.biases.extend(second.biases);
    change.tokens.extend(second.tokens);
    change.check(&|what| fault(name, what))?;
    Ok(change)
}

/// Checks that the other adapter does nothing to a tensor that one saves whole, unless what is saved is the base's own.
fn check_saved<'s, 'a>(
    name: &str,
    saved: &'s Source<'a>,
    other: &Change<'a>,
    base: &'a Checkpoint,
) -> Result<&'s Source<'a>> {
    let stored = base.find(name).map(|tensor| Source::stored(base, &tensor));
    let same = stored.map_or(Ok(false), |stored| stored.same_bytes(saved, saved.info.elements()))?;
    if same || other.is_copy() {
        return Ok(saved);
    }
    Err(fault(name, "one saves it whole, the other adds to it; which comes first is not defined"))
}

/// Checks what adapters do to a weight that embedding and head share, where one of them makes two weights of it.
fn check_tie(each: &[Changes<'_>]) -> Result<()> {
    let Some([embedding, head]) = each.iter().find_map(|changes| changes.tied.as_ref()) else {
        return Ok(());
    };
    let of = |changes: &Changes<'_>| -> Vec<bool> {
        let both = [embedding, head].into_iter().filter_map(|name| changes.by_name.get(name));
        both.map(Change::is_copy).collect()
    };
    let touching: Vec<&Changes<'_>> = each.iter().filter(|changes| !of(changes).is_empty()).collect();
    let plain = |changes: &&Changes<'_>| changes.untie && of(changes).iter().all(|is_copy| *is_copy);
    if touching.len() < 2 || !touching.iter().any(|changes| changes.untie) || touching.iter().all(plain) {
        return Ok(());
    }
    let what = format!("one unties it from `{}`, the other changes the shared weight", Escaped(head));
    Err(fault(embedding, &what))
}
