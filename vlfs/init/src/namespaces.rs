//! Making and entering the namespaces of a VA: mounts, process ids, host name
//! and IPC, and the network where it is to be private. Users are the host's.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal};
use rustix::thread::ThreadNameSpaceType;

use crate::error::{Context, InitError};
use crate::{capabilities, pid1, root, system};

/// The longest host name of Linux, in bytes.
const HOSTNAME_BYTES: usize = 64;
/// Files that a script may open unless it asks for more, as the kernel has it for others.
const OPEN_FILES: u64 = 1024;

/// Which network a VA has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// The host's.
    Host,
    /// A loopback interface of its own, and nothing else.
    Private,
}

/// Moves the caller into a cgroup (v2).
///
/// # Errors
/// The cgroup does not exist or does not take it.
pub fn join_cgroup(cgroup: &Path) -> Result<(), InitError> {
    let procs = cgroup.join("cgroup.procs");
    std::fs::write(&procs, "0").context("join the cgroup", &cgroup.to_string_lossy())
}

/// Makes the namespaces and starts `pid1` as their first process, which outlives
/// the caller and answers on the same standard output.
///
/// # Errors
/// The cgroup cannot be joined or the namespaces not made.
pub fn start(
    network: Network,
    cgroup: &Path,
    root: &Path,
    hostname: &str,
    command: &[OsString],
) -> Result<(), InitError> {
    join_cgroup(cgroup)?;
    system::unshare_namespaces().context("make", "the VA's namespaces")?;
    if network == Network::Private {
        system::unshare_network().context("make", "the VA's network")?;
        system::bring_up("lo").context("bring up", "the loopback interface")?;
    }
    root::keep_mounts_private()?;
    let mut first = Command::new("/proc/self/exe");
    first.arg("pid1").arg(root).arg(hostname).arg("--").args(command);
    // The caller's standard input ends when the appliance's command may begin.
    first.env_clear();
    first.spawn().context("start", "the VA's first process")?;
    Ok(())
}

/// Makes `root`, a mount point, the root of the caller's mount namespace, with
/// the kernel's file systems in it and nothing of the host's left.
///
/// # Errors
/// The root cannot be made one.
pub fn enter_root(root: &Path, hostname: &str) -> Result<(), InitError> {
    let subject = root.to_string_lossy();
    rustix::process::setsid().context("start", "a session")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let name = hostname.as_bytes();
    rustix::system::sethostname(&name[..name.len().min(HOSTNAME_BYTES)])
        .context("set", "the host name")?;
    rustix::process::chdir(root).context("enter", &subject)?;
    // Device nodes of layers, private files and data directories are shown, not opened.
    system::forbid_devices_here().context("forbid devices on", &subject)?;
    // The old root is stacked below the new one and then taken away: no
    // directory for it is needed in the VA's tree (pivot_root(2), Notes).
    rustix::process::pivot_root(".", ".").context("make a root of", &subject)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).context("leave", "the host's root")?;
    rustix::process::chdir("/").context("enter", "/")?;
    root::mount_kernel_file_systems(Path::new("/"))?;
    capabilities::limit()
}

/// Runs a command in the VA whose process `pid` is, with the caller's standard
/// input and output, and waits for it. Returns the code to exit with.
///
/// # Errors
/// [`InitError::Command`] where the command cannot be run; others where the VA
/// cannot be entered.
pub fn exec(cgroup: &Path, pid: &str, command: &[OsString]) -> Result<ExitCode, InitError> {
    let usage = || InitError::Usage("usage: strata-init exec CGROUP PID -- COMMAND".to_owned());
    let (program, arguments) = command.split_first().ok_or_else(usage)?;
    let process = process_of(cgroup, pid)?;
    join_cgroup(cgroup)?;
    enter(&process, pid)?;
    let mut child = Command::new(program);
    child.args(arguments);
    pid1::environment(&mut child);
    system::outlive_terminal_signals();
    let failed =
        |source| InitError::Command { program: program.to_string_lossy().into_owned(), source };
    let status = child.spawn().map_err(failed)?.wait().map_err(failed)?;
    Ok(pid1::exit_code(status))
}

/// Runs the script that is open as the standard input in the VA whose process `pid` is and
/// whose control group is `cgroup`, with the processes of it in `group`. It gets the
/// caller's `STRATA_…` variables and nothing else of the caller's. Ends as the script
/// ended, by the same signal where that was one.
///
/// # Errors
/// As [`exec`].
pub fn script(
    cgroup: &Path,
    group: &Path,
    pid: &str,
    arguments: &[OsString],
) -> Result<ExitCode, InitError> {
    let process = process_of(cgroup, pid)?;
    join_cgroup(group)?;
    be_ordinary()?;
    // Where the interpreter finds it: no file of the VA.
    let text = rustix::io::dup(rustix::stdio::stdin()).context("copy", "the script")?;
    let path = format!("/proc/self/fd/{}", text.as_raw_fd());
    enter(&process, pid)?;
    rustix::process::setsid().context("start", "a session")?;
    let mut child = Command::new(&path);
    child.args(arguments).stdin(Stdio::null());
    pid1::environment(&mut child);
    child.env_remove("TERM");
    let own = std::env::vars_os()
        .filter(|(name, _)| name.to_str().is_some_and(|name| name.starts_with("STRATA_")));
    child.envs(own);
    let failed = |source| InitError::Command { program: "the script".to_owned(), source };
    let status = child.spawn().map_err(failed)?.wait().map_err(failed)?;
    if let Some(signal) = status.signal().and_then(Signal::from_named_raw) {
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        rustix::process::setrlimit(Resource::Core, none).context("limit", "core files")?;
        rustix::process::kill_process(rustix::process::getpid(), signal)
            .context("end by", "the script's signal")?;
    }
    Ok(pid1::exit_code(status))
}

/// Undoes for the script what its caller, the file system's daemon, has for itself.
fn be_ordinary() -> Result<(), InitError> {
    let path = "/proc/self/oom_score_adj";
    std::fs::write(path, "0").context("write", path)?;
    // Where it was never set, it needs no privilege either.
    match rustix::process::configure_io_flusher_behavior(false) {
        Ok(()) | Err(Errno::PERM | Errno::INVAL) => {}
        other => other.context("be", "an ordinary process")?,
    }
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let usual = Some(limit.maximum.map_or(OPEN_FILES, |most| most.min(OPEN_FILES)));
    let limit = Rlimit { current: usual, maximum: limit.maximum };
    rustix::process::setrlimit(Resource::Nofile, limit).context("limit", "open files")
}

/// Holds the process `pid` of the VA whose control group is `cgroup`.
fn process_of(cgroup: &Path, pid: &str) -> Result<OwnedFd, InitError> {
    let usage = || InitError::Usage(format!("{pid:?} is no process"));
    let number: u32 = pid.parse().map_err(|_| usage())?;
    let raw = i32::try_from(number).ok().and_then(Pid::from_raw).ok_or_else(usage)?;
    let process = rustix::process::pidfd_open(raw, PidfdFlags::empty())
        .context("open the VA's process", pid)?;
    // The number could name another process by now: the descriptor holds one, and
    // what the cgroup lists after it was opened is still that one or is dead.
    let procs = cgroup.join("cgroup.procs");
    let members = std::fs::read_to_string(&procs).context("read", &procs.to_string_lossy())?;
    if !members.lines().any(|member| member == pid) {
        return Err(InitError::NotInVa { pid: number, cgroup: cgroup.display().to_string() });
    }
    Ok(process)
}

/// Enters the namespaces and the root of a process, with what a VA's root may do.
fn enter(process: &OwnedFd, pid: &str) -> Result<(), InitError> {
    let namespaces = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        // The host's own where the VA has no other.
        | ThreadNameSpaceType::NETWORK;
    rustix::thread::move_into_thread_name_spaces(process.as_fd(), namespaces)
        .context("enter the namespaces of", pid)?;
    rustix::process::chdir("/").context("enter", "/")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    capabilities::limit()
}
