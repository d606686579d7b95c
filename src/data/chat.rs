//! Chats: lists of messages.

use serde_json::{Map, Value, json};

use crate::data::columns::mismatch;
use crate::data::fault::Fault;
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

    /// Positions of the assistant's messages that answer something.
    pub(crate) fn turns(&self) -> Vec<usize> {
        (1..self.messages.len()).filter(|at| self.messages[*at]["role"] == "assistant").collect()
    }
}

/// The message list in a column.
pub(crate) fn messages(row: &Map<String, Value>, name: &str) -> Result<Vec<Value>, Fault> {
    list(row, name)?.iter().enumerate().map(|(i, message)| normal(name, i, message)).collect()
}

/// `conversations` as ShareGPT writes them (`from`, `value`); messages with a `role` are taken as they are.
pub(crate) fn share_gpt(row: &Map<String, Value>) -> Result<Vec<Value>, Fault> {
    let convert = |(i, message): (usize, &Value)| {
        let Some(from) = message.get("from") else { return normal("conversations", i, message) };
        let role = match from.as_str() {
            Some("human" | "user") => "user",
            Some("gpt" | "assistant" | "bot" | "model" | "chatgpt") => "assistant",
            Some("system") => "system",
            Some("tool" | "observation" | "function_response") => "tool",
            _ => return Err(mismatch("from", "human, gpt, system or tool", Some(from))),
        };
        match message.get("value") {
            Some(Value::String(text)) => Ok(json!({"role": role, "content": text})),
            other => Err(mismatch("value", "a text", other)),
        }
    };
    list(row, "conversations")?.iter().enumerate().map(convert).collect()
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
    if !fields.get("role").is_some_and(Value::is_string) {
        return Err(mismatch(&format!("{place}.role"), "a text", fields.get("role")));
    }
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
