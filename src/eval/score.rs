//! The scores of a checkpoint on files of rows.

use super::answers::stop_at;
use super::checkpoint::eval_checkpoint;
use super::choice_losses::choice_losses;
use super::scores::{EvalRows, GenerateRows, Scores, WrittenAnswer};
use crate::Result;
use crate::backend::{CpuPrecision, Device};
use crate::checkpoint::Checkpoint;
use crate::data::{Batch, Tokenizer};
use crate::generate::{BatchGenerator, GenerationConfig};
use crate::model::ModelConfig;

/// The scores of the model in `source` on each of `files`, `batch_size` rows at a time. `computed` is told of tokens as they are
/// done, [`EvalRows::tokens`] in all; `None` when it says no. Answers are written on the CPU.
///
/// # Errors
/// A model outside the Llama family, tensors missing or of unexpected shape, a fault of the device, log-probabilities that
/// are not numbers; a checkpoint without a tokenizer where answers are written.
pub fn score_checkpoint(
    device: &mut Device,
    source: &Checkpoint,
    files: &[&EvalRows],
    batch_size: usize,
    computed: &mut dyn FnMut(u64) -> bool,
) -> Result<Option<Vec<Scores>>> {
    let mut going = true;
    let mut go_on = |tokens| {
        going = going && computed(tokens);
        going
    };
    // On a GPU the weights of a model are loaded once for all files.
    let precision = match device {
        Device::Cpu(precision) => Some(*precision),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => None,
    };
    let with_losses = |rows: &&&EvalRows| match rows {
        EvalRows::Loss(_) => true,
        EvalRows::Choice(_) => precision.is_none(),
        EvalRows::Generate(_) => false,
    };
    // Batches of one file only, so that its scores do not depend on the other files.
    let batches = |rows: &&EvalRows| Batch::in_order(rows.sequences(), batch_size);
    let batches: Vec<Batch> = files.iter().filter(with_losses).flat_map(batches).collect();
    let mut after_batch = |batch: &Batch| go_on(batch.input_ids.len() as u64);
    let losses = if batches.is_empty() {
        Vec::new()
    } else {
        eval_checkpoint(device, source, &batches, &mut after_batch)?
    };
    let mut rest = losses.as_slice();
    let mut all = Vec::new();
    for rows in files {
        if !go_on(0) {
            return Ok(None);
        }
        all.push(match rows {
            EvalRows::Generate(rows) => {
                let answers = written(source, rows, batch_size, precision.unwrap_or_default(), &mut go_on)?;
                rows.scores(answers)
            }
            EvalRows::Choice(questions) if let Some(precision) = precision => {
                let losses = choice_losses(source, questions, batch_size, precision, &mut go_on)?;
                if !go_on(0) {
                    return Ok(None);
                }
                rows.scores(&losses)?
            }
            rows => {
                let (own, after) = rest.split_at(rows.sequences().len());
                rest = after;
                rows.scores(own)?
            }
        });
    }
    source.check_unchanged()?;
    Ok(going.then_some(all))
}

/// What the model writes after each prompt: the most probable tokens, up to a token that ends texts, a stop string of the row, or
/// the greatest length.
fn written(
    source: &Checkpoint,
    rows: &GenerateRows,
    batch_size: usize,
    precision: CpuPrecision,
    computed: &mut dyn FnMut(u64) -> bool,
) -> Result<Vec<WrittenAnswer>> {
    let config = ModelConfig::read(source)?;
    let tokenizer = Tokenizer::open(source.root())?;
    let eos = GenerationConfig::read(source, config.vocab_size)?.eos_token_ids;
    let mut generator = BatchGenerator::open(source, config, batch_size, precision)?;
    let prompts: Vec<&[u32]> = rows.rows.iter().map(|row| row.prompt.as_slice()).collect();
    let ends_with_eos = |ids: &[u32]| ids.last().is_some_and(|id| eos.contains(id));
    let mut ends = |at: usize, ids: &[u32]| {
        let stop = &rows.rows[at].stop;
        let ended =
            ends_with_eos(ids) || !stop.is_empty() && stop_at(&tokenizer.decode_text(ids)?, stop).is_some();
        let left = rows.max_new_tokens - ids.len();
        let going = computed(1 + if ended { left as u64 } else { 0 });
        Ok(ended || !going)
    };
    let answers = generator.generate(&prompts, rows.max_new_tokens, &mut ends)?;
    let answer = |(row, ids): (&crate::data::GenerateRow, Vec<u32>)| {
        let mut text = tokenizer.decode_text(&ids)?;
        let end = stop_at(&text, &row.stop);
        text.truncate(end.unwrap_or(text.len()));
        Ok(WrittenAnswer { text, tokens: ids.len(), stopped: end.is_some() || ends_with_eos(&ids) })
    };
    rows.rows.iter().zip(answers).map(answer).collect()
}
