//! `experiment forgetting`: what fine-tuning takes and gives, by a recipe of methods.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::experiment_cost::{Progress, Rows, tell};
use super::interrupt::stop_flag;
use super::model_arg::check_one_checkpoint;
use super::outcome::Outcome;
use super::terminal::{Terminal, shell_word};
use crate::checkpoint::{
    Access, Checkpoint, CommandInputs, Sha256Hex, contents_digest, read_small, replace_bytes,
};
use crate::error::Escaped;
use crate::experiment::{Chain, Conditions, Recipe, Results, Runner, Step, Store, chains};
use crate::report::{ExperimentReport, StepLine, json_text};
use crate::{Error, Faults, Result};

/// Compare methods of fine-tuning by experiments
#[derive(Debug, clap::Args)]
pub(super) struct Experiment {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Forgetting(Forgetting),
}

/// Learn tasks one after the other by several methods, and report what each learnt and forgot
///
/// Each step is a command of this program, run in a process of its own. The same command line goes on after an interruption; a
/// changed recipe runs again only what the change touches.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
struct Forgetting {
    /// The recipe: base, tasks, general set, seeds, methods
    #[arg(value_name = "RECIPE.yml")]
    recipe: PathBuf,
    /// The directory of the experiment and of its report
    #[arg(long, value_name = "DIR", required_unless_present = "dry_run")]
    out: Option<PathBuf>,
    /// Print the commands and what they will take; run nothing
    #[arg(long)]
    dry_run: bool,
    /// Commands at once, which share the cores; each needs the memory of a training run
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
    /// Keep the checkpoints of all methods
    #[arg(long)]
    keep: bool,
    /// Print the raw numbers as JSON instead of the ranking
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  # See every command, the number of tokens and the disk it takes
  hft-surgery experiment forgetting forgetting.yml --dry-run

  # Run it, or go on; then read forgetting/report.html
  hft-surgery experiment forgetting forgetting.yml --out forgetting";

impl Experiment {
    /// `line` is the command line of this program, by which those of the steps are checked.
    pub(super) fn run(&self, line: &clap::Command, terminal: &Terminal) -> Result<Outcome> {
        let Command::Forgetting(command) = &self.command;
        command.run(line, terminal)
    }
}

impl Forgetting {
    fn run(&self, line: &clap::Command, terminal: &Terminal) -> Result<Outcome> {
        let recipe = Recipe::read(&self.recipe)?;
        check(&recipe, &self.recipe, line)?;
        check_one_checkpoint(recipe.base.as_ref(), "an experiment")?;
        let base = Checkpoint::open(recipe.base.as_ref(), Access::Read)?;
        let rows = Rows::read(&recipe, &base, terminal)?;
        let jobs = usize::from(self.jobs);
        let Some(out) = self.out.as_deref().filter(|_| !self.dry_run) else {
            let out = self.out.as_ref().map_or_else(|| "OUT".into(), |out| out.to_string_lossy());
            let chains = chains(&recipe, &out);
            tell(&recipe, &chains, &rows, jobs, terminal);
            let lines =
                chains.iter().flat_map(|chain: &Chain| &chain.steps).map(|step| shell_line(step) + "\n");
            terminal.print(&lines.collect::<String>())?;
            return Ok(Outcome::Success);
        };
        let files = recipe.tasks.iter().flat_map(|task| [&task.train, &task.eval]).map(PathBuf::from);
        let general = recipe.general().map(|(_, path)| PathBuf::from(path));
        let read: Vec<PathBuf> = files.chain(general).chain([self.recipe.clone()]).collect();
        let inputs = CommandInputs::of([&base]).with(&read);
        Store::check(out, &inputs)?;
        if out.to_str().is_none() {
            return Err(Error::usage(
                format!("--out: {} is not UTF-8", Escaped(out)),
                "choose another --out",
            ));
        }
        let digest = base_digest(&base)?;
        drop(base);
        let store = Store::open(out, &inputs)?;
        let program = std::env::current_exe().map_err(Error::io("find", "/proc/self/exe"))?;
        let conditions = Conditions { program, jobs, threads: rayon::current_num_threads(), keep: self.keep };
        let runner = Runner::new(&recipe, &digest, &store, conditions)?;
        tell(&recipe, runner.chains(), &rows, jobs, terminal);
        let (pending, all) =
            (runner.pending().len(), runner.chains().iter().map(|chain| chain.steps.len()).sum::<usize>());
        if pending < all {
            terminal.note(&format!("{} commands have finished before", all - pending));
        }
        let progress = Progress::new(&runner, jobs, terminal);
        runner.run(stop_flag(), &|finished| progress.tell(finished))?;
        let report = report(&recipe, &runner)?;
        let put = |name: &str, text: &str| replace_bytes(&out.join(name), true, text.as_bytes());
        report.pictures().iter().try_for_each(|(name, picture)| put(name, picture))?;
        put("report.json", &json_text(&report.json()))?;
        put("report.md", &report.markdown())?;
        put("report.html", &report.html())?;
        if !self.keep {
            store.remove("runs")?;
        }
        store.close()?;
        terminal.print(&if self.json { json_text(&report.json()) } else { report.table() })?;
        terminal.note(&format!("wrote {}", Escaped(&out.join("report.html"))));
        Ok(Outcome::Success)
    }
}

/// Checks that every step is a command line that this program understands, before the first is run. `file` is where the
/// recipe was read from.
fn check(recipe: &Recipe, file: &Path, line: &clap::Command) -> Result<()> {
    let mut said = Vec::<(String, Vec<&str>)>::new();
    // One seed stands for all.
    let of_seed = |step: &&Step| recipe.seeds.first() == Some(&step.seed);
    for step in chains(recipe, "OUT").iter().flat_map(|chain| &chain.steps).filter(of_seed) {
        let words = std::iter::once("hft-surgery").chain(step.args.iter().map(String::as_str));
        let Err(error) = line.clone().try_get_matches_from(words) else { continue };
        let error = error.to_string();
        let error = error.lines().next().unwrap_or_default().trim_start_matches("error: ");
        let method = recipe.methods[step.method].name.as_str();
        match said.iter_mut().find(|(fault, _)| fault == error) {
            Some((_, methods)) => methods.push(method),
            None => said.push((error.to_owned(), vec![method])),
        }
    }
    let mut faults = Faults::default();
    faults.extend(said.into_iter().map(|(fault, mut methods)| {
        methods.dedup();
        let of = if methods.len() == 1 { "method" } else { "methods" };
        let methods = methods.join(", ");
        let fault = format!("{}: {of} {}: {}", Escaped(file), Escaped(&methods), Escaped(&fault));
        Error::usage(fault, "the options of a method, and those of all, are flags of `train` or `reset`")
    }));
    faults.into_result()
}

fn report(recipe: &Recipe, runner: &Runner<'_>) -> Result<ExperimentReport> {
    let results = Results::of(recipe, runner)?;
    let mut steps = Vec::new();
    for (at, chain) in runner.chains().iter().enumerate() {
        for (number, step) in chain.steps.iter().enumerate() {
            let seconds = runner.record(at, number).map_or(f64::NAN, |record| record.measured.seconds);
            steps.push(StepLine { command: shell_line(step), seconds });
        }
    }
    Ok(ExperimentReport { base: recipe.base.clone(), seeds: recipe.seeds.clone(), results, steps })
}

/// The command as it is typed.
fn shell_line(step: &Step) -> String {
    step.args.iter().fold("hft-surgery".to_owned(), |line, word| line + " " + &shell_word(word))
}

/// What decides what the base computes: its weights, its configuration and its tokenizer.
fn base_digest(base: &Checkpoint) -> Result<String> {
    let mut all = contents_digest(base, &|_| {})?.to_string();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        let path = base.root().join(name);
        if path.is_file() {
            all += &format!(" {name} {}", Sha256Hex::of(&read_small(&path)?));
        }
    }
    Ok(all)
}
