//! `plan.json`: the contract between commands, trainers and scripts.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::mask::Mask;
use super::partition::{Model, Origin, Plan, Shares};
use crate::checkpoint::{MOST_TENSORS, at_most, read_json, read_named, replace_bytes};
use crate::error::Escaped;
use crate::{Error, Result};

const FORMAT: &str = "hft-surgery/plan";
const VERSION: u64 = 1;

/// The document, in the order of its keys. `format`, `version`, `trainable` and `frozen` are required.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: String,
    version: u64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    strategy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    balance: Option<String>,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    round: u32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    model: Option<Model>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    shares: Option<Shares>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    mask: Option<Mask>,
    #[serde(deserialize_with = "at_most::<MOST_TENSORS, _, _>")]
    trainable: Vec<String>,
    #[serde(deserialize_with = "at_most::<MOST_TENSORS, _, _>")]
    frozen: Vec<String>,
}

/// The part of `hft_surgery.json` that is the plan of a reset or a training run.
#[derive(Deserialize)]
struct Provenance {
    command: String,
    plan: Document,
}

/// What `hft_surgery.json` says it is.
const PROVENANCE: &[u8] = b"\"hft-surgery/provenance\"";
/// Its commands whose plan divides tensors into trainable and frozen ones.
const COMMANDS: [&str; 2] = ["reset", "train"];

impl Plan {
    /// A part of every plan, by which this program knows a file as a plan.
    pub const MARKER: &str = "\"format\": \"hft-surgery/plan\"";

    /// Reads the plan at `path`, or the plan in the `hft_surgery.json` of a reset or a training run.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Plan`] as [`Plan::parse`].
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&read_named(path)?, path)
    }

    /// Parses the text of a plan, or of a provenance with a plan; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Plan`]: not JSON, a key missing, unknown or twice, another format or version, a ratio out
    /// of range, a tensor listed twice.
    pub fn parse(json: &[u8], path: &Path) -> Result<Self> {
        let document = if json.windows(PROVENANCE.len()).any(|part| part == PROVENANCE) {
            of_provenance(json, path)?
        } else {
            read_json(json).map_err(|e| fault(path, format!("not a valid plan: {e}")))?
        };
        if document.format != FORMAT {
            let got = Escaped(&document.format);
            return Err(fault(path, format!("not a plan: got format `{got}`, expected `{FORMAT}`")));
        }
        if document.version != VERSION {
            return Err(fault(
                path,
                format!("version not known: got {}, expected {VERSION}", document.version),
            ));
        }
        if let Some(ratio) = document.ratio.filter(|ratio| !(0.0..=1.0).contains(ratio)) {
            return Err(fault(path, format!("ratio out of range: got {ratio}, expected 0 to 1")));
        }
        let origin = Origin {
            strategy: document.strategy,
            ratio: document.ratio,
            balance: document.balance,
            seed: document.seed,
            round: document.round,
            model: document.model,
            shares: document.shares,
        };
        Self::build(origin, document.trainable, document.frozen, document.mask, Some(path))
    }

    /// The document as a JSON value.
    pub fn to_value(&self) -> Value {
        let origin = self.origin.clone();
        let document = Document {
            format: FORMAT.to_owned(),
            version: VERSION,
            strategy: origin.strategy,
            ratio: origin.ratio,
            balance: origin.balance,
            seed: origin.seed,
            round: origin.round,
            model: origin.model,
            shares: origin.shares,
            mask: self.mask().cloned(),
            trainable: self.trainable().to_vec(),
            frozen: self.frozen().to_vec(),
        };
        serde_json::to_value(document).unwrap_or_default()
    }

    /// The document as text: indented, keys and names in a fixed order.
    pub fn to_json(&self) -> String {
        format!("{:#}\n", self.to_value())
    }

    /// Writes the plan to `path`, a file of this program's own, whole or not at all.
    ///
    /// # Errors
    /// As [`replace_bytes`].
    pub fn write(&self, path: &Path) -> Result<()> {
        replace_bytes(path, true, self.to_json().as_bytes())
    }
}

fn of_provenance(json: &[u8], path: &Path) -> Result<Document> {
    let what = |e| fault(path, format!("not the provenance of a reset or a training run: {e}"));
    let Provenance { command, plan } = read_json(json).map_err(what)?;
    if COMMANDS.contains(&command.as_str()) {
        return Ok(plan);
    }
    Err(what(format!("got command `{}`, expected `reset` or `train`", Escaped(&command))))
}

fn fault(path: &Path, fault: String) -> Error {
    Error::Plan { path: Some(path.to_owned()), tensor: None, fault, hint: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault_of(json: &str) -> String {
        Plan::parse(json.as_bytes(), Path::new("p.json"))
            .map_or_else(|e| e.to_string(), |_| "accepted".into())
    }

    fn with(more: &str) -> String {
        format!(
            r#"{{"format": "hft-surgery/plan", "version": 1, "trainable": ["a"], "frozen": ["b"]{more}}}"#
        )
    }

    proptest::proptest! {
        /// Whatever the bytes: an error, or a plan that its own text gives again.
        #[test]
        fn arbitrary_text_never_panics(parts in proptest::collection::vec(0usize..PIECES.len(), 0..24)) {
            let text: String = parts.into_iter().map(|i| PIECES[i]).collect();
            for text in [text.clone(), format!("{{{text}}}")] {
                if let Ok(plan) = Plan::parse(text.as_bytes(), Path::new("p")) {
                    proptest::prop_assert_eq!(Plan::parse(plan.to_json().as_bytes(), Path::new("p")).unwrap(), plan);
                }
            }
        }
    }

    const PIECES: [&str; 16] = [
        r#""format": "hft-surgery/plan""#,
        r#""version": 1"#,
        r#""trainable": ["a"]"#,
        r#""frozen": ["b"]"#,
        r#""frozen": []"#,
        r#""seed": 1e9"#,
        r#""ratio": 0.5"#,
        r#""mask": "#,
        r#"{"granularity": "row""#,
        ",",
        ",",
        ",",
        ":",
        "[",
        "}",
        "\u{202e}",
    ];

    #[test]
    fn four_keys_are_enough_and_the_text_round_trips() {
        let plan = Plan::parse(with("").as_bytes(), Path::new("p.json")).unwrap();
        assert_eq!(
            [plan.is_trainable("a"), plan.is_trainable("b"), plan.is_trainable("c")],
            [Some(true), Some(false), None]
        );
        assert_eq!(Plan::parse(plan.to_json().as_bytes(), Path::new("q.json")).unwrap(), plan);
    }

    #[test]
    fn the_plan_in_a_provenance_is_read() {
        let provenance = |command: &str, plan: &str| {
            let text =
                format!(r#"{{"format": "hft-surgery/provenance", "command": "{command}", "plan": {plan}}}"#);
            Plan::parse(text.as_bytes(), Path::new("p.json")).map_err(|e| e.to_string())
        };
        let plan = Plan::parse(with("").as_bytes(), Path::new("p.json")).unwrap();
        assert_eq!(provenance("reset", &with("")), Ok(plan));
        let message = "p.json: not the provenance of a reset or a training run: ";
        let merge = provenance("merge", &with("")).unwrap_err();
        assert_eq!(merge, format!("{message}got command `merge`, expected `reset` or `train`"));
        assert!(provenance("merge", r#"{"merge_method": "ties"}"#).unwrap_err().starts_with(message));
    }

    #[test]
    fn every_fault_has_its_message() {
        let cases = [
            (with(r#", "extra": 1"#), "unknown field `extra`"),
            (with(r#", "seed": 1, "seed": 2"#), "duplicate field `seed`"),
            (with("").replace("plan\"", "recipe\""), "not a plan"),
            (with("").replace("1,", "2,"), "version not known: got 2"),
            (with("").replace("[\"b\"]", "[\"a\"]"), "tensor `a`: in `trainable` and in `frozen`"),
            (with("").replace("[\"b\"]", "[\"b\", \"b\"]"), "tensor `b`: listed twice"),
            (with(", \"ratio\": 1.5"), "ratio out of range: got 1.5"),
            (with("").replace(", \"frozen\": [\"b\"]", ""), "missing field `frozen`"),
            (
                with(
                    r#", "mask": {"granularity": "row", "selector": "bernoulli", "ratio": 0.5, "tensors": ["b"]}"#,
                ),
                "tensor `b`: under the mask",
            ),
            (
                with(
                    r#", "mask": {"granularity": "row", "selector": "bernoulli", "ratio": 2, "tensors": []}"#,
                ),
                "mask ratio out of range",
            ),
            (with(r#", "seed": "x""#), "`seed`: invalid type: string \"x\", expected u64"),
            (with("").replace("[\"b\"]", "[\"b\", 7]"), "`frozen[1]`: invalid type: integer `7`"),
            (with(r#", "model": {"tensors": -1}"#), "`model.tensors`: invalid value: integer `-1`"),
            (with(r#", "\u001b[31m": 1"#), r"unknown field `\u{1b}[31m`"),
            (with("") + "x", "trailing characters"),
            ("[".into(), "not a valid plan"),
        ];
        for (json, expected) in cases {
            let message = fault_of(&json);
            assert!(message.starts_with("p.json: ") && message.contains(expected), "{json}: {message}");
        }
    }
}
