//! `eval`: the loss of a model on rows.

use std::path::PathBuf;

use serde_json::json;

use super::device::DeviceArgs;
use super::outcome::Outcome;
use super::progress::tokens_bar;
use super::reading_args::{ReadingArgs, dequantized};
use super::rows::{Loader, in_batches, tokenizer};
use super::terminal::Terminal;
use crate::checkpoint::Checkpoint;
use crate::data::{Batch, Limits};
use crate::error::Escaped;
use crate::eval::{Evaluation, MeanLoss, eval_checkpoint};
use crate::model::{Capacity, ModelConfig, unused};
use crate::plan::is_buffer;
use crate::report::{grouped, json_text};
use crate::{Error, Result};

/// Loss and perplexity of a model on rows of any training format
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Eval {
    /// The checkpoint
    #[arg(long, value_name = "CKPT")]
    model: PathBuf,
    /// The rows
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Rows that go through the model at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch_size: usize,
    /// Tokens of a row at most; longer rows lose their end [default: no limit]
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reading: ReadingArgs,
}

const EXAMPLES: &str = "\
Examples:
  # Loss and perplexity
  hft-surgery eval --model llama --data rows.jsonl

  # On the CPU, for a program
  hft-surgery eval --model llama --data rows.jsonl --device cpu --json";

impl Eval {
    /// Works on a thread of the pool, as training does.
    pub(super) fn run(&self, terminal: &Terminal) -> Result<Outcome> {
        rayon::scope(|_| self.work(terminal))
    }

    fn work(&self, terminal: &Terminal) -> Result<Outcome> {
        if self.batch_size == 0 {
            return Err(Error::usage("--batch-size: got 0, expected 1 or more", ""));
        }
        let mut device = self.device.open()?;
        let source = dequantized(Checkpoint::open(&self.model, self.reading.whole())?, terminal)?;
        let config = ModelConfig::read(&source)?;
        let vocab_size = config.vocab_size as u32;
        let tokenizer = tokenizer(source.root())?;
        let limits = Limits { max_length: self.max_length, vocab_size };
        let dataset = Loader { tokenizer: tokenizer.as_ref(), limits, terminal }.held_out(&self.data)?;
        let batches = in_batches(&dataset.rows, self.batch_size);
        let longest = batches.iter().map(Batch::max_seqlen).max().unwrap_or(0);
        let most = batches.iter().map(|batch| batch.input_ids.len()).max().unwrap_or(0);
        let tokens = longest.max(device.tokens_at_once().min(most));
        let capacity = Capacity { tokens, positions: longest };
        let bar = tokens_bar(terminal, "evaluate", batches.iter().map(|b| b.input_ids.len() as u64).sum());
        let evaluation = Evaluation { batches: &batches, capacity, done: &|tokens| bar.set_position(tokens) };
        let MeanLoss { nats: loss, targets: tokens } = eval_checkpoint(&mut device, &source, evaluation)?;
        bar.finish_and_clear();
        source.check_unchanged()?;
        let unused: Vec<&str> =
            unused(&source, &config).into_iter().filter(|name| !is_buffer(name)).collect();
        if let Some(first) = unused.first() {
            let (count, first) = (unused.len(), Escaped(*first));
            terminal.warn(&format!("the model does not compute with {count} tensors, of which `{first}`"));
        }
        let (perplexity, rows) = (loss.exp(), dataset.rows.len());
        terminal.print(&if self.json {
            json_text(&json!({"loss": loss, "perplexity": perplexity, "tokens": tokens, "rows": rows}))
        } else {
            let (tokens, rows) = (grouped(tokens), grouped(rows as u64));
            format!("loss {loss:.6}\nperplexity {perplexity:.4}\ntokens {tokens}\nrows {rows}\n")
        })?;
        Ok(Outcome::Success)
    }
}
