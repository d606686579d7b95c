//! LoRA adapters as PEFT stores them: merged into a base (`merge --lora`) and extracted from a fine-tune (`lora extract`).
//!
//! Parts, lowest first: `python_regex`, `targets`, `adapter_config`, `names`, `conv1d`, `adapter`, `change`,
//! `changes`, `merge_adapter`, `svd`, `extract`.

mod adapter;
mod adapter_config;
mod change;
mod changes;
mod conv1d;
mod extract;
mod merge_adapter;
mod names;
mod python_regex;
mod svd;
mod targets;

pub use adapter::Adapter;
pub use extract::{Extraction, extract_lora};
pub use merge_adapter::LoraMerge;
