//! The format of a row, told by its columns.

use serde_json::{Map, Value};

use crate::data::chat::{Chat, messages, share_gpt};
use crate::data::columns::{integers, string};
use crate::data::fault::Fault;
use crate::error::Escaped;

const FORMATS: &str = "a row has `messages`, `prompt` and `completion`, `text`, `conversations`, `instruction` \
                       and `output`, or `input_ids`";

/// A row of training data, not yet tokenized.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Record {
    /// `messages` or `conversations`: every assistant message is a target.
    Chat(Chat),
    /// `prompt` and `completion` as message lists: everything after the prompt is a target.
    ChatCompletion { chat: Chat, prompt: usize },
    /// `prompt` and `completion` as texts.
    PromptCompletion { prompt: String, completion: String },
    /// `text`: everything is a target.
    Text(String),
    /// `instruction`, `input`, `output`, `system`.
    Instruction { instruction: String, input: String, output: String, system: Option<String> },
    /// `input_ids` and `labels`.
    Tokens { input_ids: Vec<u32>, labels: Vec<i32> },
}

impl Record {
    /// Reads a row by its columns; a column that is null counts as absent, and columns of no format are
    /// ignored.
    pub(crate) fn parse(mut row: Map<String, Value>) -> Result<Self, Fault> {
        row.retain(|_, value| !value.is_null());
        let has = |name: &str| row.contains_key(name);
        if has("chosen") || has("rejected") || has("chosen_input_ids") {
            Err(Fault::hinted(
                "a preference row (`prompt`, `chosen`, `rejected`) in supervised fine-tuning",
                "rename `chosen` to `completion` and drop `rejected` to learn the chosen answers",
            ))
        } else if has("input_ids") {
            tokens(&row)
        } else if has("messages") {
            chat(&row, messages(&row, "messages")?).map(Self::Chat)
        } else if has("conversations") {
            chat(&row, share_gpt(&row)?).map(Self::Chat)
        } else if has("prompt") && has("completion") {
            prompt_completion(&row)
        } else if has("instruction") && has("output") {
            instruction(&row)
        } else if has("text") {
            Ok(Self::Text(string(&row, "text")?))
        } else {
            Err(unknown_columns(&row))
        }
    }

    /// Whether it can be rendered by a chat template only.
    pub(crate) fn needs_template(&self) -> bool {
        matches!(self, Self::Chat(_) | Self::ChatCompletion { .. })
    }
}

fn unknown_columns(row: &Map<String, Value>) -> Fault {
    let mut names: Vec<String> = row.keys().take(20).map(|name| format!("`{}`", Escaped(name))).collect();
    if row.len() > names.len() {
        names.push("…".to_owned());
    }
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Fault::hinted(format!("unknown format: the columns are {names}"), FORMATS)
}

fn prompt_completion(row: &Map<String, Value>) -> Result<Record, Fault> {
    if row["prompt"].is_string() {
        let (prompt, completion) = (string(row, "prompt")?, string(row, "completion")?);
        return Ok(Record::PromptCompletion { prompt, completion });
    }
    let mut all = messages(row, "prompt")?;
    let prompt = all.len();
    all.extend(answer(row, "completion")?);
    Ok(Record::ChatCompletion { chat: chat(row, all)?, prompt })
}

/// A message list, or a text that is one assistant message.
fn answer(row: &Map<String, Value>, name: &str) -> Result<Vec<Value>, Fault> {
    match row.get(name) {
        Some(Value::String(text)) => Ok(vec![serde_json::json!({"role": "assistant", "content": text})]),
        _ => messages(row, name),
    }
}

fn chat(row: &Map<String, Value>, mut messages: Vec<Value>) -> Result<Chat, Fault> {
    if let Some(Value::String(system)) = row.get("system")
        && messages.first().is_some_and(|first| first["role"] != "system")
    {
        messages.insert(0, serde_json::json!({"role": "system", "content": system}));
    }
    let tools = match row.get("tools") {
        Some(Value::String(json)) => serde_json::from_str(json)
            .map_err(|e| Fault::new(format!("`tools` is not valid JSON: {}", Escaped(&e))))?,
        Some(tools) => tools.clone(),
        None => Value::Null,
    };
    let kwargs = row.get("chat_template_kwargs").and_then(Value::as_object).cloned().unwrap_or_default();
    Ok(Chat { messages, tools, kwargs })
}

fn instruction(row: &Map<String, Value>) -> Result<Record, Fault> {
    let optional = |name| if row.contains_key(name) { string(row, name) } else { Ok(String::new()) };
    let system = optional("system")?;
    Ok(Record::Instruction {
        instruction: string(row, "instruction")?,
        input: optional("input")?,
        output: string(row, "output")?,
        system: (!system.is_empty()).then_some(system),
    })
}

fn tokens(row: &Map<String, Value>) -> Result<Record, Fault> {
    let input_ids: Vec<u32> = integers(row, "input_ids")?;
    let labels: Vec<i32> = if row.contains_key("labels") {
        integers(row, "labels")?
    } else {
        // An id beyond i32 is outside of every vocabulary and refused as an input id.
        input_ids.iter().map(|id| i32::try_from(*id).unwrap_or(i32::MAX)).collect()
    };
    if labels.len() != input_ids.len() {
        let fault = format!("{} labels for {} input_ids", labels.len(), input_ids.len());
        return Err(Fault::hinted(fault, "give one label per token, not shifted; -100 is ignored"));
    }
    Ok(Record::Tokens { input_ids, labels })
}
