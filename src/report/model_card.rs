//! The model card of a result: `README.md` with the YAML that the Hugging Face hub reads.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::error::Escaped;

/// A checkpoint that a result was made from.
#[derive(Debug, Clone, Default)]
pub struct CardSource {
    /// Its role in the provenance: `base`, `tuned`, `model`, `adapter`.
    pub role: String,
    /// Where it was read from.
    pub path: String,
    /// Its repository on the hub, `org/name`, where that is known.
    pub repository: Option<String>,
    /// The YAML of its own model card.
    pub metadata: Map<String, Value>,
}

/// Keys of a base's model card that hold for what is made from it.
const INHERITED: [&str; 2] = ["language", "pipeline_tag"];
/// Keys that say the licence.
const LICENCE: [&str; 3] = ["license", "license_name", "license_link"];

/// The model card of the result that `provenance`, the contents of its `hft_surgery.json`, describes.
///
/// `base_model` has only repositories that are known; the licence is given where all sources that say one agree.
pub fn model_card(provenance: &Value, sources: &[CardSource]) -> String {
    let command = provenance["command"].as_str().unwrap_or_default();
    let plan = &provenance["plan"];
    let mut metadata = Map::new();
    let mut repositories: Vec<&str> =
        sources.iter().filter_map(|source| source.repository.as_deref()).collect();
    repositories.dedup();
    if !repositories.is_empty() {
        metadata.insert("base_model".to_owned(), json!(repositories));
    }
    let merged = command == "merge" && plan.get("merge_method").is_some();
    let relation = if merged { "merge" } else { "finetune" };
    metadata.insert("base_model_relation".to_owned(), relation.into());
    metadata.insert("library_name".to_owned(), "transformers".into());
    let licence = licence(sources);
    metadata.extend(licence.clone().unwrap_or_default());
    let first = sources.iter().find(|source| !source.metadata.is_empty());
    for key in INHERITED {
        metadata
            .extend(first.and_then(|source| source.metadata.get(key)).map(|v| (key.to_owned(), v.clone())));
    }
    metadata.insert("tags".to_owned(), tags(command, merged, &provenance["options"]));
    let yaml = serde_saphyr::to_string(&Value::Object(metadata)).unwrap_or_default();
    let unknown: Vec<String> = sources
        .iter()
        .filter(|source| source.repository.is_none())
        .map(|source| format!("# base_model: the repository of {} is not known; add it here\n", name(source)))
        .collect();
    let mut card = format!("---\n{}{yaml}---\n\n", unknown.concat());
    let _ = write!(
        card,
        "# {}\n\n{}",
        title(command, merged, sources),
        method(command, merged, provenance, sources)
    );
    card += &inputs_table(provenance, sources);
    card += &match licence {
        Some(_) => String::new(),
        None => licence_text(sources),
    };
    card += &check(command, provenance, sources);
    card
}

/// The name of a source as a reader knows it: its repository, or the last part of its path.
fn name(source: &CardSource) -> String {
    let path = source.path.trim_end_matches('/');
    let last = path.rsplit('/').next().unwrap_or(path);
    Escaped(source.repository.as_deref().unwrap_or(last)).to_string().replace(['`', '\n'], "")
}

fn of_role(sources: &[CardSource], role: &str) -> String {
    sources.iter().find(|source| source.role == role).map_or_else(|| role.to_owned(), name)
}

/// What all sources that name a licence say; `None` where they differ or none does.
fn licence(sources: &[CardSource]) -> Option<Map<String, Value>> {
    let of = |source: &CardSource| -> Map<String, Value> {
        let said =
            LICENCE.iter().filter_map(|key| Some(((*key).to_owned(), source.metadata.get(*key)?.clone())));
        said.collect()
    };
    let mut said = sources.iter().map(of).filter(|licence| licence.contains_key("license"));
    let first = said.next()?;
    said.all(|other| other == first).then_some(first)
}

fn licence_text(sources: &[CardSource]) -> String {
    let said = sources.iter().filter_map(|source| {
        let licence = source.metadata.get("license")?;
        Some(format!("- {}: {}\n", name(source), licence.as_str().unwrap_or("see its model card")))
    });
    let said: String = said.collect();
    match said.is_empty() {
        true => {
            "\n## Licence\n\nNo model card of the models above says a licence; add `license` at the top.\n"
                .to_owned()
        }
        false => format!(
            "\n## Licence\n\nThe models above have different licences; what holds for this one must be added at the top:\n\n{said}"
        ),
    }
}

fn tags(command: &str, merged: bool, options: &Value) -> Value {
    let own = match command {
        "reset" => vec!["half-reset", "hft"],
        "merge" if merged => vec!["merge"],
        "merge" => vec!["merge", "lora"],
        _ => vec!["half-fine-tuning", "hft", options["objective"].as_str().unwrap_or("sft")],
    };
    own.into_iter().chain(["hft-surgery"]).collect()
}

fn title(command: &str, merged: bool, sources: &[CardSource]) -> String {
    let names = || sources.iter().map(name).collect::<Vec<_>>().join(", ");
    match command {
        "reset" => format!("Half-reset of {}", of_role(sources, "tuned")),
        "merge" if merged => format!("Merge of {}", names()),
        "merge" => format!("{} with the adapter {}", of_role(sources, "base"), of_role(sources, "adapter")),
        _ => format!("{}, fine-tuned", of_role(sources, "model")),
    }
}

/// How the result was made, in sentences, with the recipe or the options.
fn method(command: &str, merged: bool, provenance: &Value, sources: &[CardSource]) -> String {
    const PAPER: &str = "[arXiv:2404.18466](https://arxiv.org/abs/2404.18466)";
    let tool = provenance["tool"].as_str().unwrap_or("hft-surgery");
    let plan = &provenance["plan"];
    let count = |list: &str| plan[list].as_array().map_or(0, Vec::len);
    let (on, off) = (count("trainable"), count("frozen"));
    match command {
        "reset" => format!(
            "{off} tensors are those of {}, bit for bit, and the other {on} those of {}: a half-reset ({PAPER}), written by \
             `{tool}`.\n{}",
            of_role(sources, "base"),
            of_role(sources, "tuned"),
            options(provenance)
        ),
        "merge" if merged => {
            let recipe = serde_saphyr::to_string(plan).unwrap_or_default();
            format!("Merged by `{tool}` with this recipe:\n\n```yaml\n{recipe}```\n")
        }
        "merge" => {
            format!("The adapter was added to the weights of its base by `{tool}`.\n{}", options(provenance))
        }
        _ => format!(
            "Fine-tuned by `{tool}` in rounds, each of which trains the tensors of a plan and leaves all others bit-identical: \
             Half Fine-Tuning ({PAPER}). The last round trained {on} tensors and froze {off}.\n{}",
            options(provenance)
        ),
    }
}

/// The options and the choice of tensors that decide the result.
fn options(provenance: &Value) -> String {
    let mut rows = String::new();
    let mut row = |name: &str, value: &Value| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let _ = writeln!(
            rows,
            "| {} | {} |",
            Escaped(name),
            Escaped(value.as_str()).to_string().replace('|', "\\|")
        );
    };
    for (name, value) in provenance["options"].as_object().into_iter().flatten() {
        // Paths tell nothing to a reader of the card, digests stand in hft_surgery.json.
        if !value.is_null() && !value.is_array() && !name.ends_with("_sha256") {
            row(name, value);
        }
    }
    for name in ["strategy", "balance", "mask", "seed", "round"] {
        let value = &provenance["plan"][name];
        let value = if name == "mask" { &value["granularity"] } else { value };
        if !value.is_null() {
            row(&format!("plan: {name}"), value);
        }
    }
    format!("\n| option | value |\n|---|---|\n{rows}")
}

fn inputs_table(provenance: &Value, sources: &[CardSource]) -> String {
    let mut table =
        "\n## Made from\n\n| role | model | SHA-256 of its headers | of its contents |\n|---|---|---|---|\n"
            .to_owned();
    let inputs = provenance["inputs"].as_array().map_or(&[][..], Vec::as_slice);
    for (source, input) in sources.iter().zip(inputs) {
        let digest = |key: &str| {
            input[key].as_str().map_or_else(|| "not recorded".to_owned(), |hex| format!("`{hex}`"))
        };
        let (header, contents) = (digest("header_sha256"), digest("contents_sha256"));
        let _ = writeln!(
            table,
            "| {} | {} | {header} | {contents} |",
            Escaped(source.role.as_str()),
            name(source)
        );
    }
    table
}

/// The commands that prove what the card says.
fn check(command: &str, provenance: &Value, sources: &[CardSource]) -> String {
    /// Rounds whose commands are written out.
    const SHOWN: u64 = 3;
    let rounds = provenance["options"]["rounds"].as_u64().unwrap_or(1);
    let commands = match command {
        "reset" => {
            let base = of_role(sources, "base");
            format!("hft-surgery diff {base} THIS_MODEL --plan THIS_MODEL/hft_surgery.json\n")
        }
        "train" if rounds == 1 => {
            let model = of_role(sources, "model");
            format!("hft-surgery diff {model} THIS_MODEL --plan THIS_MODEL/hft_surgery.json\n")
        }
        "train" => {
            let model = of_role(sources, "model");
            let step = |round: u64| {
                let before = if round == 0 { model.clone() } else { format!("after-{}", round - 1) };
                format!(
                    "hft-surgery patch apply {before} THIS_MODEL/rounds/{round}/delta.hftpatch --out after-{round}\n\
                     hft-surgery diff {before} after-{round} --plan THIS_MODEL/rounds/{round}/plan.json\n"
                )
            };
            let shown: String = (0..rounds.min(SHOWN)).map(step).collect();
            if rounds > SHOWN { format!("{shown}# and so on to round {}\n", rounds - 1) } else { shown }
        }
        _ => "hft-surgery verify THIS_MODEL\n".to_owned(),
    };
    let what = match command {
        "merge" => {
            "Run the recipe again on the same inputs: the bytes are the same. `verify` prints the digests to compare."
        }
        _ => {
            "`diff --plan` compares every frozen tensor bit by bit, and ends with exit code 1 where one differs."
        }
    };
    format!(
        "\n## How to verify\n\n`hft_surgery.json` beside the weights holds the command, its options, the digests of the inputs and the \
         plan or recipe. {what}\n\n```sh\n{commands}```\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(role: &str, path: &str, repository: Option<&str>, metadata: Value) -> CardSource {
        let metadata = metadata.as_object().cloned().unwrap_or_default();
        CardSource {
            role: role.into(),
            path: path.into(),
            repository: repository.map(str::to_owned),
            metadata,
        }
    }

    fn front_matter(card: &str) -> Value {
        let yaml = card.strip_prefix("---\n").unwrap().split("---\n").next().unwrap();
        serde_saphyr::from_str(yaml).unwrap()
    }

    const RECIPE: &str =
        r#"{"command": "merge", "options": {}, "plan": {"merge_method": "ties"}, "inputs": []}"#;

    #[test]
    fn a_licence_is_said_only_where_all_agree() {
        let provenance: Value = serde_json::from_str(RECIPE).unwrap();
        let models = |second: &str| {
            [
                source("base", "/a/x", Some("org/x"), json!({"license": "apache-2.0", "language": ["en"]})),
                source("model", "/a/y", None, json!({"license": second})),
            ]
        };
        let same = model_card(&provenance, &models("apache-2.0"));
        let yaml = front_matter(&same);
        assert_eq!(yaml["license"], "apache-2.0");
        assert_eq!(yaml["base_model"], json!(["org/x"]));
        assert_eq!(yaml["base_model_relation"], "merge");
        assert_eq!(yaml["language"], json!(["en"]));
        assert!(same.contains("the repository of y is not known"), "{same}");
        let other = model_card(&provenance, &models("llama3"));
        assert!(front_matter(&other).get("license").is_none());
        assert!(other.contains("- y: llama3\n"), "{other}");
    }

    #[test]
    fn hostile_names_stay_text() {
        let provenance: Value = serde_json::from_str(RECIPE).unwrap();
        let hostile = source("model", "a/x\n---\nlicense: mit", None, json!({}));
        let card = model_card(&provenance, &[hostile]);
        assert!(front_matter(&card).get("license").is_none(), "{card}");
    }
}
