//! What `train` does to the directory of a run and to what stood there before, wherever it is killed.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Lab, rows};
use crate::common::{fails, files, hft, ok, wait_until};

/// Steps enough to be killed on the way, few enough to be finished.
const STEPS: [&str; 4] = ["--max-steps", "300", "--save-steps", "1"];

fn texts(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// Starts a run and waits for three steps of it.
fn start(lab: &Lab, args: &[String], out: &str) -> Child {
    let mut child = hft(&texts(args)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begin = Instant::now();
    let steps = || std::fs::read_to_string(lab.path(out).join("train_log.jsonl")).unwrap_or_default();
    while steps().lines().count() < 3 || !lab.path(out).join("state/run.json").is_file() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it was killed");
        assert!(begin.elapsed() < Duration::from_secs(60), "stuck");
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

/// A run that was killed with signal 9.
pub(crate) fn killed(lab: &Lab, out: &str, more: &[&str]) -> Vec<String> {
    let mut args = lab.args("llama2", out, &STEPS);
    let without = args.clone();
    args.extend(more.iter().map(|s| (*s).to_owned()));
    // A log of the directory that is replaced must not be taken for that of the run.
    let _ = std::fs::remove_file(lab.path(out).join("train_log.jsonl"));
    let mut child = start(lab, &args, out);
    child.kill().unwrap();
    child.wait().unwrap();
    without
}

pub(crate) fn with<'a>(args: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    [&texts(args)[..], more].concat()
}

/// The private directories of what was replaced at `out`.
fn replaced(lab: &Lab) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(lab.dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries.filter(|p| p.to_string_lossy().contains(".replaced-")).collect();
    found.sort();
    found
}

#[test]
fn an_input_in_the_directory_of_the_run_is_refused_with_and_without_force() {
    let lab = Lab::new();
    lab.train("llama2", "out", &["--max-steps", "1"]);
    let plan = lab.path("out/rounds/0/plan.json");
    std::fs::create_dir(lab.path("out/data")).unwrap();
    rows(&lab.path("out/data/rows.jsonl"), 4);
    std::fs::write(lab.path("out/train.yml"), "max_steps: 1\n").unwrap();
    let before = files(lab.dir.path());
    let args = lab.args("llama2", "out", &["--max-steps", "1"]);
    let replace = |flag: &str, value: &Path| {
        let mut args = args.clone();
        let at = args.iter().position(|arg| arg == flag).unwrap();
        args[at + 1] = value.to_string_lossy().into_owned();
        args
    };
    let add = |flag: &str, value: &Path| {
        [&args[..], &[flag.to_owned(), value.to_string_lossy().into_owned()]].concat()
    };
    let cases = [
        (replace("--model", &lab.path("out")), "is the input"),
        (replace("--data", &lab.path("out/data/rows.jsonl")), "contains the input"),
        (replace("--data", &lab.path("out/data")), "contains the input"),
        (add("--eval-data", &lab.path("out/data/rows.jsonl")), "contains the input"),
        (add("--plan", &plan), "contains the input"),
        (add("--config", &lab.path("out/train.yml")), "contains the input"),
        (replace("--out", lab.dir.path()), "contains the input"),
        (replace("--out", &lab.path("llama2")), "is the input"),
        (replace("--out", &lab.path("llama2/in")), "lies inside the input"),
    ];
    for (args, word) in &cases {
        for force in [&[][..], &["--force"], &["--resume"]] {
            let error = fails(&with(args, force));
            // Without a run there is nothing to resume, which is said first.
            assert!(error.contains(word) || force == ["--resume"], "{args:?} {force:?}: {error}");
        }
    }
    assert!(files(lab.dir.path()) == before, "nothing is touched");
}

#[test]
fn a_model_under_a_name_of_ours_is_never_removed() {
    let lab = Lab::new();
    lab.train("llama2", "out", &["--max-steps", "1"]);
    let args = lab.args("llama2", "out", &["--max-steps", "2"]);
    let old = lab.path("llama2");
    for name in [".out.replaced", ".out.hft-surgery", ".out.replaced-0123456789abcdef"] {
        std::fs::rename(&old, lab.path(name)).unwrap();
        let before = files(&lab.path(name));
        let mut args = args.clone();
        let at = args.iter().position(|arg| arg == "--model").unwrap();
        args[at + 1] = lab.text(name);
        ok(&with(&args, &["--force"]));
        std::fs::remove_dir_all(lab.path("out")).unwrap();
        ok(&texts(&args));
        assert!(files(&lab.path(name)) == before, "{name}");
        std::fs::rename(lab.path(name), &old).unwrap();
    }
}

#[test]
fn a_run_that_goes_on_is_refused_even_with_force() {
    let lab = Lab::new();
    let args = lab.args("llama2", "out", &["--max-steps", "100000"]);
    let mut child = start(&lab, &args, "out");
    for mode in [&[][..], &["--force"], &["--resume"]] {
        let error = fails(&with(&args, mode));
        assert!(error.contains("another run is writing to it"), "{mode:?}: {error}");
    }
    assert!(lab.path("out/state/run.json").is_file() && replaced(&lab).is_empty());
    assert!(child.try_wait().unwrap().is_none(), "the run goes on");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_checkpoint_survives_killed_runs_with_force_until_one_has_ended() {
    let lab = Lab::new();
    lab.train("llama2", "out", &["--max-steps", "1"]);
    let good = std::fs::read(lab.path("out/model.safetensors")).unwrap();
    let args = killed(&lab, "out", &["--force"]);
    let kept = || {
        let found = replaced(&lab);
        let good = |dir: &PathBuf| std::fs::read(dir.join("out/model.safetensors")).is_ok_and(|b| b == good);
        assert_eq!(found.iter().filter(|dir| good(dir)).count(), 1, "{found:?}");
        found.len()
    };
    assert_eq!(kept(), 1);
    let error = fails(&texts(&args));
    let name = replaced(&lab)[0].file_name().unwrap().to_string_lossy().into_owned();
    assert!(error.contains("did not end") && error.contains(&name) && error.contains("--resume"), "{error}");
    // The checkpoint that is kept is not a model for the run at whose end it is removed.
    let mut from_kept = args.clone();
    let at = args.iter().position(|arg| arg == "--model").unwrap();
    from_kept[at + 1] = replaced(&lab)[0].join("out").to_string_lossy().into_owned();
    for mode in ["--force", "--resume"] {
        assert!(fails(&with(&from_kept, &[mode])).contains("is the input"), "{mode}");
    }
    // Again, and killed again: both are kept.
    killed(&lab, "out", &["--force"]);
    assert_eq!(kept(), 2);
    ok(&with(&args, &["--resume"]));
    assert!(replaced(&lab).is_empty() && lab.path("out/config.json").is_file());
    assert!(!lab.path("out/state").exists());
    assert_eq!(lab.log("out").len(), 300);
}

/// Every moment of the end of a run: its files are moved one by one, then the state goes, `run.json` last.
#[test]
fn a_run_killed_while_its_result_is_moved_is_finished_by_resume() {
    let lab = Lab::new();
    let args = killed(&lab, "out", &[]);
    let run = std::fs::read(lab.path("out/state/run.json")).unwrap();
    ok(&with(&args, &["--resume"]));
    let whole = files(&lab.path("out"));
    let mut result = vec!["hft_surgery.json", "model.safetensors", "config.json"];
    result.retain(|name| lab.path("out").join(name).is_file());
    assert_eq!(result.len(), 3);
    for moved in 0..=result.len() {
        for state in [true, false] {
            let from = lab.path("out/state/round-000");
            std::fs::create_dir_all(&from).unwrap();
            std::fs::write(lab.path("out/state/run.json"), &run).unwrap();
            for name in &result[moved..] {
                std::fs::rename(lab.path("out").join(name), from.join(name)).unwrap();
            }
            if !state && moved == result.len() {
                std::fs::remove_dir(&from).unwrap();
            }
            let error = fails(&texts(&args));
            assert!(error.contains("did not end"), "{moved}: {error}");
            ok(&with(&args, &["--resume"]));
            assert!(files(&lab.path("out")) == whole, "{moved} files were moved");
        }
    }
    // Killed between run.json and the directory: the result is whole, and there is nothing to resume.
    std::fs::create_dir(lab.path("out/state")).unwrap();
    std::fs::write(lab.path("out/state/lock"), "").unwrap();
    assert!(fails(&with(&args, &["--resume"])).contains("the run has ended"));
    assert!(fails(&texts(&args)).contains("already exists"));
    lab.train("llama2", "out", &["--max-steps", "1", "--force"]);
    assert!(replaced(&lab).is_empty());
}

/// What a kill before the first file leaves: a directory that did not take its place, or, from earlier versions, one
/// without `run.json`.
#[test]
fn a_run_killed_before_it_began_is_no_obstacle() {
    let lab = Lab::new();
    let left = lab.path(".out.replaced-00112233445566ff");
    std::fs::create_dir_all(left.join("out/state")).unwrap();
    std::fs::create_dir_all(left.join("out/rounds")).unwrap();
    std::fs::write(left.join("out/state/run.json"), "{}").unwrap();
    std::fs::write(left.join("made-by-hft-surgery"), "").unwrap();
    std::fs::set_permissions(&left, std::fs::Permissions::from_mode(0o700)).unwrap();
    lab.train("llama2", "out", &["--max-steps", "1"]);
    assert!(replaced(&lab).is_empty(), "what never began is removed");
    for name in ["bare/state", "bare/rounds"] {
        std::fs::create_dir_all(lab.path(name)).unwrap();
    }
    assert!(lab.refused("llama2", "bare", &["--max-steps", "1"]).contains("replace it with --force"));
    assert!(lab.refused("llama2", "bare", &["--max-steps", "1", "--resume"]).contains("no run to resume"));
    lab.train("llama2", "bare", &["--max-steps", "1", "--force"]);
    assert!(lab.path("bare/config.json").is_file() && replaced(&lab).is_empty());
}

#[test]
fn a_changed_byte_of_a_state_is_named_and_the_state_before_it_still_works() {
    let lab = Lab::new();
    let args = killed(&lab, "out", &[]);
    let states = || {
        let entries = std::fs::read_dir(lab.path("out/state")).unwrap().map(|entry| entry.unwrap().path());
        let mut states: Vec<_> = entries.filter(|p| p.is_file() && p.extension().is_some()).collect();
        states.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
        states.sort();
        states
    };
    let newest = states().pop().unwrap();
    let bytes = std::fs::read(&newest).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let digest = bytes.windows(10).position(|part| part == b"\"sha256\":\"").unwrap() + 10;
    let step = bytes.windows(7).position(|part| part == b"step\\\":").unwrap() + 7;
    for (at, to) in [
        (digest, if bytes[digest] == b'0' { b'1' } else { b'0' }),
        (step, if bytes[step] == b'1' { b'2' } else { b'1' }),
        (8 + header, bytes[8 + header] ^ 1),
        (bytes.len() - 1, bytes[bytes.len() - 1] ^ 0x80),
    ] {
        let mut changed = bytes.clone();
        changed[at] = to;
        std::fs::write(&newest, &changed).unwrap();
        let error = fails(&with(&args, &["--resume"]));
        let name = newest.file_name().unwrap().to_string_lossy();
        assert!(error.contains(&*name) && error.contains("has changed since it was saved"), "{at}: {error}");
    }
    std::fs::remove_file(&newest).unwrap();
    assert!(!states().is_empty(), "an earlier state is kept");
    ok(&with(&args, &["--resume"]));
    assert_eq!(lab.log("out").len(), 300);
}

#[test]
fn a_run_goes_on_only_from_the_bytes_that_it_was_started_with() {
    let lab = Lab::new();
    let args = killed(&lab, "out", &["--seed", "3"]);
    let args = [&args[..], &["--seed".to_owned(), "3".to_owned(), "--resume".to_owned()]].concat();
    let changed = |name: &str, change: &dyn Fn(&mut Vec<u8>), word: &str| {
        let path = lab.path(name);
        let bytes = std::fs::read(&path).unwrap();
        let mut other = bytes.clone();
        change(&mut other);
        std::fs::write(&path, &other).unwrap();
        let error = fails(&texts(&args));
        assert!(error.contains(word), "{name}: {error}");
        std::fs::write(&path, bytes).unwrap();
    };
    let flip = |bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1;
    changed("llama2/model.safetensors", &flip, "other weights in --model");
    changed("llama2/config.json", &|bytes| bytes.push(b' '), "another config.json in --model");
    changed("rows.jsonl", &|bytes| bytes.extend(b"\n{\"input_ids\": [1, 2, 3]}"), "another `data`");
    let error = fails(&with(&args, &["--strategy", "layer"]));
    assert!(error.contains("another `plans_sha256`"), "{error}");
    ok(&texts(&args));
}

/// The checkpoint between two rounds is what the second goes on from.
#[test]
fn a_changed_checkpoint_between_rounds_is_named() {
    let lab = Lab::new();
    let more = ["--max-steps", "150", "--rounds", "2"];
    let args = lab.args("llama2", "out", &more);
    let mut child = start(&lab, &args, "out");
    let begin = Instant::now();
    while lab.log("out").last().is_none_or(|line| line["round"] != 1) {
        assert!(begin.elapsed() < Duration::from_secs(60), "stuck");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let path = lab.path("out/state/round-000/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let error = fails(&with(&args, &["--resume"]));
    assert!(error.contains("round-000") && error.contains("have changed since"), "{error}");
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    ok(&with(&args, &["--resume"]));
}

/// Needs user namespaces, or root, to mount a small tmpfs.
#[test]
fn a_disk_too_small_for_the_run_is_found_before_the_first_step() {
    let lab = Lab::new();
    let mount = lab.path("small");
    std::fs::create_dir(&mount).unwrap();
    let args = lab.args("llama2", "small/out", &["--max-steps", "1", "--ratio", "1"]);
    let model = std::fs::metadata(lab.path("llama2/model.safetensors")).unwrap().len();
    // The result fits, the state does not.
    let script = format!(
        "mount -t tmpfs -o size={} none {} && {} {}; code=$?; ls -A {}; exit $code",
        2 * model + 65536,
        mount.display(),
        assert_cmd::cargo::cargo_bin("hft-surgery").display(),
        args.join(" "),
        mount.display(),
    );
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("not enough space: need ") && message.contains(" are free"), "{message}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "nothing is left on the disk");
}

#[test]
fn a_state_that_cannot_be_saved_leaves_nothing_of_itself() {
    let lab = Lab::new();
    let args = lab.args("llama2", "out", &["--max-steps", "3", "--save-steps", "1", "--ratio", "1"]);
    let model = std::fs::metadata(lab.path("llama2/model.safetensors")).unwrap().len();
    // A state is three times the model in f32; a block of `ulimit -f` has 512 bytes.
    let script = format!(
        "trap '' XFSZ; ulimit -f {}; exec {} {}",
        2 * model / 512,
        assert_cmd::cargo::cargo_bin("hft-surgery").display(),
        args.join(" ")
    );
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("File too large") && message.contains("state/round-000-step"), "{message}");
    let names: Vec<_> = files(&lab.path("out/state")).into_keys().collect();
    assert_eq!(names, [Path::new("lock"), Path::new("run.json")]);
}

/// From another directory the error says the command that goes on; with all options given again, the run goes on from
/// anywhere; and of a run that has ended, both forms say so.
#[test]
fn a_run_goes_on_from_another_directory() {
    let lab = Lab::new();
    let args = lab.args("llama2", "run", &STEPS);
    let there = lab.dir.path();
    let data = lab.text("rows.jsonl");
    // Relative to the directory that the run is started in.
    let relative = args.iter().map(|arg| if *arg == data { "rows.jsonl".to_owned() } else { arg.clone() });
    let relative: Vec<String> = relative.collect();
    let mut child = hft(&texts(&relative)).current_dir(there).stderr(Stdio::null()).spawn().unwrap();
    let steps = || std::fs::read_to_string(lab.path("run/train_log.jsonl")).unwrap_or_default();
    assert!(wait_until(&mut child, || steps().lines().count() >= 3));
    child.kill().unwrap();
    child.wait().unwrap();
    let out = lab.text("run");
    let error = fails(&["train", "--resume", "--out", &out]);
    let directory = std::fs::canonicalize(there).unwrap();
    let command = format!("cd {0} && hft-surgery train --resume --out {0}/run", directory.display());
    assert!(error.contains(&format!("the run was started in {}", directory.display())), "{error}");
    assert!(error.contains(&command), "{error}");
    ok(&with(&args, &["--resume"]));
    let ended = "the run has ended: nothing to resume\nhint: to train on from its result, give it as --model";
    // Options of the beginning may be given again, in either form.
    let again = vec!["train", "--resume", "--out", &out, "-q", "--device=cpu", "--batch-size", "2"];
    for args in [vec!["train", "--resume", "--out", &out], again, with(&args, &["--resume"])] {
        let error = fails(&args);
        assert!(error.contains(ended), "{error}");
    }
    let error = fails(&["train", "--resume", "--out", &lab.text("nowhere")]);
    assert!(error.contains("no run to resume\nhint: leave out --resume to start one"), "{error}");
}
