//! Which VAs there are: one command at a time changes it.
//!
//! A name that starts with a dot is no VA's. What a command makes or removes stands
//! under such a name until one rename(2) decides; what it leaves when it dies, the
//! next command under the lock finishes or throws away ([`Machines::sweep`]).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags};
use strata_core::VaName;
use strata_store::{StoreError, StoreLock, read_limited};

use crate::error::{Context, MachineError};
use crate::machines::Machines;
use crate::provision::ProvisionError;
use crate::record::{RECORD_BYTES, VaRecord};
use crate::wait;

/// How long to wait for another command that changes which VAs there are.
const LOCK_DEADLINE: Duration = Duration::from_secs(60);

/// Being removed: what is left goes.
const DESTROYED: &str = ".destroyed-";
/// Being renamed: it gets the name that follows.
const RENAMED: &str = ".renamed-";
/// Being made as a copy, by whoever holds its lock; else it goes.
const CLONED: &str = ".cloned-";
/// In such a copy: its address was, or was about to be, claimed for it.
const CLAIM: &str = "claim";

/// What an earlier command had left and this one finished.
#[derive(Debug, Default)]
pub(crate) struct Swept {
    /// VAs that have their new names now.
    pub renamed: Vec<VaName>,
}

impl Machines<'_> {
    /// Waits for the hold on which VAs there are.
    pub(crate) fn registry_lock(&self) -> Result<StoreLock, ProvisionError> {
        let mut lock = None;
        wait::until(Instant::now() + LOCK_DEADLINE, || match self.store().try_lock("machines") {
            Ok(taken) => {
                lock = Some(taken);
                Ok(true)
            }
            Err(StoreError::Locked(_)) => Ok(false),
            Err(error) => Err(error),
        })?;
        lock.ok_or(ProvisionError::Busy(LOCK_DEADLINE))
    }

    /// Finishes what commands left that died. Under the registry's lock.
    pub(crate) fn sweep(&self) -> Result<Swept, ProvisionError> {
        let machines = self.store().machines();
        let mut swept = Swept::default();
        for entry in fs::read_dir(&machines).at("list", &machines)? {
            let entry = entry.at("list", &machines)?;
            let (name, path) = (entry.file_name(), entry.path());
            let name = name.to_string_lossy();
            if name.starts_with(DESTROYED) {
                remove_tree(&path)?;
            } else if let Some(name) = after(&name, RENAMED) {
                self.finish_rename(&path, &name)?;
                swept.renamed.push(name);
            } else if after(&name, CLONED).is_some() {
                self.discard_clone(&path)?;
            }
        }
        Ok(swept)
    }

    /// The place of a VA that is being removed.
    pub(crate) fn destroyed(&self, name: &VaName) -> PathBuf {
        self.store().machines().join(format!("{DESTROYED}{name}"))
    }

    /// The place of a VA that is being renamed to `name`.
    pub(crate) fn renamed(&self, name: &VaName) -> PathBuf {
        self.store().machines().join(format!("{RENAMED}{name}"))
    }

    /// Gives the VA in the place [`Machines::renamed`] its new name.
    pub(crate) fn finish_rename(&self, from: &Path, name: &VaName) -> Result<(), ProvisionError> {
        let path = from.join("va.json");
        let mut record = VaRecord::parse_anywhere(&read_limited(&path, RECORD_BYTES)?)
            .map_err(|source| MachineError::Record { path: path.clone(), source })?;
        record.name = name.clone();
        self.store().disk().write_file(&path, record.print()?.as_bytes(), 0o644)?;
        self.publish(from, name)
    }

    /// Moves a whole directory into the place of a VA, which must be free.
    pub(crate) fn publish(&self, from: &Path, name: &VaName) -> Result<(), ProvisionError> {
        let to = self.directory(name);
        match rustix::fs::renameat_with(CWD, from, CWD, &to, RenameFlags::NOREPLACE) {
            Err(rustix::io::Errno::EXIST) => return Err(ProvisionError::Exists(name.clone())),
            result => result.at("rename", from)?,
        }
        self.store().disk().sync_directory(&self.store().machines())?;
        Ok(())
    }

    /// Makes the place where a copy is made; the copy is given up when the returned
    /// file is closed without having been published. Under the registry's lock.
    pub(crate) fn begin_clone(&self, name: &VaName) -> Result<(PathBuf, File), ProvisionError> {
        let staging = self.store().machines().join(format!("{CLONED}{name}"));
        match fs::create_dir(&staging) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(ProvisionError::Cloning(name.clone()));
            }
            result => result.at("create", &staging)?,
        }
        let path = staging.join("lock");
        let lock = File::options()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .at("create", &path)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).at("lock", &path)?;
        Ok((staging, lock))
    }

    /// Notes that the address of a copy is about to be claimed for it.
    pub(crate) fn note_claim(&self, staging: &Path) -> Result<(), ProvisionError> {
        self.store().disk().write_file(&staging.join(CLAIM), b"", 0o600)?;
        Ok(())
    }

    /// Removes the note once the copy is a VA.
    pub(crate) fn forget_claim(&self, name: &VaName) -> Result<(), ProvisionError> {
        self.store().disk().remove_file(&self.directory(name).join(CLAIM))?;
        Ok(())
    }

    /// Removes a copy that nobody makes any more, and the link that was made for it.
    pub(crate) fn discard_clone(&self, staging: &Path) -> Result<(), ProvisionError> {
        let path = staging.join("lock");
        let lock = match File::options().write(true).custom_flags(nofollow()).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            file => Some(file.at("open", &path)?),
        };
        if let Some(lock) = &lock {
            match rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(()),
                result => result.at("lock", &path)?,
            }
        }
        if staging.join(CLAIM).exists() {
            let path = staging.join("va.json");
            let record = VaRecord::parse_anywhere(&read_limited(&path, RECORD_BYTES)?)
                .map_err(|source| MachineError::Record { path, source })?;
            if self.find(record.mac)?.is_none() {
                self.store().release_va(record.mac)?;
            }
        }
        Ok(remove_tree(staging)?)
    }
}

fn after(name: &str, prefix: &str) -> Option<VaName> {
    VaName::new(name.strip_prefix(prefix)?).ok()
}

fn nofollow() -> i32 {
    OFlags::NOFOLLOW.bits().cast_signed()
}

/// Removes a directory with all in it; that it is gone already is no error.
pub(crate) fn remove_tree(path: &Path) -> Result<(), MachineError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.at("remove", path),
    }
}

/// Whether Strata made a directory as a private layer.
pub(crate) fn is_private_layer(path: &Path) -> Result<bool, MachineError> {
    match fs::read(path.join("format")) {
        Ok(format) => Ok(format.starts_with(b"strata-private")),
        // The image of a disk is the operator's, where it is not beside the record.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(false)
        }
        Err(error) => Err(error).at("read", path),
    }
}

/// What became of the attempt to hold a private layer.
#[derive(Debug)]
pub(crate) enum PrivateHold {
    /// There is none yet.
    Absent,
    /// For as long as the file is open.
    Held(File),
    /// A VLFS serves it, on whichever host, or it is the disk of a machine that runs.
    InUse,
}

/// Holds a private layer unless it is in use: a mounted VLFS holds its lock, and QEMU that of
/// a disk.
pub(crate) fn try_private(private: &Path) -> Result<PrivateHold, MachineError> {
    if private.is_file() {
        let image = File::options().read(true).write(true).open(private).at("open", private)?;
        return match rustix::fs::fcntl_lock(&image, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => Ok(PrivateHold::InUse),
            result => result.at("lock", private).map(|()| PrivateHold::Held(image)),
        };
    }
    let path = private.join("lock");
    let file = match File::options().read(true).write(true).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(PrivateHold::Absent),
        file => file.at("open", &path)?,
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(PrivateHold::InUse),
        result => result.at("lock", &path).map(|()| PrivateHold::Held(file)),
    }
}

/// Holds a private layer that no VLFS serves; `None` where there is none yet.
pub(crate) fn hold_private(private: &Path) -> Result<Option<File>, ProvisionError> {
    match try_private(private)? {
        PrivateHold::Absent => Ok(None),
        PrivateHold::Held(file) => Ok(Some(file)),
        PrivateHold::InUse => Err(ProvisionError::InUse(private.to_owned())),
    }
}
