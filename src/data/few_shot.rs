//! Few-shot examples: solved rows that stand before each row of an evaluation.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::Error;
use crate::data::chat::{ends_with_answer, messages};
use crate::data::choice::{Choice, is_choice};
use crate::data::columns::{mismatch, names, string};
use crate::data::fault::Fault;
use crate::data::files::files;
use crate::data::rows_of_file::{no_rows, open};
use crate::error::Escaped;
use crate::plan::{Domain, Key};

/// What stands after an example of text, as in lm-evaluation-harness.
const DELIMITER: &str = "\n\n";
/// What stands between the prompt and the answer of an example, as in lm-evaluation-harness.
const TARGET_DELIMITER: &str = " ";

/// Which examples a row has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampler {
    /// The first of the file.
    First,
    /// Drawn without replacement: a function of the seed and the line of the row.
    Random {
        /// The seed of the draws.
        seed: u64,
    },
}

/// How many examples, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shots {
    /// Examples before each row.
    pub count: usize,
    /// Which ones.
    pub sampler: Sampler,
}

/// The examples of a file. The row itself is never one of its own examples.
#[derive(Debug)]
pub struct FewShot {
    path: PathBuf,
    examples: Vec<Example>,
    shots: Shots,
}

#[derive(Debug)]
struct Example {
    line: u64,
    row: Map<String, Value>,
    form: Form,
}

/// What an example puts before a row.
#[derive(Debug)]
enum Form {
    /// A text, from prompt to answer.
    Text(String),
    /// Messages, the last of them the assistant's, without that of the system, which is apart.
    Chat { system: Option<Value>, messages: Vec<Value> },
}

impl FewShot {
    /// Reads the examples in `path`: rows of multiple choice, `prompt` with `answer` or `completion`, or chats.
    ///
    /// # Errors
    /// [`Error::Data`] for a row that is no example, and where the file has fewer rows than examples are asked for.
    pub fn read(path: &Path, shots: Shots) -> crate::Result<Self> {
        let mut examples = Vec::new();
        let files = files(path)?;
        if !files.other_splits.is_empty() {
            let fault = format!("{}: a directory of several splits", Escaped(path));
            return Err(Error::usage(fault, "give the file whose rows are the examples"));
        }
        for (file, format) in files.read {
            for raw in open(&file, format)? {
                let raw = raw?;
                let line = raw.line;
                let example = raw.columns.and_then(|row| Example::of(line, row));
                let error =
                    |Fault { fault, hint }| Error::Data { path: file.clone(), line: Some(line), fault, hint };
                examples.push(example.map_err(error)?);
            }
        }
        if examples.is_empty() {
            return Err(no_rows(path));
        }
        let few_shot = Self { path: path.to_owned(), examples, shots };
        few_shot
            .enough(few_shot.examples.len())
            .map_err(|Fault { fault, hint }| Error::Usage { fault, hint })?;
        Ok(few_shot)
    }

    fn enough(&self, examples: usize) -> Result<(), Fault> {
        let (path, wanted) = (Escaped(&self.path), self.shots.count);
        if examples >= wanted {
            return Ok(());
        }
        Err(Fault::new(format!(
            "{path}: got {examples} examples beside the row itself, expected {wanted} or more"
        )))
    }

    /// The row at `line` with its examples before it, where there are some.
    pub(crate) fn before(
        few_shot: Option<&Self>,
        row: Map<String, Value>,
        line: u64,
    ) -> Result<Map<String, Value>, Fault> {
        match few_shot {
            None => Ok(row),
            Some(few_shot) => few_shot.put(row, line),
        }
    }

    fn put(&self, mut row: Map<String, Value>, line: u64) -> Result<Map<String, Value>, Fault> {
        let examples = self.drawn(&row, line)?;
        let text_column = if is_choice(&row) { "question" } else { "prompt" };
        if row.get(text_column).is_some_and(Value::is_string) {
            let texts: Result<Vec<&str>, Fault> = examples.iter().map(|example| self.text(example)).collect();
            let before = texts?.iter().map(|text| format!("{text}{DELIMITER}")).collect::<String>();
            let question = string(&row, text_column)?;
            row.insert(text_column.to_owned(), Value::String(before + &question));
            return Ok(row);
        }
        let Some(column) = ["messages", "conversations", "prompt"]
            .into_iter()
            .find(|name| row.get(*name).is_some_and(Value::is_array))
        else {
            return Err(Fault::hinted(
                format!("no few-shot examples can stand before a row with {}", names(&row)),
                "rows with few-shot examples have `prompt`, `messages`, or `question` and `choices`",
            ));
        };
        let mut all = messages(&row, column)?;
        let leading = usize::from(all[0]["role"] == "system");
        let system = if leading == 1 { Some(all[0]["content"].clone()) } else { row.get("system").cloned() };
        // Their answers are no targets.
        let is_target = column != "prompt" && ends_with_answer(&all);
        let mut before = Vec::new();
        for example in examples {
            for message in self.chat(example, system.as_ref())? {
                let mut message = message.clone();
                if is_target && message["role"] == "assistant" {
                    message["weight"] = json!(0);
                }
                before.push(message);
            }
        }
        all.splice(leading..leading, before);
        row.insert(column.to_owned(), Value::Array(all));
        Ok(row)
    }

    /// The examples before the row at `line`.
    fn drawn(&self, row: &Map<String, Value>, line: u64) -> Result<Vec<&Example>, Fault> {
        let mut others: Vec<&Example> = self.examples.iter().filter(|example| example.row != *row).collect();
        let count = self.shots.count;
        self.enough(others.len())?;
        if let Sampler::Random { seed } = self.shots.sampler {
            let (key, blocks) = (Key::new(seed, 0, "eval/few-shot"), count.div_ceil(4) as u64);
            let words = (0..blocks).flat_map(|block| key.block(Domain::FewShot, line * blocks + block));
            for (at, word) in (0..count).zip(words) {
                let left = (others.len() - at) as u64;
                others.swap(at, at + ((u64::from(word) * left) >> 32) as usize);
            }
        }
        others.truncate(count);
        Ok(others)
    }

    fn text<'e>(&self, example: &'e Example) -> Result<&'e str, Fault> {
        match &example.form {
            Form::Text(text) => Ok(text),
            Form::Chat { .. } => Err(self.other_form(example, "a chat, and the row is a text")),
        }
    }

    /// The messages of an example before a chat with this system message.
    fn chat<'e>(&self, example: &'e Example, system: Option<&Value>) -> Result<&'e [Value], Fault> {
        match &example.form {
            Form::Text(_) => Err(self.other_form(example, "a text, and the row is a chat")),
            Form::Chat { system: own, .. } if own.is_some() && own.as_ref() != system => {
                Err(self.other_form(example, "a chat with another message of the system than the row"))
            }
            Form::Chat { messages, .. } => Ok(messages),
        }
    }

    fn other_form(&self, example: &Example, what: &str) -> Fault {
        Fault::new(format!("the few-shot example {}:{} is {what}", Escaped(&self.path), example.line))
    }
}

impl Example {
    fn of(line: u64, row: Map<String, Value>) -> Result<Self, Fault> {
        let form = form(&row)?;
        Ok(Self { line, row, form })
    }
}

fn form(row: &Map<String, Value>) -> Result<Form, Fault> {
    if is_choice(row) {
        return Choice::parse(row).map(|choice| Form::Text(choice.example()));
    }
    let has = |name: &str| row.get(name).is_some_and(|value| !value.is_null());
    let column = ["messages", "conversations", "prompt"].into_iter().find(|name| has(name));
    let Some(column) = column else {
        return Err(Fault::hinted(
            format!("not a few-shot example: the columns are {}", names(row)),
            "an example has `prompt` with `answer` or `completion`, `messages`, or `question`, `choices` and `answer`",
        ));
    };
    if row[column].is_string() {
        let prompt = string(row, column)?;
        if has("completion") {
            return Ok(Form::Text(prompt + &string(row, "completion")?));
        }
        let delimiter = if has("target_delimiter") {
            string(row, "target_delimiter")?
        } else {
            TARGET_DELIMITER.to_owned()
        };
        return Ok(Form::Text(prompt + &delimiter + &first_answer(row)?));
    }
    let mut all = messages(row, column)?;
    if column == "prompt" && row.get("completion").is_some_and(Value::is_array) {
        all.extend(messages(row, "completion")?);
    } else if column == "prompt" && has("completion") {
        all.push(json!({"role": "assistant", "content": string(row, "completion")?}));
    } else if !ends_with_answer(&all) {
        all.push(json!({"role": "assistant", "content": first_answer(row)?}));
    }
    let leading = usize::from(all[0]["role"] == "system");
    let column = row.get("system").filter(|system| system.is_string()).cloned();
    let system = all.drain(..leading).next().map(|message| message["content"].clone()).or(column);
    Ok(Form::Chat { system, messages: all })
}

/// The answer, or the first of several that are accepted.
fn first_answer(row: &Map<String, Value>) -> Result<String, Fault> {
    match row.get("answer") {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(number.to_string()),
        Some(Value::Array(list)) => match list.first() {
            Some(Value::String(text)) => Ok(text.clone()),
            other => Err(mismatch("answer[0]", "a text", other)),
        },
        other => Err(mismatch("answer", "a text, or a list of texts", other)),
    }
}
