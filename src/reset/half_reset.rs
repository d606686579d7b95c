//! A half-reset from its check to its commit.

use std::collections::HashSet;

use super::fate::Fate;
use super::files::files;
use super::values::{Values, values};
use crate::checkpoint::{CommandInputs, Sidecars, sidecars};
use crate::plan::{Inventory, Plan};
use crate::surgery::output::{copy_sidecars, finish};
use crate::surgery::{Output, Pairing, Provenance, Record, stream};
use crate::{Faults, Result};

/// A half-reset that was checked against both checkpoints and is ready to run.
#[derive(Debug)]
pub struct Reset<'a> {
    pairing: Pairing<'a>,
    plan: &'a Plan,
    /// One entry per pair.
    fates: Vec<Fate>,
    sidecars: Sidecars,
    /// Tensors that keep their values whatever the plan says.
    kept: HashSet<String>,
}

impl<'a> Reset<'a> {
    /// Checks that `plan` covers the tuned checkpoint exactly and can be carried out on this pair.
    ///
    /// # Errors
    /// [`crate::Error::Plan`] or [`crate::Error::Pairing`], every fault at once.
    pub fn new(pairing: Pairing<'a>, inventory: &Inventory, plan: &'a Plan) -> Result<Self> {
        plan.check_against(inventory)?;
        let sidecars = sidecars(pairing.tuned)?;
        let mut faults = Faults::default();
        let decided = pairing.pairs().iter().map(|pair| Fate::of(plan, inventory, pair));
        let fates = decided.filter_map(|fate| faults.keep(fate)).collect();
        faults.into_result()?;
        let no_base = pairing.pairs().iter().filter(|pair| pair.base.is_none());
        let no_base = no_base.map(|pair| pair.tuned.info.name.clone());
        let buffers = inventory.units().iter().filter(|unit| unit.buffer);
        let kept = buffers.flat_map(|unit| unit.tensors.iter().cloned()).chain(no_base).collect();
        Ok(Self { pairing, plan, fates, sidecars, kept })
    }

    /// The two checkpoints.
    pub fn pairing(&self) -> &Pairing<'a> {
        &self.pairing
    }

    /// The files beside the weights, carried over from the tuned side.
    pub fn sidecars(&self) -> &Sidecars {
        &self.sidecars
    }

    /// Whether the tuned tensor of that name keeps its value though the plan freezes it: it has no base value, or is a
    /// buffer.
    pub fn keeps(&self, name: &str) -> bool {
        self.kept.contains(name)
    }

    /// Bytes of the shards to be written.
    pub fn bytes(&self) -> u64 {
        self.pairing.tuned.shards().iter().map(|shard| shard.file_len()).sum()
    }

    /// The tensors of the result that are not the tuned ones, in memory: the same bytes that [`Reset::write`] writes. Those
    /// that come whole from a mapped base are borrowed; masked ones take the memory of their tensors.
    ///
    /// # Errors
    /// [`crate::Error::Io`] from reading by position.
    pub fn values(&self) -> Result<Values<'a>> {
        values(&self.pairing, &self.fates)
    }

    /// Writes the result. `done` is told the bytes written so far.
    ///
    /// The output has the shards, headers and sidecars of the tuned side. It appears whole or not at all.
    ///
    /// # Errors
    /// [`crate::Error::Output`] before anything is written; [`crate::Error::Io`]; [`crate::Error::Checkpoint`] when
    /// an input changed meanwhile.
    pub fn write(
        &self,
        output: &Output<'_>,
        provenance: &Provenance,
        done: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let Pairing { base, tuned, .. } = self.pairing;
        let staging = output.stage(CommandInputs::of([base, tuned]))?;
        stream::write(&files(&self.pairing, &self.fates)?, &staging, output.link, done)?;
        copy_sidecars(&staging, tuned, &self.sidecars.carried)?;
        let record = Record { provenance, seed: self.plan.seed(), plan: self.plan.to_value() };
        finish(staging, &[base, tuned], record)
    }
}
