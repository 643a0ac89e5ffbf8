//! What changed in a VA's private layer that should not have: `strata-vlfs diff` is
//! asked, from outside the VA, and the policy's patterns choose.
//!
//! The private directory may be that of a compromised VA: the program that reads it
//! follows no link, and neither does the look at modes here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Serialize};
use strata_core::VaName;
use strata_core::event::{Event, EventRecord};
use strata_core::printable::printable;
use strata_core::rollout::policy::{DriftMode, DriftPolicy};
use strata_machine::{Driver, MachineError, Machines, VaRecord};
use strata_store::Store;

use crate::child::{self, Bounds, ChildError};
use crate::rollout::{RolloutFile, RolloutFileError};
use crate::state::milliseconds;

/// A private layer that takes longer to read is told as such.
const DEADLINE: Duration = Duration::from_secs(300);
/// Bytes of the list of differences.
const LIST_BYTES: u64 = 256 << 20;
/// Changes that are named; more are counted.
const NAMED: usize = 1_000;
/// Paths that an event names.
const EVENT_PATHS: usize = 20;

#[derive(Debug, thiserror::Error)]
pub enum DriftError {
    #[error(transparent)]
    Child(#[from] ChildError),
    #[error("strata-vlfs diff failed: {0}")]
    Failed(String),
    #[error("the VA {0} is a machine, whose private layer is on its disk")]
    Inside(VaName),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    File(#[from] RolloutFileError),
    #[error("the answer of strata-vlfs diff makes no sense: {0}")]
    Answer(#[from] serde_json::Error),
}

/// One line of what `strata-vlfs diff --output json` prints.
#[derive(Debug, Deserialize)]
struct Listed {
    change: String,
    path: String,
}

/// A change that the policy watches for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PrivateChange {
    pub path: String,
    /// `added`, `modified`, `attributes`, `deleted` or `orphaned`.
    pub change: String,
    /// It is setuid or setgid.
    pub setuid: bool,
}

/// What of a VA's private layer is drift.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct PrivateDrift {
    pub changes: Vec<PrivateChange>,
    pub more: u64,
}

/// Whether a VA's private layer is on a disk of its machine, where the host does not look.
pub fn is_inside(record: &VaRecord) -> bool {
    match record.driver {
        Driver::Namespace => false,
        Driver::Qemu => true,
    }
}

/// Looks at a VA of this host.
///
/// # Errors
/// `strata-vlfs` cannot be run or fails, as for a VA that has never run; the VA is a machine.
pub fn private_drift(
    store: &Store,
    machines: &Machines<'_>,
    record: &VaRecord,
    vlfs: &Path,
    policy: &DriftPolicy,
) -> Result<PrivateDrift, DriftError> {
    if is_inside(record) {
        return Err(DriftError::Inside(record.name.clone()));
    }
    let private = record.private_in(&machines.directory(&record.name));
    if !private.join("upper").is_dir() {
        return Ok(PrivateDrift::default());
    }
    let mut command = Command::new(vlfs);
    command.arg("diff").arg("--store").arg(store.root()).args(["--output", "json"]).arg(&private);
    let cancelled = AtomicBool::new(false);
    let bounds = Bounds { deadline: DEADLINE, file_bytes: LIST_BYTES, cancelled: &cancelled };
    let (ended, text) = child::run_capturing(&mut command, bounds)?;
    if !matches!(ended.status.code(), Some(0 | 1)) {
        let said = String::from_utf8_lossy(&ended.stderr);
        let first = said.lines().next().unwrap_or_default();
        return Err(DriftError::Failed(printable(first).into_owned()));
    }
    let listed: Vec<Listed> = serde_json::from_slice(&text)?;
    Ok(judge(listed, policy, &private.join("upper")))
}

/// Looks at the VAs of this host in turn, where the policy wants more than a report
/// when it is asked for. Each drift is told when it is found and when it changes.
#[derive(Debug)]
pub struct DriftRound {
    store: Arc<Store>,
    vlfs: PathBuf,
    last: Option<VaName>,
    told: BTreeMap<VaName, PrivateDrift>,
}

impl DriftRound {
    pub fn new(store: Arc<Store>, vlfs: PathBuf) -> Self {
        DriftRound { store, vlfs, last: None, told: BTreeMap::new() }
    }

    /// Looks at the next VA.
    pub fn step(&mut self) -> Vec<EventRecord> {
        match self.look() {
            Ok(event) => event.into_iter().collect(),
            Err(error) => {
                tracing::warn!(%error, "a private layer cannot be looked at");
                Vec::new()
            }
        }
    }

    fn look(&mut self) -> Result<Option<EventRecord>, DriftError> {
        let policy = RolloutFile::read(&self.store)?.drift.unwrap_or_default();
        if policy.private == DriftMode::Report || policy.watch.is_empty() {
            return Ok(None);
        }
        let store = self.store.clone();
        let machines = Machines::open(&store)?;
        let names = machines.names()?;
        let after = |name: &&VaName| self.last.as_ref().is_none_or(|last| *name > last);
        let Some(name) = names.iter().find(after).or(names.first()).cloned() else {
            return Ok(None);
        };
        self.last = Some(name.clone());
        let record = machines.record(&name)?;
        if is_inside(&record) {
            return Ok(None);
        }
        let drift = private_drift(&store, &machines, &record, &self.vlfs, &policy)?;
        let former = self.told.insert(name.clone(), drift.clone());
        if drift.changes.is_empty() || former.is_some_and(|former| former == drift) {
            return Ok(None);
        }
        let paths: Vec<_> =
            drift.changes.iter().take(EVENT_PATHS).map(|change| change.path.clone()).collect();
        let more = drift.more + (drift.changes.len() - paths.len()) as u64;
        let event = Event::PrivateDrift { name, mac: record.mac, paths, more };
        Ok(Some(EventRecord::new(milliseconds(SystemTime::now()), event)))
    }
}

fn judge(listed: Vec<Listed>, policy: &DriftPolicy, upper: &Path) -> PrivateDrift {
    let mut drift = PrivateDrift::default();
    for Listed { change, path } in listed {
        let stays = !matches!(change.as_str(), "deleted" | "reverted");
        let setuid = stays && is_setuid(upper, &path);
        if change == "reverted" || !policy.is_drift(&path, setuid) {
            continue;
        }
        if drift.changes.len() < NAMED {
            drift.changes.push(PrivateChange { path, change, setuid });
        } else {
            drift.more += 1;
        }
    }
    drift.changes.sort();
    drift
}

/// Whether a regular file of the private layer is setuid or setgid. No link is
/// followed on the way.
fn is_setuid(upper: &Path, path: &str) -> bool {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let Ok(upper) = rustix::fs::open(upper, flags | OFlags::DIRECTORY, Mode::empty()) else {
        return false;
    };
    let opened = rustix::fs::openat2(&upper, path, flags, Mode::empty(), resolve);
    let stat =
        opened.and_then(|file| rustix::fs::statat(&file, "", rustix::fs::AtFlags::EMPTY_PATH));
    stat.is_ok_and(|stat| {
        let special = stat.st_mode & 0o6000 != 0;
        special && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn patterns_and_modes_choose_and_no_link_is_followed() {
        let directory = tempfile::tempdir().expect("a directory");
        let upper = directory.path().join("upper");
        std::fs::create_dir_all(upper.join("opt")).expect("made");
        for name in ["opt/tool", "../outside"] {
            let path = upper.join(name);
            std::fs::write(&path, "x").expect("written");
            let mode = std::fs::Permissions::from_mode(0o4755);
            std::fs::set_permissions(&path, mode).expect("setuid");
        }
        symlink(directory.path(), upper.join("way")).expect("linked");
        let listed = |change: &str, path: &str| Listed { change: change.into(), path: path.into() };
        let policy = DriftPolicy {
            watch: vec!["etc/**".to_owned(), "setuid".to_owned()],
            ignore: vec!["etc/mtab".to_owned()],
            ..DriftPolicy::default()
        };
        let all = vec![
            listed("modified", "etc/passwd"),
            listed("reverted", "etc/hosts"),
            listed("deleted", "etc/issue"),
            listed("added", "etc/mtab"),
            listed("added", "opt/tool"),
            listed("added", "way/outside"),
            listed("added", "../outside"),
        ];
        let found = judge(all, &policy, &upper);
        let found: Vec<_> = found.changes.iter().map(|c| (c.path.as_str(), c.setuid)).collect();
        assert_eq!(found, [("etc/issue", false), ("etc/passwd", false), ("opt/tool", true)]);
    }
}
