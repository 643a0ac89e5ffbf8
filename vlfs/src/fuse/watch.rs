//! Whether a worker that has answered keeps looking for the next request, or sleeps.
//!
//! A client that gets its answer often asks again a few microseconds later. A
//! worker that looks for so long on another processor spares both the waking:
//! a quarter of a request's time where the other processor is idle and kept
//! awake anyway (`latency`). Where that processor has other work, looking takes
//! time from it and finds less; so it is tried, and given up where it does not pay:
//! when requests do not come in time, or when somebody else wants the processor.

use std::time::Duration;

/// For so long a worker looks.
pub const LOOK: Duration = Duration::from_micros(40);
/// Waits after which it is decided whether to go on.
const WINDOW: u32 = 64;
/// Requests that must come in time, of so many.
const ENOUGH: u32 = 48;
/// How often somebody else may take the processor meanwhile.
const PREEMPTED: u64 = 2;
/// Requests until it is tried: at first, and at most after many failures.
const FIRST: u32 = 256;
const LAST: u32 = 65_536;

/// How a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// It was there already.
    AtOnce,
    /// While the worker looked.
    InTime,
    /// The worker slept.
    Late,
}

/// Belongs to one worker's thread.
#[derive(Debug)]
pub struct Watch {
    looks: bool,
    /// Requests left until it is tried.
    left: u32,
    /// Requests between the last failure and the next try.
    pause: u32,
    waits: u32,
    in_time: u32,
    /// The thread's involuntary switches when the window began; none in the first,
    /// in which it may still move to another processor.
    switches: Option<u64>,
}

impl Watch {
    pub fn new() -> Watch {
        Watch { looks: false, left: FIRST, pause: FIRST, waits: 0, in_time: 0, switches: None }
    }

    pub fn looks(&self) -> bool {
        self.looks
    }

    /// A request came. `may`: processors are kept awake, and there is another one.
    /// `switches` tells how often the thread lost its processor so far.
    pub fn came(&mut self, how: Came, may: bool, switches: impl FnOnce() -> Option<u64>) {
        if !self.looks {
            self.left = self.left.saturating_sub(1);
            if self.left == 0 && may {
                *self = Watch { looks: true, pause: self.pause, ..Watch::new() };
            }
            return;
        }
        if how != Came::AtOnce {
            self.waits += 1;
            self.in_time += u32::from(how == Came::InTime);
        }
        if !may {
            self.stop(self.pause);
        } else if self.waits == WINDOW {
            let now = switches();
            let taken = now.zip(self.switches).map_or(0, |(now, before)| now - before);
            if self.in_time < ENOUGH || taken > PREEMPTED {
                self.stop((self.pause * 2).min(LAST));
            } else {
                *self = Watch { looks: true, switches: now, ..Watch::new() };
            }
        }
    }

    fn stop(&mut self, pause: u32) {
        *self = Watch { pause, left: pause, ..Watch::new() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests until it looks, at most `most`.
    fn tried(watch: &mut Watch, most: u32) -> Option<u32> {
        (1..=most).find(|_| {
            watch.came(Came::Late, true, || Some(0));
            watch.looks()
        })
    }

    #[test]
    fn it_is_tried_and_goes_on_as_long_as_it_pays() {
        let mut watch = Watch::new();
        assert_eq!(tried(&mut watch, LAST), Some(FIRST));
        for _ in 0..10 * WINDOW {
            watch.came(Came::AtOnce, true, || Some(7));
            watch.came(Came::InTime, true, || Some(7));
        }
        assert!(watch.looks());
        watch.came(Came::AtOnce, false, || Some(7));
        assert!(!watch.looks(), "processors may halt again");
    }

    #[test]
    fn requests_that_come_late_end_it_for_longer_each_time() {
        let mut watch = Watch::new();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            pauses.push(tried(&mut watch, LAST).expect("tried again"));
            for _ in 0..WINDOW {
                watch.came(Came::Late, true, || None);
            }
            assert!(!watch.looks());
        }
        assert_eq!(pauses[..3], [FIRST, 2 * FIRST, 4 * FIRST]);
        assert_eq!(pauses[11], LAST);
    }

    #[test]
    fn who_takes_the_processor_from_others_stops() {
        let mut watch = Watch::new();
        tried(&mut watch, LAST).expect("tried");
        for window in 0..2 {
            assert!(watch.looks(), "the first window does not count");
            for _ in 0..WINDOW {
                watch.came(Came::InTime, true, || Some(50 + 3 * window));
            }
        }
        assert!(!watch.looks());
    }

    #[test]
    fn it_is_not_tried_while_processors_may_halt() {
        let mut watch = Watch::new();
        for _ in 0..2 * LAST {
            watch.came(Came::Late, false, || None);
        }
        assert!(!watch.looks());
    }
}
