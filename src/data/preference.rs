//! Rows of preferences: a prompt with a chosen and a rejected answer.

use serde_json::{Map, Value};

use crate::data::columns::{integers, names};
use crate::data::fault::Fault;
use crate::data::ignored_columns::ignored;
use crate::data::record::{Record, prompt_completion};
use crate::data::row::IGNORED;
use crate::data::token_row::Sequence;

const FORMATS: &str = "a preference row has `prompt`, `chosen` and `rejected` (texts or message lists), `chosen` and \
                       `rejected` that begin with the same prompt, or `prompt_input_ids`, `chosen_input_ids` and \
                       `rejected_input_ids`";

/// Columns of token ids.
const IDS: [&str; 3] = ["prompt_input_ids", "chosen_input_ids", "rejected_input_ids"];

/// Reads a preference row by its columns; a column that is null counts as absent. Also gives the names of columns of no
/// format that look like a mask or a weight.
///
/// # Errors
/// A row that is no preference, or whose columns are of different kinds.
pub(crate) fn preference(mut row: Map<String, Value>) -> Result<(Record, Vec<String>), Fault> {
    row.retain(|_, value| !value.is_null());
    let has = |name: &str| row.contains_key(name);
    let pair = if IDS.iter().any(|name| has(name)) {
        token_ids(&row)?
    } else if ["chosen", "rejected"].iter().all(|name| has(name)) {
        if !has("prompt") {
            extract_prompt(&mut row)?;
        }
        answers(&row)?
    } else {
        return Err(Fault::hinted(format!("not a preference row: the columns are {}", names(&row)), FORMATS));
    };
    Ok((Record::Preference(Box::new(pair)), ignored(&row, &[])))
}

/// The prompt with each answer.
fn answers(row: &Map<String, Value>) -> Result<[Record; 2], Fault> {
    if row["prompt"].is_string()
        && let Some(name) = ["chosen", "rejected"].iter().find(|name| !row[**name].is_string())
    {
        return Err(Fault::hinted(
            format!("`prompt` is a text, and `{name}` is not"),
            "leave `prompt` out where `chosen` and `rejected` are whole chats, or write it as a message list",
        ));
    }
    Ok([prompt_completion(row, "chosen")?, prompt_completion(row, "rejected")?])
}

/// Token ids of the prompt, then of each answer; nothing is added to them.
fn token_ids(row: &Map<String, Value>) -> Result<[Record; 2], Fault> {
    let prompt: Vec<u32> = integers(row, IDS[0])?;
    let with = |name: &str| -> Result<Record, Fault> {
        let answer: Vec<u32> = integers(row, name)?;
        // An id beyond i32 is outside of every vocabulary and refused as an input id.
        let learnt = answer.iter().map(|id| i32::try_from(*id).unwrap_or(i32::MAX));
        let labels = std::iter::repeat_n(IGNORED, prompt.len()).chain(learnt).collect();
        let input_ids = prompt.iter().chain(&answer).copied().collect();
        Ok(Record::Tokens(vec![Sequence { input_ids, labels }]))
    };
    Ok([with(IDS[1])?, with(IDS[2])?])
}

/// Moves what both answers begin with into `prompt`, as `extract_prompt` of TRL: whole messages, or characters without
/// a space at the end. Where one answer is the beginning of the other, its last message or character stays in it.
fn extract_prompt(row: &mut Map<String, Value>) -> Result<(), Fault> {
    let (prompt, chosen, rejected) = match (&row["chosen"], &row["rejected"]) {
        (Value::Array(chosen), Value::Array(rejected)) => {
            let shared = first_difference(chosen, rejected);
            if shared == 0 {
                return Err(Fault::hinted("`chosen` and `rejected` begin with different messages", FORMATS));
            }
            let rest = |all: &[Value]| Value::from(&all[shared..]);
            (Value::from(&chosen[..shared]), rest(chosen), rest(rejected))
        }
        (Value::String(chosen), Value::String(rejected)) => {
            let [chosen, rejected] = [chosen, rejected].map(|text| text.chars().collect::<Vec<char>>());
            let shared = first_difference(&chosen, &rejected);
            let shared = shared - usize::from(shared > 0 && chosen[shared - 1] == ' ');
            let text = |chars: &[char]| Value::String(chars.iter().collect());
            (text(&chosen[..shared]), text(&chosen[shared..]), text(&rejected[shared..]))
        }
        _ => {
            return Err(Fault::hinted(
                "`chosen` and `rejected` are not two texts or two message lists",
                FORMATS,
            ));
        }
    };
    row.insert("prompt".to_owned(), prompt);
    row.insert("chosen".to_owned(), chosen);
    row.insert("rejected".to_owned(), rejected);
    Ok(())
}

/// The first place at which the lists differ; the last place of the shorter one where they do not.
fn first_difference<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    let last = a.len().min(b.len()).saturating_sub(1);
    a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(last)
}
