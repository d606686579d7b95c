//! Rows become token ids and labels.

use std::ops::Range;

use super::chat::Chat;
use super::fault::Fault;
use super::record::Record;
use super::row::Sequence;
use super::template::ChatTemplate;
use super::tokenizer::Tokenizer;

type Sequences = Result<Vec<Sequence>, Fault>;

/// Tokenizes a row. One row gives one sequence, except a chat of several assistant messages under a
/// template that rewrites earlier messages: that gives one sequence per assistant message.
///
/// `template` is there for every record that needs one.
pub(super) fn encode(record: Record, tokenizer: &Tokenizer, template: Option<&ChatTemplate>) -> Sequences {
    match (record, template) {
        (Record::Chat(chat), Some(template)) => encode_chat(&chat, tokenizer, template),
        (Record::ChatCompletion { chat, prompt }, Some(template)) => {
            chat_completion(&chat, prompt, tokenizer, template)
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
            encode_chat(&Chat::of(messages), tokenizer, template)
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

fn chat_completion(chat: &Chat, prompt: usize, tokenizer: &Tokenizer, template: &ChatTemplate) -> Sequences {
    let text = template.render(chat, chat.messages.len(), false)?.text;
    let answer = answer_start(chat, prompt, &text, template)?..text.len();
    with_answers(&text, Some(answer), tokenizer).map(|sequence| vec![sequence])
}

fn encode_chat(chat: &Chat, tokenizer: &Tokenizer, template: &ChatTemplate) -> Sequences {
    if template.has_generation() {
        return generation_blocks(chat, tokenizer, template).map(|sequence| vec![sequence]);
    }
    prefix_difference(chat, tokenizer, template)
}

/// Targets are the tokens that touch what a generation block rendered.
fn generation_blocks(chat: &Chat, tokenizer: &Tokenizer, template: &ChatTemplate) -> Result<Sequence, Fault> {
    let rendered = template.render(chat, chat.messages.len(), false)?;
    let tokens = tokenizer.tokens(&rendered.text)?;
    let touches = |block: &Range<usize>| {
        let inside = |token: &Range<usize>| token.end > block.start && token.start < block.end;
        let first = tokens.ranges.iter().position(inside)?;
        let last = tokens.ranges.iter().rposition(inside)?;
        Some(first..last + 1)
    };
    let targets: Vec<_> = rendered.blocks.iter().filter_map(touches).collect();
    Ok(Sequence::with_targets(tokens.ids, targets))
}

/// Targets of each assistant message: from the tokens of the chat before it with the generation prompt,
/// to the tokens of the chat up to and with it.
fn prefix_difference(chat: &Chat, tokenizer: &Tokenizer, template: &ChatTemplate) -> Sequences {
    let count = chat.messages.len();
    let whole = template.render(chat, count, false)?.text;
    let mut turns = Vec::new();
    for turn in chat.turns() {
        let until =
            if turn + 1 == count { whole.clone() } else { template.render(chat, turn + 1, false)?.text };
        turns.push((answer_start(chat, turn, &until, template)?, until));
    }
    if turns.iter().all(|(_, until)| whole.starts_with(until.as_str())) {
        let answers = turns.iter().map(|(start, until)| *start..until.len());
        return with_answers(&whole, answers, tokenizer).map(|sequence| vec![sequence]);
    }
    // The template rewrites earlier messages (it drops their reasoning, say). Each answer is learnt behind
    // the text that it will follow in use.
    turns.iter().map(|(start, until)| with_answers(until, Some(*start..until.len()), tokenizer)).collect()
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

/// The byte at which the answer that message `turn` is begins in `text`, a rendering that goes on with
/// it: the end of what `text` shares with the generation prompt.
fn answer_start(chat: &Chat, turn: usize, text: &str, template: &ChatTemplate) -> Result<usize, Fault> {
    let prompt = template.render(chat, turn, true)?.text;
    if text.starts_with(&prompt) {
        return Ok(prompt.len());
    }
    // A generation prompt may say more than the chat does, an opening of the reasoning for instance.
    let shared: usize =
        text.chars().zip(prompt.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum();
    let before = template.render(chat, turn, false)?.text;
    if text.starts_with(&before) && shared >= before.len() {
        return Ok(shared);
    }
    Err(Fault::hinted(
        format!("the chat template renders what precedes message {} differently without it", turn + 1),
        "use a chat template with {% generation %} blocks, or one assistant message per row",
    ))
}
