//! The command line: one file per subcommand. Arguments, output and exit codes are known only here.
//!
//! stdout carries data, stderr progress, warnings and errors. Exit codes: 0 success, 1 a check failed,
//! 2 error. SIGINT and SIGTERM end the process after its unfinished output is removed.
//!
//! Parts, lowest first: `outcome`, `global_args`, `terminal`, `interrupt`, `progress`, `report_file`,
//! `reading_args`, `link_args`, `hash_args`, `map_args`, `output_args`, `roles`, `shard_size`, `mergekit_args`,
//! `recipe_flags`, `lora_args`, `model_arg`, `adapted_models`, `recipe_run`, `selection`, `device`, `raw_args`, `config_file`, `resume_args`, `optimizer_args`, `training_args`, `memory`,
//! `objective_args`, `training_watch`, `training_estimate`, `rows`, `named_file`, `answer_args`, `eval_data`, `sequence`, `round_plans`, `restraint_args`,
//! `arranged`, `sweep`, `inspect`, `verify`, `model_card_args`, `plan_export`, `plan`, `reset`, `merge`, `lora_extract`, `lora_combine`, `lora`, `view_args`, `task_vectors`,
//! `diff`, `patch`, `train`, `experiment_cost`, `experiment`, `eval`, `generation_warnings`, `chat`, `generate`,
//! `doctor`, `completions`, `man`, `command_line`, `main`.

mod adapted_models;
mod answer_args;
mod arranged;
mod chat;
mod command_line;
mod completions;
mod config_file;
mod device;
mod diff;
mod doctor;
mod eval;
mod eval_data;
mod experiment;
mod experiment_cost;
mod generate;
mod generation_warnings;
mod global_args;
mod hash_args;
mod inspect;
mod interrupt;
mod link_args;
mod lora;
mod lora_args;
mod lora_combine;
mod lora_extract;
mod main;
mod man;
mod map_args;
mod memory;
mod merge;
mod mergekit_args;
mod model_arg;
mod model_card_args;
mod named_file;
mod objective_args;
mod optimizer_args;
mod outcome;
mod output_args;
mod patch;
mod plan;
mod plan_export;
mod progress;
mod raw_args;
mod reading_args;
mod recipe_flags;
mod recipe_run;
mod report_file;
mod reset;
mod restraint_args;
mod resume_args;
mod roles;
mod round_plans;
mod rows;
mod selection;
mod sequence;
mod shard_size;
mod sweep;
mod task_vectors;
mod terminal;
mod train;
mod training_args;
mod training_estimate;
mod training_watch;
mod verify;
mod view_args;

pub use main::main;
