//! stdout and stderr.

use std::ffi::OsStr;
use std::io::{IsTerminal, Write};

use super::global_args::{Color, GlobalArgs};
use crate::error::{Escaped, Group, STDOUT, groups, is_hidden};
use crate::{Error, Result};

/// Where output goes and how much of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terminal {
    color: bool,
    color_stdout: bool,
    quiet: bool,
    verbose: bool,
}

impl Terminal {
    pub(super) fn new(global: &GlobalArgs) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let colors = |is_terminal: bool| match global.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => is_terminal && !no_color,
        };
        let color = colors(std::io::stderr().is_terminal());
        let color_stdout = colors(std::io::stdout().is_terminal());
        Self { color, color_stdout, quiet: global.quiet, verbose: global.verbose }
    }

    /// Before the command line is understood.
    pub(super) fn plain() -> Self {
        Self { color: false, color_stdout: false, quiet: false, verbose: false }
    }

    /// Writes data to stdout. A reader that stopped reading is no error.
    pub(super) fn print(&self, text: &str) -> Result<()> {
        self.print_bytes(text.as_bytes())
    }

    /// As [`Terminal::print`].
    pub(super) fn print_bytes(&self, bytes: &[u8]) -> Result<()> {
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("write", STDOUT)(e)),
            _ => Ok(()),
        }
    }

    /// Writes the text of a model to stdout; on a terminal, what could act on it is escaped.
    pub(super) fn print_text(&self, text: &str) -> Result<()> {
        if std::io::stdout().is_terminal() {
            self.print(&visible_but(text, &['\n', '\t']))
        } else {
            self.print(text)
        }
    }

    /// Whether tables on stdout may be painted.
    pub(super) fn paints_tables(&self) -> bool {
        self.color_stdout
    }

    /// Whether `--quiet` was given.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Whether progress bars may be drawn.
    pub(super) fn draws_progress(&self) -> bool {
        !self.quiet && std::io::stderr().is_terminal()
    }

    /// A line about what is done, unless quiet.
    pub(super) fn note(&self, text: &str) {
        if !self.quiet {
            say(&visible(text));
        }
    }

    /// The command that most people run next, for a person at a terminal.
    pub(super) fn next(&self, arguments: &[&OsStr]) {
        if !self.quiet && std::io::stderr().is_terminal() {
            let words = arguments.iter().map(|word| shell_word(&word.to_string_lossy()));
            let line = words.fold("hft-surgery".to_owned(), |line, word| line + " " + &word);
            say(&format!("{} {}", self.paint("next:", "1;36"), visible(&line)));
        }
    }

    /// A line for those who asked for more.
    pub(super) fn detail(&self, text: &str) {
        if self.verbose {
            say(&visible(text));
        }
    }

    /// Something the user should know, though the command goes on.
    pub(super) fn warn(&self, text: &str) {
        if !self.quiet {
            say(&format!("{} {}", self.paint("warning:", "1;33"), visible(text)));
        }
    }

    /// An error with its advice; many faults in groups of one kind.
    pub(super) fn error(&self, error: &Error) {
        const MOST: usize = 10;
        let (all, more) = match error {
            Error::Many(faults) => (faults.first(), faults.more()),
            one => (std::slice::from_ref(one), 0),
        };
        let groups = groups(all);
        for (i, group) in groups.iter().take(MOST).enumerate() {
            group.messages().iter().for_each(|message| self.fault(message));
            let hint = group.hint();
            // Advice that the next group repeats is given once, after the last of them.
            let next = groups.get(i + 1).filter(|_| i + 1 < MOST).and_then(Group::hint);
            if let Some(hint) = hint.filter(|hint| next.as_ref() != Some(hint)) {
                say(&format!("{} {}", self.paint("hint:", "1;36"), visible(&hint)));
            }
        }
        let more = more + groups.iter().skip(MOST).map(Group::len).sum::<usize>();
        if more > 0 {
            self.fault(&format!("and {more} more faults"));
        }
    }

    /// One message of an error.
    pub(super) fn fault(&self, text: &str) {
        say(&format!("{} {}", self.paint("error:", "1;31"), visible(text)));
    }

    /// Ends the line that a progress bar may stand on.
    pub(super) fn end_line(&self) {
        if self.draws_progress() {
            say("");
        }
    }

    fn paint(&self, text: &str, style: &str) -> String {
        if self.color { format!("\u{1b}[{style}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// A message with what could act on a terminal escaped, but for its line feeds. Names are shown through [`Escaped`] where
/// the message is made; this is for what libraries and other programs say.
fn visible(text: &str) -> String {
    visible_but(text, &['\n'])
}

fn visible_but(text: &str, plain: &[char]) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) && !plain.contains(&c) { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    out
}

/// `text` as one word of a shell's command line.
pub(super) fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// stderr may be closed; there is nobody left to tell then.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Lists names for a message: at most `most`, then how many more.
pub(super) fn list(names: &[&str], most: usize) -> String {
    let shown: Vec<String> = names.iter().take(most).map(|name| Escaped(*name).to_string()).collect();
    let rest = names.len().saturating_sub(most);
    if rest == 0 { shown.join(", ") } else { format!("{}, … and {rest} more", shown.join(", ")) }
}
