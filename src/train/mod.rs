//! Masked fine-tuning: only the trainable tensors of a plan get gradients, moments and updates.
//!
//! `step` is one optimizer step, `round` the steps under one plan, `run` all rounds and the files they leave.
//! `state` is what `--resume` needs, `log` what people look at, `continual` what a sequence of tasks left of each.
//!
//! Parts, lowest first: `fingerprint`, `schedule`, `loss`, `log`, `tensorboard`, `elements`, `optimizer_options`, `frozen_dtype`, `model`,
//! `gradient_pool`, `cost`, `offload`, `state`, `run_record`, `run_dir`, `trained_tensor`, `bf16_gradients`, `step`, `step_in_backward`, `rehearsal`, `round`, `planned_memory`, `estimate`, `continual`, `watcher`, `reference`, `sequence`, `restraints`, `run_options`,
//! `run`.

mod bf16_gradients;
mod continual;
mod cost;
mod elements;
mod estimate;
mod fingerprint;
mod frozen_dtype;
mod gradient_pool;
mod log;
mod loss;
mod model;
mod offload;
mod optimizer_options;
mod planned_memory;
mod reference;
mod rehearsal;
mod restraints;
mod round;
mod run;
mod run_dir;
mod run_options;
mod run_record;
mod schedule;
mod sequence;
mod state;
mod step;
mod step_in_backward;
mod tensorboard;
mod trained_tensor;
mod watcher;

pub use continual::{Continual, ScoredFile};
pub use cost::{Cost, FlopsPerToken, MemoryParts, trained_bytes};
pub use estimate::{MeasuredSteps, StepParts, measure_steps};
pub use fingerprint::{eval_digest, rows_digest};
pub use frozen_dtype::{FrozenDtype, frozen_bytes};
pub use log::{LogLine, TrainLog};
pub use loss::{LossType, PreferenceLoss, PreferenceMetrics, ReferenceAnswer};
pub use optimizer_options::{Gradients, Master, OptimizerOptions};
pub use planned_memory::planned_bytes;
pub use restraints::Restraints;
pub use round::{Event, RoundOptions, RoundSummary, Stage};
pub use run::{Run, RunResult};
pub use run_dir::RunDir;
pub use run_options::{RoundSpec, RunOptions};
pub use run_record::{NewRun, StartedBy};
pub use schedule::{Schedule, Scheduler};
pub use sequence::MeasuredFile;
pub use state::Progress;
pub use step::{Objective, StepBuffers, StepReport, Timings, Update, step};
pub use watcher::{RoundLength, Watcher};
