//! A checkpoint of which some files are computed when they are read.

use std::path::PathBuf;
use std::sync::Arc;

use super::computed_file::ComputedFile;
use super::shard::Shard;
use super::sharded::Checkpoint;
use crate::Result;

/// Makes the file that stands in place of a shard, which it may read from.
pub(crate) type ReplaceShard = Box<dyn FnOnce(Arc<Shard>) -> ComputedFile>;

impl Checkpoint {
    /// This checkpoint under the name `path`, with computed files in place of some of its own, and with embedding and head as
    /// two tensors where `untie`. It still watches its files. `also_read` are the paths of what else the files are made from.
    ///
    /// # Errors
    /// [`crate::Error::Header`] for a file that is none; [`crate::Error::Io`].
    pub(crate) fn with_computed_files(
        self,
        (path, also_read): (PathBuf, Vec<PathBuf>),
        files: Vec<Option<ReplaceShard>>,
        untie: bool,
    ) -> Result<Self> {
        let replace = |(own, file): (Shard, Option<ReplaceShard>)| match file {
            None => Ok(own),
            Some(file) => {
                let own = Arc::new(own);
                own.with_computed(file(Arc::clone(&own)))
            }
        };
        let made = self.with_shards(|own| own.into_iter().zip(files).map(replace).collect())?;
        let made = made.made_from(path, also_read);
        Ok(if untie { made.untied() } else { made })
    }

    /// This checkpoint with all bytes in memory that would be computed when they are read: for those who need bytes where they
    /// are, or more than once.
    ///
    /// # Errors
    /// As computing them; [`crate::Error::Io`] where memory does not hold them.
    pub fn computed_in_memory(self) -> Result<Self> {
        self.with_shards(|mut own| own.iter_mut().try_for_each(Shard::compute).map(|()| own))
    }
}
