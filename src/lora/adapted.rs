//! A base with adapters, as a checkpoint: what `merge_and_unload` of PEFT gives, each tensor computed when it is read.

use std::cell::Cell;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, json};

use crate::checkpoint::{
    Checkpoint, ComputedFile, Dtype, HeaderWriter, ReadTensor, ReplaceShard, Shard, TensorInfo,
};
use crate::error::Escaped;
use crate::lora::adapter::{Adapter, WeightedAdapter};
use crate::lora::merge_adapter::LoraMerge;
use crate::merge::inputs::row_of;
use crate::merge::plan::output_tensor::OutputTensor;
use crate::merge::rules::rule::{PreparedRule, PreparedTensor};
use crate::merge::tiles::finite;
use crate::merge::tiles::low_rank::AdapterUpdate;
use crate::merge::tiles::source::Source;
use crate::merge::tiles::stored::encode;
use crate::merge::tiles::values::{TILE, TileBuffers, Values};
use crate::{Error, Result};

thread_local! {
    /// Not those of a merge, which are in use when it reads a model.
    static BUFFERS: Cell<TileBuffers> = Cell::default();
}

/// The base with the adapters merged as [`LoraMerge`] does, each weight rounded once to the type of the base, under the
/// name `path`; with it, what a reader should know of the result.
///
/// Factors are held in memory, nothing else. Files without a changed tensor stay as they are.
///
/// # Errors
/// As [`LoraMerge::of_several`]; an adapter that changed meanwhile. Reading the result gives [`Error::Checkpoint`] for a value
/// that is infinite or NaN where that of the base is finite.
pub fn adapted(
    base: Checkpoint,
    adapters: Vec<(Adapter, f64)>,
    path: PathBuf,
) -> Result<(Checkpoint, Vec<String>)> {
    let weighted: Vec<WeightedAdapter<'_>> =
        adapters.iter().map(|(adapter, weight)| WeightedAdapter { adapter, weight: *weight }).collect();
    let merge = LoraMerge::of_several(&base, &weighted, None, None)?;
    let files: Vec<Option<Vec<Recipe>>> =
        (0..base.shards().len()).map(|shard| recipes(&merge, &base, shard)).collect::<Result<_>>()?;
    let (notes, untie) = (merge.notes().to_vec(), merge.unties());
    drop(merge);
    drop(weighted);
    adapters.iter().try_for_each(|(adapter, _)| adapter.checkpoint().check_unchanged())?;
    let read = adapters.iter().map(|(adapter, _)| adapter.checkpoint().root().to_owned()).collect();
    let adapters: Arc<[Adapter]> = adapters.into_iter().map(|(adapter, _)| adapter).collect();
    let name: Arc<str> = path.to_string_lossy().into();
    let replace = |recipes: Vec<Recipe>| -> ReplaceShard {
        let (adapters, name) = (Arc::clone(&adapters), Arc::clone(&name));
        Box::new(move |base| file(recipes, &base, &adapters, &name))
    };
    let files = files.into_iter().map(|recipes| recipes.map(replace)).collect();
    Ok((base.with_computed_files((path, read), files, untie)?, notes))
}

/// What a tensor of the result is made of.
struct Recipe {
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
    origin: Origin,
    source: TensorInfo,
    /// `None` for a copy, which may be in another type than `source`.
    update: Option<AdapterUpdate>,
}

/// The file of the source of a tensor.
#[derive(Clone, Copy)]
enum Origin {
    /// The shard of the base that the tensor stands in.
    Base,
    /// The adapter of this place.
    Adapter(usize),
}

/// The tensors of a file of the result; `None` where nothing in it changes.
fn recipes(merge: &LoraMerge<'_>, base: &Checkpoint, shard: usize) -> Result<Option<Vec<Recipe>>> {
    let tensors: Vec<&OutputTensor<'_>> = merge.tensors().filter(|tensor| tensor.shard == shard).collect();
    if !tensors.iter().any(|tensor| merge.changes(&tensor.name)) {
        return Ok(None);
    }
    let own = &base.shards()[shard];
    let recipe = |tensor: &&OutputTensor<'_>| {
        let (source, update) = match merge.prepare(tensor)? {
            PreparedTensor::Computed(values, PreparedRule::Adapter(update)) => {
                (values.models[0].clone(), Some(update))
            }
            PreparedTensor::Computed(..) => unreachable!("the rule of an adapter is an update"),
            PreparedTensor::Copy(source) => (source, None),
        };
        let origin = match merge.adapter_of(source.shard) {
            Some(adapter) => Origin::Adapter(adapter),
            None => Origin::Base,
        };
        assert!(
            matches!(origin, Origin::Adapter(_)) || std::ptr::eq(source.shard, own),
            "a tensor stands in the shard of its source"
        );
        Ok(Recipe {
            name: tensor.name.clone(),
            dtype: tensor.dtype.clone(),
            shape: tensor.shape.clone(),
            origin,
            source: source.info.clone(),
            update,
        })
    };
    tensors.iter().map(recipe).collect::<Result<_>>().map(Some)
}

/// The file of these tensors in place of the shard `base`.
fn file(recipes: Vec<Recipe>, base: &Arc<Shard>, adapters: &Arc<[Adapter]>, path: &Arc<str>) -> ComputedFile {
    let metadata = base.header().metadata();
    let metadata: Map<_, _> = metadata.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    let mut header = HeaderWriter::new(metadata.into());
    let mut tensors = Vec::new();
    for recipe in recipes {
        let len = recipe.len();
        header.push(recipe.name.clone(), &recipe.dtype, &recipe.shape, len);
        let (base, adapters, path) = (Arc::clone(base), Arc::clone(adapters), Arc::clone(path));
        let read: ReadTensor = Box::new(move |range, out| {
            let shard = match recipe.origin {
                Origin::Base => &*base,
                Origin::Adapter(i) => &adapters[i].checkpoint().shards()[0],
            };
            recipe.read(shard, range, out, &path)?;
            // The base is watched by the checkpoint.
            if let Origin::Adapter(_) = recipe.origin { shard.check_unchanged() } else { Ok(()) }
        });
        tensors.push((len, read));
    }
    ComputedFile::new(header.finish(), tensors)
}

impl Recipe {
    /// Whether its bytes are those of the source.
    fn is_copy(&self) -> bool {
        self.update.is_none() && self.dtype == self.source.dtype
    }

    /// Bytes of the tensor.
    fn len(&self) -> u64 {
        if self.is_copy() { self.source.len() } else { self.elements() * self.width() }
    }

    fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Bytes of an element: a number that can be computed with has whole bytes.
    fn width(&self) -> u64 {
        self.dtype.bytes().unwrap_or(1) as u64
    }

    /// Appends the bytes `range` of the tensor.
    fn read(&self, shard: &Shard, range: Range<u64>, out: &mut Vec<u8>, path: &str) -> Result<()> {
        let mut buffers = BUFFERS.take();
        let result = if self.is_copy() {
            let start = self.source.bytes.start;
            let bytes = shard.bytes(start + range.start..start + range.end, &mut buffers.bytes);
            bytes.map(|bytes| out.extend_from_slice(bytes))
        } else {
            self.compute(shard, range, out, &mut buffers, path)
        };
        BUFFERS.set(buffers);
        result
    }

    fn compute(
        &self,
        shard: &Shard,
        range: Range<u64>,
        out: &mut Vec<u8>,
        buffers: &mut TileBuffers,
        path: &str,
    ) -> Result<()> {
        let source = Source { shard, info: &self.source, through: None };
        let values = Values {
            base: None,
            models: vec![source.clone()],
            deltas: false,
            elements: self.elements(),
            row: row_of(&self.shape),
            tile: TILE,
            whole_rows: false,
        };
        let width = self.width();
        let elements = range.start / width..range.end.div_ceil(width);
        for start in elements.clone().step_by(TILE as usize) {
            let tile = start..elements.end.min(start + TILE);
            match &self.update {
                Some(update) => update.apply(&values, tile.clone(), buffers)?,
                None => source.decode(tile.clone(), &mut buffers.bytes, &mut buffers.out)?,
            }
            encode(&self.dtype, &buffers.out, &mut buffers.encoded);
            let bad = finite::count(&self.dtype, std::iter::once(&source), &tile, buffers)?;
            if bad > 0 {
                return Err(self.not_finite(path, bad));
            }
            // Of the first and last element, only the bytes that were asked for.
            let at = tile.start * width;
            let part = range.start.max(at) - at..range.end.min(tile.end * width) - at;
            out.extend_from_slice(&buffers.encoded[part.start as usize..part.end as usize]);
        }
        shard.release(source.at(elements));
        Ok(())
    }

    fn not_finite(&self, path: &str, bad: u64) -> Error {
        let (name, dtype) = (Escaped(&self.name), &self.dtype);
        let fault = format!(
            "tensor `{name}`: {bad} values are infinite or NaN as {dtype} where those of the base are finite"
        );
        let hint = match self.dtype.bytes() {
            Some(..4) => {
                "apply the adapter in a wider type: merge --base <CKPT> --lora <ADAPTER> --dtype float32"
            }
            _ => "the training that made the adapter diverged",
        };
        Error::Checkpoint { path: path.into(), fault, hint: Some(hint.to_owned()) }
    }
}
