//! LoRA adapters as PEFT stores them: merged into a base (`merge --lora`) and extracted from a fine-tune (`lora extract`).
//!
//! Parts, lowest first: `adapter`, `merge_adapter`, `svd`, `extract`.

mod adapter;
mod extract;
mod merge_adapter;
mod svd;

pub use adapter::Adapter;
pub use extract::{Extraction, extract_lora};
pub use merge_adapter::LoraMerge;
