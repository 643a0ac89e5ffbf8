//! One word to all threads of a daemon: stop.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

#[derive(Debug, Default)]
pub struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    pub fn stop(&self) {
        *self.stopped.lock().expect("no panic while held") = true;
        self.changed.notify_all();
    }

    pub fn is_stopped(&self) -> bool {
        *self.stopped.lock().expect("no panic while held")
    }

    /// Waits for the word, at most `timeout`. Returns whether it came.
    pub fn wait(&self, timeout: Duration) -> bool {
        let stopped = self.stopped.lock().expect("no panic while held");
        let waited = self.changed.wait_timeout_while(stopped, timeout, |stopped| !*stopped);
        *waited.expect("no panic while held").0
    }
}
