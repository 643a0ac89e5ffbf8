//! Where scripts run: the control group of a VA, whose first process gives the
//! namespaces and the root.
//!
//! A script gets a group of its own below the VA's, so that suspending and ending the
//! VA reaches it, and its time limit reaches all that it started. What it leaves
//! running when it ends, a service, belongs to the VA from then on.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use crate::proc;

/// The group of the script that runs, below the VA's.
const GROUP: &str = "script";
/// What the VA's first process calls itself once the VA can be entered (`strata-init`).
const READY_NAME: &str = "va-ready";
/// How often processes that a script left are looked for, as they may multiply.
const ROUNDS: usize = 64;
/// What killing may take.
const KILL_DEADLINE: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(5);

/// A running VA of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The control group (v2) of the VA's processes.
    pub cgroup: PathBuf,
    /// `strata-init`, which enters it.
    pub program: PathBuf,
}

impl Place {
    /// The VA's first process, as this process numbers it; `None` while the VA does not
    /// run or cannot be entered yet.
    pub fn first_process(&self) -> Option<u32> {
        let pids = processes(&self.cgroup).unwrap_or_default();
        pids.into_iter().find(|pid| is_first_process(*pid) && is_ready(*pid))
    }

    /// Whether the VA is suspended.
    pub fn is_frozen(&self) -> bool {
        let events = std::fs::read_to_string(self.cgroup.join("cgroup.events"));
        events.is_ok_and(|text| text.lines().any(|line| line == "frozen 1"))
    }

    /// The group of the script.
    pub fn group(&self) -> PathBuf {
        self.cgroup.join(GROUP)
    }

    /// Makes the script's group. What a script of before left in it becomes the VA's.
    ///
    /// # Errors
    /// The VA is gone, or its group cannot be changed.
    pub fn make_group(&self) -> io::Result<()> {
        match std::fs::create_dir(self.group()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.give_rest(),
            other => other,
        }
    }

    /// Gives what the script left running to the VA.
    ///
    /// # Errors
    /// The groups cannot be read or written.
    pub fn give_rest(&self) -> io::Result<()> {
        for _ in 0..ROUNDS {
            let pids = processes(&self.group())?;
            if pids.is_empty() {
                return Ok(());
            }
            for pid in pids {
                match std::fs::write(self.cgroup.join("cgroup.procs"), pid.to_string()) {
                    Err(error) if error.raw_os_error() != Some(NO_PROCESS) => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "what it left does not stand still"))
    }

    /// Asks all processes of the script to end.
    pub fn ask_to_end(&self) {
        for pid in processes(&self.group()).unwrap_or_default() {
            signal(pid, Signal::TERM);
        }
    }

    /// Ends all processes of the script.
    ///
    /// # Errors
    /// Some are left after a while.
    pub fn kill(&self) -> io::Result<()> {
        let deadline = Instant::now() + KILL_DEADLINE;
        loop {
            match std::fs::write(self.group().join("cgroup.kill"), "1") {
                // Before Linux 5.14; or the group is gone with the VA.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    for pid in processes(&self.group()).unwrap_or_default() {
                        signal(pid, Signal::KILL);
                    }
                }
                other => other?,
            }
            if processes(&self.group()).unwrap_or_default().is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "processes are left"));
            }
            std::thread::sleep(STEP);
        }
    }

    /// Removes the script's group, once nothing is in it.
    pub fn remove_group(&self) {
        let deadline = Instant::now() + KILL_DEADLINE;
        loop {
            match std::fs::remove_dir(self.group()) {
                // A process that has ended leaves when it is reaped.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    if Instant::now() >= deadline {
                        tracing::warn!(%error, "the control group of a script stays");
                        return;
                    }
                    std::thread::sleep(STEP);
                }
                Ok(()) | Err(_) => return,
            }
        }
    }
}

const NO_PROCESS: i32 = rustix::io::Errno::SRCH.raw_os_error();

fn processes(group: &Path) -> io::Result<Vec<u32>> {
    let text = std::fs::read_to_string(group.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

fn signal(pid: u32, signal: Signal) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    if let Err(error) = rustix::process::kill_process(pid, signal) {
        tracing::debug!(%error, "a process of a script was gone already");
    }
}

fn of_process(pid: u32, file: &str) -> Option<String> {
    let directory = proc::process(i32::try_from(pid).ok()?);
    std::fs::read_to_string(directory.join(file)).ok()
}

/// Whether it is PID 1 of a PID namespace below this one (`NSpid`, proc_pid_status(5)).
fn is_first_process(pid: u32) -> bool {
    let status = of_process(pid, "status").unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    let numbers: Vec<&str> = numbers.split_whitespace().collect();
    numbers.len() > 1 && numbers.last() == Some(&"1")
}

fn is_ready(pid: u32) -> bool {
    of_process(pid, "comm").is_some_and(|name| name.trim_end() == READY_NAME)
}
