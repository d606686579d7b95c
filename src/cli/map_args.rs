//! `--map`: which tensors of two models are one, where their names do not tell.

use clap::Args;

use crate::surgery::NameMap;

/// Which tensors of two models are one, where their names do not tell.
#[derive(Debug, Args)]
pub(super) struct MapArgs {
    /// Pair tensors whose names begin with FROM, or match its `*`, as if they were named TO; may be repeated
    #[arg(long = "map", value_name = "FROM=TO")]
    pub(super) maps: Vec<NameMap>,
}

impl MapArgs {
    /// The maps as they were typed, for the provenance.
    pub(super) fn recorded(&self) -> Vec<String> {
        self.maps.iter().map(ToString::to_string).collect()
    }
}
