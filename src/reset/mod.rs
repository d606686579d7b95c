//! Half-reset: frozen tensors return to the base, the others keep their tuned bytes.

use crate::checkpoint::{CommandInputs, Sidecars, sidecars};
use crate::plan::{Granularity, Inventory, Key, Mask, Plan, Selector};
use crate::surgery::Output;
use crate::surgery::mix::{Keep, Mix, Side};
use crate::surgery::pairing::{BaseValue, Pair, Pairing};
use crate::surgery::provenance::{FILE_NAME, Provenance};
use crate::surgery::stream::{self, FilePlan, Segment};
use crate::surgery::threshold::Chosen;
use crate::{Error, Faults, Result};

/// A half-reset that was checked against both checkpoints and is ready to run.
#[derive(Debug)]
pub struct Reset<'a> {
    pairing: Pairing<'a>,
    plan: &'a Plan,
    inventory: &'a Inventory,
    sidecars: Sidecars,
}

/// What happens to one tensor.
enum Action<'p> {
    Keep,
    Return,
    Mask(&'p Mask),
}

impl<'a> Reset<'a> {
    /// Checks that `plan` covers the tuned checkpoint exactly and can be carried out on this pair.
    ///
    /// # Errors
    /// [`Error::Plan`] or [`Error::Pairing`], every fault at once.
    pub fn new(pairing: Pairing<'a>, inventory: &'a Inventory, plan: &'a Plan) -> Result<Self> {
        plan.check_against(inventory)?;
        let reset = Self { sidecars: sidecars(pairing.tuned)?, pairing, plan, inventory };
        let faults = reset.pairing.pairs().iter().filter_map(|pair| reset.check(pair).err());
        Faults::from_iter(faults).into_result()?;
        Ok(reset)
    }

    /// The two checkpoints.
    pub fn pairing(&self) -> &Pairing<'a> {
        &self.pairing
    }

    /// The files beside the weights, carried over from the tuned side.
    pub fn sidecars(&self) -> &Sidecars {
        &self.sidecars
    }

    /// Bytes of the shards to be written.
    pub fn bytes(&self) -> u64 {
        self.pairing.tuned.shards().iter().map(|shard| shard.file_len()).sum()
    }

    /// Writes the result. `done` is told the bytes written so far.
    ///
    /// The output has the shards, headers and sidecars of the tuned side. It appears whole or not at all.
    ///
    /// # Errors
    /// [`Error::Output`] before anything is written; [`Error::Io`]; [`Error::Checkpoint`] when an input
    /// changed meanwhile.
    pub fn write(
        &self,
        output: &Output<'_>,
        provenance: &Provenance,
        done: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let Pairing { base, tuned, .. } = self.pairing;
        let staging = output.stage(CommandInputs::of([base, tuned]))?;
        let files = self.files()?;
        stream::write(&files, &staging, output.link, done)?;
        for relative in &self.sidecars.carried {
            staging.copy_file(&tuned.root().join(relative), relative)?;
        }
        let text = provenance.to_json(self.plan.seed(), self.plan.to_value());
        staging.write_small(FILE_NAME, text.as_bytes())?;
        base.check_unchanged()?;
        tuned.check_unchanged()?;
        staging.commit()
    }

    fn action(&self, name: &str) -> Action<'_> {
        if self.plan.is_trainable(name) == Some(false) {
            return Action::Return;
        }
        self.plan.mask_of(name).map_or(Action::Keep, Action::Mask)
    }

    /// Whether a masked tensor can be masked at all.
    fn check(&self, pair: &Pair<'_>) -> Result<()> {
        let info = pair.tuned.info;
        let Action::Mask(mask) = self.action(&info.name) else {
            return Ok(());
        };
        let fault = |what: &str| {
            Err(Error::Pairing {
                tensor: Some(info.name.clone()),
                fault: format!("{what} of type {}", info.dtype),
                hint: Some("decide on it as a whole with --train or --freeze".to_owned()),
            })
        };
        if info.dtype.bytes().is_none() {
            return fault("no element mask over a tensor");
        }
        let numbers = crate::checkpoint::decode_f32(&info.dtype, &[], &mut []).is_some();
        if mask.selector == Selector::TopMagnitude && !numbers {
            return fault("no magnitude in a tensor");
        }
        Ok(())
    }

    /// One plan per output file: the header of the tuned shard, then its tensors.
    fn files(&self) -> Result<Vec<FilePlan<'a>>> {
        let shards = self.pairing.tuned.shards();
        let mut by_shard: Vec<Vec<&Pair<'a>>> = shards.iter().map(|_| Vec::new()).collect();
        for pair in self.pairing.pairs() {
            by_shard[pair.tuned.shard].push(pair);
        }
        let mut files = Vec::with_capacity(shards.len());
        for (shard, mut pairs) in shards.iter().zip(by_shard) {
            pairs.sort_by_key(|pair| (pair.tuned.info.bytes.start, pair.tuned.info.bytes.end));
            let mut file = FilePlan::new(shard.file_name());
            file.copy(self.header_source(shard, &pairs)?, 0..shard.header().data_start());
            for pair in pairs {
                self.add(&mut file, pair)?;
            }
            files.push(file);
        }
        Ok(files)
    }

    /// The file whose header bytes begin the output: the tuned shard, or the base shard where that has
    /// the same header and gives all the data too, so that it can be linked as a whole.
    fn header_source(
        &self,
        tuned: &'a crate::checkpoint::Shard,
        pairs: &[&Pair<'a>],
    ) -> Result<&'a crate::checkpoint::Shard> {
        let base = self.pairing.base;
        let source = pairs.first().and_then(|pair| pair.base.as_ref());
        let Some(shard) = source.map(|value| &base.shards()[value.tensor.shard]) else {
            return Ok(tuned);
        };
        let returns = |pair: &&Pair<'_>| matches!(self.action(&pair.tuned.info.name), Action::Return);
        let header = 0..tuned.header().data_start();
        if shard.header().data_start() != header.end || !pairs.iter().all(returns) {
            return Ok(tuned);
        }
        let (mut x, mut y) = (Vec::new(), Vec::new());
        let same = shard.bytes(header.clone(), &mut x)? == tuned.bytes(header, &mut y)?;
        Ok(if same { shard } else { tuned })
    }

    fn add(&self, file: &mut FilePlan<'a>, pair: &Pair<'a>) -> Result<()> {
        let tuned = Side { shard: &self.pairing.tuned.shards()[pair.tuned.shard], info: pair.tuned.info };
        let all = tuned.info.bytes.clone();
        let action = self.action(&tuned.info.name);
        let (Some(base), Action::Return | Action::Mask(_)) = (&pair.base, &action) else {
            file.copy(tuned.shard, all);
            return Ok(());
        };
        let source = Side { shard: &self.pairing.base.shards()[base.tensor.shard], info: base.tensor.info };
        if let (Action::Return, None) = (&action, base.cast) {
            let shared = base_bytes(base, tuned);
            file.copy(source.shard, source.info.bytes.start..source.info.bytes.start + shared);
            file.copy(tuned.shard, all.start + shared..all.end);
            return Ok(());
        }
        let mut mix = Mix { base: source, tuned, cast: base.cast, common: base.common, keep: Keep::Nothing };
        if let Action::Mask(mask) = action {
            mix.keep = self.keep(&mix, mask)?;
        }
        file.segments.push(Segment::Mix(mix));
        Ok(())
    }

    fn keep(&self, mix: &Mix<'_>, mask: &Mask) -> Result<Keep> {
        let (share, complement) = (mask.ratio, mask.complement);
        // A tied head follows its embedding, so both draw from the name of their unit's first tensor.
        let unit = self.inventory.unit_of(&mix.tuned.info.name);
        let name = unit.and_then(|u| u.tensors.first()).unwrap_or(&mix.tuned.info.name);
        let key = Key::new(self.plan.seed(), self.plan.round(), name);
        Ok(match (mask.selector, mask.granularity) {
            (Selector::Bernoulli, Granularity::Element) => Keep::Elements { key, share, complement },
            (Selector::Bernoulli, Granularity::Row) => Keep::Rows { key, share, complement },
            (Selector::TopMagnitude, granularity) => {
                Keep::Largest(Chosen::measure(mix, granularity, share, complement)?)
            }
        })
    }
}

/// Bytes at the start of the tuned tensor that the base has too.
fn base_bytes(base: &BaseValue<'_>, tuned: Side<'_>) -> u64 {
    let elements = tuned.info.elements();
    if base.common == elements {
        return tuned.info.len();
    }
    // Whole rows: the bytes of each are the same on both sides.
    tuned.info.len() / elements * base.common
}
