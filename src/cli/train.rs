//! `train`: masked fine-tuning.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::device::DeviceArgs;
use super::interrupt::stop_flag;
use super::link_args::LinkArgs;
use super::model_card_args::ModelCardArgs;
use super::objective_args::ObjectiveArgs;
use super::outcome::Outcome;
use super::output_args::OutputArgs;
use super::reading_args::ReadingArgs;
use super::rows::{Loader, in_batches, tokenizer};
use super::selection::SelectionArgs;
use super::terminal::Terminal;
use super::training_args::{DataArgs, OptimizerArgs, SavingArgs};
use super::training_watch::Watch;
use crate::backend::Device;
use crate::checkpoint::{
    Access, Checkpoint, CommandInputs, Sha256Hex, contents_digest, header_digest, read_small, replace_bytes,
};
use crate::data::{Batch, Batches, Dataset, Limits, Tokenizer, preview};
use crate::error::Escaped;
use crate::model::{Capacity, ModelConfig};
use crate::plan::{Inventory, Plan};
use crate::report::{json_text, loss_svg, samples_text, training_json, training_table};
use crate::train::{
    LogLine, NewRun, PreferenceLoss, RoundSpec, Run, RunDir, RunOptions, Stage, StartedBy, rows_digest,
};
use crate::{Error, Result};

/// Fine-tune the trainable tensors of a plan; all others stay bit-identical
#[derive(Debug, clap::Args)]
#[command(
    mut_arg("out", |out| out.required(false).required_unless_present("preview").help("The directory of the run and of its result")),
    mut_arg("force", |force| force.conflicts_with("resume").help("Set an existing checkpoint or run at --out aside, and remove it when this run has ended")),
    override_usage = "hft-surgery train [OPTIONS] --model <CKPT> --data <FILE> --out <DIR>",
    after_long_help = EXAMPLES
)]
pub(super) struct Train {
    /// The checkpoint to start from
    #[arg(long, value_name = "CKPT")]
    model: PathBuf,
    /// Training rows (.jsonl, .jsonl.zst, .parquet, or a directory); several: one stage each
    #[arg(long, value_name = "FILE", required = true)]
    data: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
    /// Read options from a YAML file with the names of these flags; flags on the command line win
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The share that is trained, 0 to 1; 1 is full fine-tuning [default: 0.5]
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    ratio: Option<f64>,
    /// Train what this plan trains; several: one for each round
    #[arg(long, value_name = "FILE", conflicts_with_all = ["ratio", "strategy", "balance", "embeddings", "lm_head", "norms", "train", "freeze", "granularity", "selector", "complement_of"])]
    plan: Vec<PathBuf>,
    /// Rounds, each with a plan of its own [default: one for each --data]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: Option<u32>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Go on with the run at --out, which was interrupted; its options need not be given again
    #[arg(long)]
    resume: bool,
    /// Print the first N rows as the model sees them, with what is learnt marked, and stop
    #[arg(long, value_name = "N")]
    preview: Option<usize>,
    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    link: LinkArgs,
    #[command(flatten)]
    card: ModelCardArgs,
    #[command(flatten)]
    reading: ReadingArgs,
    #[command(flatten)]
    objective: ObjectiveArgs,
    #[command(flatten)]
    rows: DataArgs,
    #[command(flatten)]
    optimizer: OptimizerArgs,
    #[command(flatten)]
    saving: SavingArgs,
    #[command(flatten)]
    selection: SelectionArgs,
}

const EXAMPLES: &str = "\
Examples:
  # Half Fine-Tuning: half of the parameters stay bit-identical
  hft-surgery train --model llama --data rows.jsonl --out llama-hft

  # Learn from preferences: rows of `prompt`, `chosen` and `rejected`
  hft-surgery train --objective dpo --model llama-hft --data pairs.jsonl --out llama-dpo

  # Go on after an interruption, with the options of its beginning
  hft-surgery train --out llama-hft --resume";

/// The rows of all stages, tokenized.
struct Data {
    stages: Vec<Dataset>,
    eval: Option<Dataset>,
}

impl Train {
    /// Works on a thread of the pool: one outside would sleep and be woken in each of thousands of parallel loops.
    pub(super) fn run(&self, terminal: &Terminal) -> Result<Outcome> {
        rayon::scope(|_| self.work(terminal))
    }

    fn work(&self, terminal: &Terminal) -> Result<Outcome> {
        self.optimizer.check(&self.saving)?;
        let preference = self.objective.preference(&self.rows, &self.saving)?;
        let source = Checkpoint::open(&self.model, self.reading.by(Access::Read))?;
        let config = ModelConfig::read(&source)?;
        let tokenizer = tokenizer(source.root())?;
        let limits = Limits { max_length: Some(self.rows.max_length), vocab_size: config.vocab_size as u32 };
        if let Some(n) = self.preview {
            return self.show(n, tokenizer.as_ref(), limits, preference, terminal);
        }
        let (out, force) = (self.output.path()?, self.output.force);
        let inputs = self.inputs(&source);
        RunDir::check(out, &inputs, force, self.resume)?;
        let rounds = self.plans(&source)?;
        let mut device = self.device.open()?;
        let data = self.load(tokenizer.as_ref(), limits, preference, terminal)?;
        drop(tokenizer);
        let options = self.describe(&source, &data, preference);
        let contents = contents_digest(&source, &|_| {})?;
        let stages = self.arrange(data, device.tokens_at_once(), preference)?;
        let stages: Vec<Stage<'_>> = stages.iter().map(Arranged::stage).collect();
        let tokens = stages.iter().map(|stage| stage.capacity.tokens).max().unwrap_or(0);
        let run = RunOptions {
            model: &self.model,
            round: self.optimizer.round_options(&self.saving, &config, tokens, preference),
            rounds: &rounds,
            stages: &stages,
            contents,
            options: options.clone(),
            seed: self.selection.seed(),
            tensorboard: self.saving.tensorboard,
            sync: self.output.sync(),
            link: self.link.link(),
            reading: self.reading.whole(),
        };
        Run::check(&run, &source)?;
        let space = Run::disk_bytes(&run, &source)?;
        let fingerprint = fingerprint(options, &source, &run)?;
        let dir = if self.resume {
            RunDir::resume(out, &inputs, &fingerprint, space)?
        } else {
            RunDir::create(
                out,
                &inputs,
                force,
                &NewRun { options: &fingerprint, started_by: StartedBy::this_process().as_ref(), space },
            )?
        };
        for path in dir.replaced() {
            terminal.note(&format!("kept until this run has ended: {}", Escaped(&path)));
        }
        drop(source);
        self.train(Run::new(run, dir), &mut device, rounds.len(), terminal)
    }

    fn train(
        &self,
        run: Run<'_>,
        device: &mut Device,
        rounds: usize,
        terminal: &Terminal,
    ) -> Result<Outcome> {
        let mut watch = Watch::new(terminal, device, rounds, self.saving.logging_steps);
        let log = run.execute(device, &mut watch, stop_flag())?;
        let svg = run.dir().root().join("loss.svg");
        replace_bytes(&svg, self.output.sync(), loss_svg(log.lines()).as_bytes())?;
        let root = run.dir().root().to_owned();
        run.finish()?;
        self.card.write(&root, self.output.sync(), terminal)?;
        terminal.note(&outcome(log.lines()));
        terminal.note(&format!("wrote {}", Escaped(&root)));
        let result = watch.result(device.most_memory());
        terminal.print(&if self.json {
            json_text(&training_json(&result, log.lines()))
        } else {
            training_table(&result)
        })?;
        let plan = root.join("hft_surgery.json");
        let proof =
            ["diff".as_ref(), self.model.as_os_str(), root.as_os_str(), "--plan".as_ref(), plan.as_os_str()];
        terminal.next(&proof);
        Ok(Outcome::Success)
    }

    fn show(
        &self,
        n: usize,
        tokenizer: Option<&Tokenizer>,
        limits: Limits,
        preference: Option<PreferenceLoss>,
        terminal: &Terminal,
    ) -> Result<Outcome> {
        let Some(tokenizer) = tokenizer else {
            return Err(Error::usage(
                format!("{}: --preview needs its tokenizer.json", Escaped(&self.model)),
                "copy the tokenizer files of the base model beside the weights",
            ));
        };
        for path in &self.data {
            let rows = Loader { tokenizer: Some(tokenizer), limits, terminal };
            let samples = match preference {
                None => preview(&rows.training(path)?.rows, tokenizer, n)?,
                Some(_) => preview(&rows.pairs(path)?.rows, tokenizer, n.saturating_mul(2))?,
            };
            terminal.print(&samples_text(&samples, terminal.paints_tables()))?;
        }
        Ok(Outcome::Success)
    }

    /// Everything that the run reads, none of which may lie in its directory.
    fn inputs(&self, source: &Checkpoint) -> CommandInputs {
        let files = self.data.iter().chain(&self.saving.eval_data).chain(&self.plan).chain(&self.config);
        CommandInputs::of([source]).with(files.chain(self.selection.complement_of()))
    }

    /// One plan for each round.
    fn plans(&self, source: &Checkpoint) -> Result<Vec<RoundSpec>> {
        let inventory = Inventory::of(source);
        let rounds = self.rounds.map_or(self.data.len(), |n| n as usize);
        if self.data.len() > 1 && rounds != self.data.len() {
            let (got, stages) = (rounds, self.data.len());
            let fault = format!("--rounds: got {got}, expected {stages}: one for each --data");
            return Err(Error::usage(fault, "leave out --rounds"));
        }
        if self.plan.len() > 1 && rounds != self.plan.len() {
            let (got, expected) = (self.plan.len(), rounds);
            let fault =
                format!("--plan: got {got} plans, expected one, or one for each of {expected} rounds");
            return Err(Error::usage(fault, ""));
        }
        let ratio = self.ratio.unwrap_or(0.5);
        if !(0.0..=1.0).contains(&ratio) {
            let fault = format!("--ratio out of range: got {ratio}, expected 0 to 1");
            return Err(Error::usage(fault, "--ratio is the share that is trained"));
        }
        let plan_of = |round: usize| match self.plan.get(round.min(self.plan.len().saturating_sub(1))) {
            Some(path) => Plan::read(path),
            None => self.selection.plan_of_round(&inventory, ratio, round as u32),
        };
        let stage = |round: usize| round.min(self.data.len() - 1);
        (0..rounds).map(|round| Ok(RoundSpec { plan: plan_of(round)?, stage: stage(round) })).collect()
    }

    fn load(
        &self,
        tokenizer: Option<&Tokenizer>,
        limits: Limits,
        preference: Option<PreferenceLoss>,
        terminal: &Terminal,
    ) -> Result<Data> {
        let rows = Loader { tokenizer, limits, terminal };
        let read = |path: &PathBuf| match preference {
            None => rows.training(path),
            Some(_) => rows.pairs(path),
        };
        let stages = self.data.iter().map(read).collect::<Result<Vec<_>>>()?;
        let eval = self.saving.eval_data.as_deref().map(|path| rows.held_out(path)).transpose()?;
        let eval_path = self.saving.eval_data.iter();
        for (path, dataset) in self.data.iter().zip(&stages).chain(eval_path.zip(&eval)) {
            rows.note(path, dataset, preference.is_some());
        }
        Ok(Data { stages, eval })
    }

    fn arrange(
        &self,
        data: Data,
        tokens_at_once: usize,
        preference: Option<PreferenceLoss>,
    ) -> Result<Vec<Arranged>> {
        let rows_per_step = self.optimizer.rows_per_step(self.rows.batch_size);
        let options = self.rows.batch_options(self.selection.seed(), rows_per_step, preference.is_some());
        let eval = data.eval.map_or_else(Vec::new, |eval| in_batches(&eval.rows, self.rows.batch_size));
        let longest_eval = eval.iter().map(Batch::max_seqlen).max().unwrap_or(0);
        let arrange = |dataset: Dataset| {
            let longest = dataset.rows.iter().map(|row| row.input_ids.len()).fold(longest_eval, usize::max);
            // The two answers of a pair go through the model together.
            let together = dataset.rows.chunks(if preference.is_some() { 2 } else { 1 });
            let together = together.map(|rows| rows.iter().map(|row| row.input_ids.len()).sum());
            let most_together = together.fold(longest_eval, usize::max);
            let batches = Batches::new(dataset.rows, options)?;
            let row = if self.rows.packing { self.rows.max_length.max(longest) } else { most_together };
            let most = self.rows.batch_size.saturating_mul(row);
            Ok(Arranged {
                batches,
                eval: eval.clone(),
                capacity: Capacity {
                    tokens: most_together.max(tokens_at_once.min(most)),
                    positions: longest,
                },
            })
        };
        data.stages.into_iter().map(arrange).collect()
    }

    /// Everything that decides the result.
    fn describe(
        &self,
        source: &Checkpoint,
        data: &Data,
        preference: Option<PreferenceLoss>,
    ) -> Map<String, Value> {
        let mut options = self.optimizer.describe(&self.rows, preference);
        options.extend(self.objective.describe(preference));
        let digests = data.stages.iter().map(|stage| Value::String(rows_digest(&stage.rows)));
        options.insert("data".to_owned(), digests.collect());
        let paths: Vec<_> = self.data.iter().map(|path| path.to_string_lossy()).collect();
        options.insert("data_files".to_owned(), json!(paths));
        options.insert("seed".to_owned(), json!(self.selection.seed()));
        options.insert("model_header_sha256".to_owned(), json!(header_digest(source).to_string()));
        options.insert("rounds".to_owned(), json!(self.rounds.map_or(self.data.len() as u32, |n| n)));
        if self.plan.is_empty() {
            options.insert("ratio".to_owned(), json!(self.ratio.unwrap_or(0.5)));
        }
        options
    }
}

/// What a resumed run must have in common with the one that was started: the options, the bytes of the model and
/// of its configuration, the plans.
fn fingerprint(mut options: Map<String, Value>, source: &Checkpoint, run: &RunOptions<'_>) -> Result<Value> {
    // The digests of the rows tell other rows; where their files are does not matter.
    options.remove("data_files");
    let config = read_small(&source.root().join("config.json"))?;
    let plans: String = run.rounds.iter().map(|round| round.plan.to_json()).collect();
    options.insert("model_contents_sha256".to_owned(), json!(run.contents));
    options.insert("model_config_sha256".to_owned(), json!(Sha256Hex::of(&config)));
    options.insert("plans_sha256".to_owned(), json!(Sha256Hex::of(plans.as_bytes())));
    Ok(Value::Object(options))
}

/// A stage with what it borrows.
struct Arranged {
    batches: Batches,
    eval: Vec<Batch>,
    capacity: Capacity,
}

impl Arranged {
    fn stage(&self) -> Stage<'_> {
        Stage { batches: &self.batches, eval: &self.eval, capacity: self.capacity, reference: &[] }
    }
}

/// The losses of the first and the last step, and of the evaluation rows where there are some.
fn outcome(log: &[LogLine]) -> String {
    let (Some(first), Some(last)) = (log.first(), log.last()) else { return "no step was taken".to_owned() };
    let text =
        format!("loss {:.4} at step {} → {:.4} at step {}", first.loss, first.step, last.loss, last.step);
    let mut evals = log.iter().filter_map(|line| Some((line.eval_loss?, line.step)));
    match (evals.next(), evals.next_back()) {
        (Some((first, at)), Some((last, end))) => {
            format!("{text}; eval loss {first:.4} at step {at} → {last:.4} at step {end}")
        }
        (Some((only, at)), None) => format!("{text}; eval loss {only:.4} at step {at}"),
        (None, _) => text,
    }
}
