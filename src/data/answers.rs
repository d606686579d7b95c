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
}

/// A rendered chat and the byte ranges of its targets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RenderedChat {
    pub(crate) text: String,
    pub(crate) answers: Vec<Range<usize>>,
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
            let (text, answers) = engine.render_blocks(&engine.prepare(chat)?)?;
            Ok(vec![RenderedChat { text, answers }])
        }
        TargetMessages::Assistant => prefix_difference(chat, Prefixes::new(engine, chat)?),
        TargetMessages::From(prompt) => {
            let prefixes = Prefixes::new(engine, chat)?;
            let whole = prefixes.render(chat.messages.len(), false)?;
            let start = answer_start(prompt, &whole, &prefixes)?;
            drop(whole);
            let text = prefixes.into_whole();
            let answers = std::iter::once(start..text.len()).collect();
            Ok(vec![RenderedChat { text, answers }])
        }
    }
}

/// The answer of each assistant message: from the chat before it with the generation prompt, to the
/// chat up to and with it.
fn prefix_difference(chat: &Chat, prefixes: Prefixes<'_>) -> Result<Vec<RenderedChat>, Fault> {
    let whole = prefixes.whole();
    let (mut answers, mut rewritten) = (Vec::new(), Vec::new());
    for turn in chat.turns() {
        let until = prefixes.render(turn + 1, false)?;
        let answer = answer_start(turn, &until, &prefixes)?..until.shared + until.rest.len();
        if rewritten.is_empty() && whole[until.shared..].starts_with(&*until.rest) {
            answers.push(answer);
            continue;
        }
        // The template rewrites earlier messages (it drops their reasoning, say). Each answer is
        // trained behind the text that it will follow in use.
        let before = answers.drain(..).map(|answer: Range<usize>| (whole[..answer.end].to_owned(), answer));
        rewritten.extend(before);
        rewritten.push((format!("{}{}", &whole[..until.shared], until.rest), answer));
    }
    if rewritten.is_empty() {
        return Ok(vec![RenderedChat { text: prefixes.into_whole(), answers }]);
    }
    Ok(rewritten.into_iter().map(|(text, answer)| RenderedChat { text, answers: vec![answer] }).collect())
}

/// The byte at which the answer that message `turn` is begins in `text`, a rendering that goes on with
/// it: the end of what `text` shares with the generation prompt.
fn answer_start(turn: usize, text: &Prefix<'_>, prefixes: &Prefixes<'_>) -> Result<usize, Fault> {
    let prompt = prefixes.render(turn, true)?;
    // Both begin with what the prompt shares with the whole chat.
    let from = prompt.shared.min(text.shared);
    let text = format!("{}{}", &prefixes.whole()[from..text.shared], text.rest);
    let after = |prefix: &Prefix<'_>| format!("{}{}", &prefixes.whole()[from..prefix.shared], prefix.rest);
    let prompt = after(&prompt);
    if text.starts_with(&prompt) {
        return Ok(from + prompt.len());
    }
    // A generation prompt may say more than the chat does, an opening of the reasoning for instance.
    let shared: usize =
        text.chars().zip(prompt.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum();
    let before = after(&prefixes.render(turn, false)?);
    if text.starts_with(&before) && shared >= before.len() {
        return Ok(from + shared);
    }
    Err(Fault::hinted(
        format!("the chat template renders what precedes message {} differently without it", turn + 1),
        "use a chat template with {% generation %} blocks, or one assistant message per row",
    ))
}
