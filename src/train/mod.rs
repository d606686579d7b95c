//! Masked fine-tuning: only the trainable tensors of a plan get gradients, moments and updates.

mod step;

pub use step::{AdamW, MicroBatch, StepReport, Timings, evaluate, step};
