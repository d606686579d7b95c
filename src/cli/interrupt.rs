//! SIGINT and SIGTERM: unfinished output is removed, then the signal ends the process as it does by default.

use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use super::terminal::Terminal;
use crate::checkpoint::remove_unfinished;
use crate::error::Escaped;
use crate::{Error, Result};

/// Whether the command itself ends soon after [`STOP`] is set.
static STOPS_ITSELF: AtomicBool = AtomicBool::new(false);
/// Whether SIGTERM ends the process in any case.
static SIGINT_ONLY: AtomicBool = AtomicBool::new(false);
static STOP: AtomicBool = AtomicBool::new(false);

/// Waits for the signals in a thread of its own. A signal that the parent process chose to ignore stays ignored.
///
/// # Errors
/// [`Error::Usage`] when the system refuses.
pub(super) fn listen(terminal: Terminal) -> Result<()> {
    let fault = |e: std::io::Error| Error::usage(format!("cannot listen for signals: {e}"), "");
    let ignored = ignored_signals();
    let signals = [SIGINT, SIGTERM].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0);
    let mut signals = Signals::new(signals).map_err(fault)?;
    let thread = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            let ends = signal != SIGINT && SIGINT_ONLY.load(Ordering::SeqCst);
            if ends || !STOPS_ITSELF.load(Ordering::SeqCst) || STOP.swap(true, Ordering::SeqCst) {
                end(signal, &terminal);
            }
        }
    });
    thread.map(drop).map_err(fault)
}

/// For a command that ends by itself soon after the flag is set: the first signal sets it from now on, the second
/// ends the process.
pub(super) fn stop_flag() -> &'static AtomicBool {
    STOPS_ITSELF.store(true, Ordering::SeqCst);
    &STOP
}

/// As [`stop_flag`], for SIGINT alone. A command that clears the flag goes on, and the next SIGINT sets it again.
pub(super) fn sigint_flag() -> &'static AtomicBool {
    SIGINT_ONLY.store(true, Ordering::SeqCst);
    stop_flag()
}

fn end(signal: i32, terminal: &Terminal) {
    let name = if signal == SIGINT { "SIGINT" } else { "SIGTERM" };
    let removed = remove_unfinished();
    let removed: Vec<String> = removed.iter().map(|path| format!("; removed {}", Escaped(path))).collect();
    terminal.end_line();
    terminal.fault(&format!("ended by {name}{}", removed.concat()));
    // Returns only where the system refuses.
    let _ = emulate_default_handler(signal);
    std::process::exit(128 + signal);
}

/// The mask of ignored signals, signal n at bit n − 1; none where the system does not say.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
