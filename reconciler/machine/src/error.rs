//! What can go wrong with a VA's life.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use strata_core::VaName;
use strata_store::StoreError;

use crate::qemu::{HardwareError, QmpError};
use crate::record::RecordError;

#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("there is no VA {0}")]
    NoVa(VaName),
    #[error("the VA {0} was provisioned by halves: it has no link in the store")]
    Incomplete(VaName),
    #[error("{path}: {source}")]
    Record { path: PathBuf, source: RecordError },
    #[error("another command is working on the VA {name}: its lock was not free in {waited:?}")]
    Busy { name: VaName, waited: Duration },
    #[error("the VA {0} is running")]
    Running(VaName),
    #[error("the VA {0} is suspended")]
    Suspended(VaName),
    #[error("the VA {0} is stopped")]
    Stopped(VaName),
    #[error("this host has no cgroup v2 hierarchy, which suspending and stopping VAs needs")]
    NoCgroups,
    #[error("this host has no cgroup controller for memory, so that of a VA cannot be limited")]
    NoMemoryLimits,
    #[error("the VLFS of the VA {name} cannot be mounted: {reason}")]
    NotMounted { name: VaName, reason: String },
    #[error("the VA {name} cannot be started: {reason}")]
    NotStarted { name: VaName, reason: String },
    #[error("the VA {name} was not {wanted} within {deadline:?}; it goes on as before")]
    Deadline { name: VaName, wanted: &'static str, deadline: Duration },
    #[error("the VA {0} is a machine, which starts with a program of its own and takes no command")]
    NoCommand(VaName),
    #[error("the VA {0} is no machine and has no ports of its own")]
    NoForwards(VaName),
    #[error("the VA {0} is a machine, whose inside no command of its host reaches")]
    NoExec(VaName),
    #[error("there is no boot environment {0}")]
    NoBootEnvironment(PathBuf),
    #[error("the disk {path} cannot be made: {reason}")]
    NoDisk { path: PathBuf, reason: String },
    #[error("the VA {0} is no machine and has no console")]
    NoConsole(VaName),
    #[error("somebody is at the console of the VA {0}")]
    ConsoleTaken(VaName),
    #[error("the VA {0} is no machine, which a domain of libvirt is")]
    NoDomain(VaName),
    #[error("there is no virtiofsd that does what a machine needs: {0}")]
    NoVirtiofs(String),
    #[error("the VA {0} sees its store over 9p, which keeps what is open in QEMU")]
    NotToDisk(VaName),
    #[error("the VA {0} is no machine, so what runs in it cannot be saved")]
    NoState(VaName),
    #[error("the VA {0} is suspended to disk, with what it had in memory")]
    SuspendedToDisk(VaName),
    #[error("{path}: {source}")]
    Hardware { path: PathBuf, source: HardwareError },
    #[error("the saved state {path} has {found} bytes and not {}", wanted.map_or("a length".to_owned(), |bytes| bytes.to_string()))]
    CutState { path: PathBuf, wanted: Option<u64>, found: u64 },
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error("processes of the VA {name} survive SIGKILL: {pids:?}")]
    Unkillable { name: VaName, pids: Vec<u32> },
    #[error("{action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Names the action and the path that an I/O error belongs to.
pub(crate) trait Context<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, MachineError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, MachineError> {
        self.map_err(|error| MachineError::Io {
            action,
            path: path.to_owned(),
            source: error.into(),
        })
    }
}
