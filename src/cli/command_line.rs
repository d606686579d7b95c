//! The command line as a whole.

use clap::{CommandFactory, Parser, Subcommand};

use super::global_args::GlobalArgs;
use super::outcome::Outcome;
use super::raw_args::Flag;
use super::terminal::Terminal;
use super::{
    completions, diff, doctor, eval, experiment, generate, inspect, lora, man, merge, patch, plan, reset,
    train, verify,
};
use crate::Result;

/// Surgery on model checkpoints: put a share of a fine-tune back to its base, and see what is inside.
#[derive(Debug, Parser)]
#[command(name = "hft-surgery", version, max_term_width = 100, after_long_help = EXAMPLES)]
pub(super) struct CommandLine {
    #[command(subcommand)]
    pub(super) command: Command,
    #[command(flatten)]
    pub(super) global: GlobalArgs,
}

/// The flags of `train`, and of all commands.
pub(super) fn train_flags() -> Vec<Flag> {
    let mut whole = CommandLine::command();
    whole.build();
    let train = whole.find_subcommand("train");
    let of_arg = |arg: &clap::Arg| {
        let takes_value = arg.get_action().takes_values();
        Some(Flag { long: arg.get_long()?.to_owned(), short: arg.get_short(), takes_value })
    };
    train.into_iter().flat_map(clap::Command::get_arguments).filter_map(of_arg).collect()
}

/// What the program says when it is called without arguments.
pub(super) const TOUR: &str = "\
Surgery on model checkpoints in safetensors.

  See what a fine-tune changed          hft-surgery diff BASE TUNED
  Put half of it back to the base       hft-surgery reset --base BASE --tuned TUNED --out HALF
  Merge models by a recipe              hft-surgery merge recipe.yml --out MERGED
  Train half of the parameters          hft-surgery train --model BASE --data rows.jsonl --out TUNED
  Measure the loss on rows              hft-surgery eval --model TUNED --data rows.jsonl

All commands: hft-surgery --help. One command, with examples: hft-surgery diff --help.
";

const EXAMPLES: &str = "\
Examples:
  # What changed between a model and its fine-tune?
  hft-surgery diff llama llama-chat

  # Put half of the fine-tune back to its base
  hft-surgery reset --base llama --tuned llama-chat --out llama-half

  # The options of one command, with examples
  hft-surgery reset --help";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Inspect(inspect::Inspect),
    Verify(verify::Verify),
    Plan(plan::Plan),
    Reset(reset::Reset),
    Merge(Box<merge::Merge>),
    Lora(lora::Lora),
    Diff(diff::Diff),
    Patch(patch::Patch),
    Train(Box<train::Train>),
    Eval(eval::Eval),
    Experiment(experiment::Experiment),
    Generate(generate::Generate),
    Doctor(doctor::Doctor),
    Completions(completions::Completions),
    Man(man::Man),
}

impl Command {
    /// # Errors
    /// As the command.
    pub(super) fn run(&self, terminal: &Terminal) -> Result<Outcome> {
        match self {
            Self::Inspect(command) => command.run(terminal),
            Self::Verify(command) => command.run(terminal),
            Self::Plan(command) => command.run(terminal),
            Self::Reset(command) => command.run(terminal),
            Self::Merge(command) => command.run(terminal),
            Self::Lora(command) => command.run(terminal),
            Self::Diff(command) => command.run(terminal),
            Self::Patch(command) => command.run(terminal),
            Self::Train(command) => command.run(terminal),
            Self::Eval(command) => command.run(terminal),
            Self::Experiment(command) => command.run(&CommandLine::command(), terminal),
            Self::Generate(command) => command.run(terminal),
            Self::Doctor(command) => command.run(terminal),
            Self::Completions(command) => command.run(&mut CommandLine::command(), terminal),
            Self::Man(command) => command.run(CommandLine::command(), terminal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples at the end of the long help of `command` and of all below it, by command.
    fn examples(command: &clap::Command, found: &mut Vec<(String, String)>) {
        let name = command.get_bin_name().unwrap_or_default();
        let text = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| line.strip_prefix("  hft-surgery ")).map(|line| {
            let line = line.split(" | ").next().and_then(|line| line.split(" > ").next()).unwrap_or(line);
            (name.to_owned(), line.to_owned())
        }));
        command.get_subcommands().for_each(|command| examples(command, found));
    }

    fn built() -> clap::Command {
        let mut command = CommandLine::command().disable_help_subcommand(true);
        command.build();
        command
    }

    /// Each example is a command line that the command understands.
    #[test]
    fn examples_are_command_lines() {
        let mut all = Vec::new();
        examples(&built(), &mut all);
        for (name, line) in &all {
            // What `--resume` leaves out is filled in before the command line is parsed.
            if line.ends_with("--help") || line.ends_with("--resume") {
                continue;
            }
            let words = std::iter::once("hft-surgery").chain(line.split(' '));
            let parsed = CommandLine::try_parse_from(words);
            assert!(parsed.is_ok(), "{name}: {line}: {}", parsed.unwrap_err());
            assert!(format!("hft-surgery {line}").starts_with(name.as_str()), "{name}: {line}");
        }
    }

    /// Each command without subcommands, and each with its own arguments, ends its long help with examples.
    #[test]
    fn every_command_has_examples() {
        fn check(command: &clap::Command) {
            let name = command.get_bin_name().unwrap_or_default();
            let mut own = Vec::new();
            examples(command, &mut own);
            own.retain(|(of, _)| of == name);
            let expected = !command.has_subcommands() || !own.is_empty();
            assert!(!expected || (2..=3).contains(&own.len()), "{name}: {} examples", own.len());
            command.get_subcommands().for_each(check);
        }
        check(&built());
    }

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }
}
