//! The loss of a model on batches of rows, as `train` measures it on the way, and the scores of checkpoints that `eval`
//! compares.
//!
//! Parts, lowest first: `forward_batch`, `loss`, `checkpoint`, `log_probs`, `estimate`, `answers`, `scores`,
//! `choice_losses`, `score`.

mod answers;
mod checkpoint;
mod choice_losses;
mod estimate;
mod forward_batch;
mod log_probs;
mod loss;
mod score;
mod scores;

pub use answers::is_right;
pub use checkpoint::{Replaced, eval_checkpoint, eval_replaced};
pub use estimate::{Difference, Estimate, RowSum, mean, paired_difference};
pub use forward_batch::{ForwardBatch, next_token_targets};
pub use log_probs::checkpoint_log_probs;
pub use loss::{MeanLoss, SequenceLoss, mean_loss, sequence_losses};
pub use score::score_checkpoint;
pub use scores::{EvalRows, GenerateRows, Metric, RowScore, Scores, WrittenAnswer};
