//! `eval`: the loss or the accuracy of models on rows.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use indicatif::ProgressBar;

use super::device::DeviceArgs;
use super::eval_data::EvalData;
use super::model_arg::open_model;
use super::outcome::Outcome;
use super::progress::tokens_bar;
use super::reading_args::{ReadingArgs, dequantized};
use super::rows::in_batches;
use super::terminal::Terminal;
use crate::backend::Device;
use crate::checkpoint::Checkpoint;
use crate::data::Batch;
use crate::error::Escaped;
use crate::eval::{EvalRows, Metric, RowSum, Scores, eval_checkpoint, mean, paired_difference};
use crate::model::{ModelConfig, check_tensors, unused};
use crate::plan::is_buffer;
use crate::report::{
    Evaluation, Measured, evaluation_csv, evaluation_json, evaluation_table, json_text, single_json,
    single_text,
};
use crate::{Error, Result};

/// Loss and perplexity of models on rows of any training format, accuracy on rows of multiple choice
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Eval {
    /// The checkpoint, or BASE+ADAPTER, merged in memory; may be repeated, and every further one is compared with the first
    #[arg(long, required = true, value_name = "CKPT")]
    model: Vec<PathBuf>,
    /// The rows, as FILE or NAME=FILE; may be repeated. Rows with `question`, `choices` and `answer` are multiple choice
    #[arg(long, required = true, value_name = "FILE")]
    data: Vec<PathBuf>,
    /// Rows that go through the model at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch_size: usize,
    /// Tokens of a row at most; longer rows lose their end, questions their beginning [default: no limit]
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
    /// Seed of the bootstrap that tells how sure a difference between models is
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print JSON: a list for several models or files
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print one line of comma-separated values per model and file
    #[arg(long)]
    csv: bool,
    #[command(flatten)]
    reading: ReadingArgs,
}

const EXAMPLES: &str = "\
Examples:
  # Loss and perplexity
  hft-surgery eval --model llama --data rows.jsonl

  # What did fine-tuning give, what did it take, and what does a half-reset bring back?
  hft-surgery eval --model llama --model llama-chat --model half --data task=task.jsonl --data arc=arc.jsonl

  # On the CPU, for a program
  hft-surgery eval --model llama --data rows.jsonl --device cpu --json";

/// A model with the rows that it is measured on.
struct Subject {
    name: String,
    source: Checkpoint,
    rows: Vec<Rc<EvalRows>>,
}

impl Eval {
    /// Works on a thread of the pool, as training does.
    pub(super) fn run(&self, terminal: &Terminal) -> Result<Outcome> {
        rayon::scope(|_| self.work(terminal))
    }

    fn work(&self, terminal: &Terminal) -> Result<Outcome> {
        for (option, value) in [("--batch-size", Some(self.batch_size)), ("--max-length", self.max_length)] {
            if value == Some(0) {
                return Err(Error::usage(format!("{option}: got 0, expected 1 or more"), ""));
            }
        }
        let mut device = self.device.open()?;
        let mut data = EvalData::open(&self.data, self.max_length, terminal)?;
        let subjects: Vec<Subject> =
            self.model.iter().map(|path| self.subject(path, &mut data, terminal)).collect::<Result<_>>()?;
        let sequences = subjects.iter().flat_map(|subject| &subject.rows).flat_map(|rows| rows.sequences());
        let bar = tokens_bar(terminal, "evaluate", sequences.map(|row| row.input_ids.len() as u64).sum());
        let scores: Vec<Vec<Scores>> =
            subjects.iter().map(|subject| self.measure(subject, &mut device, &bar)).collect::<Result<_>>()?;
        bar.finish_and_clear();
        let mut all = Vec::new();
        for (subject, own) in subjects.iter().zip(&scores) {
            for ((file, first), scores) in data.files.iter().zip(&scores[0]).zip(own) {
                let names = [&file.name, &subject.name, &subjects[0].name];
                let first = Some(first).filter(|first| compared(first, scores, names, terminal));
                all.push(Evaluation {
                    model: subject.name.clone(),
                    data: file.name.clone(),
                    rows: scores.rows,
                    tokens: scores.tokens,
                    measured: self.measured(scores, first),
                });
            }
        }
        let files: Vec<String> = data.files.into_iter().map(|file| file.name).collect();
        terminal.print(&self.shown(&all, &files))?;
        Ok(Outcome::Success)
    }

    /// Opens a model and reads the rows for it.
    fn subject(&self, path: &Path, data: &mut EvalData<'_>, terminal: &Terminal) -> Result<Subject> {
        let source = dequantized(open_model(path, self.reading.whole(), terminal)?, terminal)?;
        let config = ModelConfig::read(&source)?;
        check_tensors(&source, &config)?;
        let rows = data.rows(&source, &config)?;
        let unused: Vec<&str> =
            unused(&source, &config).into_iter().filter(|name| !is_buffer(name)).collect();
        if let Some(first) = unused.first() {
            let (count, first) = (unused.len(), Escaped(*first));
            let model = if self.model.len() > 1 { format!("{}: ", Escaped(path)) } else { String::new() };
            terminal
                .warn(&format!("{model}the model does not compute with {count} tensors, of which `{first}`"));
        }
        let name = path.to_string_lossy().into_owned();
        Ok(Subject { name, source, rows })
    }

    /// The scores of a model on each file.
    fn measure(&self, subject: &Subject, device: &mut Device, bar: &ProgressBar) -> Result<Vec<Scores>> {
        // Batches of one file only, so that its scores do not depend on the other files.
        let batches = |rows: &Rc<EvalRows>| in_batches(rows.sequences(), self.batch_size);
        let batches: Vec<Batch> = subject.rows.iter().flat_map(batches).collect();
        let mut computed = |batch: &Batch| {
            bar.inc(batch.input_ids.len() as u64);
            true
        };
        let losses = eval_checkpoint(device, &subject.source, &batches, &mut computed)?;
        subject.source.check_unchanged()?;
        let mut rest = losses.as_slice();
        let scores = |rows: &Rc<EvalRows>| {
            let (own, after) = rest.split_at(rows.sequences().len());
            rest = after;
            rows.scores(own)
        };
        subject.rows.iter().map(scores).collect()
    }

    fn measured(&self, scores: &Scores, first: Option<&Scores>) -> Vec<Measured> {
        let measured = |(at, (metric, rows)): (usize, &(Metric, Vec<RowSum>))| Measured {
            metric: *metric,
            mean: mean(rows),
            difference: first.map(|first| paired_difference(&first.metrics[at].1, rows, self.seed)),
        };
        scores.metrics.iter().enumerate().map(measured).collect()
    }

    fn shown(&self, all: &[Evaluation], files: &[String]) -> String {
        match all {
            _ if self.csv => evaluation_csv(all),
            [one] if self.json => json_text(&single_json(one)),
            [one] => single_text(one),
            _ if self.json => json_text(&evaluation_json(all)),
            _ => evaluation_table(all, files),
        }
    }
}

/// Whether `other` is another model than `first`, with means over the same rows and, for a loss, over as many tokens in
/// each. Says why not, with the names of the file and of both models.
fn compared(first: &Scores, other: &Scores, names: [&String; 3], terminal: &Terminal) -> bool {
    if std::ptr::eq(first, other) {
        return false;
    }
    let counts = |scores: &Scores| -> Vec<f64> {
        scores.metrics.iter().flat_map(|(_, rows)| rows).map(|row| row.count).collect()
    };
    let why = if first.locations != other.locations {
        "they have other rows"
    } else if counts(first) != counts(other) {
        "their tokenizers divide the rows into other tokens"
    } else {
        return true;
    };
    let [file, other, first] = names.map(Escaped);
    terminal.warn(&format!("{file}: no difference of {other} to {first}: {why}"));
    false
}
