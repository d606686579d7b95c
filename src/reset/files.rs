//! The files of a half-reset: which bytes come from which side.

use super::fate::Fate;
use crate::Result;
use crate::checkpoint::Shard;
use crate::surgery::element_mask::{ElementMask, Selection};
use crate::surgery::largest::largest;
use crate::surgery::mix::{Mix, StoredTensor};
use crate::surgery::pairing::{BaseValue, Pair, Pairing};
use crate::surgery::stream::{FilePlan, Segment};

/// A tensor and what happens to it.
type Decided<'r, 'a> = (&'r Pair<'a>, &'r Fate);

/// One plan per output file: the header of the tuned shard, then its tensors. `fates` has one entry per pair.
///
/// # Errors
/// [`crate::Error::Io`] from measuring magnitudes.
pub(super) fn files<'a>(pairing: &Pairing<'a>, fates: &[Fate]) -> Result<Vec<FilePlan<'a>>> {
    let shards = pairing.tuned.shards();
    let mut by_shard: Vec<Vec<Decided<'_, 'a>>> = shards.iter().map(|_| Vec::new()).collect();
    for (pair, fate) in pairing.pairs().iter().zip(fates) {
        by_shard[pair.tuned.shard].push((pair, fate));
    }
    let mut files = Vec::with_capacity(shards.len());
    for (shard, mut tensors) in shards.iter().zip(by_shard) {
        tensors.sort_by_key(|(pair, _)| (pair.tuned.info.bytes.start, pair.tuned.info.bytes.end));
        let mut file = FilePlan::new(shard.file_name());
        file.copy(header_source(pairing, shard, &tensors)?, 0..shard.header().data_start());
        for tensor in tensors {
            add(pairing, &mut file, tensor)?;
        }
        files.push(file);
    }
    Ok(files)
}

/// The file whose header bytes begin the output: the tuned shard, or the base shard where that has
/// the same header and gives all the data too, so that it can be linked as a whole.
fn header_source<'a>(
    pairing: &Pairing<'a>,
    tuned: &'a Shard,
    tensors: &[Decided<'_, 'a>],
) -> Result<&'a Shard> {
    let first = tensors.first().and_then(|(pair, _)| pair.base.as_ref());
    let Some(base) = first.map(|value| &pairing.base.shards()[value.tensor.shard]) else {
        return Ok(tuned);
    };
    let header = 0..tuned.header().data_start();
    let all_return = tensors.iter().all(|(_, fate)| matches!(fate, Fate::Base));
    if base.header().data_start() != header.end || !all_return {
        return Ok(tuned);
    }
    let (mut x, mut y) = (Vec::new(), Vec::new());
    let same = base.bytes(header.clone(), &mut x)? == tuned.bytes(header, &mut y)?;
    Ok(if same { base } else { tuned })
}

/// Appends the bytes of one tensor.
pub(super) fn add<'a>(
    pairing: &Pairing<'a>,
    file: &mut FilePlan<'a>,
    (pair, fate): Decided<'_, 'a>,
) -> Result<()> {
    let tuned = StoredTensor { shard: &pairing.tuned.shards()[pair.tuned.shard], info: pair.tuned.info };
    let all = tuned.info.bytes.clone();
    let Some(value) = pair.base.as_ref().filter(|_| !matches!(fate, Fate::Tuned)) else {
        file.copy(tuned.shard, all);
        return Ok(());
    };
    let base = StoredTensor { shard: &pairing.base.shards()[value.tensor.shard], info: value.tensor.info };
    if let (Fate::Base, None) = (fate, value.cast) {
        let shared = shared_bytes(value, tuned);
        file.copy(base.shard, base.info.bytes.start..base.info.bytes.start + shared);
        file.copy(tuned.shard, all.start + shared..all.end);
        return Ok(());
    }
    let keep = Selection::Nothing.into();
    let mut mix = Mix { base, tuned, cast: value.cast, common: value.common, keep };
    match fate {
        Fate::Tuned | Fate::Base => {}
        Fate::Masked(mask) => mix.keep = mask.clone(),
        Fate::Largest { granularity, share, complement } => {
            let selection = largest(&mix, *granularity, *share)?;
            mix.keep = ElementMask { selection, complement: *complement };
        }
    }
    file.segments.push(Segment::Mix(mix));
    Ok(())
}

/// Bytes at the start of the tuned tensor that the base has too.
fn shared_bytes(base: &BaseValue<'_>, tuned: StoredTensor<'_>) -> u64 {
    let elements = tuned.info.elements();
    if base.common == elements {
        return tuned.info.len();
    }
    // Whole rows: the bytes of each are the same on both sides.
    tuned.info.len() / elements * base.common
}
