//! A progress bar on stderr, on a terminal only.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::terminal::Terminal;

/// One line at any width from 40 columns on: the bar takes what the rest leaves. Units are decimal, as in every other output.
const BYTES: &str = "{msg} [{wide_bar}] {decimal_bytes}/{decimal_total_bytes} {eta}";

/// As [`BYTES`], of tokens.
const TOKENS: &str = "{msg} [{wide_bar}] {human_pos}/{human_len} tokens {eta}";

/// A bar over `total` bytes; hidden unless stderr is a terminal.
pub(super) fn bytes_bar(terminal: &Terminal, doing: &'static str, total: u64) -> ProgressBar {
    styled(ProgressBar::with_draw_target(Some(total), target(terminal)), BYTES).with_message(doing)
}

/// A bar over `total` tokens; hidden unless stderr is a terminal.
pub(super) fn tokens_bar(terminal: &Terminal, doing: &'static str, total: u64) -> ProgressBar {
    let bar =
        styled(ProgressBar::with_draw_target(Some(total), target(terminal)), TOKENS).with_message(doing);
    bar.tick();
    bar
}

fn target(terminal: &Terminal) -> ProgressDrawTarget {
    if terminal.draws_progress() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style.progress_chars("=> "))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex, PoisonError};

    use indicatif::TermLike;

    use super::*;

    /// A terminal that keeps the lines written to it.
    #[derive(Debug, Clone)]
    struct Screen {
        columns: u16,
        lines: Arc<Mutex<Vec<String>>>,
    }

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            self.columns
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, line: &str) -> io::Result<()> {
            self.write_str(line)
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(text.to_owned());
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_bar_is_one_line_of_decimal_units_at_any_width() {
        for columns in [40, 50, 80, 200] {
            is_one_line(BYTES, (134_515_008_000, 269_060_552_000), "134.52 GB/269.06 GB", columns);
            is_one_line(TOKENS, (67_257, 134_515), "67,257/134,515 tokens", columns);
        }
    }

    fn is_one_line(template: &str, (at, total): (u64, u64), shown: &str, columns: u16) {
        let screen = Screen { columns, lines: Arc::default() };
        let target = ProgressDrawTarget::term_like(Box::new(screen.clone()));
        let bar =
            styled(ProgressBar::with_draw_target(Some(total), target), template).with_message("extract");
        bar.set_position(at);
        bar.force_draw();
        let lines = screen.lines.lock().unwrap_or_else(PoisonError::into_inner).clone();
        assert!(lines.iter().any(|line| line.contains(shown)), "{columns} columns: {lines:?}");
        assert!(
            lines.iter().all(|line| line.chars().count() <= usize::from(columns)),
            "{columns}: {lines:?}"
        );
    }
}
