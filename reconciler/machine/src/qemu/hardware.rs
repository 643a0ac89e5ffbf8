//! What a machine is switched on with. It stands beside the VA's record while the machine
//! is on, and with its saved state: that is resumed on the same hardware and no other.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use strata_store::Store;

use crate::error::MachineError;
use crate::machines::{Forward, Network};
use crate::qemu::accelerator::Accelerator;
use crate::qemu::shares::Transport;

/// The version of the format (`docs/formats.md`, "Machines").
const VERSION: u32 = 1;
/// No such file is larger.
const BYTES: usize = 64 << 10;
/// Where a store has what machines boot from, and which it is now.
const ENVIRONMENTS: &str = "boot";
const CURRENT: &str = "current";
/// Its name.
pub const FILE: &str = "hardware.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    pub version: u32,
    /// QEMU's name of the machine's type.
    pub machine: String,
    pub accelerator: Accelerator,
    pub transport: Transport,
    pub memory_mib: u64,
    pub network: Network,
    pub forwards: Vec<Forward>,
    /// Which boot environment of the store.
    pub environment: String,
    /// Of a saved state: its length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_bytes: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum HardwareError {
    #[error("it is no valid JSON of version {VERSION}: {0}")]
    Syntax(#[from] serde_json::Error),
    #[error("it is of version {0}, this program reads version {VERSION}")]
    Version(u32),
    #[error("{0:?} is no name of a boot environment")]
    Environment(String),
}

impl Hardware {
    pub fn new(accelerator: Accelerator, transport: Transport, environment: String) -> Self {
        Hardware {
            version: VERSION,
            machine: super::command::NEWEST.to_owned(),
            accelerator,
            transport,
            memory_mib: super::MEMORY_MIB,
            network: Network::Host,
            forwards: Vec::new(),
            environment,
            state_bytes: None,
        }
    }

    /// Reads the file in `directory`.
    ///
    /// # Errors
    /// There is none, or one that is damaged.
    pub fn read(directory: &Path) -> Result<Self, MachineError> {
        let path = directory.join(FILE);
        let text = strata_store::read_limited(&path, BYTES)?;
        Self::parse(&text).map_err(|source| MachineError::Hardware { path, source })
    }

    /// What the machine that has this directory was last switched on with; `None` where it never was.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn last(directory: &Path) -> Result<Option<Self>, MachineError> {
        if directory.join(FILE).exists() { Self::read(directory).map(Some) } else { Ok(None) }
    }

    /// What a machine is made of where nothing else is asked for.
    ///
    /// # Errors
    /// The store has no boot environment.
    pub fn usual(store: &Store) -> Result<Self, MachineError> {
        Ok(Self::new(Accelerator::Kvm, Transport::Virtiofs, current_environment(store)?))
    }

    /// The directory of the boot environment.
    pub fn environment_in(&self, store: &Store) -> PathBuf {
        store.root().join(ENVIRONMENTS).join(&self.environment)
    }

    pub fn has_kvm(&self) -> bool {
        self.accelerator == Accelerator::Kvm
    }

    fn parse(text: &[u8]) -> Result<Self, HardwareError> {
        let hardware: Hardware = serde_json::from_slice(text)?;
        if hardware.version != VERSION {
            return Err(HardwareError::Version(hardware.version));
        }
        let name = &hardware.environment;
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            return Err(HardwareError::Environment(name.clone()));
        }
        Ok(hardware)
    }

    fn print(&self) -> Result<String, HardwareError> {
        Ok(serde_json::to_string(self)? + "\n")
    }

    /// Writes the file in `directory`, whole or not at all.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, store: &Store, directory: &Path) -> Result<(), MachineError> {
        let path = directory.join(FILE);
        let text =
            self.print().map_err(|source| MachineError::Hardware { path: path.clone(), source })?;
        Ok(store.disk().write_file(&path, text.as_bytes(), 0o644)?)
    }
}

/// The name of the boot environment that machines are started from now. `current` may lead to
/// another one later.
///
/// # Errors
/// There is none.
pub fn current_environment(store: &Store) -> Result<String, MachineError> {
    let current = store.root().join(ENVIRONMENTS).join(CURRENT);
    std::fs::canonicalize(&current)
        .ok()
        .and_then(|path| path.file_name()?.to_str().map(str::to_owned))
        .ok_or_else(|| MachineError::NoBootEnvironment(current.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = include_str!("../../golden/hardware.json");

    #[test]
    fn golden() {
        let hardware = Hardware::parse(GOLDEN.as_bytes()).expect("the golden file");
        assert_eq!(hardware.print().expect("printed"), GOLDEN);
        assert_eq!(hardware.forwards, [Forward { host: 8080, machine: 80 }]);
    }

    #[test]
    fn others_are_refused() {
        let parse = |from: &str, to: &str| Hardware::parse(GOLDEN.replacen(from, to, 1).as_bytes());
        let newer = parse("\"version\":1", "\"version\":2");
        assert!(matches!(newer, Err(HardwareError::Version(2))));
        let unknown = parse("\"version\":1", "\"version\":1,\"cpus\":2");
        assert!(matches!(unknown, Err(HardwareError::Syntax(_))));
        let elsewhere = parse("\"environment\":\"", "\"environment\":\"../");
        assert!(matches!(elsewhere, Err(HardwareError::Environment(_))));
        let cut = Hardware::parse(&GOLDEN.as_bytes()[..GOLDEN.len() / 2]);
        assert!(matches!(cut, Err(HardwareError::Syntax(_))));
    }
}
