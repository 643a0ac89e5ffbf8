//! Waiting for the kernel, never longer than a deadline.

use std::io;
use std::os::fd::AsFd;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags};

/// Waits until the descriptor has one of `events` or the deadline has passed.
/// Returns whether it has.
pub fn ready(descriptor: impl AsFd, events: PollFlags, deadline: Instant) -> io::Result<bool> {
    loop {
        let rest = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: rest.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: rest.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&descriptor, events)], Some(&timeout)) {
            Ok(0) if rest.is_zero() => return Ok(false),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits for a child; one that is not done by the deadline is killed, and
/// `None` returned.
pub fn child(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    let pidfd = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    if ready(&pidfd, PollFlags::IN, deadline)? {
        return child.wait().map(Some);
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

/// Asks `done` every few milliseconds, for what the kernel does not announce.
/// Returns whether it was done before the deadline.
pub fn until<E>(deadline: Instant, mut done: impl FnMut() -> Result<bool, E>) -> Result<bool, E> {
    const STEP: Duration = Duration::from_millis(2);
    loop {
        if done()? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(STEP);
    }
}
