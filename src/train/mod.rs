//! Masked fine-tuning.

pub mod data;
