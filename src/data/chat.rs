//! Chats: lists of messages.

use serde_json::{Map, Value, json};

use crate::data::columns::mismatch;
use crate::data::fault::Fault;
use crate::data::message_weight::{weight, weights, zero_or_one};
use crate::error::Escaped;

/// A chat, with the other variables of its row that a template reads.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Chat {
    /// Objects with a text `role`, without null fields.
    pub(crate) messages: Vec<Value>,
    /// The column `tools`, or null.
    pub(crate) tools: Value,
    /// The column `chat_template_kwargs`.
    pub(crate) kwargs: Map<String, Value>,
}

impl Chat {
    /// A chat of texts: (role, content).
    pub(crate) fn of(messages: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        let message = |(role, content)| json!({"role": role, "content": content});
        let messages = messages.into_iter().map(message).collect();
        Self { messages, tools: Value::Null, kwargs: Map::new() }
    }

    /// Positions of the assistant's messages that answer another message.
    pub(crate) fn turns(&self) -> Vec<usize> {
        self.assistants().filter(|at| *at > 0).collect()
    }

    /// Positions of the assistant's messages.
    pub(crate) fn assistants(&self) -> impl Iterator<Item = usize> {
        (0..self.messages.len()).filter(|at| self.messages[*at]["role"] == "assistant")
    }

    /// Whether the message at `at` says by its weight that it is not learnt.
    pub(crate) fn is_left_out(&self, at: usize) -> bool {
        weights(&self.messages[at]).any(|(_, value)| zero_or_one(value) == Some(false))
    }

    /// Refuses weights that cannot be obeyed; `targets` are the messages that can be learnt, and `place` names a
    /// message.
    pub(crate) fn check_weights(
        &self,
        targets: impl Fn(usize) -> bool,
        place: impl Fn(usize) -> String,
    ) -> Result<(), Fault> {
        for (at, message) in self.messages.iter().enumerate() {
            let Some(fields) = message.as_object() else { continue };
            if weight(&place(at), fields)? == Some(true) && !targets(at) {
                return Err(Fault::hinted(
                    format!("`{}`: a weight of 1 on a message that is not learnt", place(at)),
                    "of `messages` those of the assistant are learnt, and no message of a `prompt`; \
                     leave the weight of others out",
                ));
            }
        }
        Ok(())
    }
}

/// Whether the last message of a list is the assistant's.
pub(crate) fn ends_with_answer(messages: &[Value]) -> bool {
    let name = |message: &Value| message["role"].as_str().or(message["from"].as_str()).map(str::to_owned);
    messages.last().and_then(name).is_some_and(|name| role(&name) == "assistant")
}

/// The role that `name` stands for: the names of ShareGPT are mapped, others stay.
fn role(name: &str) -> &str {
    match name {
        "human" => "user",
        "gpt" | "bot" | "model" | "chatgpt" => "assistant",
        "observation" | "function_response" => "tool",
        other => other,
    }
}

/// The message list in a column; messages may be objects of ShareGPT, with `from` and `value`.
pub(crate) fn messages(row: &Map<String, Value>, name: &str) -> Result<Vec<Value>, Fault> {
    let convert = |(at, message): (usize, &Value)| match message.get("from") {
        Some(from) => share_gpt(name, at, from, message),
        None => normal(name, at, message),
    };
    list(row, name)?.iter().enumerate().map(convert).collect()
}

/// A message as ShareGPT writes it.
fn share_gpt(name: &str, at: usize, from: &Value, message: &Value) -> Result<Value, Fault> {
    let place = format!("{}[{at}]", Escaped(name));
    let role = match from.as_str().map(role) {
        Some(role @ ("user" | "assistant" | "system" | "tool")) => role,
        _ => return Err(mismatch(&format!("{place}.from"), "human, gpt, system or tool", Some(from))),
    };
    let Some(Value::String(text)) = message.get("value") else {
        return Err(mismatch(&format!("{place}.value"), "a text", message.get("value")));
    };
    let content =
        [("role".to_owned(), Value::from(role)), ("content".to_owned(), Value::from(text.as_str()))];
    let weights = weights(message).map(|(name, value)| (name.to_owned(), value.clone()));
    Ok(Value::Object(content.into_iter().chain(weights).collect()))
}

fn list<'a>(row: &'a Map<String, Value>, name: &str) -> Result<&'a Vec<Value>, Fault> {
    match row.get(name) {
        Some(Value::Array(list)) if !list.is_empty() => Ok(list),
        other => Err(mismatch(name, "a list of messages", other)),
    }
}

/// A message as transformers hands it to a template: without null fields, reasoning under each name
/// that templates read.
fn normal(name: &str, at: usize, message: &Value) -> Result<Value, Fault> {
    let place = format!("{}[{at}]", Escaped(name));
    let Value::Object(fields) = message else {
        return Err(mismatch(&place, "an object with `role` and `content`", Some(message)));
    };
    let mut fields = fields.clone();
    fields.retain(|_, value| !value.is_null());
    let role = match fields.get("role") {
        Some(Value::String(name)) if name == "function_call" => {
            return Err(Fault::hinted(
                format!("`{place}.role`: got `function_call`, which chat templates do not know"),
                "write it as a message of the assistant with `tool_calls`",
            ));
        }
        Some(Value::String(name)) => role(name).to_owned(),
        other => return Err(mismatch(&format!("{place}.role"), "a text", other)),
    };
    fields.insert("role".to_owned(), Value::String(role));
    if !fields.contains_key("content") && !fields.contains_key("tool_calls") {
        return Err(mismatch(&format!("{place}.content"), "a text", None));
    }
    let reasoning =
        ["reasoning_content", "thinking", "reasoning"].iter().find_map(|n| fields.get(*n)).cloned();
    if let Some(reasoning) = reasoning {
        fields.entry("thinking").or_insert_with(|| reasoning.clone());
        fields.insert("reasoning_content".to_owned(), reasoning);
    }
    Ok(Value::Object(fields))
}
