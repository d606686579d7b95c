//! A sequence of tasks: the scores of each before the first stage and after each.

use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};

use super::{Lab, rows};
use crate::common::{fails, fixture, hft, ok, run, wait_until};

/// Rows of a few ids of its own for each task, and held-out rows of the same.
fn task(lab: &Lab, name: &str, first: u64) {
    let row = |i: u64, n: u64| {
        let ids: Vec<u64> = (0..n).map(|t| first + (i + t * (i % 3 + 1)) % 9).collect();
        json!({ "input_ids": ids }).to_string()
    };
    let lines = |from: u64, to: u64| (from..to).map(|i| row(i, 5 + i % 6)).collect::<Vec<_>>().join("\n");
    std::fs::write(lab.path(&format!("{name}.jsonl")), lines(0, 12)).unwrap();
    std::fs::write(lab.path(&format!("{name}_eval.jsonl")), lines(12, 17)).unwrap();
}

fn lab() -> Lab {
    let lab = Lab::new();
    for (name, first) in [("a", 2), ("b", 16), ("c", 30)] {
        task(&lab, name, first);
    }
    rows(&lab.path("general.jsonl"), 6);
    lab
}

/// `train` over three tasks, with every file that is measured.
fn sequence(lab: &Lab, out: &str, more: &[&str]) -> Vec<String> {
    // Makes the directory of the model.
    lab.args("llama2", out, &[]);
    let mut args = vec!["--quiet".to_owned(), "train".into(), "--model".into(), lab.text("llama2")];
    for (flag, name, file) in [
        ("--data", "A", "a"),
        ("--data", "B", "b"),
        ("--data", "C", "c"),
        ("--eval-data", "general", "general"),
        ("--eval-data", "C", "c_eval"),
        ("--eval-data", "A", "a_eval"),
        ("--eval-data", "B", "b_eval"),
    ] {
        args.extend([flag.to_owned(), format!("{name}={}", lab.text(&format!("{file}.jsonl")))]);
    }
    args.extend(["--out".to_owned(), lab.text(out)]);
    args.extend(["--batch-size", "4", "--learning-rate", "5e-3", "--device", "cpu"].map(str::to_owned));
    args.extend(more.iter().map(|word| (*word).to_owned()));
    args
}

fn words(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[test]
fn the_matrix_is_what_eval_says_of_the_checkpoint_after_each_stage() {
    let lab = lab();
    let args = sequence(&lab, "out", &["--epochs", "4", "--keep-stages", "--json"]);
    let summary: Value = serde_json::from_str(&ok(&words(&args))).unwrap();
    let found = read(&lab.path("out/continual.json"));
    assert_eq!(summary["continual"], found);
    assert_eq!(found["tasks"], json!(["A", "B", "C"]));
    assert_eq!((&found["metric"], &found["higher_is_better"]), (&json!("loss"), &json!(false)));
    let eval = |model: &str, data: &str| -> f64 {
        let data = lab.text(&format!("{data}.jsonl"));
        let said = ok(&["eval", "--model", &lab.text(model), "--data", &data, "--device", "cpu", "--json"]);
        serde_json::from_str::<Value>(&said).unwrap()["loss"].as_f64().unwrap()
    };
    let tasks = ["a_eval", "b_eval", "c_eval"];
    let of = |model: &str| tasks.map(|task| eval(model, task)).to_vec();
    assert_eq!(numbers(&found["base"]), of("llama2"));
    let matrix: Vec<Vec<f64>> = found["R"].as_array().unwrap().iter().map(numbers).collect();
    let models = ["out/stages/0", "out/stages/1", "out"];
    assert_eq!(matrix, models.map(of));
    let op = (matrix[2][0] + matrix[2][1] + matrix[2][2]) / 3.0;
    let bwt = ((matrix[2][0] - matrix[0][0]) + (matrix[2][1] - matrix[1][1])) / 3.0;
    assert!((found["OP"].as_f64().unwrap() - op).abs() < 1e-12, "{found}");
    assert!((found["BWT"].as_f64().unwrap() - bwt).abs() < 1e-12, "{found}");
    // Each task is learnt in its own stage, and the first is partly forgotten after it.
    assert!(matrix[0][0] < found["base"][0].as_f64().unwrap() && matrix[2][0] > matrix[0][0], "{found}");
    let other = &found["others"][0];
    assert_eq!((&other["name"], &other["metric"]), (&json!("general"), &json!("loss")));
    assert_eq!(other["base"], json!(eval("llama2", "general")));
    assert_eq!(numbers(&other["after"]), models.map(|model| eval(model, "general")));
    let svg = std::fs::read_to_string(lab.path("out/continual.svg")).unwrap();
    assert_eq!((svg.matches("<rect").count(), svg.matches("class=\"o\"").count()), (16 + 3, 3));
}

/// Kills at every sort of moment: while files are measured, between measuring and the first step, in the steps.
#[test]
fn a_killed_sequence_resumes_to_the_same_bytes() {
    let lab = lab();
    let more = ["--max-steps", "25", "--save-steps", "4", "--rounds", "6", "--ratio", "0.5"];
    ok(&words(&sequence(&lab, "whole", &more)));
    let args = sequence(&lab, "killed", &more);
    let scores = || std::fs::read_to_string(lab.path("killed/state/scores.json")).unwrap_or_default();
    let steps = || lab.log("killed").len();
    let mut kills = 0;
    // Steps, or scores of a file, at which the run is killed.
    for (at, of_scores) in
        [(0, true), (3, false), (57, false), (60, false), (4, true), (8, true), (149, false)]
    {
        let mut all = words(&args);
        if lab.path("killed/state/run.json").is_file() {
            all.push("--resume");
        }
        let mut child = hft(&all).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let count = || scores().matches("0.").count() + scores().matches("3.").count();
        let reached = || if of_scores { count() > at } else { steps() > at };
        if wait_until(&mut child, reached) {
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
        }
        if lab.path("killed/config.json").is_file() {
            break;
        }
    }
    assert!(kills >= 4, "only {kills} kills: the test tests little");
    if !lab.path("killed/config.json").is_file() {
        ok(&[&words(&args)[..], &["--resume"]].concat());
    }
    for name in ["continual.json", "continual.svg", "model.safetensors"] {
        let [whole, killed] = ["whole", "killed"].map(|out| std::fs::read(lab.path(out).join(name)).unwrap());
        assert!(whole == killed, "{name}");
    }
    assert!(!lab.path("killed/state").exists() && !lab.path("killed/stages").exists());
}

#[test]
fn stages_and_files_that_do_not_fit_are_refused() {
    let lab = lab();
    let said = |more: &[&str]| {
        let mut args = vec!["train".to_owned(), "--model".into(), lab.text("llama2")];
        args.extend(["--out".to_owned(), lab.text("out"), "--device".into(), "cpu".into()]);
        for word in more {
            let (name, file) = word.split_once('=').unwrap_or(("", word));
            let path = lab.text(&format!("{file}.jsonl"));
            args.push(match (word.starts_with("--"), name) {
                (true, _) => (*word).to_owned(),
                (_, "") => path,
                _ => format!("{name}={path}"),
            });
        }
        lab.args("llama2", "out", &[]);
        let error = fails(&words(&args));
        assert!(!lab.path("out").exists(), "{error}");
        error
    };
    assert!(said(&["--data", "A=a", "--data", "b"]).contains("1 of 2 files have no name"));
    let missing = said(&["--data", "A=a", "--data", "B=b", "--eval-data", "A=a_eval"]);
    assert!(missing.contains("no --eval-data has the name B"), "{missing}");
    let few = said(&["--data", "a", "--data", "b", "--data", "c", "--eval-data", "a", "--eval-data", "b"]);
    assert!(few.contains("--eval-data: got 2 files for 3 stages"), "{few}");
    let steps = said(&["--data", "a", "--eval-data", "A=a", "--eval-steps=2"]);
    assert!(steps.contains("--eval-steps: got several --eval-data, or one with a name"), "{steps}");
    let rounds = said(&["--data", "a", "--data", "b", "--rounds=3"]);
    assert!(rounds.contains("--rounds: got 3, expected a multiple of 2"), "{rounds}");
}

/// The loss that one file without a name has on the way, and nothing of a sequence.
#[test]
fn one_file_without_a_name_is_measured_as_before() {
    let lab = lab();
    let held_out = lab.text("a_eval.jsonl");
    lab.train("llama2", "out", &["--max-steps", "4", "--eval-data", &held_out, "--eval-steps", "2"]);
    let evaluated: Vec<bool> = lab.log("out").iter().map(|line| line["eval_loss"].is_f64()).collect();
    assert_eq!(evaluated, [false, true, false, true]);
    assert!(!lab.path("out/continual.json").exists());
}

/// Questions give an accuracy; beside a loss they have no common mean.
#[test]
fn questions_are_measured_by_accuracy_and_do_not_mix_with_losses() {
    let lab = Lab::new();
    let base = fixture("base").to_string_lossy().into_owned();
    let questions = fixture("eval/questions.jsonl").to_string_lossy().into_owned();
    let rows = lab.path("text.jsonl");
    std::fs::write(&rows, "{\"text\": \"the quick brown fox\"}\n{\"text\": \"jumps over\"}\n").unwrap();
    let rows = rows.to_string_lossy().into_owned();
    let train = |out: &str, second: &str| {
        let eval = [format!("A={questions}"), format!("B={second}")];
        let out_dir = lab.text(out);
        let args = ["train", "--model", &base, "--data", &rows, "--data", &rows, "--eval-data", &eval[0]];
        let args = [&args[..], &["--eval-data", &eval[1], "--out", &out_dir, "--max-steps", "1"]].concat();
        let output = run(&[&args[..], &["--device", "cpu", "--batch-size", "2"]].concat());
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        (read(&lab.path(out).join("continual.json")), stderr, String::from_utf8(output.stdout).unwrap())
    };
    let (same, _, table) = train("same", &questions);
    assert_eq!((&same["metric"], &same["higher_is_better"]), (&json!("accuracy"), &json!(true)));
    assert!(table.contains("higher is better") && table.contains("negative is forgetting"), "{table}");
    let said = ok(&["eval", "--model", &lab.text("same"), "--data", &questions, "--device", "cpu", "--json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["accuracy"], same["R"][1][0]);
    let (mixed, stderr, table) = train("mixed", &rows);
    assert!(stderr.contains("warning: the tasks have more than one metric"), "{stderr}");
    assert!(table.contains("no OP and no BWT"), "{table}");
    for key in ["metric", "OP", "BWT"] {
        assert_eq!(mixed[key], Value::Null, "{key}");
    }
    assert_eq!(mixed["metrics"], json!(["accuracy", "loss"]));
    assert_eq!(mixed["R"].as_array().unwrap().len(), 2);
}

/// Rows of earlier stages among those of later ones: their number, the order of draws, the record.
#[test]
fn replay_mixes_in_the_share_and_says_how_many() {
    let lab = lab();
    let train = |out: &str, more: &[&str]| {
        let mut args = sequence(&lab, out, &[&["--epochs", "1", "--batch-size=1"], more].concat());
        args.retain(|word| word != "--quiet");
        let small = args.iter().position(|word| word == "--batch-size").unwrap();
        args.drain(small..small + 2);
        let output = run(&words(&args));
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        stderr
    };
    // 12 own rows: 12 · 0.25 / 0.75 = 4 beside them.
    let said = train("quarter", &["--replay", "0.25"]);
    for stage in [2, 3] {
        let line = format!("stage {stage}: 4 of 16 rows are replayed from earlier stages (25.0 %)");
        assert!(said.contains(&line), "{said}");
    }
    let record = json!({ "share": 0.25, "rows": [0, 4, 4] });
    assert_eq!(read(&lab.path("quarter/continual.json"))["replay"], record);
    assert_eq!(read(&lab.path("quarter/hft_surgery.json"))["options"]["replay"], record);
    let steps = |out: &str| -> Vec<usize> {
        let log = lab.log(out);
        (0..3).map(|round| log.iter().filter(|line| line["round"] == round).count()).collect()
    };
    assert_eq!(steps("quarter"), [12, 16, 16]);
    train("again", &["--replay", "0.25"]);
    assert_eq!(lab.weights("again"), lab.weights("quarter"));
    train("none", &[]);
    assert_eq!(steps("none"), [12, 12, 12]);
    // Without earlier stages the first is the same, and the last task before it is remembered better.
    let of = |out: &str| read(&lab.path(out).join("continual.json"));
    assert_eq!(of("none")["R"][0], of("quarter")["R"][0]);
    assert!(of("quarter")["BWT"].as_f64() < of("none")["BWT"].as_f64());
    let refused = |share: &str| fails(&words(&sequence(&lab, "x", &["--replay", share])));
    assert!(refused("1").contains("--replay out of range: got 1, expected 0 to below 1"));
    let said = lab.refused("llama2", "x", &["--replay", "0.1"]);
    assert!(said.contains("--replay: got one --data"), "{said}");
}

/// L2-SP holds the weights nearer to the start and is told in no loss; MoFO moves its share only; both resume.
#[test]
fn restraints_are_recorded_and_hold_the_weights_back() {
    let lab = Lab::new();
    let far = |out: &str| -> (f64, u64) {
        let said = run(&["diff", &lab.text("llama2"), &lab.text(out), "--json"]);
        let said: Value = serde_json::from_slice(&said.stdout).unwrap();
        let total = &said["summary"];
        (total["l2"].as_f64().unwrap(), total["changed"].as_u64().unwrap())
    };
    let options = ["--max-steps", "8", "--ratio", "1"];
    lab.train("llama2", "plain", &options);
    lab.train("llama2", "pulled", &[&options[..], &["--l2-sp", "10"]].concat());
    lab.train("llama2", "largest", &[&options[..], &["--mofo", "0.05"]].concat());
    assert!(far("pulled").0 < 0.9 * far("plain").0, "{:?} {:?}", far("pulled"), far("plain"));
    // At most 5 % of the entries at each of 8 steps.
    assert!(far("largest").1 < far("plain").1 * 45 / 100, "{:?} {:?}", far("largest"), far("plain"));
    assert_eq!(lab.log("pulled")[0]["loss"], lab.log("plain")[0]["loss"]);
    let record = |out: &str| read(&lab.path(out).join("hft_surgery.json"))["options"].clone();
    assert_eq!((&record("pulled")["l2_sp"], &record("largest")["mofo"]), (&json!(10.0), &json!(0.05)));
    assert!(record("plain").get("l2_sp").is_none() && record("plain").get("mofo").is_none());
    for (flag, value, words) in [
        ("--l2-sp", "0", "--l2-sp out of range: got 0, expected above 0"),
        ("--mofo", "0", "--mofo out of range: got 0, expected above 0 to 1"),
        ("--mofo", "1.5", "--mofo out of range: got 1.5, expected above 0 to 1"),
    ] {
        let said = lab.refused("llama2", "x", &[flag, value]);
        assert!(said.contains(words), "{said}");
    }
}

/// The penalty is towards the start of the run, in every round and after `--resume`.
#[test]
fn a_killed_run_with_restraints_resumes_to_the_same_bits() {
    let lab = Lab::new();
    let options =
        ["--max-steps", "40", "--rounds", "2", "--save-steps", "6", "--l2-sp", "0.5", "--mofo", "0.2"];
    let options = [&options[..], &["--granularity", "element"]].concat();
    lab.train("llama2", "whole", &options);
    let args = lab.args("llama2", "killed", &options);
    for (at, resume) in [(10, false), (50, true)] {
        let all = [&words(&args)[..], if resume { &["--resume"] } else { &[] }].concat();
        let mut child = hft(&all).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        assert!(
            wait_until(&mut child, || lab.log("killed").len() > at),
            "the run ended before it was killed"
        );
        child.kill().unwrap();
        child.wait().unwrap();
    }
    ok(&[&words(&args)[..], &["--resume"]].concat());
    assert_eq!(lab.weights("killed"), lab.weights("whole"));
}
