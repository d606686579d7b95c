//! `lora combine`: several LoRA adapters into one.

use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::hash_args::HashArgs;
use super::lora_args::check_weights;
use super::outcome::Outcome;
use super::output_args::OutputArgs;
use super::reading_args::ReadingArgs;
use super::terminal::Terminal;
use crate::checkpoint::Link;
use crate::error::Escaped;
use crate::lora::{Adapter, CombinationType, MajoritySign, TaskRule, WeightedAdapter, combine};
use crate::surgery::{Output, Provenance};
use crate::{Error, Faults, Result};

/// Combine PEFT adapters into one, as PEFT's add_weighted_adapter does
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Combine {
    /// The adapters
    #[arg(required = true, value_name = "ADAPTER")]
    adapters: Vec<PathBuf>,
    /// The factor of each adapter, in their order, such as 1,0.5
    #[arg(long, required = true, value_name = "W", num_args = 1.., value_delimiter = ',', allow_negative_numbers = true)]
    weights: Vec<f64>,
    /// How the adapters become one
    #[arg(long, value_enum, value_name = "TYPE", default_value_t = TypeArg::Svd)]
    combination_type: TypeArg,
    /// The share of elements that stay, for the types that prune
    #[arg(long, value_name = "D", allow_negative_numbers = true)]
    density: Option<f64>,
    /// What elects the sign of an element, for the types with `ties` [default: total]
    #[arg(long, value_enum, value_name = "METHOD")]
    majority_sign_method: Option<SignArg>,
    /// The rank of the result, for the types with `svd` [default: the largest of the adapters]
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=4096))]
    rank: Option<u32>,
    /// Seed of the draws, for the types with `dare` [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    hash: HashArgs,
    #[command(flatten)]
    reading: ReadingArgs,
}

const EXAMPLES: &str = "\
Examples:
  # The sum of two adapters, at the larger of their ranks
  hft-surgery lora combine math code --weights 1,0.5 --combination-type svd --out both

  # Without loss: the rank is the sum of the ranks
  hft-surgery lora combine math code --weights 1,0.5 --combination-type cat --out both

  # TIES over the factors
  hft-surgery lora combine math code --weights 1,1 --combination-type ties --density 0.3 --out both";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum TypeArg {
    /// √(w s) A and √(w s) B, summed
    Linear,
    /// The factors one after the other: exact, of the sum of the ranks
    Cat,
    /// Σ w s B A, decomposed
    Svd,
    /// TIES over A and over B
    Ties,
    /// TIES over s B A, decomposed
    TiesSvd,
    /// DARE over A and over B
    DareLinear,
    /// DARE with TIES over A and over B
    DareTies,
    /// DARE over s B A, decomposed
    DareLinearSvd,
    /// DARE with TIES over s B A, decomposed
    DareTiesSvd,
    /// The largest elements of A and of B, summed
    MagnitudePrune,
    /// The largest elements of s B A, summed and decomposed
    MagnitudePruneSvd,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SignArg {
    /// The sign of the sum
    Total,
    /// The sign that most have
    Frequency,
}

impl TypeArg {
    fn kind(self) -> CombinationType {
        use CombinationType::{Cat, Factors, Products};
        match self {
            Self::Linear => Factors(TaskRule::Linear),
            Self::Cat => Cat,
            Self::Svd => Products(TaskRule::Linear),
            Self::Ties => Factors(TaskRule::Ties),
            Self::TiesSvd => Products(TaskRule::Ties),
            Self::DareLinear => Factors(TaskRule::DareLinear),
            Self::DareTies => Factors(TaskRule::DareTies),
            Self::DareLinearSvd => Products(TaskRule::DareLinear),
            Self::DareTiesSvd => Products(TaskRule::DareTies),
            Self::MagnitudePrune => Factors(TaskRule::MagnitudePrune),
            Self::MagnitudePruneSvd => Products(TaskRule::MagnitudePrune),
        }
    }
}

impl Combine {
    pub(super) fn run(&self, terminal: &Terminal) -> Result<Outcome> {
        check_weights("--weights", &self.weights, self.adapters.len())?;
        let how = self.how(terminal)?;
        let mut faults = Faults::default();
        let open = |path: &PathBuf| Adapter::open(path, self.reading.access());
        let adapters: Vec<Adapter> =
            self.adapters.iter().filter_map(|path| faults.keep(open(path))).collect();
        faults.into_result()?;
        let weighted: Vec<WeightedAdapter<'_>> = adapters
            .iter()
            .zip(&self.weights)
            .map(|(adapter, weight)| WeightedAdapter { adapter, weight: *weight })
            .collect();
        let mut inputs = Vec::new();
        for adapter in &adapters {
            inputs.push(self.hash.input("adapter", adapter.checkpoint(), terminal)?);
        }
        let provenance = Provenance { command: "lora combine", options: self.recorded(), inputs };
        let path = self.output.path()?;
        let output = Output {
            path,
            force: self.output.force,
            also_read: &self.adapters,
            sync: self.output.sync(),
            link: Link::Copy,
        };
        let found = combine(&weighted, how, &output, &provenance)?;
        found.notes.iter().for_each(|note| terminal.warn(note));
        terminal.note(&format!(
            "wrote {}: {} modules at rank {}, {} tensors saved whole",
            Escaped(path),
            found.modules,
            found.rank,
            found.saved
        ));
        Ok(Outcome::Success)
    }

    /// The parameters of the combination, checked as PEFT checks them. Names the options that change nothing.
    fn how(&self, terminal: &Terminal) -> Result<crate::lora::Combine> {
        let name = self.type_name();
        let kind = self.combination_type.kind();
        let (rule, decomposes) = match kind {
            CombinationType::Cat => (TaskRule::Linear, false),
            CombinationType::Factors(rule) => (rule, false),
            CombinationType::Products(rule) => (rule, true),
        };
        let alone = self.adapters.len() == 1;
        if alone && self.combination_type != TypeArg::Linear {
            terminal.note(&format!("one adapter: combined as `linear`, not as `{name}`, as in PEFT"));
        }
        let density = match self.density {
            Some(density) if !(density >= 0.0 && density.is_finite()) => {
                let fault = format!("--density: got {density}, expected a share of 0 or more");
                return Err(Error::usage(fault, ""));
            }
            None if rule.prunes() && !alone => {
                let fault = format!("--combination-type {name} needs --density");
                return Err(Error::usage(fault, "such as --density 0.3, the share of elements that stay"));
            }
            Some(density) if density == 0.0 && rule.draws() => {
                let fault = "--density: got 0, expected more: what is drawn is divided by it";
                return Err(Error::usage(fault, ""));
            }
            density => density.unwrap_or(1.0),
        };
        if rule.prunes() && density >= 1.0 && !alone {
            terminal.warn(&format!("--density {density}: every element stays"));
        }
        let needless = [
            ("--density", self.density.is_some() && !rule.prunes()),
            ("--majority-sign-method", self.majority_sign_method.is_some() && !rule.elects_sign()),
            ("--rank", self.rank.is_some() && !decomposes),
            ("--seed", self.seed.is_some() && !rule.draws()),
        ];
        for (option, _) in needless.iter().filter(|(_, needless)| *needless) {
            terminal.warn(&format!("{option} changes nothing with --combination-type {name}"));
        }
        Ok(crate::lora::Combine {
            kind,
            density,
            majority_sign: match self.majority_sign_method {
                Some(SignArg::Frequency) => MajoritySign::Frequency,
                Some(SignArg::Total) | None => MajoritySign::Total,
            },
            rank: self.rank.map(|rank| rank as usize),
            seed: self.seed.unwrap_or(0),
        })
    }

    fn type_name(&self) -> String {
        self.combination_type
            .to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The options that decide the bytes of the result.
    fn recorded(&self) -> Map<String, Value> {
        let sign = self.majority_sign_method.and_then(|method| method.to_possible_value());
        let all = [
            ("weights", json!(self.weights)),
            ("combination_type", json!(self.type_name())),
            ("density", json!(self.density)),
            ("majority_sign_method", json!(sign.map(|value| value.get_name().to_owned()))),
            ("rank", json!(self.rank)),
        ];
        all.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}
