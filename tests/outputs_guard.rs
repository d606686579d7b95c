//! No command writes over, into or through anything that it reads, nor over what is not its own.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{files, fixture, hft, ok, path};

/// What commands read, all below `in`, and what is somebody's own beside it.
struct Lab {
    dir: tempfile::TempDir,
}

/// A command that writes to what its last argument names.
struct Writer {
    args: Vec<String>,
    /// The last of `args`.
    option: &'static str,
    /// Whether the target is a directory.
    directory: bool,
    /// What it reads.
    inputs: Vec<PathBuf>,
}

impl Lab {
    fn new() -> Self {
        let lab = Self { dir: tempfile::tempdir().unwrap() };
        for name in ["in/base", "in/model", "in/hub/blobs", "in/hub/snapshots/abc", "home"] {
            std::fs::create_dir_all(lab.at(name)).unwrap();
        }
        for (name, bytes) in files(&fixture("base")) {
            std::fs::write(lab.at("in/base").join(name), bytes).unwrap();
        }
        // As the cache of huggingface_hub keeps them: snapshots of links into `blobs`.
        for (name, bytes) in files(&fixture("tuned")) {
            let name = name.to_str().unwrap().to_owned();
            std::fs::write(lab.at("in/hub/blobs").join(name.replace('.', "_")), bytes).unwrap();
            let blob = format!("../../blobs/{}", name.replace('.', "_"));
            symlink(blob, lab.at("in/hub/snapshots/abc").join(name)).unwrap();
        }
        for name in ["model.safetensors", "config.json"] {
            std::fs::copy(fixture("llama/llama3").join(name), lab.at("in/model").join(name)).unwrap();
        }
        let rows = r#"{"input_ids": [1, 2, 3, 4, 5]}"#;
        for name in ["in/rows.jsonl", "in/eval.jsonl"] {
            std::fs::write(lab.at(name), format!("{rows}\n{rows}\n")).unwrap();
        }
        std::fs::write(lab.at("in/train.yml"), "max_steps: 1\n").unwrap();
        let (base, tuned) = (lab.text("in/base"), lab.text("in/hub/snapshots/abc"));
        let recipe = format!(
            "merge_method: linear\nparameters: {{weight: 0.5}}\nmodels:\n- model: {base}\n- model: {tuned}\n"
        );
        std::fs::write(lab.at("in/recipe.yml"), recipe).unwrap();
        ok(&["plan", &tuned, "--out", &lab.text("in/plan.json")]);
        ok(&["plan", &tuned, "--seed", "1", "--out", &lab.text("in/other.json")]);
        ok(&["patch", "create", &base, &tuned, "--out", &lab.text("in/patch")]);
        ok(&["lora", "extract", &base, &tuned, "--rank", "2", "--out", &lab.text("in/adapter")]);
        std::fs::write(lab.at("home/thesis.txt"), "years of work").unwrap();
        lab
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        path(&self.at(name)).to_owned()
    }

    /// Words with `@` in front are paths below `in`: what the command reads.
    fn writer(&self, line: &str, option: &'static str, directory: bool) -> Writer {
        let below = |word: &str| self.at("in").join(word);
        let inputs = line.split(' ').filter_map(|word| word.strip_prefix('@')).map(below);
        let word = |word: &str| match word.strip_prefix('@') {
            Some(name) => path(&below(name)).to_owned(),
            None => word.to_owned(),
        };
        let args = line.split(' ').map(word).chain([option.to_owned()]).collect();
        Writer { args, option, directory, inputs: inputs.collect() }
    }

    fn writers(&self) -> Vec<Writer> {
        let file = |line: &str, option| self.writer(line, option, false);
        let directory = |line: &str| self.writer(line, "--out", true);
        let flags = "merge --method task_arithmetic --set weight=0.5 --base @base --model @hub/snapshots/abc";
        let train = "--quiet train --device cpu --model @model --data @rows.jsonl";
        vec![
            file("diff @base @hub/snapshots/abc", "--html"),
            file("diff @base @hub/snapshots/abc --plan @plan.json", "--svg"),
            file("diff @base @hub/snapshots/abc", "--plot-blocks"),
            file("verify @hub/snapshots/abc", "--write-manifest"),
            file("plan @hub/snapshots/abc", "--out"),
            file("plan @base --complement-of @plan.json", "--out"),
            file("plan complement @plan.json --checkpoint @base", "--out"),
            file("plan union @plan.json @other.json", "--out"),
            file("patch create @base @hub/snapshots/abc", "--out"),
            directory("patch apply @base @patch"),
            directory("reset --base @base --tuned @hub/snapshots/abc --plan @plan.json"),
            directory("reset --base @base --tuned @hub/snapshots/abc --complement-of @other.json"),
            directory("merge @recipe.yml"),
            directory(flags),
            directory("merge --base @base --lora @adapter"),
            directory("lora extract @base @hub/snapshots/abc --rank 2"),
            directory("lora combine @adapter --weights=1 --combination-type linear"),
            directory(train),
            directory(&format!("{train} --eval-data @eval.jsonl --config @train.yml")),
        ]
    }
}

impl Writer {
    fn run(&self, out: &Path, more: &[&str]) -> std::process::Output {
        let mut args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        args.push(path(out));
        args.extend(more);
        common::output(&mut hft(&args))
    }

    /// Expects exit code 2 and one message with one of these faults, that says which option to change.
    fn refuses(&self, out: &Path, faults: &[&str]) {
        for force in [&[][..], &["--force"]] {
            let output = self.run(out, force);
            let message = String::from_utf8_lossy(&output.stderr);
            let what = format!("{:?} {} {force:?}: {message}", self.args, out.display());
            assert_eq!(output.status.code(), Some(2), "{what}");
            assert!(message.starts_with("error: ") && faults.iter().any(|f| message.contains(f)), "{what}");
            assert!(message.contains(self.option), "the hint names {}: {what}", self.option);
            assert_eq!(message.matches("error: ").count(), 1, "{what}");
        }
    }
}

/// Every entry below a directory: the bytes of files, the targets of links.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let kind = std::fs::symlink_metadata(&path).unwrap().file_type();
        let bytes = if kind.is_symlink() {
            std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else if kind.is_file() {
            std::fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        if kind.is_dir() {
            all.extend(tree(&path));
        }
        all.insert(path, bytes);
    }
    all
}

#[test]
fn every_command_refuses_every_bad_target() {
    let lab = Lab::new();
    symlink(lab.at("in/base"), lab.at("link")).unwrap();
    symlink(lab.at("in/hub/snapshots/abc"), lab.at("snapshot")).unwrap();
    symlink(lab.at("nowhere"), lab.at("dangling")).unwrap();
    symlink(lab.at("in"), lab.at("inputs")).unwrap();
    assert!(Command::new("mkfifo").arg(lab.at("pipe")).status().unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(lab.at("socket")).unwrap();
    let writers = lab.writers();
    let before = tree(lab.dir.path());
    for writer in &writers {
        for input in &writer.inputs {
            let link = lab.at("link-to-input");
            symlink(input, &link).unwrap();
            writer.refuses(input, &["is the input"]);
            writer.refuses(&link, &["is the input"]);
            std::fs::remove_file(&link).unwrap();
            if input.is_dir() {
                writer.refuses(&input.join("new"), &["lies inside the input"]);
            } else {
                let hard = lab.at("hard-link-to-input");
                std::fs::hard_link(input, &hard).unwrap();
                writer.refuses(&hard, &["is the input"]);
                std::fs::remove_file(&hard).unwrap();
            }
            let entry = |dir: &Path| std::fs::read_dir(dir).unwrap().next().unwrap().unwrap().path();
            if input.is_dir() {
                let file = entry(input);
                writer.refuses(&file, &["lies inside the input", "is the input"]);
                // The blob of a snapshot, or the file itself, by another name.
                let hard = lab.at("hard-link-to-file");
                std::fs::hard_link(file.canonicalize().unwrap(), &hard).unwrap();
                writer.refuses(&hard, &["is the input"]);
                writer.refuses(&file.canonicalize().unwrap(), &["lies inside the input", "is the input"]);
                std::fs::remove_file(&hard).unwrap();
            }
            let real = lab.at("inputs").join(input.strip_prefix(lab.at("in")).unwrap());
            writer.refuses(&real, &["is the input"]);
        }
        writer.refuses(&lab.at("in"), &["contains the input"]);
        writer.refuses(&lab.at("dangling"), &["is a symbolic link"]);
        writer.refuses(&lab.at("pipe"), &["is a pipe"]);
        writer.refuses(&lab.at("socket"), &["is a socket"]);
        writer.refuses(Path::new("/dev/null"), &["is a device"]);
        let own = if writer.directory { "exists" } else { "is a directory" };
        writer.refuses(&lab.at("home"), &[own]);
    }
    assert!(tree(lab.dir.path()) == before, "no input and nothing of the user's has changed");
}

#[test]
fn a_directory_that_holds_an_input_is_not_replaced() {
    let lab = Lab::new();
    let inputs = [
        ("patch apply @base", "patch", ""),
        ("reset --base @base --tuned @hub/snapshots/abc --plan", "plan.json", ""),
        ("reset --base @base --tuned @hub/snapshots/abc --complement-of", "other.json", ""),
        ("merge", "recipe.yml", ""),
        ("merge --base @base --lora", "adapter", ""),
        ("lora extract @base", "hub/snapshots/abc", "--rank 2"),
        ("lora combine --weights=1 --combination-type linear", "adapter", ""),
        ("--quiet train --device cpu --model @model --data", "rows.jsonl", ""),
        ("--quiet train --device cpu --model @model --data @rows.jsonl --eval-data", "eval.jsonl", ""),
        ("--quiet train --device cpu --model @model --data @rows.jsonl --config", "train.yml", ""),
        ("--quiet train --device cpu --data @rows.jsonl --model", "model", ""),
    ];
    // A checkpoint that `--force` would replace, were it not for what lies in it.
    let out = lab.at("out");
    ok(&["merge", &lab.text("in/recipe.yml"), "--out", path(&out)]);
    for (line, input, rest) in inputs {
        let inside = out.join("mine");
        let copied = Command::new("cp").arg("-RL").args([lab.at("in").join(input), inside.clone()]).status();
        assert!(copied.unwrap().success());
        let line = format!("{line} {} {rest}", path(&inside));
        let before = tree(lab.dir.path());
        lab.writer(line.trim_end(), "--out", true).refuses(&out, &["contains the input", "already exists"]);
        assert!(tree(lab.dir.path()) == before, "{line}");
        let forced = lab.writer(line.trim_end(), "--out", true).run(&out, &["--force"]);
        assert!(String::from_utf8_lossy(&forced.stderr).contains("contains the input"), "{line}");
        let removed =
            if inside.is_dir() { std::fs::remove_dir_all(&inside) } else { std::fs::remove_file(&inside) };
        removed.unwrap();
    }
}

/// A report of ours gives way to the next; another file only to `--force`, and never through its other names.
#[test]
fn a_report_replaces_only_a_report() {
    let lab = Lab::new();
    for writer in lab.writers().iter().filter(|w| !w.directory && w.args[0] != "patch") {
        let (out, other) = (lab.at("report"), lab.at("other-name"));
        let good = |output: std::process::Output| {
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.code().is_some_and(|code| code < 2), "{:?}: {message}", writer.args);
        };
        good(writer.run(&out, &[]));
        let first = std::fs::read(&out).unwrap();
        std::fs::hard_link(&out, &other).unwrap();
        good(writer.run(&out, &[]));
        assert!(std::fs::read(&out).unwrap() == first);
        std::fs::write(&out, "years of work").unwrap();
        let message = String::from_utf8(writer.run(&out, &[]).stderr).unwrap();
        assert!(message.contains("already exists") && message.contains("--force"), "{message}");
        assert_eq!(std::fs::read(&out).unwrap(), b"years of work");
        good(writer.run(&out, &["--force"]));
        assert!(std::fs::read(&out).unwrap() == first && std::fs::read(&other).unwrap() == first);
        std::fs::remove_file(&out).unwrap();
        std::fs::remove_file(&other).unwrap();
        assert_eq!(std::fs::read_dir(lab.dir.path()).unwrap().count(), 2, "nothing is left beside it");
    }
}

/// A disk that fills up, or a file limit that is met, while a report is written.
#[test]
fn a_report_that_cannot_be_written_leaves_the_old_one() {
    let lab = Lab::new();
    let out = lab.at("report");
    for writer in lab.writers().iter().filter(|w| !w.directory) {
        let first = writer.run(&out, &[]);
        assert!(first.status.code().is_some_and(|code| code < 2));
        let before = tree(lab.dir.path());
        let force = if writer.args[0] == "patch" { "--force" } else { "" };
        let line = format!("{} {} {force}", writer.args.join(" "), path(&out));
        let program = assert_cmd::cargo::cargo_bin("hft-surgery");
        let script = format!("trap '' XFSZ; ulimit -f 1; exec {} {line}", path(&program));
        let output = common::output(Command::new("sh").args(["-c", &script]));
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line}: {message}");
        assert!(message.contains("File too large"), "{line}: {message}");
        if writer.args[0] != "patch" {
            assert!(message.contains(&format!("choose another {}", writer.option)), "{line}: {message}");
        }
        assert!(tree(lab.dir.path()) == before, "{line}: the old report stays, and nothing is left");
        std::fs::remove_file(&out).unwrap();
    }
}

/// Whatever stands at the name of the staging directory and is not proven ours stays as it is.
#[test]
fn staging_is_never_taken_from_another() {
    let lab = Lab::new();
    let (staging, marker) = (lab.at(".out.hft-surgery"), "made-by-hft-surgery");
    let set = |mode: u32| {
        std::fs::set_permissions(&staging, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let directory = |mode: u32, with_marker: bool| {
        std::fs::create_dir(&staging).unwrap();
        std::fs::write(staging.join("thesis.txt"), "years of work").unwrap();
        if with_marker {
            std::fs::write(staging.join(marker), "").unwrap();
        }
        set(mode);
    };
    let shard = std::fs::read_dir(lab.at("in/base")).unwrap().map(|e| e.unwrap().path());
    let shard = shard.into_iter().find(|p| p.extension().is_some_and(|e| e == "safetensors")).unwrap();
    let obstacles: [&dyn Fn(); 6] = [
        &|| directory(0o755, false),
        &|| directory(0o700, false),
        &|| directory(0o777, true),
        &|| symlink(lab.at("home"), &staging).unwrap(),
        &|| std::fs::hard_link(&shard, &staging).unwrap(),
        &|| symlink(lab.at("in/base"), &staging).unwrap(),
    ];
    for writer in lab.writers().iter().filter(|w| w.args[0] != "--quiet") {
        for obstacle in obstacles {
            obstacle();
            let before = tree(lab.dir.path());
            let output = writer.run(&lab.at("out"), &[]);
            let message = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.code().is_some_and(|code| code < 2), "{:?}: {message}", writer.args);
            let out = lab.at("out");
            let removed =
                if writer.directory { std::fs::remove_dir_all(out) } else { std::fs::remove_file(out) };
            removed.unwrap();
            assert!(tree(lab.dir.path()) == before, "{:?}", writer.args);
            let removed = if staging.is_symlink() || staging.is_file() {
                std::fs::remove_file(&staging)
            } else {
                std::fs::remove_dir_all(&staging)
            };
            removed.unwrap();
        }
    }
}

/// What a killed run left is cleared, unless the command reads it.
#[test]
fn what_a_killed_run_left_is_cleared_but_for_inputs() {
    let lab = Lab::new();
    let staging = lab.at(".out.hft-surgery");
    let leave = || {
        std::fs::create_dir_all(staging.join("checkpoint")).unwrap();
        std::fs::set_permissions(&staging, std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::write(staging.join("made-by-hft-surgery"), "").unwrap();
        for (name, bytes) in files(&lab.at("in/base")) {
            std::fs::write(staging.join("checkpoint").join(name), bytes).unwrap();
        }
    };
    let (out, tuned) = (lab.at("out"), lab.text("in/hub/snapshots/abc"));
    leave();
    ok(&["reset", "--base", &lab.text("in/base"), "--tuned", &tuned, "--out", path(&out)]);
    assert!(!staging.exists());
    std::fs::remove_dir_all(&out).unwrap();
    leave();
    let before = tree(&staging);
    let base = staging.join("checkpoint");
    ok(&["reset", "--base", path(&base), "--tuned", &tuned, "--out", path(&out)]);
    assert!(tree(&staging) == before);
    // An empty one is of a run that was killed before it could put the marker there.
    std::fs::remove_dir_all(&out).unwrap();
    std::fs::remove_dir_all(&staging).unwrap();
    std::fs::create_dir(&staging).unwrap();
    std::fs::set_permissions(&staging, std::fs::Permissions::from_mode(0o700)).unwrap();
    ok(&["reset", "--base", &lab.text("in/base"), "--tuned", &tuned, "--out", path(&out)]);
    assert!(!staging.exists() && out.exists());
}

/// The private directory is of mode 0700, its result of the mode that the umask says.
#[test]
fn results_have_the_mode_of_the_umask() {
    let lab = Lab::new();
    let program = assert_cmd::cargo::cargo_bin("hft-surgery");
    for writer in lab.writers().iter().filter(|w| w.args[0] != "--quiet") {
        let out = lab.at("out");
        let line = format!("umask 027; exec {} {} {}", path(&program), writer.args.join(" "), path(&out));
        let output = common::output(Command::new("sh").args(["-c", &line]));
        assert!(output.status.code().is_some_and(|code| code < 2), "{line}");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        if writer.directory {
            assert_eq!(mode(&out), 0o750, "{line}");
            for (file, _) in files(&out).iter().filter(|(file, _)| file.ends_with("hft_surgery.json")) {
                assert_eq!(mode(&out.join(file)), 0o640, "{line}");
            }
            std::fs::remove_dir_all(&out).unwrap();
        } else {
            assert_eq!(mode(&out), 0o640, "{line}");
            std::fs::remove_file(&out).unwrap();
        }
    }
}
