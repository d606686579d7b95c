//! Rows become token ids and labels.

use std::ops::Range;

use crate::data::answers::{Answered, Learnt};
use crate::data::chat::Chat;
use crate::data::fault::Fault;
use crate::data::record::Record;
use crate::data::row::Sequence;
use crate::data::template::ChatTemplate;
use crate::data::tokenizer::Tokenizer;

type Sequences = Result<Vec<Sequence>, Fault>;

/// Tokenizes a row. One row gives one sequence, except a chat of several assistant messages under a
/// template that rewrites earlier messages: that gives one sequence per assistant message.
///
/// `template` is there for every record that needs one.
pub(crate) fn encode(record: Record, tokenizer: &Tokenizer, template: Option<&ChatTemplate>) -> Sequences {
    match (record, template) {
        (Record::Chat(chat), Some(template)) => encode_chat(chat, Learnt::Assistant, tokenizer, template),
        (Record::ChatCompletion { chat, prompt }, Some(template)) => {
            encode_chat(chat, Learnt::From(prompt), tokenizer, template)
        }
        (Record::Chat(_) | Record::ChatCompletion { .. }, None) => Err(Fault::new("no chat template")),
        (Record::PromptCompletion { prompt, completion }, _) => {
            prompt_completion(&prompt, &completion, tokenizer)
        }
        (Record::Text(text), _) => whole(&text, tokenizer).map(|ids| {
            let all = 0..ids.len();
            vec![Sequence::with_targets(ids, Some(all))]
        }),
        (Record::Instruction { instruction, input, output, system }, Some(template)) => {
            let user = if input.is_empty() { instruction } else { format!("{instruction}\n{input}") };
            let system = system.map(|text| ("system", text));
            let messages = system.into_iter().chain([("user", user), ("assistant", output)]);
            encode_chat(Chat::of(messages), Learnt::Assistant, tokenizer, template)
        }
        (Record::Instruction { instruction, input, output, system }, None) => {
            prompt_completion(&alpaca_prompt(&instruction, &input, system.as_deref()), &output, tokenizer)
        }
        (Record::Tokens { input_ids, labels }, _) => Ok(vec![Sequence { input_ids, labels }]),
        (Record::Preference(_), _) => Err(Fault::hinted(
            "a preference row (`prompt`, `chosen`, `rejected`) in supervised fine-tuning",
            "rename `chosen` to `completion` and drop `rejected` to learn the chosen answers",
        )),
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

/// Everything after as many tokens as the prompt has alone is a target, as in TRL.
fn prompt_completion(prompt: &str, completion: &str, tokenizer: &Tokenizer) -> Sequences {
    let ids = whole(&format!("{prompt}{completion}"), tokenizer)?;
    let before = tokenizer.ids(prompt, true)?;
    // A tokenizer that ends every sequence itself ends the prompt too.
    let ended =
        tokenizer.eos().is_some_and(|eos| before.last() == Some(&eos.id) && !prompt.ends_with(&eos.text));
    let start = before.len() - usize::from(ended);
    let end = ids.len();
    Ok(vec![Sequence::with_targets(ids, Some(start..end))])
}

/// Targets of a rendered chat: the tokens that touch what a generation block rendered, else those
/// between the ends of the answers.
fn encode_chat(chat: Chat, learnt: Learnt, tokenizer: &Tokenizer, template: &ChatTemplate) -> Sequences {
    let blocks = template.has_generation() && learnt == Learnt::Assistant;
    let sequence = |Answered { text, answers }| {
        if blocks { with_blocks(&text, &answers, tokenizer) } else { with_answers(&text, answers, tokenizer) }
    };
    template.answers(chat, learnt)?.into_iter().map(sequence).collect()
}

/// A text whose targets are the tokens that touch one of `blocks`.
fn with_blocks(text: &str, blocks: &[Range<usize>], tokenizer: &Tokenizer) -> Result<Sequence, Fault> {
    let tokens = tokenizer.tokens(text)?;
    let touches = |block: &Range<usize>| {
        let inside = |token: &Range<usize>| token.end > block.start && token.start < block.end;
        let first = tokens.ranges.iter().position(inside)?;
        let last = tokens.ranges.iter().rposition(inside)?;
        Some(first..last + 1)
    };
    let targets: Vec<_> = blocks.iter().filter_map(touches).collect();
    Ok(Sequence::with_targets(tokens.ids, targets))
}

/// A text whose targets are answers, given in bytes: from the number of tokens that the text before an
/// answer has alone, to the number that the text up to its end has alone.
fn with_answers(
    text: &str,
    answers: impl IntoIterator<Item = Range<usize>>,
    tokenizer: &Tokenizer,
) -> Result<Sequence, Fault> {
    let tokens = tokenizer.tokens(text)?;
    let target = |answer: Range<usize>| {
        Ok(tokenizer.count(text, &tokens, answer.start)?..tokenizer.count(text, &tokens, answer.end)?)
    };
    let targets: Vec<_> = answers.into_iter().map(target).collect::<Result<_, Fault>>()?;
    Ok(Sequence::with_targets(tokens.ids, targets))
}
