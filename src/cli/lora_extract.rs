//! `lora extract`: a LoRA adapter from a base and its fine-tune.

use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::model_arg::{check_one_checkpoint, open_model};
use super::outcome::Outcome;
use super::output_args::OutputArgs;
use super::progress::bytes_bar;
use super::reading_args::{ReadingArgs, dequantized};
use super::terminal::Terminal;
use crate::checkpoint::{Checkpoint, Link};
use crate::lora::{Embeddings, RankChoice, RankRule, extract_lora};
use crate::plan::Filter;
use crate::report::{extraction_json, extraction_text, json_text};
use crate::surgery::{Input, Output, Pairing, Policies, Provenance, Vocab};
use crate::{Error, Result};

/// Extract a PEFT adapter from a fine-tune by singular value decomposition
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Extract {
    /// The pre-trained checkpoint
    base: PathBuf,
    /// The checkpoint that was fine-tuned from it, or BASE+ADAPTER
    tuned: PathBuf,
    #[command(flatten)]
    rank: RankArgs,
    /// The largest rank of a module
    #[arg(long, value_name = "R", conflicts_with = "rank", value_parser = clap::value_parser!(u32).range(1..=4096))]
    max_rank: Option<u32>,
    /// Only tensors whose names match; may be repeated
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// No tensors whose names match; may be repeated
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Embeddings and output head
    #[arg(long, value_enum, value_name = "FATE", default_value_t = EmbeddingsArg::Save)]
    embeddings: EmbeddingsArg,
    /// Norms, biases and other tensors that get no factors
    #[arg(long, value_enum, value_name = "FATE", default_value_t = NormsArg::Save)]
    norms: NormsArg,
    #[command(flatten)]
    output: OutputArgs,
    /// How many matrices to list, those of the largest error first
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Seed of the random projection
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    reading: ReadingArgs,
}

/// What decides the rank of a module.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct RankArgs {
    /// The rank of the adapter
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=4096))]
    rank: Option<u32>,
    /// The smallest rank of each module that holds this share of the squared singular values of its change
    #[arg(long, value_name = "SHARE")]
    energy: Option<f64>,
    /// In each module one rank for each singular value of its change above this
    #[arg(long, value_name = "S")]
    threshold: Option<f64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum EmbeddingsArg {
    /// Factors, as matrices get them; saved whole where the numbers of rows differ
    Lora,
    /// Saved whole, in modules_to_save
    Save,
    /// Left out
    Skip,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum NormsArg {
    /// Saved whole
    Save,
    /// Left out
    Skip,
}

const EXAMPLES: &str = "\
Examples:
  # The fine-tune as an adapter of rank 32
  hft-surgery lora extract llama llama-chat --rank 32 --out adapter

  # As small as holds nine tenths of the change of each matrix
  hft-surgery lora extract llama llama-chat --energy 0.9 --max-rank 64 --out adapter

  # Attention alone, for a program
  hft-surgery lora extract llama llama-chat --rank 8 --include '*self_attn*' --embeddings skip --out adapter --json";

impl RankArgs {
    fn choice(&self) -> Result<RankChoice> {
        let wrong = |option: &str, got: f64, expected: &str| {
            Err(Error::usage(format!("{option}: got {got}, expected {expected}"), ""))
        };
        match (self.rank, self.energy, self.threshold) {
            (_, Some(share), _) if !(share > 0.0 && share <= 1.0) => {
                wrong("--energy", share, "a share above 0 and at most 1")
            }
            (_, _, Some(least)) if !(least >= 0.0 && least.is_finite()) => {
                wrong("--threshold", least, "a singular value of 0 or more")
            }
            (_, Some(share), _) => Ok(RankChoice::Energy(share)),
            (_, _, Some(least)) => Ok(RankChoice::Threshold(least)),
            (rank, None, None) => Ok(RankChoice::Rank(rank.unwrap_or(1) as usize)),
        }
    }
}

impl Extract {
    pub(super) fn run(&self, terminal: &Terminal) -> Result<Outcome> {
        let rank = RankRule { choice: self.rank.choice()?, most: self.max_rank.map(|most| most as usize) };
        // PEFT loads the base by the path in adapter_config.json.
        check_one_checkpoint(&self.base, "the base of an extraction")?;
        let base = Checkpoint::open(&self.base, self.reading.access())?;
        let tuned = open_model(&self.tuned, self.reading.access(), terminal)?;
        let inputs = vec![Input::new("base", &base, None), Input::new("tuned", &tuned, None)];
        let (base, tuned) = (dequantized(base, terminal)?, dequantized(tuned, terminal)?);
        let names: Vec<&str> = tuned.tensors().map(|tensor| tensor.info.name.as_str()).collect();
        let include = Filter::new("--include", &self.include, Vec::new())?;
        let exclude = Filter::new("--exclude", &self.exclude, Vec::new())?;
        include.check(&names)?;
        exclude.check(&names)?;
        let included =
            |name: &str| include.passes(name) && (self.exclude.is_empty() || !exclude.passes(name));
        let policies = Policies { cast: true, vocab: Vocab::Common, ..Policies::default() };
        let pairing = Pairing::new(&base, &tuned, policies)?;
        let provenance = Provenance { command: "lora extract", options: self.recorded(), inputs };
        let output = Output {
            path: self.output.path()?,
            force: self.output.force,
            also_read: &[],
            sync: self.output.sync(),
            link: Link::Copy,
        };
        let extract = crate::lora::Extract {
            rank,
            included: &included,
            embeddings: self.embeddings.into(),
            norms: self.norms == NormsArg::Save,
            seed: self.seed,
        };
        let bar = bytes_bar(terminal, "extract", tuned.tensor_bytes());
        let found = extract_lora(&pairing, extract, &output, &provenance, &|n| bar.inc(n))?;
        bar.finish_and_clear();
        found.notes.iter().for_each(|note| terminal.warn(note));
        if self.json {
            terminal.print(&json_text(&extraction_json(&found)))?;
        } else {
            terminal.print(&extraction_text(&found, self.top))?;
        }
        Ok(Outcome::Success)
    }

    /// The options that decide the bytes of the result.
    fn recorded(&self) -> Map<String, Value> {
        let name =
            |value: Option<clap::builder::PossibleValue>| json!(value.map(|v| v.get_name().to_owned()));
        let RankArgs { rank, energy, threshold } = self.rank;
        let all = [
            ("rank", json!(rank)),
            ("energy", json!(energy)),
            ("threshold", json!(threshold)),
            ("max_rank", json!(self.max_rank)),
            ("include", json!(self.include)),
            ("exclude", json!(self.exclude)),
            ("embeddings", name(self.embeddings.to_possible_value())),
            ("norms", name(self.norms.to_possible_value())),
        ];
        all.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

impl From<EmbeddingsArg> for Embeddings {
    fn from(arg: EmbeddingsArg) -> Self {
        match arg {
            EmbeddingsArg::Lora => Self::Lora,
            EmbeddingsArg::Save => Self::Save,
            EmbeddingsArg::Skip => Self::Skip,
        }
    }
}
