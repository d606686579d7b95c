//! The loss of a model on batches of rows, as `train` measures it on the way and `eval` on a checkpoint.
//!
//! Parts, lowest first: `forward_batch`, `loss`, `checkpoint`.

mod checkpoint;
mod forward_batch;
mod loss;

pub use checkpoint::{Evaluation, eval_checkpoint};
pub use forward_batch::{ForwardBatch, next_token_targets};
pub use loss::{MeanLoss, mean_loss};
