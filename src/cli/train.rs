//! `train`: masked fine-tuning.

use std::path::PathBuf;
use std::rc::Rc;

use serde_json::{Map, Value, json};

use super::arranged::{Arranged, Arranging};
use super::device::{DeviceArgs, with_compute_dtype};
use super::interrupt::stop_flag;
use super::link_args::LinkArgs;
use super::memory::place_states;
use super::model_arg::check_one_checkpoint;
use super::model_card_args::ModelCardArgs;
use super::named_file::NamedFile;
use super::objective_args::ObjectiveArgs;
use super::outcome::Outcome;
use super::output_args::OutputArgs;
use super::reading_args::ReadingArgs;
use super::restraint_args::RestraintArgs;
use super::round_plans::{RoundArgs, note_carried};
use super::rows::{Loader, tokenizer};
use super::selection::SelectionArgs;
use super::sequence::{SequenceArgs, Stages};
use super::terminal::Terminal;
use super::training_args::{DataArgs, OptimizerArgs, SavingArgs};
use super::training_estimate::Estimation;
use super::training_watch::{Watch, outcome};
use crate::backend::Device;
use crate::checkpoint::{
    Access, Checkpoint, CommandInputs, Sha256Hex, contents_digest, header_digest, read_small, replace_bytes,
};
use crate::data::{Dataset, Limits, Tokenizer, preview};
use crate::error::Escaped;
use crate::eval::EvalRows;
use crate::model::ModelConfig;
use crate::report::{
    continual_json, continual_svg, continual_table, json_text, loss_svg, samples_text, training_json,
    training_table,
};
use crate::train::{
    MeasuredFile, NewRun, PreferenceLoss, Run, RunDir, RunOptions, RunResult, Stage, StartedBy, eval_digest,
    rows_digest,
};
use crate::{Error, Result};

/// Fine-tune the trainable tensors of a plan; all others stay bit-identical
#[derive(Debug, clap::Args)]
#[command(
    mut_arg("out", |out| out.required(false).required_unless_present_any(["preview", "estimate", "profile"]).help("The directory of the run and of its result")),
    mut_arg("force", |force| force.conflicts_with("resume").help("Set an existing checkpoint or run at --out aside, and remove it when this run has ended")),
    override_usage = "hft-surgery train [OPTIONS] --model <CKPT> --data <FILE> --out <DIR>",
    after_long_help = EXAMPLES
)]
pub(super) struct Train {
    /// The checkpoint to start from
    #[arg(long, value_name = "CKPT")]
    model: PathBuf,
    /// Training rows (.jsonl, .jsonl.zst, .parquet, or a directory), as FILE or NAME=FILE; several: one stage each
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
    /// Rounds, each with a plan of its own; of several --data, as many for each [default: one for each --data]
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
    /// Measure a few steps, print what the run and a full one would take on this machine, and stop
    #[arg(long, conflicts_with_all = ["preview", "resume"])]
    estimate: bool,
    /// Measure a few steps, print the time of each operation, and stop
    #[arg(long, conflicts_with_all = ["preview", "resume", "estimate"])]
    profile: bool,
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
    sequence: SequenceArgs,
    #[command(flatten)]
    restraints: RestraintArgs,
    #[command(flatten)]
    selection: SelectionArgs,
}

const EXAMPLES: &str = "\
Examples:
  # Half Fine-Tuning: half of the parameters stay bit-identical
  hft-surgery train --model llama --data rows.jsonl --out llama-hft

  # Learn one task after the other, and see what is left of each
  hft-surgery train --model llama --data A=a.jsonl --data B=b.jsonl --eval-data A=a_test.jsonl \
    --eval-data B=b_test.jsonl --eval-data general=text.jsonl --out llama-ab

  # Go on after an interruption, with the options of its beginning
  hft-surgery train --out llama-hft --resume";

/// The rows of all stages, tokenized.
struct Data {
    stages: Vec<Dataset>,
    eval: Option<Dataset>,
    /// Of the files that are measured between stages.
    between: Vec<(String, Rc<EvalRows>)>,
}

impl Train {
    /// Works on a thread of the pool: one outside would sleep and be woken in each of thousands of parallel loops.
    pub(super) fn run(&self, terminal: &Terminal) -> Result<Outcome> {
        rayon::scope(|_| self.work(terminal))
    }

    fn work(&self, terminal: &Terminal) -> Result<Outcome> {
        self.optimizer.check(&self.saving)?;
        let files = Stages::of(&self.data, &self.saving)?;
        self.sequence.check(files.data.len())?;
        let restraints = self.restraints.restraints(&self.optimizer.update.optimizer())?;
        let preference = self.objective.preference(&self.rows)?;
        self.optimizer.check_in_backward(preference.is_some())?;
        check_one_checkpoint(&self.model, "train")?;
        let source = Checkpoint::open(&self.model, self.reading.by(Access::Read))?;
        let config = ModelConfig::read(&source)?;
        let tokenizer = tokenizer(source.root())?;
        let limits = Limits { max_length: Some(self.rows.max_length), vocab_size: config.vocab_size as u32 };
        if let Some(n) = self.preview {
            return self.show(n, &files, tokenizer.as_ref(), limits, preference, terminal);
        }
        let inputs = self.inputs(&source, &files);
        let measures = self.estimate || self.profile;
        if !measures {
            RunDir::check(self.output.path()?, &inputs, self.output.force, self.resume)?;
        }
        let rounds = self.rounds().specs(&source, &config)?;
        note_carried(&source, &config, terminal);
        let mut device = self.device.open()?;
        self.restraints.check_device(&device)?;
        self.optimizer.update.check_device(&device)?;
        config.check_packed(device.packed_experts())?;
        let mut data = self.load(&files, tokenizer.as_ref(), limits, preference, terminal)?;
        drop(tokenizer);
        data.between =
            files.rows(self.rows.max_length, &self.sequence.answers, &source, &config, terminal)?;
        let mut options = with_compute_dtype(&device, self.describe(&source, &files, &data, preference));
        let group = if preference.is_some() { 2 } else { 1 };
        let replay = self.sequence.replay(&mut data.stages, self.selection.seed(), group, terminal);
        options.extend(replay.clone().map(|replay| ("replay".to_owned(), replay)));
        let contents = contents_digest(&source, &|_| {})?;
        let between = std::mem::take(&mut data.between);
        let measured: Vec<MeasuredFile<'_>> =
            between.iter().map(|(name, rows)| MeasuredFile { name, rows }).collect();
        let rows_per_step = self.optimizer.rows_per_step(self.rows.batch_size);
        let pairs = preference.is_some();
        let batches = self.rows.batch_options(self.selection.seed(), rows_per_step, pairs);
        let tokens_at_once = self.tokens_at_once(&device, &config);
        let arranging = Arranging { rows: &self.rows, batches, pairs, tokens_at_once };
        let stages = arranging.arrange(data.stages, data.eval)?;
        let stages: Vec<Stage<'_>> = stages.iter().map(Arranged::stage).collect();
        let tokens = stages.iter().map(|stage| stage.capacity.tokens).max().unwrap_or(0);
        let longest = stages.iter().map(|stage| stage.capacity.positions).max().unwrap_or(0);
        config.check_length(&source, longest, device.rope_tables_of_passes())?;
        let smoothing = self.objective.token_smoothing();
        let mut run = RunOptions {
            model: &self.model,
            round: self.optimizer.round_options(&self.saving, &config, tokens, preference, smoothing),
            restraints,
            rounds: &rounds,
            stages: &stages,
            measured: &measured,
            keep_stages: self.sequence.keep_stages,
            contents,
            options: options.clone(),
            seed: self.selection.seed(),
            tensorboard: self.saving.tensorboard,
            sync: self.output.sync(),
            link: self.link.link(),
            reading: self.reading.whole(),
        };
        Run::check(&run, &source)?;
        if !measures {
            place_states(&mut run, &source, &device)?;
        }
        let space = Run::disk_bytes(&run, &source)?;
        if measures {
            let estimation = Estimation { run: &run, source: &source, disk_bytes: space, json: self.json };
            return estimation.run(&mut device, self.profile, terminal);
        }
        let dir = self.directory(&inputs, &fingerprint(options, &source, &run)?, space, terminal)?;
        drop(source);
        self.train(Run::new(run, dir), &mut device, (rounds.len(), replay), terminal)
    }

    /// The directory of the run, new or of the run that is gone on with.
    fn directory(
        &self,
        inputs: &CommandInputs,
        options: &Value,
        space: u64,
        terminal: &Terminal,
    ) -> Result<RunDir> {
        let out = self.output.path()?;
        if self.resume {
            return RunDir::resume(out, inputs, options, space);
        }
        let started_by = StartedBy::this_process();
        let new = NewRun { options, started_by: started_by.as_ref(), space };
        let dir = RunDir::create(out, inputs, self.output.force, &new)?;
        for path in dir.replaced() {
            terminal.note(&format!("kept until this run has ended: {}", Escaped(&path)));
        }
        Ok(dir)
    }

    fn train(
        &self,
        run: Run<'_>,
        device: &mut Device,
        (rounds, replay): (usize, Option<Value>),
        terminal: &Terminal,
    ) -> Result<Outcome> {
        let mut watch = Watch::new(terminal, device, rounds, self.saving.logging_steps);
        let RunResult { log, scores } = run.execute(device, &mut watch, stop_flag())?;
        let root = run.dir().root().to_owned();
        let write =
            |name: &str, text: &str| replace_bytes(&root.join(name), self.output.sync(), text.as_bytes());
        write("loss.svg", &loss_svg(log.lines()))?;
        let continual = scores.as_ref().map(|scores| {
            let mut continual = continual_json(scores);
            replay.iter().for_each(|replay| continual["replay"] = replay.clone());
            continual
        });
        if let (Some(scores), Some(continual)) = (&scores, &continual) {
            write("continual.json", &json_text(continual))?;
            write("continual.svg", &continual_svg(scores))?;
        }
        run.finish()?;
        self.card.write(&root, self.output.sync(), terminal)?;
        terminal.note(&outcome(log.lines()));
        terminal.note(&format!("wrote {}", Escaped(&root)));
        let result = watch.result(device.most_memory());
        terminal.print(&if self.json {
            let mut summary = training_json(&result, log.lines());
            continual.into_iter().for_each(|continual| summary["continual"] = continual);
            json_text(&summary)
        } else {
            let scores = scores.map(|scores| format!("\n{}", continual_table(&scores)));
            training_table(&result) + &scores.unwrap_or_default()
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
        files: &Stages,
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
        for NamedFile { path, .. } in &files.data {
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
    fn inputs(&self, source: &Checkpoint, files: &Stages) -> CommandInputs {
        let others = self.plan.iter().chain(&self.config).chain(self.selection.complement_of());
        CommandInputs::of([source]).with(files.paths().chain(others.map(PathBuf::as_path)))
    }

    /// Tokens that go through the model at once: all of a micro-batch where its gradients are used up, or its loss of routers.
    fn tokens_at_once(&self, device: &Device, config: &ModelConfig) -> usize {
        let whole = self.optimizer.update.optimizer_in_backward || config.router_loss().is_some();
        if whole { usize::MAX } else { device.tokens_at_once() }
    }

    fn rounds(&self) -> RoundArgs<'_> {
        RoundArgs {
            plans: &self.plan,
            selection: &self.selection,
            ratio: self.ratio.unwrap_or(0.5),
            rounds: self.rounds,
            stages: self.data.len(),
        }
    }

    fn load(
        &self,
        files: &Stages,
        tokenizer: Option<&Tokenizer>,
        limits: Limits,
        preference: Option<PreferenceLoss>,
        terminal: &Terminal,
    ) -> Result<Data> {
        let rows = Loader { tokenizer, limits, terminal };
        let read = |file: &NamedFile| match preference {
            None => rows.training(&file.path),
            Some(_) => rows.pairs(&file.path),
        };
        let stages = files.data.iter().map(read).collect::<Result<Vec<_>>>()?;
        let held_out = |path| match preference {
            None => rows.held_out(path),
            Some(_) => rows.held_out_pairs(path),
        };
        let eval = files.on_the_way.as_deref().map(held_out).transpose()?;
        let paths = files.data.iter().map(|file| file.path.as_path()).zip(&stages);
        for (path, dataset) in paths.chain(files.on_the_way.as_deref().into_iter().zip(&eval)) {
            rows.note(path, dataset, preference.is_some());
        }
        Ok(Data { stages, eval, between: Vec::new() })
    }

    /// Everything that decides the result.
    fn describe(
        &self,
        source: &Checkpoint,
        files: &Stages,
        data: &Data,
        preference: Option<PreferenceLoss>,
    ) -> Map<String, Value> {
        let mut options = self.optimizer.describe(&self.rows, preference);
        options.extend(self.objective.describe(preference));
        options.extend(self.restraints.describe());
        let digests = data.stages.iter().map(|stage| Value::String(rows_digest(&stage.rows)));
        options.insert("data".to_owned(), digests.collect());
        let paths: Vec<_> = files.data.iter().map(|file| file.path.to_string_lossy()).collect();
        options.insert("data_files".to_owned(), json!(paths));
        if !data.between.is_empty() {
            let file = |(name, rows): &(String, Rc<EvalRows>)| json!([name, eval_digest(rows)]);
            options.insert("eval_data".to_owned(), data.between.iter().map(file).collect());
        }
        options.insert("seed".to_owned(), json!(self.selection.seed()));
        options.insert("model_header_sha256".to_owned(), json!(header_digest(source).to_string()));
        options.insert("rounds".to_owned(), json!(self.rounds().rounds()));
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
