//! What a model makes of each row of a file, as JSON lines.

use serde_json::{Value, json};

use super::json::json_line;
use crate::eval::{RowScore, Scores};

/// A key of every line, by which the next run knows the file as its own.
pub const SAMPLES_MARKER: &str = "\"eval_row\":";

/// One line for each row: `model`, `data`, `eval_row`, its line in the file, and what the kind of the row has.
pub fn evaluation_samples(model: &str, data: &str, scores: &Scores) -> String {
    let line = |(location, score): (&crate::data::Location, &RowScore)| {
        let mut line = json!({"model": model, "data": data, "eval_row": location.line});
        let own = of_row(score);
        if let (Value::Object(line), Value::Object(own)) = (&mut line, own) {
            line.extend(own);
        }
        json_line(&line)
    };
    scores.locations.iter().zip(&scores.row_scores).map(line).collect()
}

fn of_row(score: &RowScore) -> Value {
    match score {
        RowScore::Loss(sum) => {
            json!({"kind": "loss", "loss": sum.sum / sum.count, "tokens": sum.count as u64})
        }
        RowScore::Choice { log_probs, chosen: [chosen, chosen_norm], answer } => json!({
            "kind": "choice", "log_probs": log_probs, "chosen": chosen, "chosen_norm": chosen_norm, "answer": answer,
        }),
        RowScore::Answer { written, number, accepted, right } => json!({
            "kind": "generate", "text": written.text, "number": number, "accepted": accepted, "right": right,
            "tokens": written.tokens, "finish_reason": if written.stopped { "stop" } else { "length" },
        }),
    }
}
