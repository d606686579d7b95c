//! `train_log.jsonl`: one line per optimizer step.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::loss::PreferenceMetrics;
use crate::checkpoint::replace_bytes;
use crate::{Error, Result};

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// Steps of the run, from 1.
    pub step: u64,
    /// The round, from 0.
    pub round: u32,
    /// Epochs of the round that are done, with a fraction.
    pub epoch: f64,
    /// The mean that is minimized: the negative log-likelihood of target tokens, in nats, or the loss of pairs.
    pub loss: f64,
    /// Global norm of the trainable gradients, before clipping.
    pub grad_norm: f64,
    /// Of this step.
    pub learning_rate: f64,
    /// Tokens that went through the model in this step.
    pub tokens: u64,
    /// Their number per second of wall-clock time.
    pub tokens_per_second: f64,
    /// Loss on the evaluation data, where it was measured after this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_loss: Option<f64>,
    /// Rewards and log-probabilities, where pairs are learnt from.
    #[serde(flatten)]
    pub preference: Option<PreferenceMetrics>,
    /// The same on the evaluation data, where it was measured after this step; `eval_` before each name.
    #[serde(flatten, with = "eval_names")]
    pub eval_preference: Option<PreferenceMetrics>,
}

/// Metrics with `eval_` before each name, as transformers names them.
mod eval_names {
    use serde::{Deserialize, Deserializer, Serializer};
    use serde_json::{Map, Value};

    use super::PreferenceMetrics;

    pub(super) fn serialize<S: Serializer>(
        metrics: &Option<PreferenceMetrics>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let named = metrics.iter().flat_map(PreferenceMetrics::named);
        serializer.collect_map(named.map(|(name, value)| (format!("eval_{name}"), value)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<PreferenceMetrics>, D::Error> {
        let all = Map::<String, Value>::deserialize(deserializer)?;
        let own = |(name, value): (String, Value)| Some((name.strip_prefix("eval_")?.to_owned(), value));
        let own: Map<String, Value> = all.into_iter().filter_map(own).collect();
        Ok(serde_json::from_value(Value::Object(own)).ok())
    }
}

/// The log of a run, written line by line.
#[derive(Debug)]
pub struct TrainLog {
    path: PathBuf,
    file: File,
    lines: Vec<LogLine>,
}

impl TrainLog {
    /// Opens the log at `path` and drops every line after `step` steps: what a run wrote between its last
    /// saved state and its end is done again.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Checkpoint`] for a file that is no log.
    pub fn open(path: &Path, step: u64) -> Result<Self> {
        let mut lines = Vec::new();
        if let Ok(file) = File::open(path) {
            for line in BufReader::new(file).lines() {
                let line = line.map_err(Error::io("read", path))?;
                // The last line of a killed run may be cut off.
                let Ok(line) = serde_json::from_str::<LogLine>(&line) else { break };
                if line.step > step {
                    break;
                }
                lines.push(line);
            }
        }
        let kept: String = lines.iter().map(|line| text(line) + "\n").collect();
        replace_bytes(path, false, kept.as_bytes())?;
        let file = File::options().append(true).open(path).map_err(Error::io("open", path))?;
        Ok(Self { path: path.to_owned(), file, lines })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn push(&mut self, line: LogLine) -> Result<()> {
        writeln!(self.file, "{}", text(&line)).map_err(Error::io("write", &self.path))?;
        self.lines.push(line);
        Ok(())
    }

    /// All lines so far.
    pub fn lines(&self) -> &[LogLine] {
        &self.lines
    }
}

fn text(line: &LogLine) -> String {
    serde_json::to_string(line).unwrap_or_default()
}
