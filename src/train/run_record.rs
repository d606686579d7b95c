//! `run.json` of a run that has not ended: how it was started.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::checkpoint::{read_json, read_small, replace_bytes};
use crate::{Error, Result};

/// The `format` of `run.json`.
const FORMAT: &str = "hft-surgery/run";

/// Keys of `run.json` beside the options.
pub(super) const OWN_KEYS: [&str; 4] = ["format", "replaced", "directory", "arguments"];

/// The command line that started a run.
#[derive(Debug)]
pub struct StartedBy {
    /// The working directory, to which paths among the arguments are relative.
    pub directory: PathBuf,
    /// The arguments, the name of the program left out.
    pub arguments: Vec<String>,
}

impl StartedBy {
    /// The command line that started the run at `out` which did not end, where it was recorded.
    ///
    /// # Errors
    /// [`Error::Output`] when there is no such run.
    pub fn read(out: &Path) -> Result<Option<Self>> {
        let run = read_run(out)?;
        let run = run.ok_or_else(|| nothing_to_resume(out))?;
        let words = run["arguments"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let arguments: Vec<String> = words.map(str::to_owned).collect();
        let directory = run["directory"].as_str().map(PathBuf::from);
        Ok(directory.filter(|_| !arguments.is_empty()).map(|directory| Self { directory, arguments }))
    }

    /// The command line of this process; `None` where it is not UTF-8.
    pub fn this_process() -> Option<Self> {
        let words = std::env::args_os().skip(1).map(|word| word.into_string().ok());
        Some(Self { directory: std::env::current_dir().ok()?, arguments: words.collect::<Option<_>>()? })
    }
}

/// A run that is to begin.
#[derive(Debug, Clone, Copy)]
pub struct NewRun<'a> {
    /// What a resumed run must have in common with it, a JSON object.
    pub options: &'a Value,
    /// Its command line.
    pub started_by: Option<&'a StartedBy>,
    /// Bytes that it will need on the disk.
    pub space: u64,
}

/// Why no run can go on at `out`: it has ended, or there is none.
pub(super) fn nothing_to_resume(out: &Path) -> Error {
    if out.join("train_log.jsonl").is_file() && out.join("config.json").is_file() {
        let hint = "to train on from its result, give it as --model, with another --out";
        return refuse(out, "the run has ended: nothing to resume", hint);
    }
    refuse(out, "no run to resume", "leave out --resume to start one, where nothing else stands at --out")
}

pub(super) fn run_json(root: &Path) -> PathBuf {
    root.join("state/run.json")
}

/// What `run.json` says, where a run that did not end is at `out`.
pub(super) fn read_run(out: &Path) -> Result<Option<Value>> {
    let path = run_json(out);
    if !path.is_file() {
        return Ok(None);
    }
    let fault = |fault: String| {
        refuse(&path, &fault, "the options of the run are lost: move the directory away to start again")
    };
    let run: Value = read_json(&read_small(&path)?).map_err(|e| fault(format!("not valid JSON: {e}")))?;
    if run.get("format") != Some(&json!(FORMAT)) {
        return Err(fault(format!("not the file of a run: expected `format` to be {FORMAT}")));
    }
    Ok(Some(run))
}

/// The endings of the directories that the run replaced.
pub(super) fn endings(run: Option<&Value>) -> Vec<String> {
    let list = run.and_then(|run| run.get("replaced")).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|ending| ending.as_str().map(str::to_owned)).collect()
}

/// Writes `run.json` into the directory of a new run, with the endings of the directories that it replaces.
pub(super) fn write_run(dir: &Path, new_run: &NewRun<'_>, replaced: &[String]) -> Result<()> {
    let mut run = new_run.options.clone();
    run["format"] = json!(FORMAT);
    run["replaced"] = json!(replaced);
    if let Some(StartedBy { directory, arguments }) = new_run.started_by {
        run["directory"] = json!(directory.to_str());
        run["arguments"] = json!(arguments);
    }
    replace_bytes(&run_json(dir), true, format!("{run:#}\n").as_bytes())
}

pub(super) fn refuse(path: &Path, fault: &str, hint: &str) -> Error {
    Error::Output { path: path.to_owned(), fault: fault.to_owned(), hint: Some(hint.to_owned()) }
}
