//! Rows whose answer the model writes: a prompt, and the answers that are accepted.

use serde_json::{Map, Value, json};

use crate::data::answers::TargetMessages;
use crate::data::chat::{Chat, ends_with_answer, messages};
use crate::data::columns::{mismatch, string};
use crate::data::context::Context;
use crate::data::fault::Fault;
use crate::data::last_number::last_number;
use crate::data::record::chat;
use crate::data::row::{Location, check_ids};
use crate::data::template::ChatTemplate;
use crate::data::tokenizer::Tokenizer;
use crate::error::Escaped;

/// Columns of rows that have a loss, or are preferences.
const OTHERS: [&str; 5] = ["completion", "chosen", "rejected", "input_ids", "text"];

/// How a written answer is held against the accepted ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerMetric {
    /// It is one of them.
    ExactMatch,
    /// One of them stands in it.
    Contains,
    /// Its last number is that of one of them.
    NumericMatch,
}

impl AnswerMetric {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ExactMatch, Self::Contains, Self::NumericMatch];

    /// The name in rows and results.
    pub fn name(self) -> &'static str {
        match self {
            Self::ExactMatch => "exact_match",
            Self::Contains => "contains",
            Self::NumericMatch => "numeric_match",
        }
    }

    /// The metric of this name; `numeric` is short for `numeric_match`.
    pub fn of_name(name: &str) -> Option<Self> {
        if name == "numeric" {
            return Some(Self::NumericMatch);
        }
        Self::ALL.into_iter().find(|metric| metric.name() == name)
    }
}

/// A tokenized prompt with the answers that are accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerateRow {
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// The answers, one or more.
    pub accepted: Vec<String>,
    /// Texts that end the answer and do not belong to it.
    pub stop: Vec<String>,
    /// The file and line of the row.
    pub location: Location,
}

/// A row whose answer the model writes, not yet tokenized.
#[derive(Debug)]
pub(crate) struct Generate {
    prompt: Prompt,
    accepted: Vec<String>,
    stop: Vec<String>,
    /// The column `metric`.
    pub(crate) metric: Option<AnswerMetric>,
}

#[derive(Debug)]
enum Prompt {
    /// Continued as it stands.
    Text(String),
    /// Answered through the chat template.
    Chat(Chat),
}

/// Whether the columns of a row are those of an answer that the model writes: `answer` with a `prompt`, or with a chat that
/// does not end with the assistant's message, and no column of another format.
pub(crate) fn is_generate(row: &Map<String, Value>) -> bool {
    let has = |name: &str| row.get(name).is_some_and(|value| !value.is_null());
    if !has("answer") || OTHERS.iter().any(|name| has(name)) || has("instruction") && has("output") {
        return false;
    }
    let chat = ["messages", "conversations"]
        .into_iter()
        .find(|name| has(name))
        .and_then(|name| row[name].as_array());
    chat.map_or_else(|| has("prompt"), |chat| !ends_with_answer(chat))
}

impl Generate {
    /// Reads `prompt`, `messages` or `conversations`, `answer` and, where they are there, `stop` and `metric`.
    pub(crate) fn parse(row: &Map<String, Value>) -> Result<Self, Fault> {
        if !is_generate(row) {
            return Err(Fault::hinted(
                "no answer of the model is asked for, as in the first row of the file",
                "each row has `answer` beside `prompt`, or beside `messages` that end with the user's",
            ));
        }
        let is_list = |name: &str| row.get(name).is_some_and(Value::is_array);
        let prompt = match ["messages", "conversations", "prompt"].into_iter().find(|name| is_list(name)) {
            Some(column) => Prompt::Chat(question(row, column)?),
            None => Prompt::Text(string(row, "prompt")?),
        };
        let metric = match row.get("metric") {
            None | Some(Value::Null) => None,
            Some(value) => {
                let metric = value.as_str().and_then(AnswerMetric::of_name);
                let names = AnswerMetric::ALL.map(AnswerMetric::name).join(", ");
                Some(metric.ok_or_else(|| mismatch("metric", &names, Some(value)))?)
            }
        };
        Ok(Self { prompt, accepted: accepted(row)?, stop: stop(row)?, metric })
    }

    /// Refuses an answer that can never be met.
    pub(crate) fn check(&self, metric: AnswerMetric) -> Result<(), Fault> {
        let number = |answer: &String| last_number(answer).is_some();
        match self.accepted.iter().find(|answer| metric == AnswerMetric::NumericMatch && !number(answer)) {
            Some(answer) => {
                Err(mismatch("answer", "a text with a number, for numeric_match", Some(&json!(answer))))
            }
            None => Ok(()),
        }
    }

    /// Whether it can be rendered by a chat template only.
    pub(crate) fn needs_template(&self) -> bool {
        matches!(self.prompt, Prompt::Chat(_))
    }

    /// The row with its prompt as token ids, which loses its beginning where it has more than `most`; and whether it did.
    pub(crate) fn encode(
        self,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
        location: &Location,
        most: Option<usize>,
        vocab_size: u32,
    ) -> Result<(GenerateRow, bool), Fault> {
        let mut prompt = match self.prompt {
            Prompt::Text(text) => Context::of(&text, tokenizer.bos(), tokenizer)?.ids,
            Prompt::Chat(chat) => {
                let template = template.ok_or_else(|| Fault::new("no chat template"))?;
                let rendered = template.answers(chat, TargetMessages::Next)?;
                let text = rendered.into_iter().map(|chat| chat.text).collect::<String>();
                tokenizer.ids(&text, false)?
            }
        };
        if prompt.is_empty() {
            return Err(Fault::new("the prompt has no tokens"));
        }
        check_ids(&prompt, vocab_size)?;
        let lost = prompt.len().saturating_sub(most.unwrap_or(prompt.len()));
        prompt.drain(..lost);
        let Self { accepted, stop, .. } = self;
        Ok((GenerateRow { prompt, accepted, stop, location: location.clone() }, lost > 0))
    }
}

/// The chat in a column, whose next message is the assistant's.
fn question(row: &Map<String, Value>, column: &str) -> Result<Chat, Fault> {
    let chat = chat(row, messages(row, column)?)?;
    if chat.messages.last().is_some_and(|last| last["role"] == "assistant") {
        return Err(Fault::new(format!(
            "`{column}` ends with a message of the assistant: there is nothing to answer"
        )));
    }
    Ok(chat)
}

/// The answers in `answer`: a text or a number, or a list of them.
fn accepted(row: &Map<String, Value>) -> Result<Vec<String>, Fault> {
    let text = |place: &str, value: &Value| match value {
        Value::String(text) if !text.trim().is_empty() => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(mismatch(place, "a text that is not empty", Some(other))),
    };
    match row.get("answer") {
        Some(Value::Array(list)) if !list.is_empty() => {
            list.iter().enumerate().map(|(at, value)| text(&format!("answer[{at}]"), value)).collect()
        }
        Some(value @ (Value::String(_) | Value::Number(_))) => Ok(vec![text("answer", value)?]),
        other => Err(mismatch("answer", "a text, or a list of texts", other)),
    }
}

/// The texts in `stop`: none, one, or a list.
fn stop(row: &Map<String, Value>) -> Result<Vec<String>, Fault> {
    let text = |value: &Value| match value {
        Value::String(text) if !text.is_empty() => Ok(text.clone()),
        other => Err(mismatch("stop", "a text that is not empty", Some(other))),
    };
    match row.get("stop") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(text).collect(),
        Some(one) => Ok(vec![text(one)?]),
    }
}

/// The fault of a row whose metric is another than that of the rows before.
pub(crate) fn other_metric(got: AnswerMetric, expected: AnswerMetric) -> Fault {
    let (got, expected) = (Escaped(got.name()), Escaped(expected.name()));
    Fault::hinted(
        format!("`metric`: got {got}, expected {expected} as in the first row of the file"),
        "write the rows of each metric into a file of their own",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(row: Value) -> bool {
        is_generate(row.as_object().unwrap())
    }

    #[test]
    fn rows_with_a_loss_or_choices_keep_their_meaning() {
        let user = json!({"role": "user", "content": "a"});
        let assistant = json!({"from": "gpt", "value": "b"});
        assert!(is(json!({"prompt": "a", "answer": "b"})));
        assert!(is(json!({"prompt": [user], "answer": ["b"]})));
        assert!(is(json!({"messages": [user], "answer": "b", "completion": null})));
        assert!(is(json!({"conversations": [user, assistant, user], "answer": "b"})));
        for row in [
            json!({"prompt": "a", "completion": "b", "answer": "b"}),
            json!({"messages": [user, assistant], "answer": "b"}),
            json!({"question": "a", "choices": ["b", "c"], "answer": 0}),
            json!({"text": "a", "prompt": "a", "answer": "b"}),
            json!({"instruction": "a", "output": "b", "prompt": "a", "answer": "b"}),
            json!({"messages": [user], "answer": null}),
        ] {
            assert!(!is(row.clone()), "{row}");
        }
    }

    #[test]
    fn broken_rows_are_refused_by_column() {
        for (row, expected) in [
            (
                json!({"prompt": "a", "answer": []}),
                "`answer`: expected a text, or a list of texts, got a list of 0",
            ),
            (json!({"prompt": "a", "answer": ["b", ""]}), "`answer[1]`: expected a text that is not empty"),
            (json!({"prompt": "a", "answer": true}), "`answer`: expected a text"),
            (json!({"prompt": 3, "answer": "b"}), "`prompt`: expected a text, got 3"),
            (
                json!({"prompt": "a", "answer": "b", "stop": ["\n", ""]}),
                "`stop`: expected a text that is not empty",
            ),
            (
                json!({"prompt": "a", "answer": "b", "metric": "f1"}),
                "`metric`: expected exact_match, contains",
            ),
            (json!({"text": "a", "answer": "b"}), "no answer of the model is asked for"),
        ] {
            let fault = Generate::parse(row.as_object().unwrap()).map_err(|fault| fault.fault).unwrap_err();
            assert!(fault.contains(expected), "{fault}");
        }
    }
}
