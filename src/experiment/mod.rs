//! Experiments on forgetting: a recipe becomes command lines of this program, each is run in a process of its own and
//! measured, and what they print becomes the results of the methods over seeds.
//!
//! Knows no terminal, no model and no tensor: everything is computed by the commands.
//!
//! Parts, lowest first: `recipe`, `steps`, `child`, `store`, `run`, `statistics`, `outcome`, `results`.

mod child;
mod outcome;
mod recipe;
mod results;
mod run;
mod statistics;
mod steps;
mod store;

pub use child::Measured;
pub use outcome::{Entry, GeneralScore, Origin, Outcome};
pub use recipe::{Method, Procedure, Recipe, Task};
pub use results::Results;
pub use run::{Conditions, Finished, Runner};
pub use statistics::{Paired, Sample};
pub use steps::{Chain, Kind, Step, chains};
pub use store::{Record, Store};
