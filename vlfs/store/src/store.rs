//! Opening and making a store.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::durable::{Disk, Writes};
use crate::error::{Context, StoreError};
use crate::read::{names_in, optional, read_limited};
use crate::temporary;

const FORMAT: &[u8] = b"strata-store 1\n";
const DIRECTORIES: [&str; 7] =
    ["repos", "generations", "rings", "va", "reports", "machines", "state"];

/// Directories of files below `state/`.
const STATE_DIRECTORIES: [&str; 5] = ["requests", "pins", "trust", "audit", "telling"];
/// Between two looks at a lock that somebody else holds.
const LOOK: Duration = Duration::from_millis(2);

/// A store. Cheap to open; holds no lock and no cache.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    pub(crate) disk: Disk,
}

/// An exclusive lock on a part of the store, held until dropped. The kernel
/// releases it when the process dies.
#[derive(Debug)]
pub struct StoreLock {
    _file: File,
}

impl Store {
    /// Makes a store in `root`, which is created, empty, or a store already.
    ///
    /// # Errors
    /// `root` holds something else, or cannot be written.
    pub fn init(root: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(root).at("create", root)?;
        let store = Store { root: root.canonicalize().at("open", root)?, disk: Disk::default() };
        if store.read_format()? {
            return Ok(store);
        }
        let mut entries = std::fs::read_dir(root).at("list", root)?;
        let known = |entry: &std::fs::DirEntry| {
            DIRECTORIES.iter().any(|name| entry.file_name() == *name)
                || entry.file_name().to_string_lossy().starts_with(temporary::NEW)
        };
        if entries.any(|entry| !entry.as_ref().is_ok_and(known)) {
            return Err(StoreError::NotEmpty(root.to_owned()));
        }
        for name in DIRECTORIES {
            store.disk.create_directory(&store.root.join(name))?;
        }
        store.disk.write_file(&store.root.join("format"), FORMAT, 0o644)?;
        Ok(store)
    }

    /// Makes a store in the empty or absent directory `root` that has the repositories of
    /// this one, to be read, and generations, VAs and reports of its own: a place to try a
    /// composition that nobody else sees.
    ///
    /// # Errors
    /// `root` holds something, or cannot be written.
    pub fn init_aside(&self, root: &Path) -> Result<Self, StoreError> {
        let aside = Store::init(root)?;
        let repositories = aside.root.join("repos");
        std::fs::remove_dir(&repositories).at("replace", &repositories)?;
        let target = self.root.join("repos");
        std::os::unix::fs::symlink(target, &repositories).at("link", &repositories)?;
        Ok(aside)
    }

    /// Opens a store.
    ///
    /// # Errors
    /// There is no store at `root`.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Self::open_with(root, Disk::default())
    }

    /// Opens a store on a disk that may be told to fail.
    ///
    /// # Errors
    /// There is no store at `root`.
    pub fn open_with(root: &Path, disk: Disk) -> Result<Self, StoreError> {
        let not_a_store = || StoreError::NotAStore(root.to_owned());
        let root = root.canonicalize().map_err(|_| not_a_store())?;
        let store = Store { root, disk };
        if store.read_format()? { Ok(store) } else { Err(not_a_store()) }
    }

    fn read_format(&self) -> Result<bool, StoreError> {
        let format = optional(read_limited(&self.root.join("format"), 1 << 10))?;
        Ok(format.is_some_and(|format| format == FORMAT))
    }

    /// The absolute path of the store, without symbolic links.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What was written through this handle.
    pub fn writes(&self) -> Writes {
        self.disk.writes()
    }

    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Where the VAs' machines are kept.
    pub fn machines(&self) -> PathBuf {
        self.root.join("machines")
    }

    /// Where VAs' reports are kept.
    pub fn reports(&self) -> PathBuf {
        self.root.join("reports")
    }

    /// A file of the reconciler's own; `None` where it does not exist.
    ///
    /// # Errors
    /// It cannot be read or is larger than `limit` bytes.
    pub fn read_state(&self, name: &str, limit: usize) -> Result<Option<Vec<u8>>, StoreError> {
        optional(read_limited(&self.state(name), limit))
    }

    /// Replaces a file of the reconciler's own.
    ///
    /// # Errors
    /// It cannot be written; the old one stands.
    pub fn write_state(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        self.disk.write_file(&self.state(name), content, 0o600)
    }

    /// The names in a directory of the reconciler's own, sorted; none where there is no
    /// such directory.
    ///
    /// # Errors
    /// It cannot be listed.
    pub fn state_names(&self, directory: &str) -> Result<Vec<String>, StoreError> {
        names_in(&self.state(directory))
    }

    /// The path of something of the reconciler's own.
    pub fn state(&self, name: &str) -> PathBuf {
        self.root.join("state").join(name)
    }

    /// Takes the lock `name`, without waiting.
    ///
    /// # Errors
    /// [`StoreError::Locked`] where another process holds it.
    pub fn try_lock(&self, name: &str) -> Result<StoreLock, StoreError> {
        lock(&self.state(&format!("{name}.lock")), FlockOperation::NonBlockingLockExclusive)
    }

    /// Takes the lock `name`, waiting for whoever holds it.
    ///
    /// # Errors
    /// The lock cannot be opened.
    pub fn wait_lock(&self, name: &str) -> Result<StoreLock, StoreError> {
        lock(&self.state(&format!("{name}.lock")), FlockOperation::LockExclusive)
    }

    /// Takes the lock `name`. Waits at most `patience` for who holds it.
    ///
    /// # Errors
    /// [`StoreError::Locked`] where it is still held.
    pub fn lock_within(&self, name: &str, patience: Duration) -> Result<StoreLock, StoreError> {
        let until = Instant::now() + patience;
        loop {
            match self.try_lock(name) {
                Err(StoreError::Locked(_)) if Instant::now() < until => std::thread::sleep(LOOK),
                other => return other,
            }
        }
    }

    /// Removes what crashed writers left behind. What writers of other hosts make stays.
    /// Returns how many names.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn sweep(&self) -> Result<usize, StoreError> {
        let mut swept = 0;
        for name in DIRECTORIES {
            swept += temporary::sweep(&self.root.join(name))?;
        }
        for name in STATE_DIRECTORIES {
            swept += temporary::sweep(&self.state(name))?;
        }
        for directory in self.ring_directories()? {
            swept += temporary::sweep(&directory)?;
        }
        Ok(swept + self.sweep_generations()?)
    }
}

pub(crate) fn lock(path: &Path, operation: FlockOperation) -> Result<StoreLock, StoreError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o600)).at("open", path)?;
    match rustix::fs::flock(&file, operation) {
        Ok(()) => Ok(StoreLock { _file: File::from(file) }),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Locked(path.to_owned())),
        Err(error) => Err(error).at("lock", path),
    }
}
