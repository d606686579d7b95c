//! `train --resume --out DIR` alone: the options are those that the run was started with.

use std::ffi::OsString;
use std::path::Path;

use super::raw_args::{Flag, names, value_of};
use super::terminal::shell_word;
use crate::error::Escaped;
use crate::train::StartedBy;
use crate::{Error, Result};

/// Flags that name what a run reads: with one of them a command line stands for itself.
const INPUTS: [&str; 4] = ["--model", "--data", "--config", "--plan"];

/// The arguments of a resumed run with those that started it put first, where it names `--out` and no input. A flag that is
/// given again, one of `flags`, has its new value only; what may not change is refused later.
///
/// # Errors
/// When no run is to be resumed there, when its command line was not recorded, or when it was started in another
/// directory, to which its paths are relative.
pub(super) fn expand(args: Vec<OsString>, flags: &[Flag]) -> Result<Vec<OsString>> {
    let is_train = args.iter().skip(1).any(|arg| arg == "train");
    let resumes = args.iter().any(|arg| arg == "--resume");
    let alone = !args.iter().any(|arg| INPUTS.iter().any(|flag| names(arg, flag)));
    let Some(out) = value_of(&args, "--out").filter(|_| is_train && resumes && alone) else {
        return Ok(args);
    };
    let Some(started) = StartedBy::read(Path::new(&out))? else {
        return Err(Error::usage(
            "the options of the run were not recorded",
            "give them again, beside --resume",
        ));
    };
    if std::env::current_dir().ok().as_ref() != Some(&started.directory) {
        let word = |path: &Path| shell_word(&path.to_string_lossy());
        let fault = format!("the run was started in {}", Escaped(&started.directory));
        let to = std::fs::canonicalize(&out).map_err(Error::io("open", Path::new(&out)))?;
        let hint = format!(
            "resume it from there: cd {} && hft-surgery train --resume --out {}",
            word(&started.directory),
            word(&to)
        );
        return Err(Error::usage(fault, hint + "; or give all its options again"));
    }
    let before: Vec<OsString> = started.arguments.into_iter().map(OsString::from).collect();
    let now = without(args[1..].to_vec(), "train");
    let is_again = |flag: &&Flag| {
        ["force", "resume", "out"].contains(&flag.long.as_str()) || now.iter().any(|arg| flag.is(arg))
    };
    let before = flags.iter().filter(is_again).fold(before, |before, flag| flag.taken_out(&before));
    Ok([&args[..1], &before, &now].concat())
}

/// The arguments but for the first that is `word`.
fn without(mut args: Vec<OsString>, word: &str) -> Vec<OsString> {
    if let Some(at) = args.iter().position(|arg| arg == word) {
        args.remove(at);
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn flags_are_taken_out_with_their_values() {
        let flag = |long: &str, short, takes_value| Flag { long: long.to_owned(), short, takes_value };
        let line = words("-q train --out a --force --ratio 0.5 --out=b");
        let line = flag("force", None, false).taken_out(&line);
        assert_eq!(flag("out", None, true).taken_out(&line), words("-q train --ratio 0.5"));
        assert_eq!(flag("quiet", Some('q'), false).taken_out(&words("-q train")), words("train"));
        assert_eq!(value_of(&words("train --outer x --out=a"), "--out"), Some("a".into()));
        assert_eq!(value_of(&words("train --out a"), "--out"), Some("a".into()));
    }

    #[test]
    fn other_command_lines_stay_as_they_are() {
        for line in ["p train --resume --out o --model m", "p diff --out o --resume", "p train --out o"] {
            assert_eq!(expand(words(line), &[]).unwrap(), words(line), "{line}");
        }
    }
}
