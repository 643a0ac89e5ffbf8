//! The record of a VA (`docs/formats.md`, "Machines").

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use strata_core::{CompositionName, MacAddr, RingName, VaName};

/// The version of the record's format.
pub const VERSION: u32 = 1;
/// No record is larger.
pub const RECORD_BYTES: usize = 64 << 10;

/// What a VA runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// Namespaces of the host; no hypervisor.
    Namespace,
    /// A virtual machine.
    Qemu,
}

impl Driver {
    /// Where the private layer of a VA is, below its directory: a directory, or the image
    /// of a disk that holds it.
    pub fn private(self) -> PathBuf {
        match self {
            Driver::Namespace => "private".into(),
            Driver::Qemu => "disk.img".into(),
        }
    }
}

/// What a VA is: set when it is provisioned, never what it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaRecord {
    pub version: u32,
    pub name: VaName,
    pub mac: MacAddr,
    /// What the VA was provisioned to follow. Where it points now, its link says.
    pub composition: CompositionName,
    pub ring: RingName,
    pub driver: Driver,
    /// The private layer; relative to the directory of the record.
    pub private: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("it is no valid JSON of version {VERSION}: {0}")]
    Syntax(#[from] serde_json::Error),
    #[error("it is of version {0}, this program reads version {VERSION}")]
    Version(u32),
    #[error("it is the record of {0}, in the place of another VA")]
    Misplaced(VaName),
    #[error("the private directory {0:?} is not UTF-8")]
    Private(PathBuf),
}

impl VaRecord {
    /// Parses the record that stands in the directory of `name`.
    ///
    /// # Errors
    /// Anything but a record of this version and VA.
    pub fn parse(text: &[u8], name: &VaName) -> Result<Self, RecordError> {
        let record = Self::parse_anywhere(text)?;
        if record.name != *name {
            return Err(RecordError::Misplaced(record.name));
        }
        Ok(record)
    }

    /// Parses a record that stands in no VA's place, as while it is renamed.
    ///
    /// # Errors
    /// Anything but a record of this version.
    pub fn parse_anywhere(text: &[u8]) -> Result<Self, RecordError> {
        let record: VaRecord = serde_json::from_slice(text)?;
        if record.version != VERSION {
            return Err(RecordError::Version(record.version));
        }
        Ok(record)
    }

    /// The JSON text, one line.
    ///
    /// # Errors
    /// The private directory's path is not UTF-8.
    pub fn print(&self) -> Result<String, RecordError> {
        if self.private.to_str().is_none() {
            return Err(RecordError::Private(self.private.clone()));
        }
        let mut text = serde_json::to_string(self)?;
        text.push('\n');
        Ok(text)
    }

    /// The private directory of a VA whose record stands in `directory`.
    pub fn private_in(&self, directory: &Path) -> PathBuf {
        directory.join(&self.private)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = include_str!("../golden/va.json");

    #[test]
    fn golden() {
        let name = VaName::new("web-0001").expect("valid");
        let record = VaRecord::parse(GOLDEN.as_bytes(), &name).expect("the golden record");
        assert_eq!(record.print().expect("UTF-8"), GOLDEN);
        assert_eq!(record.driver, Driver::Namespace);
        assert_eq!(record.private_in(Path::new("/m/web-0001")), Path::new("/m/web-0001/private"));
    }

    #[test]
    fn other_records_are_refused() {
        let name = VaName::new("web-0001").expect("valid");
        let other = VaName::new("web-0002").expect("valid");
        let misplaced = VaRecord::parse(GOLDEN.as_bytes(), &other);
        assert!(matches!(misplaced, Err(RecordError::Misplaced(_))));
        let newer = GOLDEN.replacen("\"version\":1", "\"version\":2", 1);
        let newer = VaRecord::parse(newer.as_bytes(), &name);
        assert!(matches!(newer, Err(RecordError::Version(2))));
        let unknown = GOLDEN.replacen("\"version\":1", "\"version\":1,\"cpus\":2", 1);
        let unknown = VaRecord::parse(unknown.as_bytes(), &name);
        assert!(matches!(unknown, Err(RecordError::Syntax(_))));
    }
}
