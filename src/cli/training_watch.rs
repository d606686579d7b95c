//! What `train` shows while it runs: one line.

use std::time::Duration;

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::memory::available;
use super::progress::tokens_bar;
use super::terminal::{Terminal, list};
use crate::backend::Device;
use crate::error::Escaped;
use crate::optimizer::StatePlace;
use crate::report::{TrainingResult, TrainingRound, bytes, bytes_per_parameter, grouped, percent};
use crate::train::{
    Continual, Cost, Event, LogLine, MemoryParts, RoundLength, RoundSummary, ScoredFile, Watcher,
};

/// What takes less memory.
pub(super) const LESS_MEMORY: &str = "use a smaller --ratio or --batch-size, --recompute full, --optimizer adamw8bit, \
                                      --master none, --gradient-dtype bfloat16, or --optimizer-in-backward with \
                                      --max-grad-norm 0";

/// Shows progress and keeps what the final table needs.
pub(super) struct Watch<'a> {
    device: String,
    /// Bytes of memory that the run can take.
    available: Option<u64>,
    terminal: &'a Terminal,
    rounds: usize,
    every: u64,
    bar: ProgressBar,
    of_round: u64,
    cost: Option<Cost>,
    result: TrainingResult,
}

impl<'a> Watch<'a> {
    pub(super) fn new(terminal: &'a Terminal, device: &mut Device, rounds: usize, every: u64) -> Self {
        let result = TrainingResult { peak_gflops: device.gemm_gflops(), ..TrainingResult::default() };
        let available = available(device);
        let device = match device.name() {
            (name, None) => name,
            (name, Some(free)) => format!("{name}, {} free", bytes(free)),
        };
        let bar = ProgressBar::hidden();
        Self { device, available, terminal, rounds, every, bar, of_round: 0, cost: None, result }
    }

    pub(super) fn result(mut self, device_memory: Option<u64>) -> TrainingResult {
        self.result.device_memory = device_memory;
        self.bar.finish_and_clear();
        self.result.peak_memory = peak_memory();
        self.result
    }

    fn step(&mut self, line: &LogLine, total: u64) {
        self.of_round += 1;
        let lr = line.learning_rate;
        let rate = grouped(line.tokens_per_second.round() as u64);
        let mut text = format!("loss {:.4}  lr {lr:.2e}  {rate} tokens/s", line.loss);
        if let Some(pairs) = &line.preference {
            let (margin, accuracy) = (pairs.rewards_margins, pairs.rewards_accuracies);
            text += &format!("  rewards/margins {margin:.4}  rewards/accuracies {accuracy:.2}");
        }
        if let Some(memory) = peak_memory() {
            text += &format!("  {}", bytes(memory));
        }
        if let Some(eval) = line.eval_loss {
            text += &format!("  eval loss {eval:.4}");
        }
        self.bar.set_message(text.clone());
        self.bar.inc(1);
        if self.bar.is_hidden() && (self.of_round.is_multiple_of(self.every) || self.of_round == total) {
            self.terminal.note(&format!("step {}/{}  {text}", line.step, self.steps_before(line) + total));
        }
    }

    /// A bar of this length; hidden unless stderr is a terminal.
    fn start_bar(&mut self, length: u64) {
        if !self.terminal.draws_progress() {
            return;
        }
        let template = "{prefix}[{bar:16}] {pos}/{len} {eta} left  {wide_msg}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
        self.bar = bar.with_style(style.progress_chars("=> "));
        self.bar.enable_steady_tick(Duration::from_millis(500));
    }

    /// Says where the moments are, if not in memory of the device, and why.
    fn moments(&self, memory: &MemoryParts) {
        let place = match memory.place {
            StatePlace::Device => return,
            StatePlace::Disk => "in a mapped file on the disk",
            StatePlace::Host => "in page-locked memory of the host",
        };
        let with = memory.total() + memory.offloaded;
        let why = self.available.filter(|available| with > *available).map(|available| {
            format!(": with them the run needs {}, and {} are available", bytes(with), bytes(available))
        });
        self.terminal.note(&format!(
            "moments: {} {place}{}",
            bytes(memory.offloaded),
            why.unwrap_or_default()
        ));
    }

    /// Steps of the rounds before.
    fn steps_before(&self, line: &LogLine) -> u64 {
        line.step - self.of_round.min(line.step)
    }
}

impl Watcher for Watch<'_> {
    fn reference(&mut self, done: usize, rows: usize) {
        const DOING: &str = "reference model";
        if done == 0 {
            self.terminal.note(&format!(
                "{DOING}: log-probabilities of {} answers, before the first step",
                grouped(rows as u64)
            ));
            self.start_bar(rows as u64);
            self.bar.set_message(DOING);
        }
        self.bar.set_position(done as u64);
        if done == rows {
            self.bar.finish_and_clear();
        }
    }

    fn measuring(&mut self, done: u64, tokens: u64) {
        if done == 0 {
            self.bar = tokens_bar(self.terminal, "measure", tokens);
        }
        self.bar.set_position(done);
        if done == tokens {
            self.bar.finish_and_clear();
        }
    }

    fn measured(&mut self, scores: &Continual) {
        let when = match scores.measured() - 1 {
            0 => "before the first stage".to_owned(),
            stage => format!("after stage {stage} of {}", scores.tasks().len()),
        };
        let last = |at: usize| scores.of_file(at).pop().unwrap_or(f64::NAN);
        let file = |(at, file): (usize, &ScoredFile)| {
            format!("{} {} {:.4}", Escaped(&file.name), file.metric.name(), last(at))
        };
        let files: Vec<String> = scores.files().iter().enumerate().map(file).collect();
        self.terminal.note(&format!("{when}: {}", files.join(", ")));
    }

    fn begin(&mut self, round: u32, cost: &Cost, RoundLength { steps, taken, tokens }: RoundLength) {
        let trained = percent(cost.trainable, cost.parameters);
        let flops = cost.flops.forward + cost.flops.backward + cost.flops.head;
        let rate = self.result.peak_gflops * 1e9 / flops;
        let of =
            if self.rounds > 1 { format!("round {} of {}: ", round + 1, self.rounds) } else { String::new() };
        self.terminal.note(&format!(
            "{of}{} of {} parameters are trained ({trained}), on {}",
            grouped(cost.trainable),
            grouped(cost.parameters),
            self.device,
        ));
        let held = if cost.memory.has_moments() {
            "weights, gradients and moments"
        } else {
            "weights and gradients"
        };
        self.terminal.note(&format!(
            "memory: {} for {held} ({}), up to {} for activations",
            bytes(cost.memory.state()),
            bytes_per_parameter(cost),
            bytes(cost.memory.activations),
        ));
        let needed = cost.memory.total();
        self.moments(&cost.memory);
        if let Some(available) = self.available.take().filter(|available| needed > *available) {
            let (needed, available) = (bytes(needed), bytes(available));
            self.terminal.warn(&format!(
                "the run needs {needed} of memory, and {available} are available: {LESS_MEMORY}"
            ));
        }
        self.terminal.note(&format!(
            "time: {} steps, at least {}, at the speed of matrix products ({} tokens/s)",
            steps.saturating_sub(taken),
            HumanDuration(Duration::from_secs_f64(tokens as f64 / rate.max(1.0))),
            grouped(rate as u64),
        ));
        self.of_round = taken;
        self.cost = Some(*cost);
        self.start_bar(steps);
        self.bar.set_position(taken);
    }

    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Step(line, total) => self.step(line, total),
            Event::Saved(path) => self.terminal.detail(&format!("saved {}", Escaped(path))),
        }
    }

    fn end(&mut self, round: u32, summary: &RoundSummary, unmoved: &[String]) {
        self.bar.finish_and_clear();
        if !unmoved.is_empty() {
            let names: Vec<&str> = unmoved.iter().map(String::as_str).collect();
            self.terminal.warn(&format!(
                "{} trainable tensors are as before, as their updates were too small for their type: {}",
                unmoved.len(),
                list(&names, 5)
            ));
        }
        if let Some(cost) = self.cost {
            self.result.rounds.push(TrainingRound { round, cost, summary: *summary });
        }
    }
}

/// The most memory that this process held so far; `None` where the system does not say.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib * 1024)
}

/// The losses of the first and the last step, and of the evaluation rows where there are some.
pub(super) fn outcome(log: &[LogLine]) -> String {
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
