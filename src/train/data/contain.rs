//! Panics of a library that become faults, without a trace on stderr.

use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}
static HOOK: Once = Once::new();

/// The value of `step`, or the message of the panic that ended it.
///
/// The panic hook of the process stays in force for every panic outside of `step`. What `step` had in
/// hand must not be used after a panic.
pub(super) fn contain<T>(step: impl FnOnce() -> T) -> Result<T, String> {
    HOOK.call_once(|| {
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !CONTAINED.get() {
                hook(info);
            }
        }));
    });
    let outer = CONTAINED.replace(true);
    let ended = panic::catch_unwind(AssertUnwindSafe(step));
    CONTAINED.set(outer);
    ended.map_err(|payload| message(&*payload))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or(payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(contain(|| 3), Ok(3));
        let index = std::hint::black_box(7);
        let message = contain(|| [0, 1][index]).unwrap_err();
        assert!(message.contains("index is 7"), "{message}");
        let nested = contain(|| contain(|| [0, 1][index]).is_err() && CONTAINED.get());
        assert_eq!((nested, CONTAINED.get()), (Ok(true), false));
    }
}
