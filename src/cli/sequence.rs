//! A sequence of tasks: the stages of `train`, and which file measures which.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde_json::{Value, json};

use super::answer_args::AnswerArgs;
use super::eval_data::{EvalData, Reading};
use super::named_file::NamedFile;
use super::terminal::Terminal;
use super::training_args::SavingArgs;
use crate::checkpoint::Checkpoint;
use crate::data::{Dataset, Replayed, Row, replay};
use crate::error::Escaped;
use crate::eval::EvalRows;
use crate::model::ModelConfig;
use crate::report::{grouped, percent};
use crate::{Error, Result};

/// What is kept of the stages, and what later ones learn of earlier ones.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sequence of tasks")]
pub(super) struct SequenceArgs {
    /// Keep the checkpoint after each stage: OUT/stages/0 and so on; that after the last is OUT itself
    #[arg(long)]
    pub(super) keep_stages: bool,
    /// From the second stage on, the share of its rows that are drawn from the stages before it, 0 to below 1
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    replay: Option<f64>,
    #[command(flatten)]
    pub(super) answers: AnswerArgs,
}

impl SequenceArgs {
    /// # Errors
    /// A share out of range, or without earlier stages.
    pub(super) fn check(&self, stages: usize) -> Result<()> {
        let Some(share) = self.replay else { return Ok(()) };
        if !(0.0..1.0).contains(&share) {
            let fault = format!("--replay out of range: got {share}, expected 0 to below 1");
            return Err(Error::usage(fault, ""));
        }
        if stages < 2 {
            let fault = "--replay: got one --data, and there are no earlier stages to replay";
            return Err(Error::usage(fault, "give several --data, or leave out --replay"));
        }
        Ok(())
    }

    /// Mixes rows of the earlier stages into each later one, in groups of `size`; the share and how many in each, where
    /// `--replay` was given.
    pub(super) fn replay(
        &self,
        stages: &mut [Dataset],
        seed: u64,
        size: usize,
        terminal: &Terminal,
    ) -> Option<Value> {
        let share = self.replay?;
        let own: Vec<Vec<Row>> = stages.iter().map(|stage| stage.rows.clone()).collect();
        let mut counts = vec![0];
        for (at, stage) in stages.iter_mut().enumerate().skip(1) {
            let earlier: Vec<&[Row]> = own[..at].iter().map(Vec::as_slice).collect();
            let rows = std::mem::take(&mut stage.rows);
            let Replayed { rows, replayed } = replay(rows, &earlier, share, (seed, at as u32), size);
            let all = rows.len() / size;
            stage.rows = rows;
            counts.push(replayed);
            terminal.note(&format!(
                "stage {}: {} of {} {} are replayed from earlier stages ({})",
                at + 1,
                grouped(replayed as u64),
                grouped(all as u64),
                if size == 2 { "pairs" } else { "rows" },
                percent(replayed as u64, all as u64)
            ));
        }
        Some(json!({ "share": share, "rows": counts }))
    }
}

/// `--data` and `--eval-data`, understood together.
#[derive(Debug)]
pub(super) struct Stages {
    /// Training rows, one file for each stage.
    pub(super) data: Vec<NamedFile>,
    /// Measured during the rounds.
    pub(super) on_the_way: Option<PathBuf>,
    /// Measured before the first stage and after each: one for each stage, then others.
    pub(super) between: Vec<NamedFile>,
}

impl Stages {
    /// One `--eval-data FILE` without a name is measured on the way; several, or one with a name, between the stages.
    ///
    /// # Errors
    /// Names that are given twice or to some stages only, a stage without a file that measures it.
    pub(super) fn of(data: &[PathBuf], saving: &SavingArgs) -> Result<Self> {
        let stages = Self::paired(data, &saving.eval_data)?;
        if saving.eval_steps.is_some() && !stages.between.is_empty() {
            let fault = "--eval-steps: got several --eval-data, or one with a name, which are measured between stages";
            return Err(Error::usage(fault, "leave out --eval-steps, or give one --eval-data FILE"));
        }
        Ok(stages)
    }

    fn paired(data: &[PathBuf], eval_data: &[PathBuf]) -> Result<Self> {
        let named = |paths: &[PathBuf]| paths.iter().map(|path| NamedFile::of(path)).collect::<Vec<_>>();
        let (data, eval) = (named(data), named(eval_data));
        distinct("data", data.iter().filter_map(|file| file.name.clone()))?;
        let unnamed = data.iter().filter(|file| file.name.is_none()).count();
        if unnamed > 0 && unnamed < data.len() {
            let fault = format!("--data: {unnamed} of {} files have no name", data.len());
            return Err(Error::usage(fault, "name all stages, --data NAME=FILE, or none"));
        }
        if let [file] = eval.as_slice()
            && file.name.is_none()
        {
            let on_the_way = Some(file.path.clone());
            return Ok(Self { data, on_the_way, between: Vec::new() });
        }
        let between = if eval.is_empty() { eval } else { tasks_first(&data, eval)? };
        Ok(Self { data, on_the_way: None, between })
    }

    /// All files.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        let named = self.data.iter().chain(&self.between).map(|file| file.path.as_path());
        named.chain(self.on_the_way.as_deref())
    }

    /// The names and rows of the files that are measured between stages.
    ///
    /// # Errors
    /// Rows that cannot be read.
    pub(super) fn rows(
        &self,
        max_length: usize,
        answers: &AnswerArgs,
        source: &Checkpoint,
        config: &ModelConfig,
        terminal: &Terminal,
    ) -> Result<Vec<(String, Rc<EvalRows>)>> {
        if self.between.is_empty() {
            return Ok(Vec::new());
        }
        let arguments: Vec<PathBuf> = self.between.iter().map(|file| file.argument.clone()).collect();
        let mut data = EvalData::open(
            &arguments,
            Reading { max_length: Some(max_length), answers, few_shot: None },
            terminal,
        )?;
        let rows = data.rows(source, config)?;
        let named: Vec<_> = self.between.iter().map(NamedFile::label).zip(rows).collect();
        for (at, (name, rows)) in named.iter().enumerate() {
            let stage =
                if at < self.data.len() { format!("stage {}", at + 1) } else { "no stage".to_owned() };
            let (n, metric) = (rows.count(), rows.metric().name());
            terminal.note(&format!("{}: {n} rows measure {stage}: {metric}", Escaped(name)));
        }
        let mut metrics = named[..self.data.len()].iter().map(|(_, rows)| rows.metric());
        let first = metrics.next();
        if metrics.any(|metric| Some(metric) != first) {
            terminal.warn("the tasks have more than one metric: there will be no OP and no BWT");
        }
        Ok(named)
    }
}

/// The files that measure the stages in their order, then the others: paired by name where stages have names.
fn tasks_first(data: &[NamedFile], mut eval: Vec<NamedFile>) -> Result<Vec<NamedFile>> {
    distinct("eval-data", eval.iter().map(NamedFile::label))?;
    let stages = data.len();
    if data.iter().all(|file| file.name.is_none()) {
        if eval.len() < stages {
            let fault = format!("--eval-data: got {} files for {stages} stages", eval.len());
            return Err(Error::usage(fault, "give one for each --data, in their order, then any others"));
        }
        return Ok(eval);
    }
    let mut ordered = Vec::with_capacity(eval.len());
    for file in data {
        let Some(at) = eval.iter().position(|other| other.name == file.name) else {
            let name = file.label();
            let fault = format!("--data {0}=…: no --eval-data has the name {0}", Escaped(&name));
            return Err(Error::usage(fault, format!("add --eval-data {}=FILE", Escaped(&name))));
        };
        ordered.push(eval.remove(at));
    }
    ordered.append(&mut eval);
    Ok(ordered)
}

fn distinct(flag: &str, names: impl Iterator<Item = String>) -> Result<()> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name.clone()) {
            let fault = format!("--{flag}: two files have the name {}", Escaped(&name));
            return Err(Error::usage(fault, format!("name them apart: --{flag} NAME=FILE")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stages(data: &str, eval: &str) -> Result<Stages> {
        let paths = |line: &str| line.split_whitespace().map(PathBuf::from).collect::<Vec<_>>();
        Stages::paired(&paths(data), &paths(eval))
    }

    fn between(data: &str, eval: &str) -> Vec<String> {
        stages(data, eval).unwrap().between.iter().map(NamedFile::label).collect()
    }

    fn refused(data: &str, eval: &str) -> String {
        stages(data, eval).unwrap_err().to_string()
    }

    #[test]
    fn files_are_paired_by_name_and_else_by_order() {
        assert_eq!(between("A=a B=b", "general=g B=x A=y"), ["A", "B", "general"]);
        assert_eq!(between("a b", "x B=y g"), ["x", "B", "g"]);
        assert_eq!(between("a", "A=x"), ["A"]);
        assert_eq!(between("a b", ""), Vec::<String>::new());
    }

    #[test]
    fn one_file_without_a_name_is_measured_on_the_way() {
        let found = stages("a b", "x").unwrap();
        assert_eq!((found.on_the_way, found.between.len()), (Some(PathBuf::from("x")), 0));
    }

    #[test]
    fn what_cannot_be_paired_is_refused() {
        assert_eq!(refused("A=a b", ""), "--data: 1 of 2 files have no name");
        assert_eq!(refused("A=a A=b", ""), "--data: two files have the name A");
        assert_eq!(refused("A=a B=b", "A=x general=g"), "--data B=…: no --eval-data has the name B");
        assert_eq!(refused("a b c", "x y"), "--eval-data: got 2 files for 3 stages");
        assert_eq!(refused("a", "x x"), "--eval-data: two files have the name x");
    }
}
