//! LoRA adapters as PEFT stores them: merged into a base (`merge --lora`), combined into one (`lora combine`) and extracted
//! from a fine-tune (`lora extract`).
//!
//! Parts, lowest first: `python_regex`, `targets`, `adapter_config`, `names`, `conv1d`, `adapter`, `change`,
//! `changes`, `joined_changes`, `merge_adapter`, `adapted`, `adapter_file`, `task_tensors`, `combine_factors`, `combine`,
//! `rank`, `svd`, `differing`, `saved`, `extract`.

mod adapted;
mod adapter;
mod adapter_config;
mod adapter_file;
mod change;
mod changes;
mod combine;
mod combine_factors;
mod conv1d;
mod differing;
mod extract;
mod joined_changes;
mod merge_adapter;
mod names;
mod python_regex;
mod rank;
mod saved;
mod svd;
mod targets;
mod task_tensors;

pub use adapted::adapted;
pub use adapter::{Adapter, WeightedAdapter};
pub use combine::{Combine, Combined, combine};
pub use combine_factors::CombinationType;
pub use differing::Embeddings;
pub use extract::{Extract, ExtractedModule, Extraction, WholeTensor, extract_lora};
pub use merge_adapter::LoraMerge;
pub use rank::{RankChoice, RankRule};
pub use task_tensors::{MajoritySign, TaskRule};
