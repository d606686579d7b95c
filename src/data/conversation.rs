//! A chat that the model answers.

use std::path::Path;

use serde_json::{Map, Value};

use crate::checkpoint::{read_named, tree_bytes};
use crate::data::answers::TargetMessages;
use crate::data::chat::{Chat, messages};
use crate::data::fault::Fault;
use crate::data::raw_row::MOST_ROW_TREE_BYTES;
use crate::data::record::chat;
use crate::data::tokenizer::Tokenizer;
use crate::error::Escaped;
use crate::{Error, Result};

/// A chat whose next message is the assistant's.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversation {
    chat: Chat,
}

impl Conversation {
    /// One message of the user.
    pub fn of_user(text: &str) -> Self {
        Self { chat: Chat::of([("user", text.to_owned())]) }
    }

    /// A chat of no message yet, but for that of the system where there is one.
    pub fn begin(system: Option<&str>) -> Self {
        Self { chat: Chat::of(system.map(|text| ("system", text.to_owned()))) }
    }

    /// Adds a message of `role`.
    pub fn say(&mut self, role: &str, text: &str) {
        self.chat.messages.push(serde_json::json!({"role": role, "content": text}));
    }

    /// Reads a JSON file: a list of messages, or an object with `messages` and, where the template reads them, `system`,
    /// `tools` and `chat_template_kwargs`.
    ///
    /// # Errors
    /// [`Error::Data`] for other contents, and where the last message is the assistant's.
    pub fn read(path: &Path) -> Result<Self> {
        let json = read_named(path)?;
        let parsed = parse(&json).and_then(Self::of_row);
        parsed.map_err(|Fault { fault, hint }| Error::Data { path: path.to_owned(), line: None, fault, hint })
    }

    fn of_row(row: Map<String, Value>) -> std::result::Result<Self, Fault> {
        let chat = chat(&row, messages(&row, "messages")?)?;
        if chat.messages.last().is_some_and(|last| last["role"] == "assistant") {
            return Err(Fault::hinted(
                "the last message is the assistant's: there is nothing to answer",
                "leave it out, or let a message of the user follow",
            ));
        }
        Ok(Self { chat })
    }

    /// The token ids of the chat with the generation prompt, by the chat template: `apply_chat_template` of
    /// transformers with `add_generation_prompt`.
    ///
    /// # Errors
    /// A missing chat template, or one that refuses the chat.
    pub fn ids(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let refused = |Fault { fault, hint }: Fault| Error::Usage { fault, hint };
        let template = tokenizer.template().map_err(|error| match error {
            Error::Data { path, line, fault, .. } => {
                let hint = "put the chat_template.jinja of the model's instruct version beside tokenizer.json, \
                            or continue a text as it stands: --raw";
                Error::Data { path, line, fault, hint: Some(hint.to_owned()) }
            }
            other => other,
        })?;
        let rendered = template.answers(self.chat.clone(), TargetMessages::Next).map_err(refused)?;
        let text = rendered.into_iter().map(|chat| chat.text).collect::<String>();
        tokenizer.encode(&text, false)
    }
}

fn parse(json: &[u8]) -> std::result::Result<Map<String, Value>, Fault> {
    if tree_bytes(json) > MOST_ROW_TREE_BYTES {
        return Err(Fault::new("the chat has too many values"));
    }
    match serde_json::from_slice(json) {
        Ok(Value::Object(row)) => Ok(row),
        Ok(list @ Value::Array(_)) => Ok(Map::from_iter([("messages".to_owned(), list)])),
        Ok(_) => Err(Fault::new("expected a list of messages, or an object with `messages`")),
        Err(e) => Err(Fault::hinted(
            format!("not valid JSON: {}", Escaped(&e)),
            "the file is one chat: a JSON list of messages, or one object with `messages`",
        )),
    }
}
