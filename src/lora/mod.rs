//! Low-rank adapters: folded into a base (`merge --lora`) and extracted from a fine-tune (`lora extract`).

pub(crate) mod adapter;
mod extract;
mod fold;
mod svd;

pub use adapter::Adapter;
pub use extract::{Extraction, extract_lora};
pub use fold::LoraMerge;
