//! The text of a chat, and where in it the assistant's answers are.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::data::chat::Chat;
use crate::data::engine::Engine;
use crate::data::fault::Fault;
use crate::data::prefixes::{Prefix, Prefixes};

/// The messages of a chat whose tokens are targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum TargetMessages {
    /// Those of the assistant.
    Assistant,
    /// All from this position on.
    From(usize),
    /// The one that follows the chat: the text ends with the generation prompt.
    Next,
}

/// A rendered chat and its targets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RenderedChat {
    pub(crate) text: String,
    pub(crate) answers: Vec<Answer>,
}

/// A target of a rendered chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Its bytes.
    pub(crate) bytes: Range<usize>,
    /// What the generation prompt says at its start and the chat does not: an opening of the reasoning, for
    /// instance.
    pub(crate) prompt_rest: String,
}

impl Answer {
    fn of(bytes: Range<usize>) -> Self {
        Self { bytes, prompt_rest: String::new() }
    }
}

/// Renders a chat: one text, except where the template rewrites earlier messages: then one text per
/// message of the assistant.
pub(crate) fn answers(
    chat: &Chat,
    targets: TargetMessages,
    engine: &Engine,
) -> Result<Vec<RenderedChat>, Fault> {
    match targets {
        TargetMessages::Assistant if engine.has_generation() => {
            let (text, blocks) = engine.render_blocks(&engine.prepare(chat)?)?;
            let answers = learnt_blocks(chat, blocks)?.into_iter().map(Answer::of).collect();
            Ok(vec![RenderedChat { text, answers }])
        }
        TargetMessages::Next => {
            let text = engine.render(&engine.prepare(chat)?, chat.messages.len(), true)?;
            Ok(vec![RenderedChat { text, answers: Vec::new() }])
        }
        TargetMessages::Assistant => prefix_difference(chat, Prefixes::new(engine, chat)?),
        TargetMessages::From(prompt) => {
            let prefixes = Prefixes::new(engine, chat)?;
            let whole = prefixes.render(chat.messages.len(), false)?;
            let answer = answer_of(prompt, &whole, &prefixes)?;
            drop(whole);
            Ok(vec![RenderedChat { text: prefixes.into_whole(), answers: vec![answer] }])
        }
    }
}

/// The generation blocks of the messages that are learnt.
fn learnt_blocks(chat: &Chat, blocks: Vec<Range<usize>>) -> Result<Vec<Range<usize>>, Fault> {
    let assistants: Vec<usize> = chat.assistants().collect();
    if !assistants.iter().any(|at| chat.is_left_out(*at)) {
        return Ok(blocks);
    }
    if blocks.len() != assistants.len() {
        return Err(Fault::hinted(
            format!(
                "a message of the assistant has a weight of 0, and the chat template renders {} generation blocks \
                 for {} messages of the assistant",
                blocks.len(),
                assistants.len()
            ),
            "use a chat template with one {% generation %} block per message of the assistant",
        ));
    }
    Ok(blocks.into_iter().zip(assistants).filter(|(_, at)| !chat.is_left_out(*at)).map(|(b, _)| b).collect())
}

/// The answer of each assistant message: from the chat before it with the generation prompt, to the
/// chat up to and with it.
fn prefix_difference(chat: &Chat, prefixes: Prefixes<'_>) -> Result<Vec<RenderedChat>, Fault> {
    let whole = prefixes.whole();
    let (mut answers, mut rewritten) = (Vec::new(), Vec::new());
    for turn in chat.assistants().filter(|at| !chat.is_left_out(*at)) {
        let until = prefixes.render(turn + 1, false)?;
        let answer = match turn {
            0 => opening_answer(&until, &prefixes)?,
            _ => answer_of(turn, &until, &prefixes)?,
        };
        if rewritten.is_empty() && whole[until.shared..].starts_with(&*until.rest) {
            answers.push(answer);
            continue;
        }
        // The template rewrites earlier messages (it drops their reasoning, say). Each answer is
        // trained behind the text that it will follow in use.
        let before = answers.drain(..).map(|answer: Answer| (whole[..answer.bytes.end].to_owned(), answer));
        rewritten.extend(before);
        rewritten.push((format!("{}{}", &whole[..until.shared], until.rest), answer));
    }
    if rewritten.is_empty() {
        return Ok(vec![RenderedChat { text: prefixes.into_whole(), answers }]);
    }
    Ok(rewritten.into_iter().map(|(text, answer)| RenderedChat { text, answers: vec![answer] }).collect())
}

/// The answer that message `turn` is in `text`, a rendering that ends with it: from the end of what `text` shares
/// with the generation prompt.
fn answer_of(turn: usize, text: &Prefix<'_>, prefixes: &Prefixes<'_>) -> Result<Answer, Fault> {
    let prompt = prefixes.render(turn, true)?;
    let end = text.shared + text.rest.len();
    // Both begin with what the prompt shares with the whole chat.
    let from = prompt.shared.min(text.shared);
    let text = format!("{}{}", &prefixes.whole()[from..text.shared], text.rest);
    let after = |prefix: &Prefix<'_>| format!("{}{}", &prefixes.whole()[from..prefix.shared], prefix.rest);
    let prompt = after(&prompt);
    if text.starts_with(&prompt) {
        return Ok(Answer::of(from + prompt.len()..end));
    }
    // A generation prompt may say more than the chat does, an opening of the reasoning for instance.
    let shared: usize =
        text.chars().zip(prompt.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum();
    let before = after(&prefixes.render(turn, false)?);
    if text.starts_with(&before) && shared >= before.len() {
        return Ok(Answer { bytes: from + shared..end, prompt_rest: prompt[shared..].to_owned() });
    }
    Err(Fault::hinted(
        format!("the chat template renders what precedes message {} differently without it", turn + 1),
        "use a chat template with {% generation %} blocks, or one assistant message per row",
    ))
}

/// The answer that opens a chat, where no chat before it can be rendered: from the end of the generation prompt,
/// which is what the template adds to `text`, the chat of this message alone.
fn opening_answer(text: &Prefix<'_>, prefixes: &Prefixes<'_>) -> Result<Answer, Fault> {
    let all = |prefix: &Prefix<'_>| format!("{}{}", &prefixes.whole()[..prefix.shared], prefix.rest);
    let (text, prompted) = (all(text), all(&prefixes.render(1, true)?));
    let prompt = prompted.strip_prefix(text.as_str()).filter(|prompt| !prompt.is_empty());
    match prompt.and_then(|prompt| Some(text.find(prompt)? + prompt.len())) {
        Some(start) => Ok(Answer::of(start..text.len())),
        None => Err(Fault::hinted(
            "the chat opens with the assistant, and the chat template does not tell where its answer begins",
            "let the chat begin with a message of the system or user, or give the first message `weight` 0",
        )),
    }
}
