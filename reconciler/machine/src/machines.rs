//! All machines of a store: their records, locks, states, and the way to the
//! driver of each.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};
use strata_core::status::RunState;
use strata_core::{MacAddr, VaName};
use strata_store::{Store, StoreError, read_limited};

use crate::cgroup::{self, Cgroup, MemoryLimits};
use crate::error::{Context, MachineError};
use crate::mounts::Mount;
use crate::namespace::NamespaceVa;
use crate::qemu::{self, AcceleratorChoice, QemuVa, TransportChoice};
use crate::record::{Driver, RECORD_BYTES, VaRecord};
use crate::registry::{PrivateHold, try_private};
use crate::wait;

/// How long a command waits for another one that works on the same VA.
const LOCK_DEADLINE: Duration = Duration::from_secs(10);

/// What the kernel says of a VA.
#[derive(Debug, Clone)]
pub struct Observation {
    pub state: RunState,
    /// PID 1 of the VA, as the host numbers it.
    pub init: Option<u32>,
    /// The VA's processes.
    pub processes: Vec<u32>,
    /// The VLFS daemon's.
    pub daemon: Vec<u32>,
    pub daemon_frozen: bool,
    /// The VLFS's mount on the host.
    pub mount: Option<Mount>,
    /// The VLFS is mounted in a machine, whose report says what it serves.
    pub inside: bool,
}

/// The programs that a namespace VA is made of.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `strata-vlfs`
    pub vlfs: PathBuf,
    /// `strata-init`
    pub init: PathBuf,
    /// `virtiofsd`, where a host has it: how machines see the store.
    pub virtiofsd: Option<PathBuf>,
}

/// Which network a VA has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// The host's.
    #[default]
    Host,
    /// A loopback interface of its own and no way out.
    Private,
}

/// A port of the host's loopback interface that leads to one of a machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forward {
    pub host: u16,
    pub machine: u16,
}

/// How a VA is started.
#[derive(Debug, Clone)]
pub struct StartRequest {
    /// The appliance's command; empty: the services of its tree, if there are any,
    /// and the VA waits for `exec`.
    pub command: Vec<OsString>,
    pub network: Network,
    /// Only for a machine: others have the host's ports.
    pub forwards: Vec<Forward>,
    /// Bytes of memory that its processes may use together; no limit where none is given.
    pub memory_bytes: Option<u64>,
    /// Whether the layers' own scripts run, as they do in an appliance.
    pub layer_scripts: bool,
    /// What executes a machine's instructions.
    pub accelerator: AcceleratorChoice,
    /// How a machine sees the store.
    pub transport: TransportChoice,
    /// The VLFS must answer and the VA run before that.
    pub deadline: Duration,
}

/// A command to be run inside a VA, with the standard input and output of the
/// caller.
#[derive(Debug)]
pub struct ExecCommand {
    pub(crate) command: Command,
    /// The image of `strata-init` that the command's program path names.
    pub(crate) _image: OwnedFd,
}

impl ExecCommand {
    /// Becomes the command; returns only on failure. The exit code is the
    /// command's, 128 + signal, 126 or 127 where it cannot be run, and 125 where
    /// the VA cannot be entered.
    pub fn replace_process(mut self) -> io::Error {
        self.command.exec()
    }

    /// The command, for those who want its output.
    pub fn command(&mut self) -> &mut Command {
        &mut self.command
    }

    /// Runs the command and waits for it until the deadline; then the caller's end of it
    /// is killed, and `None` returned. What runs in the VA goes on until it is stopped.
    ///
    /// # Errors
    /// `strata-init` cannot be run.
    pub fn status_before(&mut self, deadline: Instant) -> io::Result<Option<ExitStatus>> {
        wait::child(&mut self.command.spawn()?, deadline)
    }

    /// Runs the command and waits for it.
    ///
    /// # Errors
    /// `strata-init` cannot be run.
    pub fn status(&mut self) -> io::Result<ExitStatus> {
        self.command.status()
    }
}

/// The machines of a store, on this host.
#[derive(Debug)]
pub struct Machines<'store> {
    store: &'store Store,
    /// The cgroup below which this store's VAs are; `None` without cgroup v2.
    cgroup: Option<Cgroup>,
    /// Likewise where memory is limited, on hosts that do that in another hierarchy.
    memory: Option<Cgroup>,
    /// The names that a commit gives to VAs, each of one address.
    declared: BTreeMap<VaName, MacAddr>,
}

/// A VA that runs nowhere and is not started while this is held.
#[derive(Debug)]
pub struct Resting {
    _lock: VaLock,
    _private: PrivateHold,
}

/// One command's hold on a VA; the kernel lets go when the process dies.
#[derive(Debug)]
pub(crate) struct VaLock {
    _file: File,
}

impl<'store> Machines<'store> {
    /// # Errors
    /// The store's `machines/` or `/proc` cannot be read.
    pub fn open(store: &'store Store) -> Result<Self, MachineError> {
        let machines = store.machines();
        let stat = rustix::fs::stat(&machines).at("stat", &machines)?;
        let hierarchy = cgroup::hierarchy().at("read", "/proc/self/mountinfo".as_ref())?;
        // One store under two paths is one store; two stores never share a name.
        let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        let key = format!("{major}-{minor}-{}", stat.st_ino);
        let limits = match &hierarchy {
            Some(path) => MemoryLimits::find(path).at("read", path)?,
            None => None,
        };
        let group = |path: PathBuf| Cgroup::at(path.join("strata").join(&key));
        let memory = match limits {
            Some(MemoryLimits::Former(path)) => Some(group(path)),
            Some(MemoryLimits::Unified) | None => None,
        };
        let declared = BTreeMap::new();
        Ok(Machines { store, cgroup: hierarchy.map(group), memory, declared })
    }

    /// With the names that a commit gives to VAs: no VA of another address gets one of them.
    #[must_use]
    pub fn with_declared(self, declared: BTreeMap<VaName, MacAddr>) -> Self {
        Machines { declared, ..self }
    }

    pub(crate) fn declared(&self, name: &VaName) -> Option<MacAddr> {
        self.declared.get(name).copied()
    }

    pub fn store(&self) -> &'store Store {
        self.store
    }

    /// The directory of a VA.
    pub fn directory(&self, name: &VaName) -> PathBuf {
        self.store.machines().join(name)
    }

    /// The record of a VA.
    ///
    /// # Errors
    /// There is no such VA, or its record is damaged.
    pub fn record(&self, name: &VaName) -> Result<VaRecord, MachineError> {
        let path = self.directory(name).join("va.json");
        let text = match read_limited(&path, RECORD_BYTES) {
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(MachineError::NoVa(name.clone()));
            }
            text => text?,
        };
        VaRecord::parse(&text, name).map_err(|source| MachineError::Record { path, source })
    }

    /// All VAs, sorted by name; a damaged record does not hide the others.
    ///
    /// # Errors
    /// The directory cannot be listed.
    #[allow(clippy::type_complexity, reason = "a list of results is what it is")]
    pub fn records(&self) -> Result<Vec<Result<VaRecord, MachineError>>, MachineError> {
        Ok(self.names()?.iter().map(|name| self.record(name)).collect())
    }

    /// The names of all VAs, sorted.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn names(&self) -> Result<Vec<VaName>, MachineError> {
        let machines = self.store.machines();
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&machines).at("list", &machines)? {
            let name = entry.at("list", &machines)?.file_name();
            // Names that no VA can have are work in progress.
            if let Some(name) = name.to_str().and_then(|name| VaName::new(name).ok()) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// The VA that has a MAC address.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn find(&self, mac: MacAddr) -> Result<Option<VaRecord>, MachineError> {
        Ok(self.records()?.into_iter().flatten().find(|record| record.mac == mac))
    }

    /// What a VA does on this host now, asked of the kernel. For a stopped VA
    /// that is one failed open(2).
    ///
    /// # Errors
    /// The kernel's answer cannot be read.
    pub fn run_state(&self, record: &VaRecord) -> Result<RunState, MachineError> {
        match (record.driver, &self.cgroup) {
            (Driver::Qemu, _) if self.is_saved(record) => Ok(RunState::Suspended),
            (_, None) => Ok(RunState::Stopped),
            (Driver::Namespace, Some(_)) => self.namespace(record)?.run_state(),
            (Driver::Qemu, Some(_)) => self.qemu(record)?.run_state(),
        }
    }

    /// Whether a VA is suspended to disk, and so may be resumed on another host.
    pub fn is_saved(&self, record: &VaRecord) -> bool {
        match record.driver {
            Driver::Namespace => false,
            Driver::Qemu => qemu::is_saved(&self.directory(&record.name)),
        }
    }

    /// All that the kernel says of a VA.
    ///
    /// # Errors
    /// The kernel's answer cannot be read.
    pub fn observe(&self, record: &VaRecord) -> Result<Observation, MachineError> {
        match record.driver {
            Driver::Namespace => self.namespace(record)?.observe(),
            Driver::Qemu => self.qemu(record)?.observe(),
        }
    }

    /// Starts a stopped VA.
    ///
    /// # Errors
    /// It is not stopped, or its VLFS or first process does not come up; nothing
    /// of it is left then.
    pub fn start(
        &self,
        name: &VaName,
        request: &StartRequest,
        programs: &Programs,
    ) -> Result<(), MachineError> {
        let (record, _lock) = self.locked(name)?;
        if self.store.va_target(record.mac)?.is_none() {
            return Err(MachineError::Incomplete(name.clone()));
        }
        match record.driver {
            Driver::Namespace => self.namespace(&record)?.start(request, programs),
            Driver::Qemu => self.qemu(&record)?.start(request, programs),
        }
    }

    /// Suspends a running VA: nothing of it runs until it is resumed.
    ///
    /// # Errors
    /// It is stopped, or does not freeze before the deadline and goes on.
    pub fn suspend(&self, name: &VaName, deadline: Duration) -> Result<(), MachineError> {
        let (record, _lock) = self.locked(name)?;
        match record.driver {
            Driver::Namespace => self.namespace(&record)?.suspend(deadline),
            Driver::Qemu => self.qemu(&record)?.suspend(deadline),
        }
    }

    /// Suspends a machine to disk: nothing of it is left on the host, until it is resumed.
    ///
    /// # Errors
    /// It is stopped, sees its store over 9p, or is not saved before the deadline and goes on.
    pub fn suspend_to_disk(&self, name: &VaName, deadline: Duration) -> Result<(), MachineError> {
        let (record, _lock) = self.locked(name)?;
        match record.driver {
            Driver::Namespace => Err(MachineError::NoState(name.clone())),
            Driver::Qemu => self.qemu(&record)?.suspend_to_disk(deadline),
        }
    }

    /// Resumes a suspended VA; its VLFS first, which takes what the VA's link
    /// names by now.
    ///
    /// # Errors
    /// It is stopped, or does not thaw before the deadline.
    pub fn resume(
        &self,
        name: &VaName,
        deadline: Duration,
        programs: &Programs,
    ) -> Result<(), MachineError> {
        let (record, _lock) = self.locked(name)?;
        let desired = self.store.desired(record.mac)?;
        match record.driver {
            Driver::Namespace => self.namespace(&record)?.resume(deadline, desired.as_ref()),
            // The VLFS in the machine looks at its link as soon as it goes on.
            Driver::Qemu => self.qemu(&record)?.resume(deadline, programs),
        }
    }

    /// Stops a VA and removes whatever is left of a run. One that is suspended to disk has its
    /// state given up, where `patience` is zero. Asks the VA to end and
    /// kills what has not after `patience`. It is no error that it is stopped.
    ///
    /// # Errors
    /// Something is left that cannot be removed.
    pub fn stop(&self, name: &VaName, patience: Duration) -> Result<(), MachineError> {
        let (record, _lock) = self.locked(name)?;
        match record.driver {
            Driver::Namespace => self.namespace(&record)?.stop(patience),
            Driver::Qemu => self.qemu(&record)?.stop(patience),
        }
    }

    /// A command that runs in the VA.
    ///
    /// # Errors
    /// The VA is not running.
    pub fn exec(
        &self,
        name: &VaName,
        command: &[OsString],
        programs: &Programs,
    ) -> Result<ExecCommand, MachineError> {
        let record = self.record(name)?;
        match record.driver {
            Driver::Namespace => self.namespace(&record)?.exec(command, programs),
            Driver::Qemu => Err(MachineError::NoExec(name.clone())),
        }
    }

    /// Removes what is left of a run of a stopped VA.
    pub(crate) fn clear(&self, record: &VaRecord) -> Result<(), MachineError> {
        match (record.driver, &self.cgroup) {
            (_, None) => Ok(()),
            (Driver::Namespace, Some(_)) => self.namespace(record)?.clear(),
            (Driver::Qemu, Some(_)) => self.qemu(record)?.clear(),
        }
    }

    /// Holds a VA that runs on no host, so that no command starts it meanwhile. `None` where
    /// it runs, is suspended, has its private layer mounted anywhere, or where another
    /// command works on it.
    ///
    /// # Errors
    /// There is no such VA, or it cannot be told.
    pub fn hold_resting(&self, name: &VaName) -> Result<Option<Resting>, MachineError> {
        let (path, file) = self.open_lock(name)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            taken => taken.at("lock", &path)?,
        }
        let record = self.record(name)?;
        if self.run_state(&record)? != RunState::Stopped {
            return Ok(None);
        }
        let private = try_private(&record.private_in(&self.directory(name)))?;
        if matches!(private, PrivateHold::InUse) {
            return Ok(None);
        }
        let lock = VaLock { _file: File::from(file) };
        Ok(Some(Resting { _lock: lock, _private: private }))
    }

    fn namespace<'a>(&'a self, record: &'a VaRecord) -> Result<NamespaceVa<'a>, MachineError> {
        let cgroup = self.cgroup.as_ref().ok_or(MachineError::NoCgroups)?;
        let directory = self.directory(&record.name);
        let (root, memory) = (self.store.root(), self.memory.as_ref());
        Ok(NamespaceVa::new(record, directory, root, cgroup, memory))
    }

    pub(crate) fn qemu<'a>(&'a self, record: &'a VaRecord) -> Result<QemuVa<'a>, MachineError> {
        let cgroup = self.cgroup.as_ref().ok_or(MachineError::NoCgroups)?;
        Ok(QemuVa::new(record, self.directory(&record.name), self.store, cgroup))
    }

    /// What a VA's console has shown since its last start; empty where it never ran.
    ///
    /// # Errors
    /// There is no such VA, or it cannot be read.
    pub fn console(&self, name: &VaName) -> Result<Option<File>, MachineError> {
        self.record(name)?;
        let path = self.directory(name).join("console.log");
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            file => file.map(Some).at("open", &path),
        }
    }

    fn open_lock(&self, name: &VaName) -> Result<(PathBuf, OwnedFd), MachineError> {
        self.record(name)?;
        let path = self.directory(name).join("lock");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600)).at("open", &path)?;
        Ok((path, file))
    }

    /// Waits for the hold on a VA, and reads its record under it.
    pub(crate) fn locked(&self, name: &VaName) -> Result<(VaRecord, VaLock), MachineError> {
        let (path, file) = self.open_lock(name)?;
        let free = wait::until(Instant::now() + LOCK_DEADLINE, || {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => Ok(true),
                Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
                Err(error) => Err(error).at("lock", &path),
            }
        })?;
        if !free {
            return Err(MachineError::Busy { name: name.clone(), waited: LOCK_DEADLINE });
        }
        // Who waited for a `destroy` holds the lock of a VA that is no more.
        let record = self.record(name)?;
        Ok((record, VaLock { _file: File::from(file) }))
    }
}
