//! Jobs dealt to every thread in turn.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::{Error, Result};

/// Runs `work` on every job, in order of their start. Each thread has its own scratch, kept from job to job.
///
/// # Errors
/// The first fault any thread met; jobs not yet begun are then left out.
pub(crate) fn deal<J: Sync, S: Default>(
    jobs: &[J],
    work: impl Fn(&mut S, &J) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    rayon::broadcast(|_| {
        let mut scratch = S::default();
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = work(&mut scratch, job) {
                next.store(jobs.len(), Ordering::Relaxed);
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
