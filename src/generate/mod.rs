//! Text that a model writes after a prompt, token by token, on the CPU.
//!
//! Token ids in, token ids out: prompts are tokenized by [`crate::data::Conversation`] and
//! [`crate::data::Tokenizer`]. The next token is chosen as transformers' `generate` chooses it; only the random numbers
//! differ.
//!
//! Parts, lowest first: `sampling`, `config`, `text_stream`, `runner`, `generator`, `batch`.

mod batch;
mod config;
mod generator;
mod runner;
mod sampling;
mod text_stream;

pub use batch::BatchGenerator;
pub use config::GenerationConfig;
pub use generator::Generator;
pub use sampling::{Options, Sampling, penalize, probabilities};
pub use text_stream::TextStream;
