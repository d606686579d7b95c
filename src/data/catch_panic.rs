//! Panics of a library on hostile input become messages.

use std::any::Any;
use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::sync::Once;

thread_local! {
    /// Whether a panic of this thread will be caught here, so that the hook prints nothing.
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Runs `step`; gives the message of its panic instead of unwinding further, and prints none.
///
/// Values that `step` borrowed may be left half changed: the caller drops them. A panic on another thread
/// that `step` started is caught as well where that thread passes it on, but it is printed.
///
/// # Errors
/// The message of the panic, which may hold untrusted text.
pub(crate) fn catch_panic<T>(step: impl FnOnce() -> T) -> Result<T, String> {
    silence_caught_panics();
    let outer = CAUGHT.replace(true);
    let done = std::panic::catch_unwind(AssertUnwindSafe(step));
    CAUGHT.set(outer);
    done.map_err(|panic| message(&*panic))
}

/// Installs, once, a panic hook that says nothing of caught panics and leaves others to the hook before.
fn silence_caught_panics() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !CAUGHT.get() {
                before(info);
            }
        }));
    });
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panicked".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(catch_panic(|| 7), Ok(7));
        assert_eq!(catch_panic(|| panic!("no {}", 1)), Err::<(), _>("no 1".to_owned()));
        assert_eq!(catch_panic(|| std::panic::panic_any(1u8)), Err::<(), _>("panicked".to_owned()));
    }

    #[test]
    fn catching_ends_with_the_outermost_step() {
        let inner = catch_panic(|| (catch_panic(|| panic!("inner")), CAUGHT.get()));
        assert_eq!(inner, Ok((Err::<(), _>("inner".to_owned()), true)));
        assert!(!CAUGHT.get());
    }
}
