//! Rows of multiple choice: a question, its choices, and which of them is right.

use serde_json::{Map, Value};

use crate::data::columns::{mismatch, string};
use crate::data::context::Context;
use crate::data::fault::Fault;
use crate::data::limits::Limits;
use crate::data::python::is_space;
use crate::data::row::{Location, Row};
use crate::data::tokenizer::{TokenPrefix, Tokenizer};

/// What stands between question and choice where the row does not say, as in lm-evaluation-harness.
const TARGET_DELIMITER: &str = " ";

/// Tokens of a question with all its choices at most.
const MOST_TOKENS: usize = 4 << 20;

/// Columns of other formats; with one of them a row is of that format.
const OTHERS: [&str; 8] =
    ["messages", "conversations", "prompt", "instruction", "text", "input_ids", "chosen", "rejected"];

/// A tokenized question with its choices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChoiceRow {
    /// For each choice the question and the choice; the tokens of the choice are the targets.
    pub choices: Vec<Row>,
    /// Unicode characters of each choice, without the delimiter before it.
    pub lengths: Vec<usize>,
    /// Index of the right choice.
    pub answer: usize,
}

impl ChoiceRow {
    /// The file and line of the row.
    pub fn location(&self) -> &Location {
        &self.choices[0].location
    }
}

/// A row of multiple choice, not yet tokenized.
#[derive(Debug)]
pub(crate) struct Choice {
    question: String,
    target_delimiter: String,
    choices: Vec<String>,
    answer: usize,
}

/// A tokenized row, and what tokenizing did to it.
#[derive(Debug)]
pub(crate) struct EncodedChoice {
    pub(crate) row: ChoiceRow,
    /// Whether the question lost its beginning.
    pub(crate) cut: bool,
    /// Whether a token spans the end of the question.
    pub(crate) merged: bool,
}

/// Whether the columns of a row are those of a multiple choice.
pub(crate) fn is_choice(row: &Map<String, Value>) -> bool {
    let has = |name: &&str| row.get(*name).is_some_and(|value| !value.is_null());
    ["question", "choices"].iter().all(has) && !OTHERS.iter().any(has)
}

impl Choice {
    /// Reads `question`, `choices`, `answer` and, where it is there, `target_delimiter`.
    pub(crate) fn parse(row: &Map<String, Value>) -> Result<Self, Fault> {
        let question = string(row, "question")?;
        if question.chars().all(is_space) {
            return Err(Fault::hinted(
                "`question` has no text: nothing precedes the choices",
                "write the whole prompt before the choices into `question`, `Answer:` for instance",
            ));
        }
        let choices = choices(row)?;
        let answer = answer(row, &choices)?;
        let target_delimiter = match row.get("target_delimiter") {
            None | Some(Value::Null) => TARGET_DELIMITER.to_owned(),
            Some(_) => string(row, "target_delimiter")?,
        };
        Ok(Self { question, target_delimiter, choices, answer })
    }

    /// The question with its right choice, as an example before other questions.
    pub(crate) fn example(&self) -> String {
        format!("{}{}{}", self.question, self.target_delimiter, self.choices[self.answer])
    }

    /// Question and choices as token ids, as `_encode_pair` of lm-evaluation-harness divides them: white space at the
    /// end of the question belongs to the choice, the question is tokenized alone, and the tokens of the whole after
    /// as many as the question has are those of the choice. A row over `max_length` tokens, the last of which only is a
    /// target, loses its beginning.
    pub(crate) fn encode(
        &self,
        tokenizer: &Tokenizer,
        location: &Location,
        limits: Limits,
    ) -> Result<EncodedChoice, Fault> {
        let question = self.question.trim_end_matches(is_space);
        let begin = tokenizer.bos().or(tokenizer.eos().map(|eos| eos.text.as_str()));
        let context = Context::of(question, begin, tokenizer)?;
        let (mut rows, mut cut, mut merged, mut tokens) = (Vec::new(), false, false, 0);
        for (at, choice) in self.choices.iter().enumerate() {
            let text = format!("{}{}{choice}", self.question, self.target_delimiter);
            let whole = tokenizer.ids(&text, context.add_special_tokens)?;
            merged |= TokenPrefix::of(&context.ids, &whole).merged;
            let targets = whole.get(context.ids.len()..).unwrap_or_default();
            let fault = match limits.max_length {
                _ if targets.is_empty() => "no token is left for it behind those of the question".to_owned(),
                Some(most) if targets.len() > most => {
                    format!("it has {} tokens, more than --max-length {most}", targets.len())
                }
                _ => String::new(),
            };
            if !fault.is_empty() {
                return Err(Fault::new(format!("`choices[{at}]`: {fault}")));
            }
            let mut ids = [&context.ids, targets].concat();
            let most = limits.max_length.map_or(ids.len(), |most| most.saturating_add(1));
            let lost = ids.len().saturating_sub(most);
            cut |= lost > 0;
            ids.drain(..lost);
            tokens += ids.len();
            if tokens > MOST_TOKENS {
                return Err(Fault::new(format!(
                    "the question with its choices has more than {MOST_TOKENS} tokens"
                )));
            }
            let of_choice = ids.len() - targets.len()..ids.len();
            let row = Row::with_targets(ids, Some(of_choice), location.clone());
            row.check(limits.vocab_size)?;
            rows.push(row);
        }
        let lengths = self.choices.iter().map(|choice| choice.chars().count()).collect();
        Ok(EncodedChoice { row: ChoiceRow { choices: rows, lengths, answer: self.answer }, cut, merged })
    }
}

fn choices(row: &Map<String, Value>) -> Result<Vec<String>, Fault> {
    let list = row.get("choices").and_then(Value::as_array).filter(|list| list.len() > 1);
    let list = list.ok_or_else(|| mismatch("choices", "a list of two texts or more", row.get("choices")))?;
    let text = |(at, choice): (usize, &Value)| match choice {
        Value::String(text) if !text.is_empty() => Ok(text.clone()),
        other => Err(mismatch(&format!("choices[{at}]"), "a text that is not empty", Some(other))),
    };
    list.iter().enumerate().map(text).collect()
}

/// The index in `answer`, from 0, or that of the first choice that is the text in it.
fn answer(row: &Map<String, Value>, choices: &[String]) -> Result<usize, Fault> {
    let answer = row.get("answer");
    let index = match answer {
        // lm-evaluation-harness takes digits for an index, also where they are one of the choices.
        Some(Value::String(text)) if text.bytes().all(|byte| byte.is_ascii_digit()) => None,
        Some(Value::String(text)) => choices.iter().position(|choice| choice == text),
        Some(number) => {
            number.as_u64().and_then(|at| usize::try_from(at).ok()).filter(|at| *at < choices.len())
        }
        None => None,
    };
    index.ok_or_else(|| {
        let expected = format!("an index from 0 to {}, or the text of a choice", choices.len() - 1);
        let fault = mismatch("answer", &expected, answer);
        Fault { hint: Some("write the index of the right choice as a number, from 0".to_owned()), ..fault }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(row: &Value) -> Result<usize, String> {
        Choice::parse(row.as_object().unwrap()).map(|choice| choice.answer).map_err(|fault| fault.fault)
    }

    #[test]
    fn the_answer_is_an_index_or_a_choice() {
        let row =
            |answer: Value| json!({"question": "Q:", "choices": ["no", "yes", "3", "yes"], "answer": answer});
        assert_eq!(parse(&row(json!(3))), Ok(3));
        assert_eq!(parse(&row(json!("yes"))), Ok(1));
        for answer in
            [json!(4), json!(-1), json!(1.5), json!("3"), json!("B"), json!(true), json!([1]), json!(null)]
        {
            let fault = parse(&row(answer.clone())).unwrap_err();
            assert!(fault.contains("`answer`: expected an index from 0 to 3"), "{answer}: {fault}");
        }
    }

    #[test]
    fn broken_rows_are_refused_by_column() {
        for (row, expected) in [
            (json!({"question": " \n", "choices": ["a", "b"], "answer": 0}), "`question` has no text"),
            (
                json!({"question": "Q", "choices": ["a"], "answer": 0}),
                "`choices`: expected a list of two texts",
            ),
            (json!({"question": "Q", "choices": {"text": ["a", "b"]}, "answer": 0}), "got an object"),
            (json!({"question": "Q", "choices": ["a", ""], "answer": 0}), "`choices[1]`: expected a text"),
            (
                json!({"question": "Q", "choices": ["a", "b"], "answer": 0, "target_delimiter": 1}),
                "target_delimiter",
            ),
        ] {
            let fault = parse(&row).unwrap_err();
            assert!(fault.contains(expected), "{fault}");
        }
    }
}
