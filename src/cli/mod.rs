//! The command line: one file per subcommand. Arguments, output and exit codes are known only here.
//!
//! stdout carries data, stderr progress, warnings and errors. Exit codes: 0 success, 1 a check failed,
//! 2 error. SIGINT and SIGTERM end the process after its unfinished output is removed.
//!
//! Parts, lowest first: `outcome`, `global_args`, `terminal`, `interrupt`, `progress`, `report_file`,
//! `reading_args`, `link_args`, `hash_args`, `output_args`, `roles`, `shard_size`, `mergekit_args`,
//! `recipe_flags`, `adapted_models`, `selection`, `device`, `raw_args`, `config_file`, `resume_args`, `training_args`,
//! `objective_args`, `training_watch`, `rows`, `inspect`, `verify`, `model_card_args`, `plan_export`, `plan`, `reset`, `merge`, `lora`, `diff`, `patch`,
//! `train`, `eval_data`, `eval`, `generate`,
//! `doctor`, `completions`, `man`, `command_line`, `main`.

mod adapted_models;
mod command_line;
mod completions;
mod config_file;
mod device;
mod diff;
mod doctor;
mod eval;
mod eval_data;
mod generate;
mod global_args;
mod hash_args;
mod inspect;
mod interrupt;
mod link_args;
mod lora;
mod main;
mod man;
mod merge;
mod mergekit_args;
mod model_card_args;
mod objective_args;
mod outcome;
mod output_args;
mod patch;
mod plan;
mod plan_export;
mod progress;
mod raw_args;
mod reading_args;
mod recipe_flags;
mod report_file;
mod reset;
mod resume_args;
mod roles;
mod rows;
mod selection;
mod shard_size;
mod terminal;
mod train;
mod training_args;
mod training_watch;
mod verify;

pub use main::main;
