//! Cloning a VA: another one of its template and ring, with a copy of its private
//! layer where that is wanted.
//!
//! The copy is made aside, without a lock that others wait for; the source is held
//! so that nobody starts it meanwhile. Then the link claims the address and one
//! rename the name.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use strata_core::{CompositionName, MacAddr, RingName, VaName};
use strata_store::VaTarget;

use crate::error::{Context, MachineError};
use crate::machines::Machines;
use crate::provision::{Entropy, ProvisionError, ProvisionRequest, Provisioned, without_batch};
use crate::record::{self, Driver, VaRecord};
use crate::registry::{hold_private, is_private_layer};

/// What of a private directory is that VA's own life and not its state.
const NOT_COPIED: [&str; 4] = ["lock", "owner", "vlfs.log", "lost+found"];
/// What resets put aside; part of the state only while one is under way.
const FORMER: &str = "former";
const RESETTING: &str = "resetting";

/// What to clone.
#[derive(Debug, Clone)]
pub struct CloneRequest {
    pub source: VaName,
    pub name: VaName,
    /// The source's where none is given.
    pub ring: Option<RingName>,
    /// Random where none is given.
    pub mac: Option<MacAddr>,
    /// With a copy of the private layer.
    pub private: bool,
}

impl Machines<'_> {
    /// Makes another VA of the template that the source follows now, even if the
    /// source is pinned. With its private layer the source must be stopped.
    ///
    /// # Errors
    /// The source does not exist or is not stopped, the name or address is taken, or
    /// the copy cannot be made; nothing is left of it then.
    pub fn clone_va(&self, request: &CloneRequest) -> Result<Provisioned, ProvisionError> {
        let source = self.record(&request.source)?;
        let (composition, ring) = self.follows(&source)?;
        let ring = self.choose_ring(&composition, request.ring.as_ref().or(Some(&ring)))?;
        if request.private {
            let record = self.clone_with_private(request, composition, ring)?;
            return Ok(Provisioned { record, completed: false });
        }
        let request = ProvisionRequest {
            composition,
            ring: Some(ring),
            mac: request.mac,
            name: Some(request.name.clone()),
            count: None,
            driver: source.driver,
            private: None,
        };
        let mut made = self.provision(&request, &mut |_, _| ())?;
        Ok(made.pop().expect("one VA was asked for"))
    }

    /// The template and ring of a VA, by its link; of a pinned one, by its record.
    fn follows(&self, record: &VaRecord) -> Result<(CompositionName, RingName), MachineError> {
        match self.store().va_target(record.mac)?.map(without_batch) {
            None => Err(MachineError::Incomplete(record.name.clone())),
            Some(VaTarget::Ring { composition, ring }) => Ok((composition, ring)),
            Some(VaTarget::Pinned { composition, .. }) => Ok((composition, record.ring.clone())),
        }
    }

    fn clone_with_private(
        &self,
        request: &CloneRequest,
        composition: CompositionName,
        ring: RingName,
    ) -> Result<VaRecord, ProvisionError> {
        self.refuse_declared(&request.name, request.mac)?;
        let (source, _source_lock) = self.locked(&request.source)?;
        self.require_stopped(&source)?;
        let private = source.private_in(&self.directory(&source.name));
        match source.driver {
            Driver::Namespace => {}
            // Its disk has its address in two places, one of them within its file system.
            Driver::Qemu => {
                let reason = "it is a machine's disk; clone the VA without it".to_owned();
                return Err(ProvisionError::Copy { path: private, reason });
            }
        }
        let _private = hold_private(&private)?;

        let registry = self.registry_lock()?;
        self.sweep()?;
        if self.directory(&request.name).exists() {
            return Err(ProvisionError::Exists(request.name.clone()));
        }
        let (staging, lock) = self.begin_clone(&request.name)?;
        drop(registry);

        let mut entropy = Entropy::open()?;
        let record = VaRecord {
            version: record::VERSION,
            name: request.name.clone(),
            mac: match request.mac {
                Some(mac) => mac,
                None => entropy.mac()?,
            },
            composition,
            ring,
            driver: source.driver,
            private: "private".into(),
        };
        let made = self.fill(&staging, &record, &private).and_then(|()| {
            let _registry = self.registry_lock()?;
            self.settle_clone(&staging, &record)
        });
        drop(lock);
        if let Err(error) = made {
            let _registry = self.registry_lock()?;
            self.discard_clone(&staging)?;
            return Err(error);
        }
        Ok(record)
    }

    /// Writes the record and the private layer of a clone; durable when it returns.
    fn fill(
        &self,
        staging: &Path,
        record: &VaRecord,
        private: &Path,
    ) -> Result<(), ProvisionError> {
        let disk = self.store().disk();
        disk.create_file(&staging.join("va.json"), record.print()?.as_bytes(), 0o644)?;
        if is_private_layer(private)? {
            let copy = staging.join("private");
            fs::create_dir(&copy).at("create", &copy)?;
            let permissions = fs::metadata(private).at("stat", private)?.permissions();
            fs::set_permissions(&copy, permissions).at("chmod", &copy)?;
            copy_private(private, &copy)?;
            let owner = format!("{}\n", record.mac);
            disk.create_file(&copy.join("owner"), owner.as_bytes(), 0o644)?;
        }
        Ok(self.store().sync()?)
    }

    /// Makes the clone a VA. Under the registry's lock.
    fn settle_clone(&self, staging: &Path, record: &VaRecord) -> Result<(), ProvisionError> {
        let target =
            VaTarget::Ring { composition: record.composition.clone(), ring: record.ring.clone() };
        self.refuse_taken(record.mac, None, &target)?;
        if self.directory(&record.name).exists() {
            return Err(ProvisionError::Exists(record.name.clone()));
        }
        // An address that a commit declares has its link already.
        let claimed = self.store().va_target(record.mac)?.is_none();
        if claimed {
            self.note_claim(staging)?;
            self.store().claim_va(record.mac, &target)?;
            self.settle(false, &self.store().root().join("va"))?;
        }
        self.publish(staging, &record.name)?;
        if claimed {
            self.forget_claim(&record.name)?;
        }
        Ok(())
    }
}

/// Copies a private layer with all that belongs to its state, by `cp` of the host:
/// owners, modes, times, links, attributes and holes are kept, data is shared where
/// the disk can. One that cannot be kept is an error.
fn copy_private(from: &Path, to: &Path) -> Result<(), ProvisionError> {
    let failed = |reason: String| ProvisionError::Copy { path: from.to_owned(), reason };
    let mut names: Vec<OsString> = Vec::new();
    for entry in fs::read_dir(from).at("list", from)? {
        names.push(entry.at("list", from)?.file_name());
    }
    let resetting = names.iter().any(|name| name == RESETTING);
    let sources: Vec<PathBuf> = names
        .iter()
        .filter(|name| !NOT_COPIED.iter().any(|other| *name == other))
        .filter(|name| resetting || *name != FORMER)
        .map(|name| from.join(name))
        .collect();
    // Names in the one call may be links to each other.
    let output = Command::new("cp")
        .args(["--recursive", "--no-dereference", "--reflink=auto", "--one-file-system"])
        .arg("--preserve=mode,ownership,timestamps,links,xattr")
        .arg("--target-directory")
        .arg(to)
        .arg("--")
        .args(sources)
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| failed(format!("cp: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let first = text.lines().next().unwrap_or("cp failed without a word");
    Err(failed(first.strip_prefix("cp: ").unwrap_or(first).to_owned()))
}
