#![doc = include_str!("../README.md")]

pub mod checkpoint;
pub mod cli;
pub mod error;
mod faults;
pub mod plan;
pub mod report;
mod simd;
pub mod surgery;
pub mod train;

pub use error::{Error, Result};
pub use faults::Faults;
