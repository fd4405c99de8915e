//! What user code panicked with.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The text of a caught panic; `None` when its value is neither `&str` nor `String`.
///
/// The value is user code too: it may panic while it is dropped. Whoever lets go of it anywhere else lets that second
/// panic out, past the place that has just caught the first.
pub fn panic_text(panic: Box<dyn Any + Send>) -> Option<String> {
    let panic = match panic.downcast::<&'static str>() {
        Ok(text) => return Some((*text).to_owned()),
        Err(panic) => panic,
    };
    match panic.downcast::<String>() {
        Ok(text) => Some(*text),
        Err(panic) => {
            drop_caught(panic);
            None
        }
    }
}

/// Drops a value of user code; `false` when that panicked.
pub(crate) fn drop_caught<T>(value: T) -> bool {
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(value))) else { return true };
    // What a drop panics with may panic in its own drop, and so on: this one stays in memory.
    std::mem::forget(panic);
    false
}
