//! The time that passes while a machine is suspended.
//!
//! A machine that stands still sees no time pass, so its clock is behind when it goes on. That
//! of its hardware is its host's: by what it has gained meanwhile the system's is moved, and not
//! past it. How else an appliance keeps its time is its own business.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::time::{ClockId, Timespec};

use crate::boot::{console, places};

/// The form of this program that does it.
pub const FORM: &str = "keep-clock";
/// Service managers leave alone what has such a name; it ends with the machine.
const NAME: &str = "@strata-clock";
/// Seconds since 1970. A machine has one such clock.
const HARDWARE: &str = "/sys/class/rtc/rtc0/since_epoch";
const LOOK: Duration = Duration::from_secs(1);
/// The hardware's clock has whole seconds.
const NOISE: i64 = 2;

/// Clocks at one moment, in seconds.
#[derive(Debug, Clone, Copy)]
struct Clocks {
    /// The host's time.
    hardware: i64,
    /// What the machine has run.
    run: i64,
    /// The machine's time.
    system: i64,
}

impl Clocks {
    fn read() -> Option<Self> {
        let hardware = std::fs::read_to_string(HARDWARE).ok()?.trim().parse().ok()?;
        let seconds = |clock| rustix::time::clock_gettime(clock).tv_sec;
        Some(Clocks {
            hardware,
            run: seconds(ClockId::Monotonic),
            system: seconds(ClockId::Realtime),
        })
    }

    /// The seconds by which the system's clock is behind because the machine stood still.
    fn missed_since(self, before: Clocks) -> Option<i64> {
        let stood = (self.hardware - before.hardware) - (self.run - before.run);
        let missed = stood.min(self.hardware - self.system);
        (missed > NOISE).then_some(missed)
    }
}

/// Starts it, outside of what the appliance sees.
pub fn start() {
    let mut command = Command::new(places::INIT);
    command.arg0(NAME).arg(FORM).env_clear().stdin(Stdio::null());
    if let Err(error) = command.spawn() {
        console(&format!("the clock is not kept when the machine is suspended: {error}"));
    }
}

/// Looks after the clock as long as the machine runs. One without a clock in its hardware has none
/// to go by.
pub fn keep() -> ExitCode {
    let Some(mut before) = Clocks::read() else {
        return ExitCode::SUCCESS;
    };
    loop {
        std::thread::sleep(LOOK);
        let Some(now) = Clocks::read() else { continue };
        if let Some(missed) = now.missed_since(before) {
            let mut time = rustix::time::clock_gettime(ClockId::Realtime);
            time = Timespec { tv_sec: time.tv_sec + missed, ..time };
            match rustix::time::clock_settime(ClockId::Realtime, time) {
                Ok(()) => console(&format!("the machine stood still for {missed} s")),
                Err(error) => console(&format!("the clock is {missed} s behind: {error}")),
            }
        }
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_missed_is_made_up() {
        let clocks = |hardware, run, system| Clocks { hardware, run, system };
        let before = clocks(1000, 50, 1000);
        assert_eq!(clocks(1001, 51, 1001).missed_since(before), None);
        // Whole seconds, read one after another.
        assert_eq!(clocks(1003, 51, 1001).missed_since(before), None);
        assert_eq!(clocks(4601, 51, 1001).missed_since(before), Some(3600));
        // The appliance has been put right by another clock already.
        assert_eq!(clocks(4601, 51, 4601).missed_since(before), None);
        assert_eq!(clocks(4601, 51, 5000).missed_since(before), None);
        // It moved a clock itself.
        assert_eq!(clocks(4601, 51, 4600).missed_since(before), None);
        assert_eq!(clocks(1001, 51, 900).missed_since(before), None);
        assert_eq!(clocks(900, 51, 1001).missed_since(before), None);
    }
}
