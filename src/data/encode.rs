//! Rows become token ids and labels.

use std::ops::Range;

use crate::data::answers::{RenderedChat, TargetMessages};
use crate::data::chat::Chat;
use crate::data::fault::Fault;
use crate::data::record::Record;
use crate::data::row::{Location, Row};
use crate::data::template::ChatTemplate;
use crate::data::tokenizer::Tokenizer;

/// Tokenizes the row at one location of a file.
pub(crate) struct Encoder<'a> {
    /// Absent where the model has none; rows of `input_ids` need none.
    pub(crate) tokenizer: Option<&'a Tokenizer>,
    /// Absent where the model has none.
    pub(crate) template: Option<&'a ChatTemplate>,
    pub(crate) location: Location,
}

impl Encoder<'_> {
    /// Tokenizes a row of a file. It gives one training row, except a chat of several assistant messages under a
    /// template that rewrites earlier messages: that gives one per assistant message.
    pub(crate) fn encode(&self, record: Record) -> Result<Vec<Row>, Fault> {
        match record {
            Record::Chat(chat) => self.chat(chat, TargetMessages::Assistant),
            Record::ChatCompletion { chat, prompt } => self.chat(chat, TargetMessages::From(prompt)),
            Record::PromptCompletion { prompt, completion } => self.prompt_completion(&prompt, &completion),
            Record::Text(text) => {
                let ids = whole(&text, self.tokenizer()?)?;
                let all = 0..ids.len();
                Ok(vec![self.row(ids, Some(all))])
            }
            Record::Instruction { instruction, input, output, system } if self.template.is_some() => {
                let user = if input.is_empty() { instruction } else { format!("{instruction}\n{input}") };
                let system = system.map(|text| ("system", text));
                let messages = system.into_iter().chain([("user", user), ("assistant", output)]);
                self.chat(Chat::of(messages), TargetMessages::Assistant)
            }
            Record::Instruction { instruction, input, output, system } => {
                self.prompt_completion(&alpaca_prompt(&instruction, &input, system.as_deref()), &output)
            }
            Record::Tokens { input_ids, labels } => {
                Ok(vec![Row { input_ids, labels, location: self.location.clone() }])
            }
        }
    }

    fn tokenizer(&self) -> Result<&Tokenizer, Fault> {
        self.tokenizer.ok_or_else(|| {
            Fault::hinted(
                "a row of text, but the model has no tokenizer.json",
                "copy the tokenizer files of the base model beside the weights, or use rows with `input_ids`",
            )
        })
    }

    fn row(&self, input_ids: Vec<u32>, targets: impl IntoIterator<Item = Range<usize>>) -> Row {
        Row::with_targets(input_ids, targets, self.location.clone())
    }

    /// Everything after as many tokens as the prompt has alone is a target, as in TRL.
    fn prompt_completion(&self, prompt: &str, completion: &str) -> Result<Vec<Row>, Fault> {
        let tokenizer = self.tokenizer()?;
        let ids = whole(&format!("{prompt}{completion}"), tokenizer)?;
        let before = tokenizer.ids(prompt, true)?;
        // A tokenizer that ends every sequence itself ends the prompt too.
        let ended =
            tokenizer.eos().is_some_and(|eos| before.last() == Some(&eos.id) && !prompt.ends_with(&eos.text));
        let start = before.len() - usize::from(ended);
        let end = ids.len();
        Ok(vec![self.row(ids, Some(start..end))])
    }

    /// Targets of a rendered chat: the tokens that touch what a generation block rendered, else those
    /// between the ends of the answers.
    fn chat(&self, chat: Chat, targets: TargetMessages) -> Result<Vec<Row>, Fault> {
        let tokenizer = self.tokenizer()?;
        let template = self.template.ok_or_else(|| Fault::new("no chat template"))?;
        let blocks = template.has_generation(&chat) && targets == TargetMessages::Assistant;
        let row = |RenderedChat { text, answers }| {
            if blocks {
                self.with_blocks(&text, &answers, tokenizer)
            } else {
                self.with_answers(&text, answers, tokenizer)
            }
        };
        template.answers(chat, targets)?.into_iter().map(row).collect()
    }

    /// A text whose targets are the tokens that touch one of `blocks`.
    fn with_blocks(&self, text: &str, blocks: &[Range<usize>], tokenizer: &Tokenizer) -> Result<Row, Fault> {
        let tokens = tokenizer.tokens(text)?;
        let touches = |block: &Range<usize>| {
            let inside = |token: &Range<usize>| token.end > block.start && token.start < block.end;
            let first = tokens.ranges.iter().position(inside)?;
            let last = tokens.ranges.iter().rposition(inside)?;
            Some(first..last + 1)
        };
        let targets: Vec<_> = blocks.iter().filter_map(touches).collect();
        Ok(self.row(tokens.ids, targets))
    }

    /// A text whose targets are answers, given in bytes: from the number of tokens that the text before an
    /// answer has alone, to the number that the text up to its end has alone.
    fn with_answers(
        &self,
        text: &str,
        answers: impl IntoIterator<Item = Range<usize>>,
        tokenizer: &Tokenizer,
    ) -> Result<Row, Fault> {
        let tokens = tokenizer.tokens(text)?;
        let target = |answer: Range<usize>| {
            Ok(tokenizer.count(text, &tokens, answer.start)?..tokenizer.count(text, &tokens, answer.end)?)
        };
        let targets: Vec<_> = answers.into_iter().map(target).collect::<Result<_, Fault>>()?;
        Ok(self.row(tokens.ids, targets))
    }
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
