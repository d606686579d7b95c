//! Measures files before the first stage of a run and after each, and keeps the scores for `--resume`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::continual::{Continual, ScoredFile};
use super::watcher::Watcher;
use crate::backend::Device;
use crate::checkpoint::{Checkpoint, ReadOptions, read_small, replace_bytes};
use crate::eval::{EvalRows, Scores, checkpoint_scores, mean};
use crate::{Error, Result};

/// A file that is measured before the first stage and after each.
#[derive(Debug, Clone, Copy)]
pub struct MeasuredFile<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its rows.
    pub rows: &'a EvalRows,
}

/// The files with their scores so far, which also stand in a file of the run.
pub(super) struct Sequence<'a> {
    files: &'a [MeasuredFile<'a>],
    path: PathBuf,
    reading: ReadOptions,
    sync: bool,
    scores: Continual,
}

impl<'a> Sequence<'a> {
    /// The scores that `path` has, where it exists. The first `tasks` of `files` are those of the tasks.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Checkpoint`] for a file of other scores.
    pub(super) fn open(
        files: &'a [MeasuredFile<'a>],
        tasks: usize,
        path: PathBuf,
        reading: ReadOptions,
        sync: bool,
    ) -> Result<Self> {
        let scored =
            |file: &MeasuredFile<'_>| ScoredFile { name: file.name.to_owned(), metric: file.rows.metric() };
        let mut scores = Continual::new(files.iter().map(scored).collect(), tasks);
        if path.is_file() {
            let text = String::from_utf8_lossy(&read_small(&path)?).into_owned();
            scores.read(&text).map_err(|fault| Error::Checkpoint {
                path: path.clone(),
                fault: format!("not the scores of this run: {fault}"),
                hint: Some("start again with --force".to_owned()),
            })?;
        }
        Ok(Self { files, path, reading, sync, scores })
    }

    /// How often the files were measured.
    pub(super) fn measured(&self) -> usize {
        self.scores.measured()
    }

    /// The scores.
    pub(super) fn into_scores(self) -> Continual {
        self.scores
    }

    /// Measures the checkpoint and keeps its scores.
    ///
    /// # Errors
    /// [`Error::Training`] when stopped, anything a checkpoint can be refused for.
    pub(super) fn measure(
        &mut self,
        checkpoint: &Path,
        device: &mut Device,
        watcher: &mut dyn Watcher,
        stop: &AtomicBool,
    ) -> Result<()> {
        let source = Checkpoint::open(checkpoint, self.reading)?;
        let rows: Vec<&EvalRows> = self.files.iter().map(|file| file.rows).collect();
        let lengths = rows.iter().flat_map(|rows| rows.sequences()).map(|row| row.input_ids.len() as u64);
        let tokens = lengths.sum();
        watcher.measuring(0, tokens);
        let mut go_on = |done| {
            watcher.measuring(done, tokens);
            !stop.load(Ordering::Relaxed)
        };
        let found = checkpoint_scores(device, &source, &rows, &mut go_on)?;
        source.check_unchanged()?;
        let found = found.ok_or_else(|| Error::Training {
            fault: "training stopped: interrupted between two stages, while their files were measured"
                .to_owned(),
            hint: Some("--resume measures them again and goes on".to_owned()),
        })?;
        self.scores.push(found.iter().map(first_mean).collect());
        replace_bytes(&self.path, self.sync, self.scores.to_json().as_bytes())?;
        watcher.measured(&self.scores);
        Ok(())
    }
}

/// The mean of the first metric.
fn first_mean(scores: &Scores) -> f64 {
    scores.metrics.first().map_or(f64::NAN, |(_, rows)| mean(rows).value)
}
