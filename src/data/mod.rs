//! Training data: files of rows become token ids, labels and micro-batches.
//!
//! The columns of a row decide its format: `messages`, `conversations`, `prompt` + `completion`,
//! `instruction` + `output`, `text`, or `input_ids` (+ `labels`); of preferences, `prompt` + `chosen` + `rejected`.
//! Labels are not shifted here.
//!
//! Parts, lowest first: `fault`, `catch_panic`, `columns`, `last_number`, `limits`, `splits`, `files`, `raw_row`, `json_lines`, `parquet_pages`,
//! `parquet`, `rows_of_file`, `row`, `message_weight`, `chat`, `token_row`, `ignored_columns`, `record`, `preference`, `generation`,
//! `jinja`, `once`, `python`, `engine`, `prefixes`, `answers`, `worker`, `workers`, `template`, `tokenizer_file`,
//! `tokenizer_class`, `tokenizer`, `conversation`, `encode`, `context`, `choice`, `few_shot`, `load`, `load_choices`,
//! `generate_row`, `load_generate`, `preview`, `packing`, `length_groups`, `batch`, `batches`, `replay`.

mod answers;
mod batch;
mod batches;
mod catch_panic;
mod chat;
mod choice;
mod columns;
mod context;
mod conversation;
mod encode;
mod engine;
mod fault;
mod few_shot;
mod files;
mod generate_row;
mod generation;
mod ignored_columns;
mod jinja;
mod json_lines;
mod last_number;
mod length_groups;
mod limits;
mod load;
mod load_choices;
mod load_generate;
mod message_weight;
mod once;
mod packing;
#[cfg(feature = "parquet")]
mod parquet;
#[cfg(feature = "parquet")]
mod parquet_pages;
mod preference;
mod prefixes;
mod preview;
mod python;
mod raw_row;
mod record;
mod replay;
mod row;
mod rows_of_file;
mod splits;
mod template;
mod token_row;
mod tokenizer;
mod tokenizer_class;
mod tokenizer_file;
mod worker;
mod workers;

pub use batch::Batch;
pub use batches::{Arrangement, BatchOptions, Batches, Epoch};
pub use choice::ChoiceRow;
pub use conversation::Conversation;
pub use few_shot::{FewShot, Sampler, Shots};
pub use generate_row::{AnswerMetric, GenerateRow};
pub use last_number::last_number;
pub use limits::Limits;
pub use load::{Dataset, Summary, load, load_few_shot, load_preferences};
pub use load_choices::{ChoiceDataset, holds_choices, load_choices, load_choices_few_shot};
pub use load_generate::{GenerateDataset, GenerateLimits, holds_answers, load_generate};
pub use preview::{Sample, Span, preview};
pub use replay::{Replayed, replay};
pub use row::{IGNORED, Location, Row};
pub use tokenizer::Tokenizer;
pub use workers::render_apart;
