#![doc = include_str!("../README.md")]

pub mod backend;
pub mod checkpoint;
pub mod cli;
pub mod data;
pub mod diff;
pub mod error;
pub mod eval;
pub mod experiment;
pub mod generate;
pub mod lora;
pub mod merge;
pub mod model;
pub mod optimizer;
pub mod patch;
pub mod plan;
pub mod report;
pub mod reset;
mod simd;
pub mod surgery;
pub mod train;

pub use error::{Error, Faults, Result};
