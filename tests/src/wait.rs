//! Waiting for a condition, never for a time.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// Asks `condition` until it holds; returns how long that took.
///
/// # Panics
/// It does not hold before the deadline; `what` says what was awaited.
#[track_caller]
pub fn wait_until(what: &str, deadline: Duration, condition: impl Fn() -> bool) -> Duration {
    let begin = Instant::now();
    loop {
        if condition() {
            return begin.elapsed();
        }
        assert!(begin.elapsed() < deadline, "{what}: not within {deadline:?}");
        sleep(Duration::from_millis(5));
    }
}
