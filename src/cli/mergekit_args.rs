//! The options of `mergekit-yaml`, so that its command lines run here as they are.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::shard_size::parameters;
use super::terminal::Terminal;
use crate::merge::ShardLimit;
use crate::{Error, Result};

/// Flags of `mergekit-yaml` that change nothing here, their negations, and the reason.
const FLAGS: [(&str, &str, &str); 11] = [
    ("allow-crimes", "no-allow-crimes", "--vocab and --on-missing say which differences are accepted"),
    ("cuda", "no-cuda", "merges run on the CPU"),
    ("low-cpu-memory", "no-low-cpu-memory", "inputs are mapped and results are streamed"),
    ("copy-tokenizer", "no-copy-tokenizer", "the files beside the weights are always copied"),
    ("clone-tensors", "no-clone-tensors", "each layer is written where it stands"),
    ("trust-remote-code", "no-trust-remote-code", "nothing is executed"),
    ("lazy-unpickle", "no-lazy-unpickle", "inputs are mapped"),
    ("safe-serialization", "no-safe-serialization", "results are always safetensors"),
    ("read-to-gpu", "no-read-to-gpu", "merges run on the CPU"),
    ("multi-gpu", "no-multi-gpu", "merges run on the CPU"),
    ("async-write", "no-async-write", "results are streamed"),
];

/// Options of `mergekit-yaml` with a value that change nothing here, and the reason.
const VALUES: [(&str, &str); 5] = [
    ("transformers-cache", "models are read from the Hugging Face cache that HF_HOME or HF_HUB_CACHE names"),
    ("lora-merge-cache", "adapters are merged in memory"),
    ("lora-merge-dtype", "adapters are merged in f32"),
    ("device", "merges run on the CPU"),
    ("write-threads", "--threads counts all threads"),
];

/// The options of `mergekit-yaml` that have another name here, or none.
#[derive(Debug, Default)]
pub(super) struct MergekitArgs {
    /// The flags that were given, as typed, and why they change nothing.
    needless: Vec<(&'static str, &'static str)>,
    /// `--no-safe-serialization`.
    pickled: bool,
    /// `--no-lazy` of `mergekit-multi`: results of stages that are there already are made again.
    pub(super) merge_again: bool,
    /// `--unsafe-truncate-embeddings`.
    pub(super) truncate_embeddings: bool,
    /// `--out-shard-size`, in parameters.
    pub(super) shard_parameters: Option<u64>,
}

impl MergekitArgs {
    /// Names the options that change nothing.
    ///
    /// # Errors
    /// [`Error::Usage`] for results in other formats than safetensors.
    pub(super) fn check(&self, terminal: &Terminal) -> Result<()> {
        if self.pickled {
            let fault = "--no-safe-serialization: results are always safetensors";
            return Err(Error::usage(fault, "leave it out"));
        }
        for (flag, why) in &self.needless {
            terminal.note(&format!("--{flag} changes nothing: {why}"));
        }
        Ok(())
    }

    /// The limit of one file that `--out-shard-size` sets.
    pub(super) fn shard_limit(&self) -> Option<ShardLimit> {
        self.shard_parameters.map(ShardLimit::Parameters)
    }
}

impl Args for MergekitArgs {
    fn augment_args(command: Command) -> Command {
        let flag = |name: &'static str| Arg::new(name).long(name).hide(true).action(ArgAction::SetTrue);
        let value = |name: &'static str| Arg::new(name).long(name).hide(true);
        let mut all: Vec<Arg> = FLAGS.iter().flat_map(|(on, off, _)| [flag(on), flag(off)]).collect();
        all.extend(VALUES.iter().map(|(name, _)| value(name)));
        all.extend([
            flag("gpu-rich"),
            flag("lazy").overrides_with("no-lazy"),
            flag("no-lazy"),
            flag("unsafe-truncate-embeddings"),
            flag("no-unsafe-truncate-embeddings"),
        ]);
        all.push(flag("no-write-model-card").overrides_with("write_model_card"));
        all.push(value("out-shard-size").value_parser(parameters).conflicts_with("shard_size"));
        command.args(all)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for MergekitArgs {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Self, clap::Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        for (on, off, why) in FLAGS {
            let given = [on, off].into_iter().filter(|name| matches.get_flag(name));
            self.needless.extend(given.map(|name| (name, why)));
        }
        if matches.get_flag("gpu-rich") {
            self.needless.push(("gpu-rich", "merges run on the CPU"));
        }
        let given = VALUES.iter().filter(|(name, _)| matches.get_one::<String>(name).is_some());
        self.needless.extend(given.copied());
        self.merge_again = matches.get_flag("no-lazy");
        self.pickled = matches.get_flag("no-safe-serialization");
        self.truncate_embeddings = matches.get_flag("unsafe-truncate-embeddings");
        self.shard_parameters = matches.get_one::<u64>("out-shard-size").copied();
        Ok(())
    }
}
