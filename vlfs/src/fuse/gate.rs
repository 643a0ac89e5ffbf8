//! Holds requests back while a successor takes over (`takeover.rs`).
//!
//! A request that was read when the gate closes is finished or not begun:
//! [`Gate::close`] returns once none is in hand, and one that comes after is kept
//! unbegun, for the kernel to send again to the successor.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

#[derive(Debug, Default)]
pub struct Gate {
    closed: AtomicBool,
    in_hand: AtomicUsize,
    lock: Mutex<()>,
    changed: Condvar,
}

/// One request in hand.
#[derive(Debug)]
pub struct InHand<'a>(&'a Gate);

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Gate {
    /// Takes a request in hand; waits while the gate is closed.
    pub fn enter(&self) -> InHand<'_> {
        loop {
            // Counted before the look at `closed`: whoever closes sees one or the other.
            self.in_hand.fetch_add(1, Ordering::SeqCst);
            if !self.closed.load(Ordering::SeqCst) {
                return InHand(self);
            }
            self.leave();
            let lock = self.lock.lock().expect("no panic while held");
            let closed = |(): &mut ()| self.closed.load(Ordering::SeqCst);
            drop(self.changed.wait_while(lock, closed).expect("no panic while held"));
        }
    }

    fn leave(&self) {
        self.in_hand.fetch_sub(1, Ordering::SeqCst);
        if self.closed.load(Ordering::SeqCst) {
            let _lock = self.lock.lock().expect("no panic while held");
            self.changed.notify_all();
        }
    }

    /// Closes the gate and waits until no request is in hand. After `patience` it
    /// is opened again, and the answer is `false`.
    pub fn close(&self, patience: Duration) -> bool {
        self.closed.store(true, Ordering::SeqCst);
        let lock = self.lock.lock().expect("no panic while held");
        let busy = |(): &mut ()| self.in_hand.load(Ordering::SeqCst) > 0;
        let waited = self.changed.wait_timeout_while(lock, patience, busy);
        let timed_out = waited.expect("no panic while held").1.timed_out();
        if timed_out && self.in_hand.load(Ordering::SeqCst) > 0 {
            self.open();
            return false;
        }
        true
    }

    pub fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
        let _lock = self.lock.lock().expect("no panic while held");
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_keeps_requests_back_and_waits_for_those_in_hand() {
        let gate = Gate::default();
        let in_hand = gate.enter();
        assert!(!gate.close(Duration::from_millis(1)), "one is in hand");
        drop(in_hand);
        assert!(gate.close(Duration::from_secs(10)));
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| drop(gate.enter()));
            assert!(!entered.is_finished(), "it waits, or has not begun");
            gate.open();
        });
        assert!(gate.close(Duration::from_secs(10)));
    }
}
