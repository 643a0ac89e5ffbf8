//! Asking a mounted VLFS over its control socket, never longer than a deadline:
//! a frozen daemon's socket takes connections and never answers.

use std::io;
use std::path::PathBuf;
use std::time::Instant;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::Deserialize;
use strata_core::scripts::outcome::ScriptsState;

use crate::wait;

/// No answer is longer, in bytes.
const ANSWER_BYTES: usize = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("the VLFS did not answer on {0} in time")]
    Deadline(PathBuf),
    #[error("cannot talk to the VLFS on {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("the VLFS on {path} says: {message}")]
    Refused { path: PathBuf, message: String },
    #[error("the answer of the VLFS on {path} makes no sense: {source}")]
    Answer { path: PathBuf, source: serde_json::Error },
}

/// What a mounted VLFS says it serves; of its answer, what machines need.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Served {
    pub generation: Option<String>,
    /// What its link named when it last looked.
    pub desired: Option<String>,
    /// Why the last swap was refused.
    pub error: Option<String>,
    /// What it does about the layers' scripts; `None` where it runs none.
    #[serde(default)]
    pub scripts: Option<ServedScripts>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ServedScripts {
    pub state: ScriptsState,
}

impl Served {
    /// Whether scripts run, or wait for the VA to run.
    pub fn has_scripts_to_run(&self) -> bool {
        self.scripts.as_ref().is_some_and(|scripts| match scripts.state {
            ScriptsState::Waiting | ScriptsState::Running => true,
            ScriptsState::Idle | ScriptsState::SwappedBack | ScriptsState::Damaged => false,
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Status(Served),
    Error { message: String },
}

/// Asks the VLFS whose mount has the device number `device` what it serves.
///
/// # Errors
/// There is no such VLFS, or no answer by the deadline.
pub fn served(device: (u32, u32), deadline: Instant) -> Result<Served, ControlError> {
    let path = PathBuf::from(format!("/run/strata/vlfs/{}-{}.sock", device.0, device.1));
    match converse(&path, "{\"command\":\"status\"}\n", deadline) {
        Ok(Some(answer)) => match serde_json::from_slice(&answer) {
            Ok(Answer::Status(served)) => Ok(served),
            Ok(Answer::Error { message }) => Err(ControlError::Refused { path, message }),
            Err(source) => Err(ControlError::Answer { path, source }),
        },
        Ok(None) => Err(ControlError::Deadline(path)),
        Err(source) => Err(ControlError::Io { path, source }),
    }
}

/// `None` when the deadline has passed.
fn converse(path: &PathBuf, request: &str, deadline: Instant) -> io::Result<Option<Vec<u8>>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        // The queue of a frozen daemon is full.
        Err(Errno::AGAIN) => return Ok(None),
        result => result?,
    }
    let mut rest = request.as_bytes();
    while !rest.is_empty() {
        if !wait::ready(&socket, PollFlags::OUT, deadline)? {
            return Ok(None);
        }
        match rustix::net::send(&socket, rest, rustix::net::SendFlags::NOSIGNAL) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            sent => rest = &rest[sent?..],
        }
    }
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !answer.contains(&b'\n') {
        if !wait::ready(&socket, PollFlags::IN, deadline)? {
            return Ok(None);
        }
        match rustix::io::read(&socket, &mut buffer) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&buffer[..length]),
            Err(error) => return Err(error.into()),
        }
        if answer.len() > ANSWER_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the answer is too long"));
        }
    }
    Ok(Some(answer))
}
