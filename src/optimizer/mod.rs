//! Optimizers as data: what each is asked for, what it keeps of a tensor, how its numbers are stored.
//!
//! The arithmetic is that of a device: one file for each optimizer in `backend/cpu`, under the same name in
//! `backend/cuda` and `kernels/`.
//!
//! Parts, lowest first: `dynamic_map`, `rounding`, `choice`, `storage`, `state`, `step`.

mod choice;
mod dynamic_map;
mod rounding;
mod state;
mod step;
mod storage;

pub use choice::{Adafactor, Adam, Lion, Optimizer, Sgd};
pub use dynamic_map::{BLOCK, DynamicMap};
pub use rounding::Rounding;
pub use state::{PartKind, SMALLEST_IN_8_BITS, StatePart, StateValues};
pub use step::OptimizerStep;
pub use storage::{StatePlace, Storage};
