//! SIGINT and SIGTERM end every command, with its unfinished output removed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod common;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{fixture, large_pair, ok, path, wait, wait_until};

/// The two signals with their numbers.
const SIGNALS: [(&str, i32); 2] = [("INT", 2), ("TERM", 15)];

/// Starts the command in `dir`, with signals as by default whatever the test was started with.
fn start(dir: &Path, line: &str) -> Child {
    let mut command = Command::new("env");
    command.arg("--default-signal=INT,TERM").arg(assert_cmd::cargo::cargo_bin("hft-surgery"));
    command.args(line.split(' ')).current_dir(dir);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn send(signal: &str, child: &Child) {
    let sent =
        Command::new("kill").args(["-s", signal, &child.id().to_string()]).stderr(Stdio::null()).status();
    sent.unwrap();
}

/// Interrupts the command when its staging directory has appeared; a run that ends before the signal is tried again.
fn interrupt(dir: &Path, line: &str, (signal, number): (&str, i32)) {
    const TRIES: usize = 30;
    let (out, staging) = (dir.join("out"), dir.join(".out.hft-surgery"));
    for _ in 0..TRIES {
        let mut child = start(dir, line);
        wait_until(&mut child, || staging.exists());
        send(signal, &child);
        let output = wait(child);
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(!staging.exists(), "{line}: {message}");
        let ended = output.status.signal() == Some(number);
        assert!(ended || output.status.code() == Some(0), "{line}: {:?}: {message}", output.status);
        let expected = format!("error: ended by SIG{signal}; removed ");
        let removed = message.contains(&expected) && message.ends_with("/.out.hft-surgery\n");
        if ended && removed && !out.exists() {
            return;
        }
        // The output was complete before the signal came.
        if out.is_dir() {
            std::fs::remove_dir_all(&out).unwrap();
        } else if out.exists() {
            std::fs::remove_file(&out).unwrap();
        }
    }
    panic!("{line}: no SIG{signal} in {TRIES} runs came while it wrote");
}

#[test]
fn a_signal_removes_the_unfinished_output_of_every_command() {
    let dir = tempfile::tempdir().unwrap();
    large_pair(dir.path());
    let at = |name: &str| dir.path().join(name);
    ok(&["patch", "create", path(&at("base")), path(&at("tuned")), "--out", path(&at("patch"))]);
    let before = std::fs::read_dir(dir.path()).unwrap().count();
    for line in [
        "reset --base base --tuned tuned --granularity element --threads 1 --out out",
        "merge --method linear --model base:weight=0.5 --model tuned:weight=0.5 --out out",
        "patch create base tuned --out out",
        "patch apply base patch --out out",
    ] {
        for signal in SIGNALS {
            interrupt(dir.path(), line, signal);
            assert!(!at("out").exists(), "{line}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), before, "{line}: nothing is left");
        }
    }
}

/// What a shell does for commands in the background, and `nohup` for SIGHUP.
#[test]
fn a_signal_that_was_ignored_stays_ignored() {
    let dir = tempfile::tempdir().unwrap();
    large_pair(dir.path());
    let program = assert_cmd::cargo::cargo_bin("hft-surgery");
    let line = "reset --base base --tuned tuned --granularity element --threads 1 --out out";
    let script = format!("trap '' INT; exec {} {line}", path(&program));
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(dir.path()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    assert!(wait_until(&mut child, || dir.path().join(".out.hft-surgery").exists()));
    send("INT", &child);
    let output = wait(child);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(dir.path().join("out").exists());
}

/// The first signal ends training after its step, with the state saved; `--resume` goes on.
#[test]
fn training_stops_after_its_step_and_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let rows: String = (0..32).map(|i| format!("{{\"input_ids\": [1, {i}, 3, 4, 5]}}\n")).collect();
    std::fs::write(dir.path().join("rows.jsonl"), rows).unwrap();
    let model = fixture("llama/llama3");
    let line = format!(
        "train --device cpu --model {} --data rows.jsonl --batch-size 1 --max-steps 100000 --out run",
        path(&model)
    );
    for (again, (signal, _)) in SIGNALS.into_iter().enumerate() {
        let resume = if again == 0 { "" } else { " --resume" };
        let log = dir.path().join("run/train_log.jsonl");
        let lines = || std::fs::read_to_string(&log).unwrap_or_default().lines().count();
        let before = lines();
        let mut child = start(dir.path(), &format!("{line}{resume}"));
        assert!(wait_until(&mut child, || lines() > before));
        send(signal, &child);
        let output = wait(child);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains("training stopped: interrupted after step"), "{message}");
        assert!(message.contains("--resume"), "{message}");
    }
}
