//! The report as a whole.

use serde_json::{Value, json};

use super::document::{Block, SVG_MARKER, markdown, markup};
use super::json::document;
use super::pictures::pictures;
use super::sentences::{RULE, direction, measures, sentences};
use super::tables::{costs, general, matrix, ranked, ranking, single_values};
use crate::error::Escaped;
use crate::experiment::Results;
use crate::report::chart::charts_svg;
use crate::report::page::static_page;
use crate::report::table::{table, text};

/// A command of the experiment.
#[derive(Debug, Clone)]
pub struct StepLine {
    /// As it is typed in a shell.
    pub command: String,
    /// Seconds that it took.
    pub seconds: f64,
}

/// The report of an experiment.
#[derive(Debug)]
pub struct ExperimentReport {
    /// The base checkpoint as the recipe names it.
    pub base: String,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// What was measured.
    pub results: Results,
    /// Every command, in order.
    pub steps: Vec<StepLine>,
}

impl ExperimentReport {
    /// A line of every page, by which the next run knows it as its own.
    pub const HTML_MARKER: &'static str = "<meta name=\"generator\" content=\"hft-surgery experiment\">";

    /// The report in Markdown, with the pictures of [`ExperimentReport::pictures`] beside it.
    pub fn markdown(&self) -> String {
        markdown(&self.blocks())
    }

    /// The report as a page that needs nothing else.
    pub fn html(&self) -> String {
        static_page("hft-surgery experiment forgetting", Self::HTML_MARKER, &markup(&self.blocks()))
    }

    /// The raw numbers.
    pub fn json(&self) -> Value {
        let mut all = document(&self.results);
        let step = |step: &StepLine| json!({"command": step.command, "measured": {"seconds": step.seconds}});
        all["base"] = json!(self.base);
        all["seeds"] = json!(self.seeds);
        all["steps"] = self.steps.iter().map(step).collect();
        all
    }

    /// The pictures with the names of their files.
    pub fn pictures(&self) -> Vec<(String, String)> {
        let drawn = |block| match block {
            Block::Picture { file, chart } => Some((file, charts_svg(&[chart], SVG_MARKER))),
            _ => None,
        };
        pictures(&self.results).into_iter().filter_map(drawn).collect()
    }

    /// The ranking as a table of a terminal.
    pub fn table(&self) -> String {
        let all = measures(&self.results);
        let mut columns = vec![">rank".to_owned(), "method".to_owned()];
        columns.extend(all.iter().flat_map(|measure| [format!(">{}", measure.name), ">std".to_owned()]));
        let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
        let mut lines = table(&columns);
        for (at, entry) in ranked(&self.results).iter().enumerate() {
            let mut cells = vec![(at + 1).to_string(), Escaped(&entry.label).to_string()];
            for measure in &all {
                let sample = entry.sample(&measure.of);
                cells.push(format!("{:.4}", sample.mean()));
                cells.push(sample.std().map_or_else(|| "-".to_owned(), |std| format!("{std:.4}")));
            }
            lines.add_row(cells);
        }
        text(&lines)
    }

    fn blocks(&self) -> Vec<Block> {
        let results = &self.results;
        let (metric, better) = (&results.metric, direction(results.higher_is_better));
        let forgetting = if results.higher_is_better { "negative" } else { "positive" };
        let mut blocks = vec![
            Block::Title(format!("What fine-tuning {} takes and gives", Escaped(&self.base))),
            Block::Text(format!(
                "{} tasks are learnt one after the other ({}), with {} seeds ({}). A score is the {metric} on the rows of a task, \
                 {better}; `R[i][j]` is that of task j after stage i of N.",
                results.tasks.len(),
                results.tasks.join(", "),
                self.seeds.len(),
                self.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", "),
            )),
            Block::List(vec![
                "OP, overall performance: `(1/N) Σ_j R[N][j]`".to_owned(),
                format!("BWT, backward transfer: `(1/N) Σ_j (R[N][j] − R[j][j])`; {forgetting} is forgetting"),
                "Half-resets and interpolations are made of a trained model at the end. Their OP is that of their own scores; their BWT \
                 takes `R[j][j]` from that training, so it counts against them what they never had to learn again."
                    .to_owned(),
                "± in tables: the standard deviation over seeds, with n − 1.".to_owned(),
            ]),
            Block::Heading("What the numbers show".to_owned()),
            Block::Text(RULE.to_owned()),
            Block::List(sentences(results)),
            Block::Heading("Ranking by OP".to_owned()),
            ranking(results),
            Block::Heading("Pictures".to_owned()),
        ];
        blocks.extend(pictures(results));
        blocks.extend([Block::Heading("Values by seed".to_owned()), single_values(results)]);
        blocks.extend([Block::Heading("The general set".to_owned()), general(results)]);
        blocks.push(Block::Heading("Matrices".to_owned()));
        for entry in &results.entries {
            if let Some(matrix) = matrix(results, entry) {
                blocks.extend([
                    Block::Text(format!("`{}`: {metric} of each task after each stage", entry.label)),
                    matrix,
                ]);
            }
        }
        blocks.extend([
            Block::Heading("Time and memory of training".to_owned()),
            Block::Text(
                "Measured on the machine of this run: wall time of the command with its measurements, and the peak of its \
                 resident set, mapped files included."
                    .to_owned(),
            ),
            costs(results),
            Block::Heading("Commands".to_owned()),
            Block::Commands(self.steps.iter().map(|step| step.command.clone()).collect()),
        ]);
        blocks
    }
}
