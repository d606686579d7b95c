//! Rows become token ids and labels.

use std::ops::Range;

use crate::data::answers::{Answer, RenderedChat, TargetMessages};
use crate::data::chat::Chat;
use crate::data::fault::Fault;
use crate::data::record::Record;
use crate::data::row::{IGNORED, Location, Row};
use crate::data::template::ChatTemplate;
use crate::data::token_row::Sequence;
use crate::data::tokenizer::{TokenPrefix, Tokenizer};

/// Tokenizes the row at one location of a file.
pub(crate) struct Encoder<'a> {
    /// Absent where the model has none; rows of `input_ids` need none.
    pub(crate) tokenizer: Option<&'a Tokenizer>,
    /// Absent where the model has none.
    pub(crate) template: Option<&'a ChatTemplate>,
    pub(crate) location: Location,
}

/// The training rows that a row of a file gives.
#[derive(Debug, Default)]
pub(crate) struct Encoded {
    pub(crate) rows: Vec<Row>,
    /// Whether a prompt has tokens, alone, that it does not have with its answer: a token spans the boundary.
    pub(crate) merged: bool,
}

impl Encoder<'_> {
    /// Tokenizes a row of a file. It gives one training row, except a chat of several assistant messages under a
    /// template that rewrites earlier messages, which gives one per assistant message, and packed token ids, which
    /// give one per sequence. An empty `text` gives none, a preference two: the
    /// chosen answer and the rejected one, each behind the prompt.
    pub(crate) fn encode(&self, record: Record) -> Result<Encoded, Fault> {
        match record {
            Record::Chat(chat) => self.chat(chat, TargetMessages::Assistant),
            Record::ChatCompletion { chat, prompt } => self.chat(chat, TargetMessages::From(prompt)),
            Record::PromptCompletion { prompt, completion } => self.prompt_completion(&prompt, &completion),
            Record::Text(text) if text.is_empty() => Ok(Encoded::default()),
            Record::Text(text) => {
                let ids = whole(&text, self.tokenizer()?)?;
                let all = 0..ids.len();
                Ok(Encoded { rows: vec![self.row(ids, Some(all))], merged: false })
            }
            Record::Instruction { instruction, input, output, system, history }
                if self.template.is_some() =>
            {
                let user = if input.is_empty() { instruction } else { format!("{instruction}\n{input}") };
                let turn = |(user, assistant)| [("user", user), ("assistant", assistant)];
                let turns = history.into_iter().chain([(user, output)]).flat_map(turn);
                let messages = system.map(|text| ("system", text)).into_iter().chain(turns);
                self.chat(Chat::of(messages), TargetMessages::Assistant)
            }
            Record::Instruction { history, .. } if !history.is_empty() => Err(Fault::hinted(
                "`history` needs a chat template, and the model has none",
                "use the chat_template.jinja of the model's instruct version, or rows with `prompt` and `completion`",
            )),
            Record::Instruction { instruction, input, output, system, .. } => {
                self.prompt_completion(&alpaca_prompt(&instruction, &input, system.as_deref()), &output)
            }
            Record::Preference(pair) => self.preference(*pair),
            Record::Tokens(sequences) => Ok(Encoded { rows: self.sequences(sequences), merged: false }),
        }
    }

    /// Both answers begin where the first of them leaves the tokens of the prompt alone, as in TRL.
    fn preference(&self, pair: [Record; 2]) -> Result<Encoded, Fault> {
        let [chosen, rejected] = pair.map(|record| self.encode(record));
        let (mut chosen, rejected) = (chosen?, rejected?);
        chosen.merged |= rejected.merged;
        chosen.rows.extend(rejected.rows);
        assert!(chosen.rows.len() == 2, "each answer is one sequence");
        let begins = |row: &Row| row.labels.iter().position(|label| *label != IGNORED);
        let first = chosen.rows.iter().filter_map(begins).min();
        let first = first.ok_or_else(|| Fault::new("no target token: both answers are empty"))?;
        for row in &mut chosen.rows {
            let end = row.input_ids.len();
            *row = self.row(std::mem::take(&mut row.input_ids), Some(first..end));
        }
        Ok(chosen)
    }

    /// One row for each sequence; of several, those without a target are left out: they have no loss.
    fn sequences(&self, sequences: Vec<Sequence>) -> Vec<Row> {
        let row = |Sequence { input_ids, labels }| Row { input_ids, labels, location: self.location.clone() };
        let mut rows: Vec<Row> = sequences.into_iter().map(row).collect();
        if rows.iter().any(|row| row.targets() > 0) {
            rows.retain(|row| row.targets() > 0);
        } else {
            rows.truncate(1);
        }
        rows
    }

    fn tokenizer(&self) -> Result<&Tokenizer, Fault> {
        self.tokenizer.ok_or_else(no_tokenizer)
    }

    fn row(&self, input_ids: Vec<u32>, targets: impl IntoIterator<Item = Range<usize>>) -> Row {
        Row::with_targets(input_ids, targets, self.location.clone())
    }

    /// Everything after the tokens that the prompt alone has in common with the whole is a target, as in TRL.
    fn prompt_completion(&self, prompt: &str, completion: &str) -> Result<Encoded, Fault> {
        let tokenizer = self.tokenizer()?;
        let ids = whole(&format!("{prompt}{completion}"), tokenizer)?;
        let mut before = tokenizer.ids(prompt, true)?;
        // A tokenizer that ends every sequence itself ends the prompt too.
        if tokenizer.eos().is_some_and(|eos| before.last() == Some(&eos.id) && !prompt.ends_with(&eos.text)) {
            before.pop();
        }
        let TokenPrefix { shared, merged } = TokenPrefix::of(&before, &ids);
        let end = ids.len();
        Ok(Encoded { rows: vec![self.row(ids, Some(shared..end))], merged })
    }

    /// Targets of a rendered chat: the tokens that touch what a generation block rendered, else those from the end
    /// of the generation prompt to the end of each answer.
    fn chat(&self, chat: Chat, targets: TargetMessages) -> Result<Encoded, Fault> {
        let tokenizer = self.tokenizer()?;
        let template = self.template.ok_or_else(|| Fault::new("no chat template"))?;
        let blocks = template.has_generation(&chat) && targets == TargetMessages::Assistant;
        let mut encoded = Encoded::default();
        for chat in template.answers(chat, targets)? {
            if blocks {
                encoded.rows.push(self.with_blocks(&chat, tokenizer)?);
            } else {
                let (row, merged) = self.with_answers(&chat, tokenizer)?;
                encoded.rows.push(row);
                encoded.merged |= merged;
            }
        }
        Ok(encoded)
    }

    /// A chat whose targets are the tokens that touch one of its answers, as transformers counts those of
    /// generation blocks.
    fn with_blocks(&self, chat: &RenderedChat, tokenizer: &Tokenizer) -> Result<Row, Fault> {
        let tokens = tokenizer.tokens(&chat.text)?;
        let touches = |answer: &Answer| {
            let block = &answer.bytes;
            let inside = |token: &Range<usize>| token.end > block.start && token.start < block.end;
            let first = tokens.ranges.iter().position(inside)?;
            let last = tokens.ranges.iter().rposition(inside)?;
            Some(first..last + 1)
        };
        let targets: Vec<_> = chat.answers.iter().filter_map(touches).collect();
        Ok(self.row(tokens.ids, targets))
    }

    /// A chat whose targets are its answers: each from the first token that the prompt alone does not have, to the
    /// token that holds its last byte; and whether a token spans the end of a prompt.
    fn with_answers(&self, chat: &RenderedChat, tokenizer: &Tokenizer) -> Result<(Row, bool), Fault> {
        let tokens = tokenizer.tokens(&chat.text)?;
        let (mut targets, mut any_merged) = (Vec::new(), false);
        for Answer { bytes, prompt_rest } in &chat.answers {
            let prompt = tokenizer.prefix(&chat.text, &tokens, bytes.start, prompt_rest)?;
            any_merged |= prompt.merged;
            targets.push(prompt.shared..tokens.ranges.partition_point(|token| token.start < bytes.end));
        }
        Ok((self.row(tokens.ids, targets), any_merged))
    }
}

/// The fault of a row of text where the model has no tokenizer.
pub(crate) fn no_tokenizer() -> Fault {
    Fault::hinted(
        "a row of text, but the model has no tokenizer.json",
        "copy the tokenizer files of the base model beside the weights, or use rows with `input_ids`",
    )
}

/// The prompt of Stanford Alpaca, for models without a chat template.
///
/// Source: Taori et al. 2023, <https://github.com/tatsu-lab/stanford_alpaca>.
fn alpaca_prompt(instruction: &str, input: &str, system: Option<&str>) -> String {
    let (context, input) = if input.is_empty() {
        (" that describes a task. ", String::new())
    } else {
        (
            " that describes a task, paired with an input that provides further context. ",
            format!("### Input:\n{input}\n\n"),
        )
    };
    let preamble = system.map_or_else(
        || {
            format!(
                "Below is an instruction{context}Write a response that appropriately completes the request."
            )
        },
        str::to_owned,
    );
    format!("{preamble}\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n")
}

/// Ids of a whole text with the tokenizer's special tokens, ended by one end-of-sequence token.
fn whole(text: &str, tokenizer: &Tokenizer) -> Result<Vec<u32>, Fault> {
    let mut ids = tokenizer.ids(text, true)?;
    if let Some(eos) = tokenizer.eos()
        && ids.last() != Some(&eos.id)
    {
        ids.push(eos.id);
    }
    Ok(ids)
}
