//! The private layer on disk: the one read-write directory of a mounted VLFS (§5.5).
//!
//! ```text
//! PRIVATE/format                         "strata-private 1\n"
//! PRIVATE/owner                          the VA's MAC address, or "ad-hoc"
//! PRIVATE/lock                           held exclusively (flock) while mounted
//! PRIVATE/upper/…                        the private files, at their paths
//! PRIVATE/whiteouts/<repo>/<unit>/…      what is hidden in that layer unit: the tree of a
//!                                        path's directories, and a plain file for the path
//! PRIVATE/borrowed/<repo>/<unit>/…       names of private files whose data is still that unit's
//! PRIVATE/work/                          half-made objects; emptied at every mount
//! PRIVATE/journal/<n>                    steps that belong together and are under way
//! ```
//!
//! Guarantees: an object appears in `upper/` by one rename, complete; steps
//! that must not be seen apart are journaled and finished at the next mount.
//! Order relies on a journaled backing file system; data is flushed
//! (`fdatasync`) before a copied file appears, names are not (as on any file
//! system: `fsync` the directory).
//!
//! Private files carry attributes of Strata's own, `trusted.strata.*`, which the
//! mounted file system never shows: `ino`, the `st_ino` that a copied object
//! keeps, `origin`, what it was copied from (see [`origin`]), and `data`, that
//! its data is still the layer's (see [`borrowed`]).

pub mod borrowed;
pub mod copy_up;
pub mod disk;
mod hidden;
pub mod journal;
mod kept;
pub mod markers;
pub mod origin;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;
use strata_core::MacAddr;

use crate::backing;
use crate::tree::{PRIVATE_TAG, ROOT_IDENTITY};
use disk::Disk;
use hidden::Hidden;

pub const FORMAT: &str = "strata-private 1\n";
/// `format` in the making.
const FORMAT_NEW: &[u8] = b"format.new";
pub const UPPER: &[u8] = b"upper";
pub const WORK: &[u8] = b"work";
pub const WHITEOUTS: &[u8] = b"whiteouts";
pub const JOURNAL: &[u8] = b"journal";
pub const BORROWED: &[u8] = b"borrowed";
/// Extended attribute that keeps `st_ino` on a private copy: 16 hexadecimal digits.
pub const INO_XATTR: &[u8] = b"trusted.strata.ino";
/// Extended attribute with what a private copy was made from.
pub const ORIGIN_XATTR: &[u8] = b"trusted.strata.origin";
/// Extended attribute of a copy with the names that the original had, if several.
pub const NAMES_XATTR: &[u8] = b"trusted.strata.names";
/// Extended attribute of a private file whose data is still the layer's.
pub const DATA_XATTR: &[u8] = b"trusted.strata.data";
/// Extended attribute in which an earlier program kept what copying that data in
/// changes beside it.
pub const KEPT_XATTR: &[u8] = b"trusted.strata.kept";

/// How long a mount waits for the lock of one that ends, and how often it looks.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_POLL: Duration = Duration::from_millis(10);

/// The directory of a layer unit's white-outs below `whiteouts/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitKey {
    pub repository: String,
    pub unit: String,
}

impl UnitKey {
    pub fn new(repository: &str, unit: &str) -> UnitKey {
        UnitKey { repository: repository.to_owned(), unit: unit.to_owned() }
    }

    /// The unit of a plain directory: its path and inode number. The device
    /// number is left out, because it may change at every boot.
    pub fn plain(path: &Path, _device: u64, inode: u64) -> UnitKey {
        use std::os::unix::ffi::OsStrExt;
        let bytes = path.as_os_str().as_bytes();
        let mut escaped = String::new();
        for byte in bytes {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' => {
                    escaped.push(char::from(*byte));
                }
                other => escaped.push_str(&format!("%{other:02x}")),
            }
        }
        if escaped.len() > 160 {
            let hash = strata_core::Digest::of(bytes).short();
            escaped = format!("{hash}%{}", &escaped[escaped.len() - 140..]);
        }
        UnitKey { repository: "@plain".to_owned(), unit: format!("{escaped}@{inode:x}") }
    }
}

impl fmt::Display for UnitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.repository, self.unit)
    }
}

/// Whose private directory it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    Va(MacAddr),
    AdHoc,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Va(mac) => write!(f, "{mac}"),
            Owner::AdHoc => f.write_str("ad-hoc"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PrivateError {
    #[error("the private directory {path}: {what}: {errno}")]
    Io { path: PathBuf, what: &'static str, errno: Errno },
    #[error("{0} holds other files and is no private directory of Strata")]
    Foreign(PathBuf),
    #[error("the private directory {path} has the format {found:?}; this program knows {FORMAT:?}")]
    Format { path: PathBuf, found: String },
    #[error("the private directory {path} belongs to {found}, not to {expected}")]
    Owner { path: PathBuf, found: String, expected: Owner },
    #[error("the private directory {0} is in use by another mount")]
    Locked(PathBuf),
    #[error("the file system of {path} cannot hold trusted extended attributes: {errno}")]
    Xattrs { path: PathBuf, errno: Errno },
    #[error("the journal entry {name} in {path} is damaged")]
    Journal { path: PathBuf, name: String },
}

/// An opened, locked private directory.
#[derive(Debug)]
pub struct Private {
    pub(crate) disk: Disk,
    path: PathBuf,
    root: OwnedFd,
    pub upper: OwnedFd,
    pub work: OwnedFd,
    whiteouts: OwnedFd,
    sequence: AtomicU64,
    hidden: Mutex<Hidden>,
    /// The directory that got the last marker: the next is often beside it.
    last_marked: Mutex<Option<markers::Marked>>,
    /// Private files whose data is still a layer's.
    pub loans: borrowed::Registry,
    lock: OwnedFd,
}

/// Whether an open directory is a private directory of Strata.
pub fn is_private_directory(directory: &OwnedFd) -> Result<bool, Errno> {
    match read_small(directory, b"format") {
        Ok(format) => Ok(format == FORMAT.as_bytes()),
        Err(Errno::NOENT | Errno::LOOP | Errno::ISDIR) => Ok(false),
        Err(error) => Err(error),
    }
}

/// `st_ino` of a private object: what its copy kept, or its own number, tagged. An
/// attribute that is damaged, or claims the root's number, counts as none: the
/// object is another one then, and its directory can still be listed.
pub fn kept_number(directory: &OwnedFd, name: &[u8], inode: u64) -> Result<u64, Errno> {
    match backing::xattr(&backing::path_of(directory, name), INO_XATTR) {
        Ok(value) => {
            let text = std::str::from_utf8(&value).ok();
            let number = text.and_then(|text| u64::from_str_radix(text, 16).ok());
            Ok(number.filter(|number| *number > ROOT_IDENTITY).unwrap_or_else(|| {
                tracing::warn!(inode, "a private file's own number is damaged");
                PRIVATE_TAG | inode
            }))
        }
        Err(Errno::NODATA | Errno::NOTSUP | Errno::NOENT) => Ok(PRIVATE_TAG | inode),
        Err(error) => Err(error),
    }
}

pub(crate) fn read_small(directory: &OwnedFd, name: &[u8]) -> Result<Vec<u8>, Errno> {
    let fd =
        backing::open_beneath(directory, name, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?;
    let mut buffer = [0; 256];
    let length = rustix::io::pread(&fd, &mut buffer, 0)?;
    Ok(buffer[..length].to_vec())
}

/// Locks a file for this mount alone: a daemon whose mount is gone still flushes for a
/// moment. Whether it was to be had.
pub(crate) fn lock_patiently(file: &OwnedFd) -> Result<bool, Errno> {
    let start = Instant::now();
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) if start.elapsed() >= LOCK_PATIENCE => return Ok(false),
            Err(Errno::WOULDBLOCK) => std::thread::sleep(LOCK_POLL),
            Err(errno) => return Err(errno),
        }
    }
}

impl Private {
    /// Opens a private directory, makes it when it is absent or empty, takes
    /// its lock and finishes what a crash interrupted.
    ///
    /// # Errors
    /// It belongs to another VA, is in use, is of another format, or no place
    /// where private files can live.
    pub fn open(path: &Path, owner: &Owner) -> Result<Private, PrivateError> {
        Private::open_with(path, owner, Disk::default())
    }

    /// As [`Private::open`], with a disk that may fail.
    ///
    /// # Errors
    /// As [`Private::open`].
    pub fn open_with(path: &Path, owner: &Owner, disk: Disk) -> Result<Private, PrivateError> {
        let io = |what| move |errno| PrivateError::Io { path: path.to_owned(), what, errno };
        std::fs::create_dir_all(path).map_err(|error| {
            io("cannot be made")(Errno::from_io_error(&error).unwrap_or(Errno::IO))
        })?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(io("cannot be opened"))?;
        let lock = Self::lock(path, &root)?;
        Self::make_format(&disk, path, &root, owner)?;
        Self::check_format(path, &root, owner)?;
        crate::reset::finish(&disk, &root)
            .map_err(io("an interrupted reset cannot be finished"))?;
        for name in [UPPER, WORK, WHITEOUTS, JOURNAL, BORROWED] {
            match disk.make_directory(&root, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(io("cannot be filled")(errno)),
            }
        }
        Private::of(path, root, lock, disk)
    }

    /// The directory that a predecessor in this process holds open and locked, wherever
    /// it is by now. Nothing is made.
    ///
    /// # Errors
    /// It is not what it was.
    pub fn adopt(
        path: &Path,
        owner: &Owner,
        root: OwnedFd,
        lock: OwnedFd,
    ) -> Result<Private, PrivateError> {
        Self::check_whole(path, &root, &lock, owner)?;
        Private::of(path, root, lock, Disk::default())
    }

    /// Whether a successor can go on with this directory.
    ///
    /// # Errors
    /// It is not what it was.
    pub fn check_adoptable(&self, owner: &Owner) -> Result<(), PrivateError> {
        Self::check_whole(&self.path, &self.root, &self.lock, owner)
    }

    fn check_whole(
        path: &Path,
        root: &OwnedFd,
        lock: &OwnedFd,
        owner: &Owner,
    ) -> Result<(), PrivateError> {
        let io = |what| move |errno| PrivateError::Io { path: path.to_owned(), what, errno };
        Self::check_format(path, root, owner)?;
        let held = rustix::fs::fstat(lock).map_err(io("its lock"))?;
        let named = backing::stat_at(root, b"lock").map_err(io("its lock"))?;
        if (held.st_dev, held.st_ino) != (named.st_dev, named.st_ino) {
            return Err(io("its lock is another")(Errno::STALE));
        }
        for name in [UPPER, WORK, WHITEOUTS, JOURNAL, BORROWED] {
            backing::open_directory(root, name).map_err(io("cannot be opened"))?;
        }
        Ok(())
    }

    /// The directory itself and its lock, to hand to a successor.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.root.as_fd(), self.lock.as_fd()]
    }

    fn of(path: &Path, root: OwnedFd, lock: OwnedFd, disk: Disk) -> Result<Private, PrivateError> {
        let io = |what| move |errno| PrivateError::Io { path: path.to_owned(), what, errno };
        let open = |name| backing::open_directory(&root, name).map_err(io("cannot be opened"));
        let private = Private {
            disk,
            path: path.to_owned(),
            upper: open(UPPER)?,
            work: open(WORK)?,
            whiteouts: open(WHITEOUTS)?,
            root,
            sequence: AtomicU64::new(1),
            hidden: Mutex::default(),
            last_marked: Mutex::default(),
            loans: borrowed::Registry::default(),
            lock,
        };
        private.probe_xattrs()?;
        private.recover()?;
        private.load_loans().map_err(io("its borrowed files cannot be read"))?;
        let units = markers::load_all(&private.root).map_err(io("white-outs cannot be read"))?;
        private.hidden.lock().expect("no panic while held").units = units;
        Ok(private)
    }

    fn lock(path: &Path, root: &OwnedFd) -> Result<OwnedFd, PrivateError> {
        let io =
            |errno| PrivateError::Io { path: path.to_owned(), what: "cannot be locked", errno };
        Self::check_own(path, root)?;
        let flags = OFlags::RDWR | OFlags::CREATE;
        let lock =
            backing::open_beneath(root, b"lock", flags, Mode::from_raw_mode(0o600)).map_err(io)?;
        match lock_patiently(&lock).map_err(io)? {
            true => Ok(lock),
            false => Err(PrivateError::Locked(path.to_owned())),
        }
    }

    /// Refuses a directory with files of somebody else.
    ///
    /// # Errors
    /// It has such, or cannot be read.
    pub fn check_foreign(path: &Path) -> Result<(), PrivateError> {
        let io =
            |errno| PrivateError::Io { path: path.to_owned(), what: "cannot be opened", errno };
        Self::check_own(path, &backing::open_root(path).map_err(io)?)
    }

    fn check_own(path: &Path, root: &OwnedFd) -> Result<(), PrivateError> {
        let io = |errno| PrivateError::Io { path: path.to_owned(), what: "cannot be read", errno };
        let names = backing::list(root).map_err(io)?;
        let known = |name: &[u8]| {
            matches!(name, b"format" | b"owner" | b"lock" | b"vlfs.log" | b"lost+found")
                || [UPPER, WORK, WHITEOUTS, JOURNAL, BORROWED, FORMAT_NEW].contains(&name)
        };
        let has_format = names.iter().any(|name| &*name.name == b"format");
        if !has_format && names.iter().any(|name| !known(&name.name)) {
            return Err(PrivateError::Foreign(path.to_owned()));
        }
        Ok(())
    }

    /// Opens and locks a private directory that exists and is not mounted.
    pub(crate) fn lock_unmounted<E: From<PrivateError>>(
        path: &Path,
        none: impl Fn(PathBuf) -> E,
    ) -> Result<(OwnedFd, OwnedFd), E> {
        let error = |errno| {
            E::from(PrivateError::Io { path: path.to_owned(), what: "cannot be opened", errno })
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(error)?;
        if !is_private_directory(&root).map_err(error)? {
            return Err(none(path.to_owned()));
        }
        let lock = Self::lock(path, &root)?;
        Ok((root, lock))
    }

    /// Makes a directory that is empty one of Strata's.
    fn make_format(
        disk: &Disk,
        path: &Path,
        root: &OwnedFd,
        owner: &Owner,
    ) -> Result<(), PrivateError> {
        let io = |errno| PrivateError::Io { path: path.to_owned(), what: "format", errno };
        match read_small(root, b"format") {
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(io(errno)),
            Ok(_) => return Ok(()),
        }
        write_small(disk, root, b"owner", format!("{owner}\n").as_bytes()).map_err(io)?;
        // Whole or not at all: an empty one would be of a format that nobody knows.
        write_small(disk, root, FORMAT_NEW, FORMAT.as_bytes()).map_err(io)?;
        disk.rename((root, FORMAT_NEW), (root, b"format"), RenameFlags::empty()).map_err(io)?;
        disk.sync(root).map_err(io)
    }

    fn check_format(path: &Path, root: &OwnedFd, owner: &Owner) -> Result<(), PrivateError> {
        let io = |errno| PrivateError::Io { path: path.to_owned(), what: "format", errno };
        let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match read_small(root, b"format") {
            Err(errno) => return Err(io(errno)),
            Ok(found) if found != FORMAT.as_bytes() => {
                return Err(PrivateError::Format { path: path.to_owned(), found: lossy(&found) });
            }
            Ok(_) => {}
        }
        let found = lossy(&read_small(root, b"owner").map_err(io)?);
        if found.trim_end() != owner.to_string() {
            let (path, found) = (path.to_owned(), found.trim_end().to_owned());
            return Err(PrivateError::Owner { path, found, expected: owner.clone() });
        }
        Ok(())
    }

    fn probe_xattrs(&self) -> Result<(), PrivateError> {
        let path = backing::path_of(&self.root, WORK);
        self.disk
            .set_xattr(&path, INO_XATTR, b"0", XattrFlags::empty())
            .map_err(|errno| PrivateError::Xattrs { path: self.path.clone(), errno })
    }

    /// Finishes journaled steps and throws away half-made objects.
    fn recover(&self) -> Result<(), PrivateError> {
        let io = |errno| PrivateError::Io {
            path: self.path.clone(),
            what: "an interrupted change cannot be finished",
            errno,
        };
        for name in journal::pending(&self.root).map_err(io)? {
            let steps = journal::read(&self.root, &name).map_err(io)?;
            let Some(steps) = steps else {
                let name = String::from_utf8_lossy(&name).into_owned();
                return Err(PrivateError::Journal { path: self.path.clone(), name });
            };
            tracing::info!(steps = steps.len(), "finishing a change that a crash interrupted");
            journal::finish(self, &steps).map_err(io)?;
            journal::remove(self, &name).map_err(io)?;
        }
        for entry in backing::list(&self.work).map_err(io)? {
            self.disk.remove_tree(&self.work, &entry.name).map_err(io)?;
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    pub(crate) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// A name in `work/` (and in `journal/`) that nobody else uses.
    pub fn next_name(&self) -> Vec<u8> {
        self.sequence.fetch_add(1, Ordering::Relaxed).to_string().into_bytes()
    }

    /// Removes a half-made object from `work/`, after a failure that is reported.
    pub fn discard(&self, name: &[u8]) {
        let removed = match backing::stat_at(&self.work, name) {
            Ok(stat) => self.disk.remove_tree(&self.work, name).and(self.end_loan(stat.st_ino)),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            tracing::warn!(%error, "a half-made copy stays until the next mount");
        }
    }

    /// Performs steps that belong together: after a crash, none or all are done,
    /// and after a failure none.
    ///
    /// # Errors
    /// `EEXIST`: the place of a step is taken. The disk fails or is full.
    pub fn transact(&self, steps: &[journal::Step]) -> Result<(), Errno> {
        let entry = match steps {
            [] | [_] => None,
            _ => Some(journal::write(self, &self.next_name(), steps)?),
        };
        for (index, step) in steps.iter().enumerate() {
            if let Err(error) = journal::perform(self, step) {
                for done in steps[..index].iter().rev() {
                    journal::undo(self, done)?;
                }
                if let Some(name) = entry {
                    journal::remove(self, &name)?;
                }
                return Err(error);
            }
        }
        // They are done, whatever is left of the entry.
        if let Some(name) = entry
            && let Err(error) = journal::remove(self, &name)
        {
            tracing::error!(%error, "a finished change stays in the journal");
        }
        Ok(())
    }

    pub(crate) fn whiteouts(&self) -> &OwnedFd {
        &self.whiteouts
    }

    /// Flushes everything of the private layer to its disk.
    pub fn sync(&self) -> Result<(), Errno> {
        self.disk.sync_file_system(&self.root)
    }
}

pub(crate) fn os(name: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(name)
}

pub(crate) fn write_small(
    disk: &Disk,
    directory: &OwnedFd,
    name: &[u8],
    content: &[u8],
) -> Result<(), Errno> {
    // A FIFO that stands there must not be waited for.
    let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NONBLOCK;
    let fd = disk.create(directory, name, flags, Mode::from_raw_mode(0o644))?;
    write_all(disk, &fd, content)?;
    disk.sync(&fd)
}

pub(crate) fn write_all(disk: &Disk, fd: &OwnedFd, content: &[u8]) -> Result<(), Errno> {
    let mut rest = content;
    while !rest.is_empty() {
        match disk.write(fd, rest) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
