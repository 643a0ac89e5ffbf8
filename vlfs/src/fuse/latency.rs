//! Keeps idle processors awake while requests flow.
//!
//! A client waits while its request is answered, and the worker waits for the
//! next one, so on a quiet machine a processor is idle half of the time. It halts
//! (in a virtual machine) or sleeps deeply, and waking it costs several times the
//! request itself. Linux lets a process limit the time that this may take
//! (`/dev/cpu_dma_latency`, `Documentation/power/pm_qos_interface.rst`); with 0
//! idle processors poll. That costs their time, so it is asked for only
//! from the tick in which [`BURST`] requests come until [`LINGER`] ticks after
//! the last such tick. Without the device everything works, and is slower.

use std::fs::File;
use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

const DEVICE: &str = "/dev/cpu_dma_latency";

/// Requests within one tick of [`super::turn`] (a millisecond) from which on
/// processors are kept awake. Waking halted ones allows some twenty.
const BURST: u64 = 4;
/// Ticks with fewer requests after which they may halt again.
const LINGER: u32 = 10;
/// The value that limits nothing (`PM_QOS_CPU_LATENCY_DEFAULT_VALUE`), in microseconds.
const ANY: i32 = 2_000_000_000;

/// The latency that is asked for while requests flow.
#[derive(Debug)]
pub struct IdleLatency {
    device: Result<Device, String>,
    held: AtomicBool,
    times: AtomicU64,
    microseconds: AtomicU64,
    /// Ticks in a row with few requests, and since when it is held.
    course: Mutex<(u32, Option<Instant>)>,
}

#[derive(Debug)]
struct Device {
    file: File,
    limit: i32,
}

/// What `status` says of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LatencyStatus {
    /// `on`, or why not.
    pub state: String,
    /// How many times it was asked for, and for how long in all.
    pub times: u64,
    pub held_ms: u64,
}

impl IdleLatency {
    /// For a limit in microseconds; `None` where it is not wanted.
    pub fn open(limit: Option<u32>) -> IdleLatency {
        let Some(limit) = limit else { return IdleLatency::off("off: switched off") };
        match File::options().write(true).open(DEVICE) {
            Ok(file) => {
                let limit = i32::try_from(limit).unwrap_or(ANY).min(ANY);
                IdleLatency::with(Ok(Device { file, limit }))
            }
            Err(error) => {
                tracing::info!(%error, device = DEVICE, "idle processors may halt between requests");
                IdleLatency::off(&format!("off: {DEVICE}: {error}"))
            }
        }
    }

    fn off(why: &str) -> IdleLatency {
        IdleLatency::with(Err(why.to_owned()))
    }

    fn with(device: Result<Device, String>) -> IdleLatency {
        IdleLatency {
            device,
            held: AtomicBool::new(false),
            times: AtomicU64::new(0),
            microseconds: AtomicU64::new(0),
            course: Mutex::default(),
        }
    }

    /// Whether processors are kept awake now.
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// Told after each tick how many requests came in it.
    pub fn tick(&self, requests: u64) {
        if self.device.is_err() {
            return;
        }
        let mut course = self.course.lock().expect("no panic while held");
        let (quiet, since) = &mut *course;
        if requests >= BURST {
            *quiet = 0;
            if since.is_none() && self.ask_for_limit() {
                *since = Some(Instant::now());
                self.held.store(true, Ordering::Relaxed);
                self.times.fetch_add(1, Ordering::Relaxed);
            }
        } else if since.is_some() {
            *quiet += 1;
            if *quiet >= LINGER {
                self.let_go(since);
            }
        }
    }

    /// No request came for a while: nobody looks any more until the next.
    pub fn rest(&self) {
        self.let_go(&mut self.course.lock().expect("no panic while held").1);
    }

    fn let_go(&self, since: &mut Option<Instant>) {
        if let Some(begin) = since.take() {
            self.ask(ANY);
            self.held.store(false, Ordering::Relaxed);
            self.microseconds.fetch_add(micros(begin.elapsed()), Ordering::Relaxed);
        }
    }

    fn ask_for_limit(&self) -> bool {
        self.device.as_ref().is_ok_and(|device| self.ask(device.limit))
    }

    fn ask(&self, limit: i32) -> bool {
        let Ok(device) = &self.device else { return false };
        let asked = (&device.file).write_all(&limit.to_ne_bytes());
        if let Err(error) = &asked {
            tracing::debug!(%error, limit, "the kernel does not take a limit of latency");
        }
        asked.is_ok()
    }

    pub fn status(&self) -> LatencyStatus {
        let current = self.course.lock().expect("no panic while held").1;
        let current = current.map_or(0, |begin| micros(begin.elapsed()));
        LatencyStatus {
            state: self.device.as_ref().map_or_else(String::clone, |_| "on".to_owned()),
            times: self.times.load(Ordering::Relaxed),
            held_ms: (self.microseconds.load(Ordering::Relaxed) + current) / 1000,
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// A pipe in the place of the device, and what was asked through it.
    fn piped() -> (IdleLatency, impl FnMut() -> i32) {
        let (mut asked, file) = std::io::pipe().expect("a pipe");
        let file = File::from(std::os::fd::OwnedFd::from(file));
        let next = move || {
            let mut value = [0; 4];
            asked.read_exact(&mut value).expect("something was asked for");
            i32::from_ne_bytes(value)
        };
        (IdleLatency::with(Ok(Device { file, limit: 3 })), next)
    }

    #[test]
    fn it_is_held_from_a_burst_until_a_while_after_the_last() {
        let (latency, mut asked) = piped();
        latency.tick(BURST - 1);
        assert!(!latency.is_held(), "single requests keep nobody awake");
        latency.tick(BURST);
        assert!(latency.is_held());
        for _ in 1..LINGER {
            latency.tick(0);
        }
        latency.tick(BURST);
        for _ in 1..LINGER {
            latency.tick(BURST - 1);
        }
        assert!(latency.is_held(), "the second burst counts from its own end");
        latency.tick(0);
        assert!(!latency.is_held());
        latency.tick(2 * BURST);
        latency.rest();
        assert!(!latency.is_held());
        latency.rest();
        assert_eq!([asked(), asked(), asked(), asked()], [3, ANY, 3, ANY]);
        assert_eq!((latency.status().state.as_str(), latency.status().times), ("on", 2));
    }

    #[test]
    fn where_it_is_off_nothing_is_held_and_the_status_says_why() {
        let latency = IdleLatency::open(None);
        latency.tick(1000);
        assert!(!latency.is_held());
        assert_eq!(latency.status().state, "off: switched off");
    }
}
