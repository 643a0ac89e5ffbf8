//! Why a VA could not be entered or started.

use std::io;

#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("{0}")]
    Usage(String),
    #[error("{action} {subject}: {source}")]
    System { action: &'static str, subject: String, source: io::Error },
    #[error("the VA's root has no directory {path}, and none can be made: {source}")]
    MountPoint { path: String, source: io::Error },
    #[error("process {pid} is no process of the VA in {cgroup}")]
    NotInVa { pid: u32, cgroup: String },
    #[error("cannot run {program:?} in the VA: {source}")]
    Command { program: String, source: io::Error },
    #[error("{program}, which runs before the services, ended with {status}")]
    Start { program: String, status: String },
}

/// Names the action and what it was done to.
pub trait Context<T> {
    fn context(self, action: &'static str, subject: &str) -> Result<T, InitError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, action: &'static str, subject: &str) -> Result<T, InitError> {
        self.map_err(|error| InitError::System {
            action,
            subject: subject.to_owned(),
            source: error.into(),
        })
    }
}
