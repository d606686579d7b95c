//! A checkpoint: one or many shards seen as one set of tensors.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rayon::prelude::*;

use super::aliases::Aliases;
use super::bounded_list::MOST_TENSORS;
use super::config::Config;
use super::header_json::TensorInfo;
use super::index::Index;
use super::index_check::check_index;
use super::locate::{Kind, Located, locate};
use super::natural_order::natural_order;
use super::process::check_open_files;
use super::quantization::Quantization;
use super::shard::{Access, Shard};
use super::spelling::plain_name;
use crate::error::Escaped;
use crate::{Error, Faults, Result};

/// An open checkpoint whose shards and index agree: every tensor stands in exactly one shard.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    root: PathBuf,
    kind: Kind,
    shards: Vec<Shard>,
    index: Option<PathBuf>,
    config: Option<Config>,
    quantization: Option<Quantization>,
    unindexed: Vec<String>,
    unlisted: Vec<String>,
    /// (shard, position in its header), by natural order of names.
    order: Vec<(u32, u32)>,
    /// The place of each plain name, made at the first use; `None` where tensors have it in common.
    by_plain_name: OnceLock<HashMap<String, Option<(u32, u32)>>>,
    /// The names under which tensors pair with those of other checkpoints, where that is not their own.
    aliases: Aliases,
    also_read: Vec<PathBuf>,
    untied: bool,
}

/// Unmapping a file takes about as long as mapping it, so the shards go in parallel.
impl Drop for Checkpoint {
    fn drop(&mut self) {
        self.shards.par_drain(..).for_each(drop);
    }
}

/// How a checkpoint is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadOptions {
    /// How the bytes of its files are reached.
    pub access: Access,
    /// Whether tensors that stand in a shard and not in the index are part of it, as for transformers, or a fault.
    pub allow_unindexed: bool,
}

impl From<Access> for ReadOptions {
    fn from(access: Access) -> Self {
        Self { access, allow_unindexed: false }
    }
}

/// A tensor of a checkpoint and the shard that holds it.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    /// Which of [`Checkpoint::shards`].
    pub shard: usize,
    /// Name, type, shape and place.
    pub info: &'a TensorInfo,
}

impl Checkpoint {
    /// Opens the checkpoint at `path`. Reads headers, index and `config.json` only.
    ///
    /// # Errors
    /// Every fault of every shard and of the index, in both directions, at once.
    pub fn open(path: &Path, options: impl Into<ReadOptions>) -> Result<Self> {
        let ReadOptions { access, allow_unindexed } = options.into();
        let Located { kind, root, shards: paths, index, unindexed } = locate(path)?;
        check_open_files(Escaped(path), paths.len())?;
        let mut shards = Vec::with_capacity(paths.len());
        let mut faults = Faults::default();
        for path in &paths {
            match Shard::open(path, access) {
                Ok(shard) => shards.push(shard),
                Err(fault) => faults.push(fault),
            }
        }
        faults.into_result()?;
        let order = order_tensors(&root, &shards)?;
        let mut unlisted = Vec::new();
        if let Some((path, index)) = &index {
            unlisted = check_index(path, index, &shards, allow_unindexed)?;
        }
        let config = Config::read(&root)?;
        let tensors = order.iter().map(|place| at(&shards, *place).info);
        let quantization = Quantization::of(
            config.as_ref(),
            tensors.map(|info| (info.name.as_str(), &info.dtype)),
            &|name| shards.iter().find_map(|shard| Some(&shard.header().find(name)?.dtype)),
        );
        Ok(Self {
            path: path.to_owned(),
            config,
            quantization,
            root,
            kind,
            shards,
            index: index.map(|(path, _)| path),
            unindexed,
            unlisted,
            order,
            by_plain_name: OnceLock::new(),
            aliases: Aliases::default(),
            also_read: Vec::new(),
            untied: false,
        })
    }

    /// Sets the names under which tensors pair with those of other checkpoints, by their own names.
    ///
    /// # Errors
    /// [`Error::Pairing`] where two tensors would have one name.
    pub fn set_aliases(&mut self, aliases: HashMap<String, String>) -> Result<()> {
        let names = self.order.iter().map(|place| at(&self.shards, *place).info.name.as_str());
        self.aliases = Aliases::new(aliases, names)?;
        self.by_plain_name = OnceLock::new();
        Ok(())
    }

    /// Checks that this process may have the shards of all checkpoints `paths` open at once. A path that is no
    /// checkpoint counts as none.
    ///
    /// # Errors
    /// [`Error::Usage`] with the number of files and the limit.
    pub fn check_open_files(paths: &[PathBuf]) -> Result<()> {
        let files = paths.iter().filter_map(|path| Some(locate(path).ok()?.shards.len())).sum();
        check_open_files(format_args!("{} checkpoints", paths.len()), files)
    }

    /// The path as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory that holds the shards.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What the user named.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The shards, in natural order of their names.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The index file, where there is one.
    pub fn index(&self) -> Option<&Path> {
        self.index.as_deref()
    }

    /// `config.json`, where there is one.
    pub fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }

    /// The quantized weights, where there are any.
    pub fn quantization(&self) -> Option<&Quantization> {
        self.quantization.as_ref()
    }

    /// Whether a tensor is part of a quantized weight.
    pub fn is_quantized(&self, tensor: &str) -> bool {
        self.quantization.as_ref().is_some_and(|quantization| quantization.covers(tensor))
    }

    /// Checks that no weight is quantized, for `what` computes with the stored numbers.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] saying how it is quantized.
    pub fn check_not_quantized(&self, what: &str) -> Result<()> {
        self.quantization.as_ref().map_or(Ok(()), |quantization| {
            Err(Error::Checkpoint {
                path: self.path.clone(),
                fault: format!("the weights are quantized ({quantization}), and {what} needs plain numbers"),
                hint: Some(
                    "take the checkpoint that it was quantized from, or save it dequantized with transformers"
                        .to_owned(),
                ),
            })
        })
    }

    /// This checkpoint with other shards in place of its own.
    pub(super) fn with_shards(
        mut self,
        replace: impl FnOnce(Vec<Shard>) -> Result<Vec<Shard>>,
    ) -> Result<Self> {
        self.shards = replace(std::mem::take(&mut self.shards))?;
        self.order = order_tensors(&self.root, &self.shards)?;
        self.by_plain_name = OnceLock::new();
        Ok(self)
    }

    /// This checkpoint, whose weights are no longer quantized.
    pub(super) fn with_plain_weights(mut self) -> Self {
        self.config = self.config.take().map(|config| config.without(&super::quantization::KEYS));
        self.quantization = None;
        self
    }

    /// This checkpoint under the name `path`, made from what is at `also_read` too.
    pub(super) fn made_from(mut self, path: PathBuf, also_read: Vec<PathBuf>) -> Self {
        (self.path, self.also_read) = (path, also_read);
        self
    }

    /// This checkpoint, whose embedding and head are two tensors.
    pub(super) fn untied(mut self) -> Self {
        self.config = self.config.take().map(Config::untied);
        self.untied = true;
        self
    }

    /// Whether adapters have made two tensors of embedding and head, which the file `config.json` does not say.
    pub fn is_untied(&self) -> bool {
        self.untied
    }

    /// What is read beside its files: adapters that are applied to it.
    pub(super) fn also_read(&self) -> &[PathBuf] {
        &self.also_read
    }

    /// Whether it is a PEFT adapter, not a model.
    pub fn is_adapter(&self) -> bool {
        let file = |shard: &Shard| shard.file_name() == "adapter_model.safetensors";
        self.shards.iter().any(file) && self.root.join("adapter_config.json").is_file()
    }

    /// Checks that it is a model.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for an adapter.
    pub fn check_not_adapter(&self) -> Result<()> {
        if !self.is_adapter() {
            return Ok(());
        }
        Err(Error::Checkpoint {
            path: self.path.clone(),
            fault: "an adapter, where a model is expected".to_owned(),
            hint: Some("apply it to its base first: merge --base <CKPT> --lora <DIR> --out <DIR>".to_owned()),
        })
    }

    /// Safetensors files in the directory that the checkpoint does not use.
    pub fn unindexed(&self) -> &[String] {
        &self.unindexed
    }

    /// Tensors that the index does not list: some only with [`ReadOptions::allow_unindexed`].
    pub fn unlisted(&self) -> &[String] {
        &self.unlisted
    }

    /// The text of the index with the tensors that it does not list; `None` where it lists all.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Index`].
    pub fn completed_index(&self) -> Result<Option<String>> {
        let Some(path) = self.index().filter(|_| !self.unlisted.is_empty()) else { return Ok(None) };
        let found = self.unlisted.iter().filter_map(|name| self.find(name));
        let entries = found.map(|t| (t.info.name.clone(), self.shards[t.shard].file_name()));
        Index::completed(path, entries, self.tensor_bytes()).map(Some)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether it holds no tensor at all.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// All tensors, in natural order of their names.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Tensor<'_>> {
        self.order.iter().map(|place| at(&self.shards, *place))
    }

    /// The tensor of that name.
    pub fn find(&self, name: &str) -> Option<Tensor<'_>> {
        let order = |place: &(u32, u32)| natural_order(&at(&self.shards, *place).info.name, name);
        let found = self.order.binary_search_by(order).ok()?;
        Some(at(&self.shards, self.order[found]))
    }

    /// The tensor that `name`, a name of `other`, is in this checkpoint: the one of that name, or else the only one
    /// whose name differs just in what wraps the model, such as `model.`, `_orig_mod.` or `module.`, where it is the
    /// only such name of `other` too. If a is the twin of b, b is the twin of a.
    pub fn twin(&self, name: &str, other: &Self) -> Option<Tensor<'_>> {
        let name = other.aliases.of(name);
        self.find_alias(name).or_else(|| {
            let plain = plain_name(name);
            other.by_plain_name().get(&plain).copied().flatten()?;
            let place = self.by_plain_name().get(&plain).copied().flatten()?;
            Some(at(&self.shards, place))
        })
    }

    /// The tensors that `name`, a name of `other`, could be in this checkpoint but for what wraps the model, where there are
    /// several, so that [`Checkpoint::twin`] gives none of them.
    pub fn candidates(&self, name: &str, other: &Self) -> Vec<&str> {
        let plain = plain_name(other.aliases.of(name));
        let names = self.tensors().map(|tensor| tensor.info.name.as_str());
        let found: Vec<&str> = names.filter(|own| plain_name(self.aliases.of(own)) == plain).collect();
        if self.twin(name, other).is_none() && found.len() > 1 { found } else { Vec::new() }
    }

    /// The tensor that pairs under that name.
    fn find_alias(&self, alias: &str) -> Option<Tensor<'_>> {
        match self.aliases.stored(alias) {
            Some(name) => self.find(name),
            None => self.find(alias).filter(|tensor| self.aliases.of(&tensor.info.name) == alias),
        }
    }

    fn by_plain_name(&self) -> &HashMap<String, Option<(u32, u32)>> {
        self.by_plain_name.get_or_init(|| {
            let mut places = HashMap::with_capacity(self.order.len());
            for place in &self.order {
                let plain = plain_name(self.aliases.of(&at(&self.shards, *place).info.name));
                places.entry(plain).and_modify(|known| *known = None).or_insert(Some(*place));
            }
            places
        })
    }

    /// Whether the configuration says that input embedding and output head are one tensor.
    pub fn tied(&self) -> bool {
        self.config.as_ref().and_then(Config::tie_word_embeddings) == Some(true)
    }

    /// Bytes of all tensors, without headers.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors().map(|t| t.info.len()).sum()
    }

    /// Checks that no shard was touched since it was opened.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the shard.
    pub fn check_unchanged(&self) -> Result<()> {
        self.shards.iter().try_for_each(Shard::check_unchanged)
    }
}

fn at(shards: &[Shard], (shard, entry): (u32, u32)) -> Tensor<'_> {
    Tensor { shard: shard as usize, info: &shards[shard as usize].header().tensors()[entry as usize] }
}

fn order_tensors(root: &Path, shards: &[Shard]) -> Result<Vec<(u32, u32)>> {
    let count: usize = shards.iter().map(|shard| shard.header().tensors().len()).sum();
    if count > MOST_TENSORS {
        return Err(Error::Checkpoint {
            path: root.to_owned(),
            fault: format!("too many tensors: got {count}, expected at most {MOST_TENSORS}"),
            hint: None,
        });
    }
    let mut order = Vec::with_capacity(count);
    for (s, shard) in shards.iter().enumerate() {
        order.extend((0..shard.header().tensors().len()).map(|e| (s as u32, e as u32)));
    }
    let name = |place: (u32, u32)| at(shards, place).info.name.as_str();
    order.sort_by(|a, b| natural_order(name(*a), name(*b)));
    let twice = order.windows(2).filter(|pair| name(pair[0]) == name(pair[1]));
    let faults = twice.map(|pair| Error::Header {
        path: shards[pair[1].0 as usize].path().to_owned(),
        tensor: Some(name(pair[1]).to_owned()),
        fault: format!("duplicate tensor: also in `{}`", Escaped(&shards[pair[0].0 as usize].file_name())),
    });
    Faults::from_iter(faults).into_result()?;
    Ok(order)
}
