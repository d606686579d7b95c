//! Two checkpoints, tensor by tensor.

use std::collections::{HashMap, HashSet};

use crate::Result;
use crate::checkpoint::{Checkpoint, Sha256Hex, Tensor, natural_order, tensor_digests};
use crate::diff::compare::{PairResult, compare};
use crate::diff::pair::{Pair, PairSide};
use crate::diff::{Status, StoredAs, TensorDiff};

/// A tensor of both sides, under one name or two spellings of it, or of one side.
type Both<'a> = (Option<Tensor<'a>>, Option<Tensor<'a>>);

/// Compares two checkpoints. `wanted` chooses tensors by name; `done` is told the bytes read so far, of both
/// sides. Tensors of quantized weights are compared as bytes: their codes are no numbers.
///
/// # Errors
/// [`crate::Error::Io`], or [`crate::Error::Checkpoint`] when a file changes meanwhile.
pub fn diff(
    a: &Checkpoint,
    b: &Checkpoint,
    wanted: &dyn Fn(&str) -> bool,
    done: &(dyn Fn(u64) + Sync),
) -> Result<Vec<TensorDiff>> {
    let both = by_name(a, b, wanted);
    let mut pairs = Vec::new();
    let mut pair_of = Vec::with_capacity(both.len());
    for (x, y) in &both {
        let pair = match (x, y) {
            (Some(x), Some(y)) => {
                let codes = [a, b].iter().any(|side| side.is_quantized(&x.info.name));
                let sides = (PairSide::of(a, *x), PairSide::of(b, *y));
                if codes { Pair::of_bytes(sides.0, sides.1) } else { Pair::new(sides.0, sides.1) }
            }
            _ => None,
        };
        pair_of.push(pair.is_some().then_some(pairs.len()));
        pairs.extend(pair);
    }
    let found = compare(&pairs, done)?;
    let renamed = renamed(a, b, &both)?;
    a.check_unchanged()?;
    b.check_unchanged()?;
    let row = |((x, y), pair): (&Both<'_>, &Option<usize>)| {
        let name = y.or(*x).map(|t| t.info.name.clone()).unwrap_or_default();
        let respelled = x.filter(|x| y.is_some() && x.info.name != name).map(|x| x.info.name.clone());
        let found = pair.map(|i| &found[i]);
        TensorDiff {
            status: status(*x, *y, found),
            a: x.map(|t| stored_as(a, t)),
            b: y.map(|t| stored_as(b, t)),
            delta: found.and_then(|found| found.delta.clone()),
            renamed: respelled.or_else(|| renamed.get(&name).cloned()),
            name,
        }
    };
    Ok(both.iter().zip(&pair_of).map(row).collect())
}

/// Bytes that [`diff`] reads of both sides, at most.
pub fn diff_bytes(a: &Checkpoint, b: &Checkpoint, wanted: &dyn Fn(&str) -> bool) -> u64 {
    let of = |c: &Checkpoint| c.tensors().filter(|t| wanted(&t.info.name)).map(|t| t.info.len()).sum::<u64>();
    of(a) + of(b)
}

/// The wanted tensors of both sides, in natural order of the names of b.
fn by_name<'a>(a: &'a Checkpoint, b: &'a Checkpoint, wanted: &dyn Fn(&str) -> bool) -> Vec<Both<'a>> {
    let mut both: Vec<Both<'a>> = a.tensors().map(|t| (Some(t), b.twin(&t.info.name, a))).collect();
    both.extend(b.tensors().filter(|t| a.twin(&t.info.name, b).is_none()).map(|t| (None, Some(t))));
    both.retain(|(x, y)| y.or(*x).is_some_and(|t| wanted(&t.info.name)));
    let name = |(x, y): &Both<'a>| y.or(*x).map_or("", |t| t.info.name.as_str());
    both.sort_by(|x, y| natural_order(name(x), name(y)));
    both
}

fn status(a: Option<Tensor<'_>>, b: Option<Tensor<'_>>, found: Option<&PairResult>) -> Status {
    match (a, b) {
        (Some(_), None) => Status::OnlyInA,
        (None, _) => Status::OnlyInB,
        (Some(a), Some(b)) if a.info.shape != b.info.shape => Status::ShapeDiffers,
        (Some(a), Some(b)) if a.info.dtype != b.info.dtype => Status::DtypeDiffers,
        _ if found.is_some_and(|found| found.same_bytes) => Status::Identical,
        _ => Status::Changed,
    }
}

fn stored_as(checkpoint: &Checkpoint, tensor: Tensor<'_>) -> StoredAs {
    StoredAs {
        dtype: tensor.info.dtype.clone(),
        shape: tensor.info.shape.clone(),
        shard: checkpoint.shards()[tensor.shard].file_name(),
    }
}

/// For names that only one side has, the name of a tensor of the same type, shape and bytes that only the other side has.
/// Only tensors whose type and shape occur on both sides are hashed; among equal ones, names are paired in order.
fn renamed(a: &Checkpoint, b: &Checkpoint, both: &[Both<'_>]) -> Result<HashMap<String, String>> {
    let alone_a: Vec<Tensor<'_>> = both.iter().filter(|(_, y)| y.is_none()).filter_map(|(x, _)| *x).collect();
    let alone_b: Vec<Tensor<'_>> = both.iter().filter(|(x, _)| x.is_none()).filter_map(|(_, y)| *y).collect();
    let (from, to) = (with_shapes_of(&alone_a, &alone_b), with_shapes_of(&alone_b, &alone_a));
    let mut by_digest: HashMap<(Sha256Hex, String), Vec<&str>> = HashMap::new();
    // In reverse, as `pop` takes the last.
    for (tensor, digest) in to.iter().zip(tensor_digests(b, &to)?).rev() {
        by_digest.entry((digest, shape_of(tensor))).or_default().push(&tensor.info.name);
    }
    let mut renamed = HashMap::new();
    for (tensor, digest) in from.iter().zip(tensor_digests(a, &from)?) {
        if let Some(other) = by_digest.get_mut(&(digest, shape_of(tensor))).and_then(Vec::pop) {
            renamed.insert(tensor.info.name.clone(), other.to_owned());
            renamed.insert(other.to_owned(), tensor.info.name.clone());
        }
    }
    Ok(renamed)
}

/// Those of `tensors` that are not empty and have the type and shape of one of the others.
fn with_shapes_of<'a>(tensors: &[Tensor<'a>], others: &[Tensor<'_>]) -> Vec<Tensor<'a>> {
    let shapes: HashSet<String> = others.iter().map(shape_of).collect();
    tensors.iter().filter(|t| !t.info.is_empty() && shapes.contains(&shape_of(t))).copied().collect()
}

fn shape_of(tensor: &Tensor<'_>) -> String {
    format!("{} {:?}", tensor.info.dtype, tensor.info.shape)
}
