//! What a message says on whether it is learnt.

use serde_json::{Map, Value};

use crate::data::columns::mismatch;
use crate::data::fault::Fault;

/// Fields of a message that are 0 or false where it is not learnt: `weight` of OpenAI and Mistral, `train` and
/// `training` of axolotl, `loss` and `loss_scale` of ms-swift.
const WEIGHTS: [&str; 5] = ["weight", "train", "training", "loss", "loss_scale"];

/// Fields that divide a message into what is learnt and what is not.
const REFUSED: [&str; 3] = ["train_detail", "training_detail", "mask"];

/// Whether the message `fields` says that it is learnt; `None` where it says nothing. `place` names it.
///
/// # Errors
/// A weight other than 0 and 1, two that contradict each other, a field that weighs parts of a message.
pub(crate) fn weight(place: &str, fields: &Map<String, Value>) -> Result<Option<bool>, Fault> {
    if let Some(name) = REFUSED.iter().find(|name| fields.get(**name).is_some_and(|value| !value.is_null())) {
        return Err(Fault::hinted(
            format!("`{place}.{name}`: parts of a message cannot be learnt alone"),
            "use `weight` 0 or 1 for whole messages, or rows with `input_ids` and `labels`",
        ));
    }
    let mut found = None;
    for name in WEIGHTS {
        let Some(value) = fields.get(name).filter(|value| !value.is_null()) else { continue };
        let learnt = zero_or_one(value)
            .ok_or_else(|| mismatch(&format!("{place}.{name}"), "0 or 1, false or true", Some(value)))?;
        if found.is_some_and(|before| before != learnt) {
            return Err(Fault::new(format!("`{place}`: `{name}` contradicts another weight of the message")));
        }
        found = Some(learnt);
    }
    Ok(found)
}

/// Whether a field of this name is obeyed or refused.
pub(crate) fn is_weight(name: &str) -> bool {
    WEIGHTS.contains(&name) || REFUSED.contains(&name)
}

/// 0 and false, 1 and true.
pub(crate) fn zero_or_one(value: &Value) -> Option<bool> {
    let number = value.as_f64().filter(|number| *number == 0.0 || *number == 1.0);
    value.as_bool().or(number.map(|number| number == 1.0))
}

/// The fields of `message` on whether it is learnt.
pub(crate) fn weights(message: &Value) -> impl Iterator<Item = (&'static str, &Value)> {
    WEIGHTS.into_iter().chain(REFUSED).filter_map(|name| Some((name, message.get(name)?)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn weights_are_zero_or_one_and_agree() {
        let weight =
            |message: Value| weight("messages[1]", message.as_object().unwrap()).map_err(|fault| fault.fault);
        assert_eq!(weight(json!({"content": "a", "weight": null})), Ok(None));
        for (value, learnt) in
            [(json!(0), false), (json!(1.0), true), (json!(false), false), (json!(true), true)]
        {
            for name in WEIGHTS {
                assert_eq!(weight(json!({ name: value })), Ok(Some(learnt)), "{name} {value}");
            }
        }
        let half = "`messages[1].weight`: expected 0 or 1, false or true, got 0.5";
        assert_eq!(weight(json!({"weight": 0.5})), Err(half.to_owned()));
        assert!(weight(json!({"weight": "0"})).is_err_and(|fault| fault.contains("got the text `0`")));
        assert!(
            weight(json!({"weight": 1, "loss": false})).is_err_and(|fault| fault.contains("contradicts"))
        );
        assert!(weight(json!({"train_detail": []})).is_err_and(|fault| fault.contains("train_detail")));
    }
}
