//! `--link`: how shards that stay as they are reach the output.

use clap::{Args, ValueEnum};

use crate::checkpoint::Link;

/// How shards that stay as they are reach the output.
#[derive(Debug, Args)]
pub(super) struct LinkArgs {
    /// How shards that stay as they are reach the output
    #[arg(long, value_enum, default_value_t = LinkArg::Reflink, value_name = "HOW")]
    link: LinkArg,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LinkArg {
    /// Share blocks where the file system can, copy otherwise
    Reflink,
    /// Hard-link: no bytes are written, but a change to one is a change to both
    Hard,
    /// Always copy
    Copy,
}

impl LinkArgs {
    pub(super) fn link(&self) -> Link {
        match self.link {
            LinkArg::Reflink => Link::Reflink,
            LinkArg::Hard => Link::Hard,
            LinkArg::Copy => Link::Copy,
        }
    }
}
