//! The VLFS daemon of a machine: started here, outlives the boot environment.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use strata_core::MacAddr;

use crate::boot::error::BootError;
use crate::boot::places;

/// Service managers leave alone, when the machine goes down, what has such a name: the
/// root file system must answer until the end.
const NAME: &str = "@strata-vlfs";
/// What the daemon says once the file system answers.
const READY: &str = "ready";
/// What merging the layers of a generation for the first time may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// No answer of the daemon is longer, in bytes.
const ANSWER_BYTES: usize = 64 << 10;

/// Starts the daemon and waits until the VLFS is mounted.
///
/// # Errors
/// It is not mounted; no daemon is left then.
pub fn mount(mac: MacAddr, reports: &Path) -> Result<Child, BootError> {
    let mut child = start(mac, reports)?;
    let answer = match child.stdout.take() {
        Some(pipe) => answer(pipe, Instant::now() + PATIENCE),
        None => Err("it has no output".to_owned()),
    };
    match answer {
        Ok(()) => Ok(child),
        Err(reason) => {
            // Ended already, where it told the reason itself.
            let ended = child.kill().and_then(|()| child.wait());
            Err(BootError::Vlfs(match ended {
                Ok(_) => reason,
                Err(error) => format!("{reason}; and its daemon stays: {error}"),
            }))
        }
    }
}

fn start(mac: MacAddr, reports: &Path) -> Result<Child, BootError> {
    for directory in [places::PRIVATE, places::ROOT] {
        std::fs::create_dir_all(directory)
            .map_err(|error| BootError::Vlfs(format!("{directory}: {error}")))?;
    }
    let log = log().map_err(|error| BootError::Vlfs(format!("its log: {error}")))?;
    let mut command = Command::new(places::VLFS);
    command.arg0(NAME).args(["mount", "--foreground", "--daemon"]);
    command.args(["--store", places::STORE, "--va", &mac.to_string()]);
    command.args(["--private", places::PRIVATE, "--reports"]).arg(reports);
    // A machine's idle processor is its host's business.
    command.args(["--index-cache", places::INDEX, "--idle-latency", "off", places::ROOT]);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    command.spawn().map_err(|error| BootError::Vlfs(format!("{}: {error}", places::VLFS)))
}

/// Where the daemon of a host has its log, too. The disk is the appliance's, so no link
/// of its making is followed.
fn log() -> std::io::Result<File> {
    let path = Path::new(places::PRIVATE).join("vlfs.log");
    OpenOptions::new().create(true).append(true).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// Waits for the daemon's one line.
fn answer(mut pipe: ChildStdout, deadline: Instant) -> Result<(), String> {
    let mut text = Vec::new();
    while !text.contains(&b'\n') && text.len() < ANSWER_BYTES {
        let rest = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: rest.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: rest.subsec_nanos().into(),
        };
        match rustix::event::poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Err(format!("its daemon did not answer within {PATIENCE:?}")),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(format!("its daemon's answer: {error}")),
        }
        let mut buffer = [0; 4096];
        match pipe.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => text.extend_from_slice(&buffer[..length]),
            Err(error) => return Err(format!("its daemon's answer: {error}")),
        }
    }
    match String::from_utf8_lossy(&text).trim_end() {
        READY => Ok(()),
        "" => Err(format!("its daemon ended; see {}/vlfs.log", places::PRIVATE)),
        reason => Err(reason.to_owned()),
    }
}
