//! The output appears whole or not at all, and never over an input.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod common;

use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{
    counted, fails, files, fixture, hft, ok, path, read_tensors, run, wait, wait_until, write_checkpoint,
};

fn args<'a>(base: &'a Path, tuned: &'a Path, out: &'a Path) -> [&'a str; 7] {
    ["reset", "--base", path(base), "--tuned", path(tuned), "--out", path(out)]
}

fn copy_of(fixture_name: &str, to: &Path) -> PathBuf {
    std::fs::create_dir_all(to).unwrap();
    for (name, bytes) in files(&fixture(fixture_name)) {
        std::fs::write(to.join(name), bytes).unwrap();
    }
    to.to_owned()
}

/// Work for each element, so that a run writes for long enough to be killed meanwhile.
const SLOW: [&str; 4] = ["--granularity", "element", "--threads", "1"];

/// A pair of some 48 MB a side.
fn large_pair(dir: &Path) -> (PathBuf, PathBuf) {
    pair(dir, 1000)
}

/// A pair of 24 matrices of `rows` times 1000 elements a side.
fn pair(dir: &Path, rows: u64) -> (PathBuf, PathBuf) {
    for (side, first) in [("base", 1u16), ("tuned", 2)] {
        let name = |i: u32, p: &str| format!("model.layers.{i}.mlp.{p}.weight");
        let tensors = (0..8).flat_map(|i| {
            ["gate_proj", "up_proj", "down_proj"]
                .map(|p| counted(&name(i, p), &[rows, 1000], first + 10 * i as u16))
        });
        write_checkpoint(&dir.join(side), &tensors.collect::<Vec<_>>(), 4, "{}");
    }
    (dir.join("base"), dir.join("tuned"))
}

#[test]
fn an_input_is_never_overwritten_whatever_the_paths() {
    let dir = tempfile::tempdir().unwrap();
    let (base, tuned) =
        (copy_of("base", &dir.path().join("m/base")), copy_of("tuned", &dir.path().join("m/tuned")));
    let before = files(dir.path());
    symlink(&tuned, dir.path().join("link")).unwrap();
    symlink(dir.path().join("m"), dir.path().join("m2")).unwrap();
    symlink(dir.path().join("nowhere"), dir.path().join("dangling")).unwrap();
    let cases = [
        (tuned.clone(), "is the input"),
        (base.clone(), "is the input"),
        (dir.path().join("m/./tuned"), "is the input"),
        (dir.path().join("m/base/../tuned"), "is the input"),
        (dir.path().join("m2/tuned"), "is the input"),
        (tuned.join("out"), "lies inside the input"),
        (dir.path().join("m2/base/out"), "lies inside the input"),
        (dir.path().join("m"), "contains the input"),
        (dir.path().join("link"), "is the input"),
        (dir.path().join("dangling"), "is a symbolic link"),
        (dir.path().join("m/x.safetensors"), "the output is a directory"),
        (dir.path().join("no/such/parent"), "No such file"),
    ];
    for (out, expected) in cases {
        for force in [&[][..], &["--force"]] {
            let message = fails(&[&args(&base, &tuned, &out)[..], force].concat());
            assert!(message.contains(expected), "{}: {message}", out.display());
        }
    }
    let links = ["link", "m2", "dangling"].map(|l| dir.path().join(l));
    links.iter().for_each(|link| std::fs::remove_file(link).unwrap());
    assert!(files(dir.path()) == before);
}

#[test]
fn single_files_are_inputs_too() {
    let dir = tempfile::tempdir().unwrap();
    for side in ["base", "tuned"] {
        write_checkpoint(
            &dir.path().join(side),
            &[counted("model.layers.0.mlp.up_proj.weight", &[4, 4], 7)],
            1,
            "{}",
        );
    }
    let file = |side: &str| dir.path().join(side).join("model.safetensors");
    let out = dir.path().join("out");
    assert!(
        fails(&args(&file("base"), &file("tuned"), &dir.path().join("tuned"))).contains("contains the input")
    );
    ok(&args(&file("base"), &file("tuned"), &out));
    let names: Vec<_> = files(&out).into_keys().collect();
    assert_eq!(names, [PathBuf::from("hft_surgery.json"), PathBuf::from("model.safetensors")]);
}

#[test]
fn an_existing_target_needs_force_and_force_needs_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (base, tuned, out) = (fixture("base"), fixture("tuned"), dir.path().join("out"));
    ok(&args(&base, &tuned, &out));
    let first = files(&out);
    assert!(fails(&[&args(&base, &tuned, &out)[..], &["--seed", "9"]].concat()).contains("already exists"));
    assert!(files(&out) == first);
    ok(&[&args(&base, &tuned, &out)[..], &["--seed", "9", "--force"]].concat());
    assert!(files(&out) != first);
    let home = dir.path().join("home");
    std::fs::create_dir(&home).unwrap();
    std::fs::write(home.join("thesis.txt"), "years of work").unwrap();
    assert!(
        fails(&[&args(&base, &tuned, &home)[..], &["--force"]].concat())
            .contains("does not look like a checkpoint")
    );
    assert!(home.join("thesis.txt").exists());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

/// Starts the command and kills it `after` its staging directory appeared. Whether it was killed while it worked
/// there; otherwise it had ended.
fn kill_while_writing(command: &[&str], staging: &Path, after: Duration) -> bool {
    let mut child = hft(command).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until(&mut child, || staging.exists());
    std::thread::sleep(after);
    child.kill().unwrap();
    let status = wait(child).status;
    assert!(status.signal() == Some(9) || status.code() == Some(0), "{status}");
    status.signal() == Some(9) && staging.exists()
}

/// kill −9 at thirty moments spread over the writing: the target is absent or complete, and the next run is not
/// disturbed by what the killed one left.
#[test]
fn a_kill_leaves_all_or_nothing() {
    const KILLS: u32 = 30;
    let dir = tempfile::tempdir().unwrap();
    let (base, tuned) = pair(dir.path(), 100);
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    let staging = dir.path().join(".out.hft-surgery");
    let start = Instant::now();
    ok(&[&args(&base, &tuned, &whole)[..], &SLOW].concat());
    let duration = start.elapsed();
    let expected = files(&whole);
    let mut kills = 0;
    for i in 0..4 * KILLS {
        // From the first moment to the usual end, in an order that jumps about.
        let moment = duration * ((i * 23) % 50) / 50;
        let command = [&args(&base, &tuned, &out)[..], &SLOW].concat();
        kills += u32::from(kill_while_writing(&command, &staging, moment));
        if out.exists() {
            assert!(files(&out) == expected, "a target that is there is complete");
            std::fs::remove_dir_all(&out).unwrap();
        }
        if kills == KILLS {
            break;
        }
    }
    assert_eq!(kills, KILLS, "too few of {} runs were killed while they wrote", 4 * KILLS);
    ok(&[&args(&base, &tuned, &out)[..], &SLOW].concat());
    assert!(files(&out) == expected);
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "nothing is left behind: {left:?}");
}

#[test]
fn a_kill_during_a_replacement_leaves_the_old_or_the_new() {
    const KILLS: u64 = 15;
    let dir = tempfile::tempdir().unwrap();
    let (base, tuned) = pair(dir.path(), 100);
    let out = dir.path().join("out");
    let result = |seed: &str| -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
        let target = dir.path().join(format!("seed{seed}"));
        ok(&[&args(&base, &tuned, &target)[..], &["--seed", seed], &SLOW].concat());
        files(&target)
    };
    let either = [result("1"), result("2")];
    ok(&[&args(&base, &tuned, &out)[..], &["--seed", "1"], &SLOW].concat());
    let mut kills = 0;
    for i in 0..6 * KILLS {
        let seed = if i % 2 == 0 { "2" } else { "1" };
        let command =
            [&args(&base, &tuned, &out)[..], &["--seed", seed, "--force", "--no-sync"], &SLOW].concat();
        let moment = Duration::from_millis(i * 7 % 60);
        kills += u64::from(kill_while_writing(&command, &dir.path().join(".out.hft-surgery"), moment));
        assert!(either.contains(&files(&out)), "the old or the new");
        if kills == KILLS {
            return;
        }
    }
    panic!("{kills} of {} runs were killed while they wrote, expected {KILLS}", 6 * KILLS);
}

#[test]
fn two_runs_at_once_on_one_target() {
    let dir = tempfile::tempdir().unwrap();
    let (base, tuned) = large_pair(dir.path());
    let out = dir.path().join("out");
    for _ in 0..5 {
        let spawn = || {
            let mut command = hft(&args(&base, &tuned, &out));
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let runs = [spawn(), spawn(), spawn()].map(wait);
        let winners = runs.iter().filter(|r| r.status.code() == Some(0)).count();
        assert_eq!(winners, 1);
        for loser in runs.iter().filter(|r| r.status.code() != Some(0)) {
            let message = String::from_utf8_lossy(&loser.stderr);
            assert_eq!(loser.status.code(), Some(2));
            assert!(
                message.contains("another run is writing to it") || message.contains("already exists"),
                "{message}"
            );
        }
        assert_eq!(read_tensors(&out).len(), 24);
        std::fs::remove_dir_all(&out).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}

/// A full disk shows before the first byte. Needs user namespaces, or root, to mount a small tmpfs.
#[test]
fn a_full_disk_is_found_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("small");
    std::fs::create_dir(&mount).unwrap();
    let command = args(Path::new("$1"), Path::new("$2"), Path::new("$3"))
        .map(|a| if a.starts_with('$') { format!("\"{a}\"") } else { a.to_owned() });
    let script = format!(
        "mount -t tmpfs -o size=128k none \"$4\" && {} {}; code=$?; ls -A \"$4\"; exit $code",
        path(&assert_cmd::cargo::cargo_bin("hft-surgery")),
        command.join(" ")
    );
    let output = common::output(
        Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"])
            .args([path(&fixture("base")), path(&fixture("tuned")), path(&mount.join("out")), path(&mount)]),
    );
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(
        message.contains("not enough space: need ") && message.contains("hint: free some space"),
        "{message}"
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "nothing is left on the disk");
}

/// A disk that fills up, or a file limit that is met, while writing.
#[test]
fn a_write_that_fails_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (base, tuned) = large_pair(dir.path());
    let out = dir.path().join("out");
    let line = args(&base, &tuned, &out).join(" ");
    let script = format!(
        "trap '' XFSZ; ulimit -f 2048; exec {} {line}",
        path(&assert_cmd::cargo::cargo_bin("hft-surgery"))
    );
    let output = common::output(Command::new("sh").args(["-c", &script]));
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("File too large") && message.contains(".safetensors"), "{message}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn links_out_of_the_checkpoint_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let tuned = copy_of("tuned", &dir.path().join("tuned"));
    std::fs::write(dir.path().join("secret"), "key").unwrap();
    symlink(dir.path().join("secret"), tuned.join("vocab.json")).unwrap();
    symlink("config.json", tuned.join("copy.json")).unwrap();
    std::fs::write(tuned.join("optimizer.pt"), "state").unwrap();
    let out = dir.path().join("out");
    let output = run(&args(&fixture("base"), &tuned, &out));
    assert_eq!(output.status.code(), Some(0));
    assert!(
        String::from_utf8_lossy(&output.stderr)
            .contains("left behind: vocab.json (link out of the checkpoint)")
    );
    assert!(
        !out.join("vocab.json").exists()
            && !out.join("optimizer.pt").exists()
            && out.join("copy.json").exists()
    );
}

/// Anonymous memory does not grow with the checkpoint: 8 times the data under the same limit.
#[test]
fn memory_is_bounded_without_a_map() {
    let dir = tempfile::tempdir().unwrap();
    let (base, tuned) = large_pair(dir.path());
    let out = dir.path().join("out");
    let line = args(&base, &tuned, &out).join(" ");
    let script = format!(
        "ulimit -d 65536; exec {} --threads 2 {line} --no-mmap --granularity element",
        path(&assert_cmd::cargo::cargo_bin("hft-surgery"))
    );
    let output = common::output(Command::new("sh").args(["-c", &script]));
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}
