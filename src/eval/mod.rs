//! The loss of a model on batches of rows, as `train` measures it on the way and `eval` on a checkpoint.
//!
//! Parts, lowest first: `forward_batch`, `loss`, `checkpoint`, `log_probs`.

mod checkpoint;
mod forward_batch;
mod log_probs;
mod loss;

pub use checkpoint::eval_checkpoint;
pub use forward_batch::{ForwardBatch, next_token_targets};
pub use log_probs::checkpoint_log_probs;
pub use loss::{MeanLoss, mean_loss};
