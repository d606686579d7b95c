//! `reset`: the half-reset.

use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::hash_args::HashArgs;
use super::link_args::LinkArgs;
use super::map_args::MapArgs;
use super::model_arg::{open_model, open_model_to_copy, open_model_whole};
use super::model_card_args::ModelCardArgs;
use super::outcome::Outcome;
use super::output_args::OutputArgs;
use super::progress::bytes_bar;
use super::reading_args::{ReadingArgs, dequantized};
use super::report_file::ReportFile;
use super::roles::warn_of_roles;
use super::selection::{SelectionArgs, uneven};
use super::sweep::{Sweep, SweepArgs};
use super::terminal::{Terminal, list};
use crate::checkpoint::CommandInputs;
use crate::error::Escaped;
use crate::plan::{Inventory, Plan, Summary};
use crate::report::{Half, bytes, json_text, selection_json, selection_table};
use crate::surgery::{OnMissing, Output, Pairing, Policies, Provenance, Vocab, align_names};
use crate::{Error, Result};

/// Put a share of a fine-tuned model back to its base (half-reset)
#[derive(Debug, clap::Args)]
#[command(
    mut_arg("out", |out| out.required(false).required_unless_present_any(["dry_run", "sweep"])),
    mut_arg("device", |device| device.requires("sweep").conflicts_with_all(["out", "dry_run"])),
    mut_arg("compute_dtype", |dtype| dtype.requires("sweep").conflicts_with_all(["out", "dry_run"])),
    override_usage = "hft-surgery reset [OPTIONS] --base <CKPT> --tuned <CKPT> --out <DIR>
       hft-surgery reset [OPTIONS] --base <CKPT> --tuned <CKPT> --sweep <R,R,…> --eval <FILE>...",
    after_long_help = EXAMPLES
)]
pub(super) struct Reset {
    /// The pre-trained checkpoint, or BASE+ADAPTER
    #[arg(long, value_name = "CKPT")]
    base: PathBuf,
    /// The checkpoint that was fine-tuned from it, or BASE+ADAPTER
    #[arg(long, value_name = "CKPT")]
    tuned: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
    /// The share that returns to base, 0 to 1 [default: 0.5]
    #[arg(long, conflicts_with = "sweep", value_name = "R", allow_negative_numbers = true)]
    ratio: Option<f64>,
    /// Return what this plan freezes, keep what it trains
    #[arg(long, value_name = "FILE", conflicts_with_all = ["ratio", "strategy", "balance", "embeddings", "lm_head", "norms", "train", "freeze", "seed", "round", "granularity", "selector", "complement_of", "sweep"])]
    plan: Option<PathBuf>,
    /// Write the plan that is carried out here too
    #[arg(long, value_name = "FILE")]
    write_plan: Option<PathBuf>,
    /// Show what would be done; write nothing but --write-plan
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Convert base values where the two sides differ in type
    #[arg(long)]
    cast: bool,
    /// What to do with tensors that only one side has
    #[arg(long, value_enum, default_value_t = OnMissingArg::Error, value_name = "POLICY")]
    on_missing: OnMissingArg,
    /// What to do when the vocabularies differ in size
    #[arg(long, value_enum, default_value_t = VocabArg::Error, value_name = "POLICY")]
    vocab: VocabArg,
    #[command(flatten)]
    map: MapArgs,
    #[command(flatten)]
    link: LinkArgs,
    #[command(flatten)]
    hash: HashArgs,
    #[command(flatten)]
    card: ModelCardArgs,
    #[command(flatten)]
    reading: ReadingArgs,
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    sweep: SweepArgs,
}

const EXAMPLES: &str = "\
Examples:
  # Half of each kind of matrix in each block returns to base
  hft-surgery reset --base llama --tuned llama-chat --out llama-half

  # Measure the trade-off between both sides at several shares; write no checkpoint
  hft-surgery reset --base llama --tuned llama-chat --sweep 0,0.25,0.5,0.75,1 --eval task=task.jsonl --eval general=text.jsonl

  # Of each matrix, keep the half of the elements that changed most
  hft-surgery reset --base llama --tuned llama-chat --out llama-top --granularity element --selector top-magnitude";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnMissingArg {
    /// Refuse
    Error,
    /// Keep what only tuned has, leave out what only base has
    KeepTuned,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum VocabArg {
    /// Refuse
    Error,
    /// Return common rows, keep the tuned side's extra rows
    Common,
}

impl Reset {
    pub(super) fn run(&self, terminal: &Terminal) -> Result<Outcome> {
        if self.sweep.is_asked_for() {
            return rayon::scope(|_| self.measure(terminal));
        }
        let mut base = open_model(&self.base, self.reading.access(), terminal)?;
        let tuned = open_model_to_copy(&self.tuned, self.reading.access(), terminal)?;
        warn_of_roles(&base, &tuned, terminal);
        align_names([&mut base], &tuned, &self.map.maps)?;
        let read = CommandInputs::of([&base, &tuned]).with(self.also_read());
        let plan_file = self.write_plan.as_deref();
        let plan_file =
            plan_file.map(|path| ReportFile::check(path, "--write-plan", &read, Plan::MARKER, false));
        let plan_file = plan_file.transpose()?;
        let inventory = Inventory::of(&tuned);
        let plan = self.choose(&inventory)?;
        let pairing = Pairing::new(&base, &tuned, self.policies())?;
        let reset = crate::reset::Reset::new(pairing, &inventory, &plan)?;
        tell(&reset, &inventory, terminal);
        let summary = Summary::with_kept(&inventory, &plan, &|name| reset.keeps(name));
        if !self.dry_run {
            self.write(&reset, terminal)?;
            self.card.write(self.output.path()?, self.output.sync(), terminal)?;
        }
        if let Some(file) = plan_file {
            file.write(&plan.to_json(), terminal)?;
        }
        let result = if self.json {
            let json = selection_json(&summary, &plan, Half::Frozen);
            json_text(&json)
        } else {
            selection_table(&summary, &plan, Half::Frozen, true)
        };
        terminal.print(&result)?;
        if let Some((ratio, other)) = self.ratio.and_then(uneven) {
            terminal.note(&format!(
                "--ratio {ratio} of reset is the share that returns to base; for plan and train, which count what is \
                 trainable, it is {other}"
            ));
        }
        if self.dry_run {
            terminal.note(&format!("dry run: {} would be written", bytes(reset.bytes())));
        } else {
            let path = self.output.path()?;
            terminal.note(&format!("wrote {}: {}", Escaped(path), bytes(reset.bytes())));
            terminal.next(&["diff".as_ref(), self.base.as_os_str(), path.as_os_str()]);
        }
        Ok(Outcome::Success)
    }

    /// Measures half-resets of several ratios on a thread of the pool, as `eval` does, and writes no checkpoint.
    fn measure(&self, terminal: &Terminal) -> Result<Outcome> {
        let open = |path| dequantized(open_model_whole(path, &self.reading, terminal)?, terminal);
        let (mut base, tuned) = (open(&self.base)?, open(&self.tuned)?);
        warn_of_roles(&base, &tuned, terminal);
        align_names([&mut base], &tuned, &self.map.maps)?;
        let (args, selection, json) = (&self.sweep, &self.selection, self.json);
        let sweep = Sweep { args, selection, json, base: &base, tuned: &tuned, policies: self.policies() };
        sweep.run(terminal)
    }

    /// The plan: what is trainable keeps its tuned value, so the share is the other one.
    fn choose(&self, inventory: &Inventory) -> Result<Plan> {
        if let Some(path) = &self.plan {
            return Plan::read(path);
        }
        let ratio = self.ratio.unwrap_or(0.5);
        if !(0.0..=1.0).contains(&ratio) {
            return Err(Error::usage(
                format!("--ratio out of range: got {ratio}, expected 0 to 1"),
                "--ratio is the share that returns to base",
            ));
        }
        self.selection.plan(inventory, 1.0 - ratio)
    }

    /// The files that are read beside the checkpoints.
    fn also_read(&self) -> impl Iterator<Item = &PathBuf> {
        self.plan.iter().chain(self.selection.complement_of())
    }

    fn policies(&self) -> Policies {
        Policies {
            on_missing: match self.on_missing {
                OnMissingArg::Error => OnMissing::Error,
                OnMissingArg::KeepTuned => OnMissing::KeepTuned,
            },
            vocab: match self.vocab {
                VocabArg::Error => Vocab::Error,
                VocabArg::Common => Vocab::Common,
            },
            cast: self.cast,
        }
    }

    fn write(&self, reset: &crate::reset::Reset<'_>, terminal: &Terminal) -> Result<()> {
        let path = self.output.path()?;
        let also_read: Vec<PathBuf> = self.also_read().cloned().collect();
        let output = Output {
            path,
            force: self.output.force,
            also_read: &also_read,
            sync: self.output.sync(),
            link: self.link.link(),
        };
        let provenance = Provenance {
            command: "reset",
            options: self.options(),
            inputs: vec![
                self.hash.input("base", reset.pairing().base, terminal)?,
                self.hash.input("tuned", reset.pairing().tuned, terminal)?,
            ],
        };
        let bar = bytes_bar(terminal, "write", reset.bytes());
        reset.write(&output, &provenance, &|done| bar.set_position(done))?;
        bar.finish_and_clear();
        Ok(())
    }

    /// The options that decide the bytes of the result and are not in the plan.
    fn options(&self) -> Map<String, Value> {
        let mut options = Map::new();
        if self.plan.is_none() {
            options.insert("ratio".to_owned(), json!(self.ratio.unwrap_or(0.5)));
        }
        options.insert("cast".to_owned(), json!(self.cast));
        let on_missing = if self.on_missing == OnMissingArg::Error { "error" } else { "keep-tuned" };
        options.insert("on_missing".to_owned(), json!(on_missing));
        let vocab = if self.vocab == VocabArg::Error { "error" } else { "common" };
        options.insert("vocab".to_owned(), json!(vocab));
        if !self.map.maps.is_empty() {
            options.insert("map".to_owned(), json!(self.map.recorded()));
        }
        options
    }
}

/// Says what a policy settled or what the names do not tell.
fn tell(reset: &crate::reset::Reset<'_>, inventory: &Inventory, terminal: &Terminal) {
    const MOST: usize = 5;
    let other: Vec<&str> = inventory.other_names();
    if !other.is_empty() {
        terminal.warn(&format!("category `other`, place not known from the name: {}", list(&other, MOST)));
    }
    let kept: Vec<&str> = reset.pairing().only_in_tuned().collect();
    if !kept.is_empty() {
        terminal.warn(&format!("only in tuned, kept: {}", list(&kept, MOST)));
    }
    let dropped = reset.pairing().only_in_base();
    if !dropped.is_empty() {
        terminal.warn(&format!("only in base, left out: {}", list(dropped, MOST)));
    }
    let respelled: Vec<String> =
        reset.pairing().respelled().map(|(base, tuned)| format!("{base} as {tuned}")).collect();
    if !respelled.is_empty() {
        let names: Vec<&str> = respelled.iter().map(String::as_str).collect();
        terminal.note(&format!("paired under two spellings: {}", list(&names, MOST)));
    }
    for (file, why) in &reset.sidecars().left {
        let line = format!("left behind: {} ({why})", Escaped(file));
        if *why == "link out of the checkpoint" || *why == "broken link" {
            terminal.warn(&line);
        } else {
            terminal.detail(&line);
        }
    }
}
