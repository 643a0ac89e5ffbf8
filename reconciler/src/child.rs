//! Runs a child process that may hang, flood or outlive its welcome.
//!
//! The child gets a process group and an environment of its own, a deadline, and
//! a limit on the size of every file it writes; what it says goes to an anonymous
//! memory file, so that no pipe can block either side. It is killed with its
//! group at the deadline, on cancellation, and when this process dies. A child that works
//! for the user, whatever it takes, is run by [`run_passing_on`].
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal};

/// How often a waiting parent looks whether it was cancelled.
const CANCEL_INTERVAL: Duration = Duration::from_millis(50);
/// What is cancelled has this time to clean up after itself, where it is asked to end.
const GRACE: Duration = Duration::from_secs(2);
/// Bytes of output that are read back; the rest is cut off.
const OUTPUT_BYTES: u64 = 64 << 10;

/// What a child may use.
#[derive(Debug, Clone, Copy)]
pub struct Bounds<'c> {
    pub deadline: Duration,
    /// Bytes of one file that the child writes.
    pub file_bytes: u64,
    /// Set by somebody else to end the child early.
    pub cancelled: &'c AtomicBool,
}

/// How a child ended, with the first 64 KiB of what it said.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stderr: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    #[error("cannot run {program}: {source}")]
    Start { program: String, source: io::Error },
    #[error("cannot watch {program}: {source}")]
    Watch { program: String, source: io::Error },
    #[error("{program} was killed: it had not ended after {} s", deadline.as_secs_f64())]
    Deadline { program: String, deadline: Duration },
    #[error("{program} was ended because this program ends")]
    Cancelled { program: String },
}

/// Runs the command to its end.
///
/// # Errors
/// It cannot be started, or did not end in time; then its whole group is gone.
pub fn run(command: &mut Command, bounds: Bounds<'_>) -> Result<Ended, ChildError> {
    run_with(command, Stdio::null(), Stdio::null(), bounds)
}

/// As [`run`], with all that the child printed.
///
/// # Errors
/// See [`run`]; a child that prints more than it may write is ended by that.
pub fn run_capturing(
    command: &mut Command,
    bounds: Bounds<'_>,
) -> Result<(Ended, Vec<u8>), ChildError> {
    capture(command, Stdio::null(), bounds)
}

/// As [`run_capturing`], with `input` as the child's standard input.
///
/// # Errors
/// See [`run_capturing`].
pub fn run_with_input(
    command: &mut Command,
    input: &[u8],
    bounds: Bounds<'_>,
) -> Result<(Ended, Vec<u8>), ChildError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let file = memory_file().and_then(|mut file| {
        file.write_all(input)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(file)
    });
    let file = file.map_err(|source| ChildError::Start { program, source })?;
    capture(command, file.into(), bounds)
}

fn capture(
    command: &mut Command,
    stdin: Stdio,
    bounds: Bounds<'_>,
) -> Result<(Ended, Vec<u8>), ChildError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let start = |source: io::Error| ChildError::Start { program: program.clone(), source };
    let stdout = memory_file().map_err(start)?;
    let ended = run_with(command, stdin, stdout.try_clone().map_err(start)?.into(), bounds)?;
    let text = read_back(stdout, bounds.file_bytes)
        .map_err(|source| ChildError::Watch { program: program.clone(), source })?;
    Ok((ended, text))
}

fn run_with(
    command: &mut Command,
    stdin: Stdio,
    stdout: Stdio,
    bounds: Bounds<'_>,
) -> Result<Ended, ChildError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let start = |source: io::Error| ChildError::Start { program: program.clone(), source };
    let stderr = memory_file().map_err(start)?;
    command.stdin(stdin).stdout(stdout).stderr(stderr.try_clone().map_err(start)?).process_group(0);
    die_with_parent(command, Some(bounds.file_bytes));
    let mut child = command.spawn().map_err(start)?;
    let waited = wait(&child, &program, Some(bounds.deadline), bounds.cancelled);
    if waited.is_err() {
        end_group(&child);
    }
    let watch = |source: io::Error| ChildError::Watch { program: program.clone(), source };
    let status = child.wait().map_err(watch)?;
    waited?;
    let stderr = read_back(stderr, OUTPUT_BYTES)
        .map_err(|source| ChildError::Watch { program: program.clone(), source })?;
    Ok(Ended { status, stderr })
}

/// Runs a command that works for the user to its end, however long that takes: what it
/// prints on either output goes to this program's stderr. It reads nothing. When it ended,
/// or was cancelled, what is left of its process group is ended, too.
///
/// # Errors
/// It cannot be started, or was cancelled.
pub fn run_passing_on(
    command: &mut Command,
    cancelled: &AtomicBool,
) -> Result<ExitStatus, ChildError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let start = |source: io::Error| ChildError::Start { program: program.clone(), source };
    let stderr = io::stderr().as_fd().try_clone_to_owned().map_err(start)?;
    command.stdin(Stdio::null()).stdout(stderr).process_group(0);
    die_with_parent(command, None);
    let mut child = command.spawn().map_err(start)?;
    let waited = wait(&child, &program, None, cancelled);
    if waited.is_err() {
        ask_to_end(&child);
    }
    end_group(&child);
    let watch = |source: io::Error| ChildError::Watch { program: program.clone(), source };
    let status = child.wait().map_err(watch)?;
    waited.map(|()| status)
}

/// Has the child killed when this process dies, and bounds the files that it writes.
fn die_with_parent(command: &mut Command, file_bytes: Option<u64>) {
    let limit = file_bytes.map(|bytes| Rlimit { current: Some(bytes), maximum: Some(bytes) });
    let parent = rustix::process::getpid();
    // SAFETY: between fork and exec only system calls without allocation or locks
    // are made; each is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            if let Some(limit) = limit {
                rustix::process::setrlimit(Resource::Fsize, limit)?;
            }
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the request above was made.
            if rustix::process::getppid() != Some(parent) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            Ok(())
        });
    }
}

fn memory_file() -> io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create("output", MemfdFlags::CLOEXEC)?))
}

fn read_back(mut file: File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Waits until the child has ended. It is not taken off the kernel's list yet: until then
/// its number, and that of its group, are nobody else's.
fn wait(
    child: &Child,
    program: &str,
    deadline: Option<Duration>,
    cancelled: &AtomicBool,
) -> Result<(), ChildError> {
    let watch = |source: io::Error| ChildError::Watch { program: program.to_owned(), source };
    let begun = Instant::now();
    let pid = Pid::from_child(child);
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .map_err(|error| watch(error.into()))?;
    loop {
        if cancelled.load(Ordering::Relaxed) {
            return Err(ChildError::Cancelled { program: program.to_owned() });
        }
        let mut slice = CANCEL_INTERVAL;
        if let Some(deadline) = deadline {
            let left = deadline.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(ChildError::Deadline { program: program.to_owned(), deadline });
            }
            slice = slice.min(left);
        }
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(slice.subsec_nanos()) };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(watch(error.into())),
        }
    }
}

/// Asks the child and its group to end, and waits a little for the child.
fn ask_to_end(child: &Child) {
    let asked = rustix::process::kill_process_group(Pid::from_child(child), Signal::TERM);
    if let Err(error) = asked {
        tracing::warn!(%error, "a process group could not be asked to end");
        return;
    }
    let patient = AtomicBool::new(false);
    if let Err(error) = wait(child, "the command", Some(GRACE), &patient) {
        tracing::debug!(%error, "it is killed");
    }
}

/// Kills the child, which was not waited for, and all its descendants that stayed in its
/// group.
fn end_group(child: &Child) {
    let pid = Pid::from_child(child);
    match rustix::process::kill_process_group(pid, Signal::KILL) {
        // Nobody is left in it.
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => tracing::warn!(%error, "a process group could not be killed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, deadline: Duration, file_bytes: u64) -> Result<Ended, ChildError> {
        let cancelled = AtomicBool::new(false);
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        run(&mut command, Bounds { deadline, file_bytes, cancelled: &cancelled })
    }

    #[test]
    fn output_and_status_come_back() {
        let ended = shell("echo out; echo err >&2; exit 3", Duration::from_secs(10), 1 << 20)
            .expect("runs");
        assert_eq!(ended.status.code(), Some(3));
        assert_eq!(ended.stderr, b"err\n");
    }

    #[test]
    fn a_hanging_group_is_killed_at_the_deadline() {
        let begun = Instant::now();
        let script = "sleep 600 & sleep 600";
        let ended = shell(script, Duration::from_millis(200), 1 << 20);
        assert!(matches!(ended, Err(ChildError::Deadline { .. })), "{ended:?}");
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_file_beyond_the_limit_ends_the_child() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("big");
        let script = format!("exec head -c 1000000 /dev/zero > {}", file.display());
        let ended = shell(&script, Duration::from_secs(10), 65_536).expect("runs");
        assert!(!ended.status.success());
        assert!(file.metadata().expect("there").len() <= 65_536);
    }

    #[test]
    fn what_works_for_the_user_is_asked_to_end_and_leaves_nobody() {
        let directory = tempfile::tempdir().expect("a directory");
        let begun = directory.path().join("begun");
        let ended = directory.path().join("ended");
        let script = format!(
            "trap 'touch {}; exit 0' TERM; sleep 600 & touch {}; wait",
            ended.display(),
            begun.display()
        );
        let cancelled = AtomicBool::new(false);
        let result = std::thread::scope(|scope| {
            let (script, cancelled) = (&script, &cancelled);
            let run = scope.spawn(move || {
                run_passing_on(Command::new("/bin/sh").args(["-c", script]), cancelled)
            });
            let deadline = Instant::now() + Duration::from_secs(10);
            while !begun.exists() && Instant::now() < deadline {
                std::thread::yield_now();
            }
            cancelled.store(true, Ordering::Relaxed);
            run.join().expect("no panic")
        });
        assert!(matches!(result, Err(ChildError::Cancelled { .. })), "{result:?}");
        assert!(ended.exists(), "it was asked to end");
    }

    #[test]
    fn cancelling_ends_it_early() {
        let cancelled = AtomicBool::new(true);
        let bounds = Bounds {
            deadline: Duration::from_secs(60),
            file_bytes: 1 << 20,
            cancelled: &cancelled,
        };
        let ended = run(Command::new("/bin/sleep").arg("60"), bounds);
        assert!(matches!(ended, Err(ChildError::Cancelled { .. })), "{ended:?}");
    }
}
