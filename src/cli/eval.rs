//! `eval`: the loss of models on rows, and how often they choose or write the right answer.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use indicatif::ProgressBar;

use super::answer_args::{AnswerArgs, FewShotArgs};
use super::device::DeviceArgs;
use super::eval_data::{EvalData, Reading, warn_of_nan};
use super::model_arg::open_model_whole;
use super::outcome::Outcome;
use super::progress::tokens_bar;
use super::reading_args::ReadingArgs;
use super::report_file::ReportFile;
use super::terminal::Terminal;
use crate::backend::Device;
use crate::checkpoint::{Checkpoint, CommandInputs};
use crate::error::Escaped;
use crate::eval::{EvalRows, Metric, RowSum, Scores, mean, paired_difference, score_checkpoint};
use crate::model::{ModelConfig, check_tensors, unused};
use crate::plan::is_buffer;
use crate::report::{
    EVALUATION_MARKER, Evaluation, Measured, SAMPLES_MARKER, evaluation_csv, evaluation_html,
    evaluation_json, evaluation_samples, evaluation_table, json_text, single_json, single_text,
};
use crate::{Error, Result};

/// Loss and perplexity of models on rows of any training format, accuracy on rows of multiple choice and of written answers
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Eval {
    /// The checkpoint, or BASE+ADAPTER; may be repeated, and every further one is compared with the first
    #[arg(long, required = true, value_name = "CKPT")]
    model: Vec<PathBuf>,
    /// The rows, as FILE or NAME=FILE; may be repeated. Rows with `question`, `choices` and `answer` are multiple choice;
    /// with `answer` beside `prompt`, or beside `messages` that end with the user's, the model writes the answer
    #[arg(long, required = true, value_name = "FILE")]
    data: Vec<PathBuf>,
    /// Rows that go through the model at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch_size: usize,
    /// Tokens of a row at most; longer rows lose their end, questions their beginning [default: no limit]
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
    /// Seed of the bootstrap that tells how sure a difference between models is, and of the few-shot examples
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    answers: AnswerArgs,
    #[command(flatten)]
    few_shot: FewShotArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print JSON: a list for several models or files
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print one line of comma-separated values per model and file
    #[arg(long)]
    csv: bool,
    /// Write what each model makes of each row, as JSON lines
    #[arg(long, value_name = "FILE")]
    samples: Option<PathBuf>,
    /// Write a page to look at in a browser, in one file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Replace files at --samples and --html that eval did not write
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    reading: ReadingArgs,
}

const EXAMPLES: &str = "\
Examples:
  # Loss and perplexity
  hft-surgery eval --model llama --data rows.jsonl

  # What did fine-tuning give, what did it take, and what does a half-reset bring back?
  hft-surgery eval --model llama --model llama-chat --model half --data task=task.jsonl --data arc=arc.jsonl

  # Written answers: how often is the last number right, behind eight solved examples?
  hft-surgery eval --model llama --data gsm8k.jsonl --metric numeric_match --few-shot train.jsonl --shots 8 --stop Question:";

/// A model with the rows that it is measured on.
struct Subject {
    name: String,
    source: Checkpoint,
    rows: Vec<Rc<EvalRows>>,
}

impl Eval {
    /// Works on a thread of the pool, as training does.
    pub(super) fn run(&self, terminal: &Terminal) -> Result<Outcome> {
        rayon::scope(|_| self.work(terminal))
    }

    fn work(&self, terminal: &Terminal) -> Result<Outcome> {
        let limits = [
            ("--batch-size", Some(self.batch_size)),
            ("--max-length", self.max_length),
            ("--max-new-tokens", Some(self.answers.max_new_tokens)),
        ];
        if let Some((option, _)) = limits.iter().find(|(_, value)| *value == Some(0)) {
            return Err(Error::usage(format!("{option}: got 0, expected 1 or more"), ""));
        }
        let mut device = self.device.open()?;
        let few_shot = self.few_shot.read(self.seed)?;
        let reading =
            Reading { max_length: self.max_length, answers: &self.answers, few_shot: few_shot.as_ref() };
        let mut data = EvalData::open(&self.data, reading, terminal)?;
        let subjects: Vec<Subject> =
            self.model.iter().map(|path| self.subject(path, &mut data, terminal)).collect::<Result<_>>()?;
        let inputs = self.inputs(&subjects, &data);
        if self.samples.is_some() && self.samples == self.html {
            return Err(Error::usage("--samples and --html name one file", "give each a file of its own"));
        }
        let samples = self.report_file(&self.samples, "--samples", SAMPLES_MARKER, &inputs)?;
        let html = self.report_file(&self.html, "--html", EVALUATION_MARKER, &inputs)?;
        let writes = |rows: &Rc<EvalRows>| matches!(**rows, EvalRows::Generate(_));
        if !matches!(device, Device::Cpu(_)) && subjects.iter().flat_map(|subject| &subject.rows).any(writes)
        {
            terminal.warn("answers are written on the CPU");
        }
        let tokens = subjects.iter().flat_map(|subject| &subject.rows).map(|rows| rows.tokens()).sum();
        let bar = tokens_bar(terminal, "evaluate", tokens);
        let scores: Vec<Vec<Scores>> =
            subjects.iter().map(|subject| self.measure(subject, &mut device, &bar)).collect::<Result<_>>()?;
        bar.finish_and_clear();
        if let Some(file) = samples {
            let of_model = |(subject, scores): (&Subject, &Vec<Scores>)| -> String {
                let of_file = |(file, scores)| evaluation_samples(&subject.name, file, scores);
                data.files.iter().map(|file| file.name.as_str()).zip(scores).map(of_file).collect()
            };
            file.write(&subjects.iter().zip(&scores).map(of_model).collect::<String>(), terminal)?;
        }
        let mut all = Vec::new();
        for (subject, own) in subjects.iter().zip(&scores) {
            for ((file, first), scores) in data.files.iter().zip(&scores[0]).zip(own) {
                let names = [&file.name, &subject.name, &subjects[0].name];
                let first = Some(first).filter(|first| compared(first, scores, names, terminal));
                all.push(Evaluation {
                    model: subject.name.clone(),
                    data: file.name.clone(),
                    rows: scores.rows,
                    tokens: scores.tokens,
                    measured: self.measured(scores, first),
                });
            }
        }
        warn_of_nan(&all, terminal);
        html.map_or(Ok(()), |file| file.write(&evaluation_html(&all), terminal))?;
        let files: Vec<String> = data.files.into_iter().map(|file| file.name).collect();
        terminal.print(&self.shown(&all, &files))?;
        Ok(Outcome::Success)
    }

    /// Opens a model and reads the rows for it.
    fn subject(&self, path: &Path, data: &mut EvalData<'_>, terminal: &Terminal) -> Result<Subject> {
        let source = open_model_whole(path, &self.reading, terminal)?;
        let config = ModelConfig::read(&source)?;
        check_tensors(&source, &config)?;
        let rows = data.rows(&source, &config)?;
        let unused: Vec<&str> =
            unused(&source, &config).into_iter().filter(|name| !is_buffer(name)).collect();
        if let Some(first) = unused.first() {
            let (count, first) = (unused.len(), Escaped(*first));
            let model = if self.model.len() > 1 { format!("{}: ", Escaped(path)) } else { String::new() };
            terminal
                .warn(&format!("{model}the model does not compute with {count} tensors, of which `{first}`"));
        }
        let name = path.to_string_lossy().into_owned();
        Ok(Subject { name, source, rows })
    }

    /// Everything that is read, so that no report is written over it.
    fn inputs(&self, subjects: &[Subject], data: &EvalData<'_>) -> CommandInputs {
        let inputs = CommandInputs::of(subjects.iter().map(|subject| &subject.source));
        inputs.with(data.files.iter().map(|file| &file.path)).with(self.few_shot.path())
    }

    /// The report that an option asks for, where it is given; the path has passed the guard.
    fn report_file<'a>(
        &self,
        path: &'a Option<PathBuf>,
        option: &'static str,
        marker: &'a str,
        inputs: &'a CommandInputs,
    ) -> Result<Option<ReportFile<'a>>> {
        path.as_deref().map(|path| ReportFile::check(path, option, inputs, marker, self.force)).transpose()
    }

    /// The scores of a model on each file.
    fn measure(&self, subject: &Subject, device: &mut Device, bar: &ProgressBar) -> Result<Vec<Scores>> {
        let files: Vec<&EvalRows> = subject.rows.iter().map(|rows| &**rows).collect();
        let mut computed = |tokens| {
            bar.inc(tokens);
            true
        };
        let found = score_checkpoint(device, &subject.source, &files, self.batch_size, &mut computed)?;
        Ok(found.unwrap_or_else(|| unreachable!("nothing stops it")))
    }

    fn measured(&self, scores: &Scores, first: Option<&Scores>) -> Vec<Measured> {
        let measured = |(at, (metric, rows)): (usize, &(Metric, Vec<RowSum>))| Measured {
            metric: *metric,
            mean: mean(rows),
            difference: first.map(|first| paired_difference(&first.metrics[at].1, rows, self.seed)),
        };
        scores.metrics.iter().enumerate().map(measured).collect()
    }

    fn shown(&self, all: &[Evaluation], files: &[String]) -> String {
        match all {
            _ if self.csv => evaluation_csv(all),
            [one] if self.json => json_text(&single_json(one)),
            [one] => single_text(one),
            _ if self.json => json_text(&evaluation_json(all)),
            _ => evaluation_table(all, files),
        }
    }
}

/// Whether `other` is another model than `first`, with means over the same rows and, for a loss, over as many tokens in
/// each. Says why not, with the names of the file and of both models.
fn compared(first: &Scores, other: &Scores, names: [&String; 3], terminal: &Terminal) -> bool {
    if std::ptr::eq(first, other) {
        return false;
    }
    let counts = |scores: &Scores| -> Vec<f64> {
        scores.metrics.iter().flat_map(|(_, rows)| rows).map(|row| row.count).collect()
    };
    let why = if first.locations != other.locations {
        "they have other rows"
    } else if counts(first) != counts(other) {
        "their tokenizers divide the rows into other tokens"
    } else {
        return true;
    };
    let [file, other, first] = names.map(Escaped);
    terminal.warn(&format!("{file}: no difference of {other} to {first}: {why}"));
    false
}
