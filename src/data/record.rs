//! The format of a row, told by its columns.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::data::chat::{Chat, messages};
use crate::data::columns::{mismatch, names, string};
use crate::data::fault::Fault;
use crate::data::ignored_columns::ignored;
use crate::data::message_weight::zero_or_one;
use crate::data::token_row::{self, Sequence, sequences};
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
    /// `instruction`, `input`, `output`, `system` and `history`, turns before them: every output is a target.
    Instruction {
        instruction: String,
        input: String,
        output: String,
        system: Option<String>,
        history: Vec<(String, String)>,
    },
    /// `input_ids` and `labels`, or masks.
    Tokens(Vec<Sequence>),
    /// A prompt with its chosen answer, and with its rejected one.
    Preference(Box<[Self; 2]>),
}

/// Columns that say whether the answer of a row is a good one, as in TRL's KTO and in LLaMA-Factory.
const DESIRABLE: [&str; 2] = ["label", "kto_tag"];

impl Record {
    /// Reads a row by its columns; a column that is null counts as absent, but for `text`, which is then empty, and
    /// columns of no format are ignored. Also gives the names of those of them that look like a mask or a weight.
    pub(crate) fn parse(mut row: Map<String, Value>) -> Result<(Self, Vec<String>), Fault> {
        if let Some(text) = row.get_mut("text").filter(|text| text.is_null()) {
            *text = Value::String(String::new());
        }
        row.retain(|_, value| !value.is_null());
        let read: &[&str] = if row.contains_key("input_ids") { &token_row::COLUMNS } else { &[] };
        let record = Self::of(&row)?;
        let mut ignored = ignored(&row, read);
        ignored.retain(|name| {
            !DESIRABLE.contains(&name.as_str()) || zero_or_one(&row[name.as_str()]) != Some(true)
        });
        Ok((record, ignored))
    }

    fn of(row: &Map<String, Value>) -> Result<Self, Fault> {
        let has = |name: &str| row.contains_key(name);
        if has("chosen") || has("rejected") || has("chosen_input_ids") {
            return Err(Fault::hinted(
                "a preference row (`prompt`, `chosen`, `rejected`) in supervised fine-tuning",
                "use --objective dpo, or rename `chosen` to `completion` and drop `rejected` to learn the chosen answers",
            ));
        }
        refuse_undesirable(row)?;
        if has("input_ids") {
            sequences(row).map(Self::Tokens)
        } else if has("messages") {
            conversation(row, messages(row, "messages")?, "messages")
        } else if has("conversations") {
            conversation(row, messages(row, "conversations")?, "conversations")
        } else if has("prompt") && has("completion") {
            prompt_completion(row, "completion")
        } else if has("instruction") && has("output") {
            instruction(row)
        } else if has("text") {
            Ok(Self::Text(string(row, "text")?))
        } else {
            Err(unknown_columns(row))
        }
    }

    /// Whether it can be rendered by a chat template only.
    pub(crate) fn needs_template(&self) -> bool {
        match self {
            Self::Chat(_) | Self::ChatCompletion { .. } => true,
            Self::Preference(pair) => pair.iter().any(Self::needs_template),
            _ => false,
        }
    }
}

fn unknown_columns(row: &Map<String, Value>) -> Fault {
    Fault::hinted(format!("unknown format: the columns are {}", names(row)), FORMATS)
}

/// Refuses an answer that is a bad example. Beside `text`, a number is the class of the text, not such a mark.
fn refuse_undesirable(row: &Map<String, Value>) -> Result<(), Fault> {
    let is_text =
        !["messages", "conversations", "completion", "output"].iter().any(|name| row.contains_key(*name));
    let is_bad = |value: &Value| match value {
        Value::Number(_) if is_text => false,
        value => zero_or_one(value) == Some(false),
    };
    match DESIRABLE.iter().find(|name| row.get(**name).is_some_and(is_bad)) {
        None => Ok(()),
        Some(name) => Err(Fault::hinted(
            format!("an undesirable answer (`{name}` is false, as in KTO) in supervised fine-tuning"),
            format!("leave out the rows whose `{name}` is false to learn the desirable answers"),
        )),
    }
}

/// `messages` or `conversations`.
fn conversation(row: &Map<String, Value>, messages: Vec<Value>, column: &str) -> Result<Record, Fault> {
    let chat = chat(row, messages)?;
    if chat.assistants().next().is_none() {
        let roles: BTreeSet<&str> =
            chat.messages.iter().filter_map(|message| message["role"].as_str()).collect();
        let roles: Vec<String> =
            roles.into_iter().take(8).map(|role| format!("`{}`", Escaped(role))).collect();
        return Err(Fault::hinted(
            format!("no target token: no message of the assistant; the roles are {}", roles.join(", ")),
            "the roles are `system`, `user`, `assistant` and `tool`, or the names of ShareGPT for them",
        ));
    }
    // A system message may have been put before those of the column.
    let added = chat.messages.len() - row[column].as_array().map_or(0, Vec::len);
    let is_assistant = |at: usize| chat.messages[at]["role"] == "assistant";
    chat.check_weights(is_assistant, |at| format!("{column}[{}]", at.saturating_sub(added)))?;
    if chat.assistants().all(|at| chat.is_left_out(at)) {
        return Err(Fault::new("no target token: every message of the assistant has a weight of 0"));
    }
    Ok(Record::Chat(chat))
}

/// `prompt` with the completion in the column `column`: two texts, or messages.
pub(crate) fn prompt_completion(row: &Map<String, Value>, column: &str) -> Result<Record, Fault> {
    if row["prompt"].is_string() {
        let (prompt, completion) = (string(row, "prompt")?, string(row, column)?);
        return Ok(Record::PromptCompletion { prompt, completion });
    }
    let mut all = messages(row, "prompt")?;
    let completion = answer(row, column)?;
    let (in_prompt, in_completion) = (all.len(), completion.len());
    all.extend(completion);
    let chat = chat(row, all)?;
    // A system message may have been put before those of the prompt.
    let prompt = chat.messages.len() - in_completion;
    let place = |at: usize| match at.checked_sub(prompt) {
        Some(at) => format!("{column}[{at}]"),
        None => format!("prompt[{}]", at.saturating_sub(prompt - in_prompt)),
    };
    chat.check_weights(|at| at >= prompt, place)?;
    if let Some(at) = (prompt..chat.messages.len()).find(|at| chat.is_left_out(*at)) {
        return Err(Fault::hinted(
            format!("`{column}[{}]`: a weight of 0 in what is to be learnt", at - prompt),
            "use `messages` with weights, or move what is not learnt into `prompt`",
        ));
    }
    Ok(Record::ChatCompletion { chat, prompt })
}

/// A message list, or a text that is one assistant message.
fn answer(row: &Map<String, Value>, name: &str) -> Result<Vec<Value>, Fault> {
    match row.get(name) {
        Some(Value::String(text)) => Ok(vec![serde_json::json!({"role": "assistant", "content": text})]),
        _ => messages(row, name),
    }
}

/// The chat of these messages, with the other columns of the row that a template reads.
pub(crate) fn chat(row: &Map<String, Value>, mut messages: Vec<Value>) -> Result<Chat, Fault> {
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
        history: history(row)?,
    })
}

/// `history` as LLaMA-Factory writes it: earlier turns, each an instruction and its output.
fn history(row: &Map<String, Value>) -> Result<Vec<(String, String)>, Fault> {
    let turns = match row.get("history") {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) if text.is_empty() => return Ok(Vec::new()),
        Some(Value::Array(turns)) => turns,
        other => return Err(mismatch("history", "a list of pairs of texts", other)),
    };
    let turn = |(at, turn): (usize, &Value)| match turn.as_array().map(Vec::as_slice) {
        Some([Value::String(user), Value::String(assistant)]) => Ok((user.clone(), assistant.clone())),
        _ => Err(mismatch(&format!("history[{at}]"), "a pair of texts", Some(turn))),
    };
    turns.iter().enumerate().map(turn).collect()
}
