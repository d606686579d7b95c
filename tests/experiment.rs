//! `experiment forgetting`: its numbers are those of the commands that it prints, and it goes on where it was killed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::{Path, PathBuf};

use common::{fails, files, fixture, hft, ok, output, path, wait_until};
use serde_json::{Value, json};

/// A directory with rows and a recipe of four methods that trains two tiny steps for each task.
struct Experiment {
    dir: tempfile::TempDir,
}

const METHODS: &str = "
  - {name: full, train: {ratio: 1}}
  - {name: half, train: {}}
  - {name: half-reset, after: full, reset: [0.25, 0.75]}
  - {name: wise-ft, after: full, interpolate: [0.5]}
";

impl Experiment {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, rows: Vec<Value>| {
            let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
            std::fs::write(dir.path().join(name), lines.join("\n")).unwrap();
        };
        let pairs = |words: [[&str; 2]; 4]| -> Vec<Value> {
            words.iter().map(|[prompt, answer]| json!({"prompt": prompt, "completion": answer})).collect()
        };
        write("a.jsonl", pairs([["one", " two"], ["two", " three"], ["three", " four"], ["four", " five"]]));
        write(
            "b.jsonl",
            pairs([["red", " apple"], ["green", " leaf"], ["blue", " sky"], ["white", " snow"]]),
        );
        write(
            "text.jsonl",
            vec![json!({"text": "the quick brown fox"}), json!({"text": "jumps over the dog"})],
        );
        let own = Self { dir };
        own.write_recipe(METHODS);
        own
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write_recipe(&self, methods: &str) {
        let rows = |name: &str| path(&self.file(name)).to_owned();
        let (a, b, text, base) = (rows("a.jsonl"), rows("b.jsonl"), rows("text.jsonl"), fixture("base"));
        let recipe = format!(
            "base: {}\ntasks:\n  - {{name: a, train: {a}, eval: {a}}}\n  - {{name: b, train: {b}, eval: {b}}}\n\
             general: {{text: {text}}}\nseeds: [0, 1]\n\
             train: {{learning_rate: 1e-2, max_steps: 2, batch_size: 2, device: cpu}}\nmethods:{methods}",
            path(&base)
        );
        std::fs::write(self.file("recipe.yml"), recipe).unwrap();
    }

    fn args<'a>(recipe: &'a str, out: &'a str) -> [&'a str; 5] {
        ["experiment", "forgetting", recipe, "--out", out]
    }

    fn run(&self, out: &str, more: &[&str]) -> String {
        let (recipe, out) = (self.file("recipe.yml"), self.file(out));
        ok(&[&Self::args(path(&recipe), path(&out))[..], more].concat())
    }

    fn refused(&self, out: &str) -> String {
        let (recipe, out) = (self.file("recipe.yml"), self.file(out));
        fails(&Self::args(path(&recipe), path(&out)))
    }
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Without what the clock said, and with one name for the directory.
fn timeless(mut value: Value, out: &Path) -> String {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.remove("measured");
                map.values_mut().for_each(strip);
            }
            Value::Array(values) => values.iter_mut().for_each(strip),
            _ => {}
        }
    }
    strip(&mut value);
    value.to_string().replace(path(out), "OUT")
}

fn method<'a>(report: &'a Value, label: &str) -> &'a Value {
    report["methods"].as_array().unwrap().iter().find(|one| one["label"] == label).unwrap()
}

/// The losses of two tasks and of the general set.
fn losses(scores: &Value) -> Value {
    let loss = |name: &str| {
        scores.as_array().unwrap().iter().find(|one| one["data"] == name).unwrap()["loss"].clone()
    };
    json!([loss("a"), loss("b"), loss("text")])
}

#[test]
fn numbers_are_those_of_the_commands() {
    let experiment = Experiment::new();
    let table = experiment.run("out", &[]);
    assert_eq!(table.lines().count(), 1 + 5, "{table}");
    let out = experiment.file("out");
    let report = read(&out.join("report.json"));
    let labels: Vec<&str> =
        report["methods"].as_array().unwrap().iter().map(|one| one["label"].as_str().unwrap()).collect();
    assert_eq!(labels, ["full", "half", "half-reset 0.25", "half-reset 0.75", "wise-ft 0.5"]);

    // The same by hand, seed 1, of the commands in the report.
    let commands: Vec<&str> =
        report["steps"].as_array().unwrap().iter().map(|step| step["command"].as_str().unwrap()).collect();
    assert_eq!(commands.len(), 2 * (2 + 1 + 2), "{commands:?}");
    let full = experiment.file("full");
    let by_hand = |line: &str| {
        let at = |name: &str| path(&out.join("runs").join(name)).to_owned();
        let line = line
            .replace(&at("full-1"), path(&full))
            .replace(&at("wise-ft-0.5-1"), path(&experiment.file("wise")));
        ok(&line.split(' ').skip(1).collect::<Vec<_>>())
    };
    let find = |parts: [&str; 2]| {
        *commands.iter().find(|line| parts.iter().all(|part| line.contains(part))).unwrap()
    };
    by_hand(find(["train ", "runs/full-1"]));
    let seed = &method(&report, "full")["seeds"][1];
    let continual = read(&full.join("continual.json"));
    for (ours, theirs) in [("R", "R"), ("base", "base"), ("OP", "OP"), ("BWT", "BWT")] {
        assert_eq!(seed[ours], continual[theirs], "{ours}");
    }
    assert_eq!(seed["general"][0]["last"], continual["others"][0]["after"][1]);
    let files =
        ["a", "b", "text"].map(|name| format!("{name}={}", path(&experiment.file(&format!("{name}.jsonl")))));
    let evaluated = |model: &Path| {
        // In batches as the experiment has them, so that sums are taken in the same order.
        let options = ["eval", "--json", "--batch-size", "2", "--device", "cpu", "--model", path(model)];
        let data = files.iter().flat_map(|file| ["--data", file.as_str()]);
        let args: Vec<&str> = options.into_iter().chain(data).collect();
        losses(&serde_json::from_str(&ok(&args)).unwrap())
    };
    let all = |label: &str| {
        let seed = &method(&report, label)["seeds"][1];
        json!([seed["last"][0], seed["last"][1], seed["general"][0]["last"]])
    };
    let half = experiment.file("reset");
    let base = fixture("base");
    ok(&[
        "reset",
        "--base",
        path(&base),
        "--tuned",
        path(&full),
        "--out",
        path(&half),
        "--ratio",
        "0.75",
        "--seed",
        "1",
    ]);
    assert_eq!(all("half-reset 0.75"), evaluated(&half));
    by_hand(find(["merge ", "wise-ft-0.5-1"]));
    assert_eq!(all("wise-ft 0.5"), evaluated(&experiment.file("wise")));
    // Means over tasks and seeds, and BWT of a half-reset against what training had reached.
    let number = |value: &Value| value.as_f64().unwrap();
    let reset = &method(&report, "half-reset 0.75")["seeds"][1];
    let forgot = |task: usize| number(&reset["last"][task]) - number(&continual["R"][task][task]);
    assert!((number(&reset["BWT"]) - (forgot(0) + forgot(1)) / 2.0).abs() < 1e-12);
    let op = &method(&report, "full")["summary"]["OP"];
    let values = [number(&op["values"][0]), number(&op["values"][1])];
    assert!((number(&op["mean"]) - (values[0] + values[1]) / 2.0).abs() < 1e-12 && values[0] != values[1]);
    assert!((number(&op["std"]) - (values[0] - values[1]).abs() / 2f64.sqrt()).abs() < 1e-12);

    // The report holds every picture, and checkpoints are gone.
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    let text = std::fs::read_to_string(out.join("report.md")).unwrap();
    let pictures =
        common::files(&out).into_keys().filter(|file| file.extension().is_some_and(|e| e == "svg")).count();
    assert!(
        pictures >= 3 && page.matches("<svg").count() == pictures && text.matches("![").count() == pictures
    );
    let names = page.matches("http://www.w3.org/2000/svg").count();
    assert_eq!((page.matches("http").count(), page.matches(" src=").count()), (names + 1, 0), "{page}");
    assert!(!out.join("runs").exists());
    assert!(commands.iter().all(|line| text.contains(line)), "{text}");
}

#[test]
fn a_killed_experiment_goes_on_and_a_changed_recipe_runs_what_it_touches() {
    let experiment = Experiment::new();
    experiment.run("whole", &[]);
    let (recipe, out) = (experiment.file("recipe.yml"), experiment.file("killed"));
    let args = Experiment::args(path(&recipe), path(&out));
    let mut child = hft(&args).spawn().unwrap();
    let record = out.join("steps/half-reset-0.json");
    let later = out.join("steps/wise-ft-0.5-0.running");
    wait_until(&mut child, || record.exists() && later.exists() || out.join("steps/half-0.running").exists());
    child.kill().unwrap();
    child.wait().unwrap();
    let finished = std::fs::read(&record).unwrap();
    experiment.run("killed", &["--jobs", "2"]);
    let whole = experiment.file("whole");
    let report = |out: &Path| timeless(read(&out.join("report.json")), out);
    assert_eq!(report(&out), report(&whole));
    assert_eq!(std::fs::read(&record).unwrap(), finished, "a finished step is not run again");

    // Nothing is left to do: the report is written again from what was kept.
    let steps = || files(&out.join("steps"));
    let before = steps();
    let said = output(&mut hft(&args));
    assert!(String::from_utf8_lossy(&said.stderr).contains("10 commands have finished before"), "{said:?}");
    assert!(steps() == before);

    experiment.write_recipe(
        &METHODS.replace("  - {name: half, train: {}}\n", "  - {name: half, train: {strategy: layer}}\n"),
    );
    experiment.run("killed", &[]);
    let after = steps();
    let changed: Vec<_> = after.keys().filter(|name| before.get(*name) != after.get(*name)).collect();
    let names: Vec<String> = changed.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    assert!(
        names.contains(&"half-0.json".to_owned()) && names.contains(&"half-1.json".to_owned()),
        "{names:?}"
    );
    assert!(names.iter().all(|name| name.starts_with("half-0.") || name.starts_with("half-1.")), "{names:?}");
}

#[test]
fn what_cannot_be_run_is_refused_and_loses_nothing() {
    let experiment = Experiment::new();
    std::fs::create_dir(experiment.file("mine")).unwrap();
    std::fs::write(experiment.file("mine/file"), "mine").unwrap();
    let message = experiment.refused("mine");
    assert!(message.contains("exists and is not the directory of an experiment"), "{message}");
    assert_eq!(files(&experiment.file("mine")).len(), 1);
    let message = experiment.refused(".");
    assert!(
        message.contains("not a name of a file or directory") || message.contains("contains the input"),
        "{message}"
    );

    let lines = ok(&["experiment", "forgetting", path(&experiment.file("recipe.yml")), "--dry-run"]);
    assert_eq!(lines.lines().count(), 10, "{lines}");
    assert!(lines.lines().all(|line| line.starts_with("hft-surgery ")), "{lines}");

    // Every command line is checked before the first is run.
    experiment.write_recipe("\n  - {name: full, train: {ratio: 1}}\n  - {name: bad, train: {rato: 0.5}}\n");
    let message = experiment.refused("unknown");
    assert!(message.contains("recipe.yml: method bad: unexpected argument '--rato' found"), "{message}");
    experiment.write_recipe("\n  - {name: full, train: {rato: 1}}\n  - {name: bad, train: {rato: 0.5}}\n");
    let message = experiment.refused("unknown");
    assert!(
        message.contains("recipe.yml: methods full, bad: unexpected argument '--rato' found"),
        "{message}"
    );
    assert!(!experiment.file("unknown").exists());

    // A step that fails is named with what it said; the same command goes on when the recipe is mended.
    experiment.write_recipe("\n  - {name: full, train: {ratio: 1}}\n  - {name: bad, train: {ratio: 7}}\n");
    let (recipe, out) = (experiment.file("recipe.yml"), experiment.file("out"));
    let said = output(&mut hft(&Experiment::args(path(&recipe), path(&out))));
    let message = String::from_utf8_lossy(&said.stderr).into_owned();
    assert_eq!(said.status.code(), Some(2), "{message}");
    assert!(
        message.contains("a step failed") && message.contains("--ratio out of range: got 7"),
        "{message}"
    );
    let kept = std::fs::read(experiment.file("out/steps/full-0.json")).unwrap();
    experiment.write_recipe("\n  - {name: full, train: {ratio: 1}}\n  - {name: bad, train: {ratio: 0.7}}\n");
    experiment.run("out", &[]);
    assert_eq!(std::fs::read(experiment.file("out/steps/full-0.json")).unwrap(), kept);
}
