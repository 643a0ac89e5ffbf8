//! Reading a tree of files: describing it, and copying it faithfully.
//!
//! The walk holds directories open and looks names up in them, so a link put
//! in the way while it runs is never followed. Every type of file is taken;
//! contents are streamed. Hard links are grouped within the tree: names outside
//! of it do not count. Of extended attributes only `security.selinux` is left
//! out: the host's policy sets it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use strata_core::limits;
use strata_core::manifest::{Kind, Manifest, Timestamp};

use crate::member::{MemberError, member_path, shown};
use crate::writer::{Attributes, TreeLimits, TreeWriter, WriteError};

#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("cannot {action} {path}: {errno}")]
    Read { action: &'static str, path: String, errno: Errno },
    #[error("{path}: {error}")]
    Path { path: String, error: MemberError },
    #[error("{path}: an extended attribute of more than {max} bytes", max = limits::XATTR_BYTES)]
    XattrTooLarge { path: String },
    #[error("{path} was replaced by something else while it was read")]
    Replaced { path: String },
    #[error("{path} is of a type that no layer holds")]
    Type { path: String },
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// The manifest of the tree below `root`, a directory.
///
/// # Errors
/// [`TreeError`], which names the path below `root`.
pub fn scan(root: &Path, limits: TreeLimits) -> Result<Manifest, TreeError> {
    let mut recorder = TreeWriter::recorder(limits);
    copy(root, &mut recorder)?;
    Ok(recorder.finish()?)
}

/// Copies the tree below `root` into `writer`.
///
/// # Errors
/// [`TreeError`], which names the path below `root`.
pub fn copy(root: &Path, writer: &mut TreeWriter) -> Result<(), TreeError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = fs::open(root, flags, Mode::empty()).map_err(|errno| TreeError::Read {
        action: "open",
        path: root.display().to_string(),
        errno,
    })?;
    let mut walk = Walk { writer, links: HashMap::new(), adjust: &mut |_, _| () };
    walk.directory(directory.as_fd(), b"")
}

/// A path of a tree that is to be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// Relative to the root.
    pub path: Vec<u8>,
    /// A regular file is to be there, without its content.
    pub emptied: bool,
}

/// Copies of the tree below `root` the selected paths, each alone (a directory
/// without what is in it), and the directories above them. `adjust` may change the
/// attributes of whatever is written. Returns the paths that are not there.
///
/// # Errors
/// [`TreeError`], which names the path below `root`.
pub fn copy_selected(
    root: &Path,
    selected: &[Selected],
    writer: &mut TreeWriter,
    adjust: &mut dyn FnMut(&[u8], &mut Attributes),
) -> Result<Vec<Vec<u8>>, TreeError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = fs::open(root, flags, Mode::empty()).map_err(|errno| TreeError::Read {
        action: "open",
        path: root.display().to_string(),
        errno,
    })?;
    let mut walk = Walk { writer, links: HashMap::new(), adjust };
    walk.own_directory(top.as_fd(), b"")?;
    let mut missing = Vec::new();
    for Selected { path, emptied } in selected {
        if !walk.single(top.as_fd(), path, *emptied)? {
            missing.push(path.clone());
        }
    }
    Ok(missing)
}

/// A name in an open directory as a path, for the calls that take no directory
/// descriptor (extended attributes of what cannot be opened).
pub(crate) fn node_path(parent: BorrowedFd<'_>, name: &OsStr) -> PathBuf {
    Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name)
}

struct Walk<'w> {
    writer: &'w mut TreeWriter,
    adjust: &'w mut dyn FnMut(&[u8], &mut Attributes),
    /// Device and inode of a file with several names → its first name here.
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl Walk<'_> {
    /// A directory without what is in it.
    fn own_directory(&mut self, directory: BorrowedFd<'_>, path: &[u8]) -> Result<(), TreeError> {
        let fail = |action| move |errno| failed(action, path, errno);
        let stat = fs::fstat(directory).map_err(fail("read the attributes of"))?;
        let xattrs = xattrs(path, &Place::Open(directory))?;
        let attributes = self.attributes(path, &stat, xattrs);
        Ok(self.writer.directory(path, attributes)?)
    }

    fn attributes(
        &mut self,
        path: &[u8],
        stat: &Stat,
        xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    ) -> Attributes {
        let mut attributes = attributes(stat, xattrs);
        (self.adjust)(path, &mut attributes);
        attributes
    }

    /// One path below `top`, and the directories above it that were not written yet.
    /// Returns whether it is there.
    fn single(
        &mut self,
        top: BorrowedFd<'_>,
        path: &[u8],
        emptied: bool,
    ) -> Result<bool, TreeError> {
        member_path(path).map_err(|error| TreeError::Path { path: shown(path), error })?;
        let mut parent =
            rustix::io::fcntl_dupfd_cloexec(top, 0).map_err(|errno| failed("open", path, errno))?;
        let mut end = 0;
        while let Some(length) = path[end..].iter().position(|byte| *byte == b'/') {
            let (name, above) =
                (OsStr::from_bytes(&path[end..end + length]), &path[..end + length]);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            parent = match fs::openat(&parent, name, flags, Mode::empty()) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
                open => open.map_err(|errno| failed("open", above, errno))?,
            };
            if self.writer.get(above).is_none() {
                self.own_directory(parent.as_fd(), above)?;
            }
            end += length + 1;
        }
        let name = OsStr::from_bytes(&path[end..]);
        let stat = match fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(false),
            stat => stat.map_err(|errno| failed("read the attributes of", path, errno))?,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let open = open_same(parent.as_fd(), name, path, &stat, OFlags::DIRECTORY)?;
                self.own_directory(open.as_fd(), path)?;
            }
            FileType::RegularFile if emptied => {
                let attributes = self.attributes(path, &stat, BTreeMap::new());
                self.writer.regular(path, attributes, 0, &mut std::io::empty())?;
            }
            _ => self.leaf(parent.as_fd(), name, path, &stat)?,
        }
        Ok(true)
    }

    fn directory(&mut self, directory: BorrowedFd<'_>, path: &[u8]) -> Result<(), TreeError> {
        let fail = |action| move |errno| failed(action, path, errno);
        self.own_directory(directory, path)?;
        for name in names(directory).map_err(fail("list"))? {
            let mut below = path.to_vec();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(name.as_bytes());
            member_path(&below).map_err(|error| TreeError::Path { path: shown(&below), error })?;
            self.entry(directory, &name, &below)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        path: &[u8],
    ) -> Result<(), TreeError> {
        let fail = |action| move |errno| failed(action, path, errno);
        let stat = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(fail("read the attributes of"))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let open = open_same(parent, name, path, &stat, OFlags::DIRECTORY)?;
            return self.directory(open.as_fd(), path);
        }
        self.leaf(parent, name, path, &stat)
    }

    /// Anything but a directory.
    fn leaf(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        path: &[u8],
        stat: &Stat,
    ) -> Result<(), TreeError> {
        let fail = |action| move |errno| failed(action, path, errno);
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                return Ok(self.writer.hard_link(path, first)?);
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.to_vec());
        }
        let (major, minor) = (fs::major(stat.st_rdev), fs::minor(stat.st_rdev));
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => return self.regular(parent, name, path, stat),
            FileType::Symlink => {
                let target = fs::readlinkat(parent, name, Vec::new()).map_err(fail("read"))?;
                Kind::Symlink { target: target.into_bytes() }
            }
            FileType::CharacterDevice => Kind::CharacterDevice { major, minor },
            FileType::BlockDevice => Kind::BlockDevice { major, minor },
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::Directory | FileType::Unknown => {
                return Err(TreeError::Type { path: shown(path) });
            }
        };
        let xattrs = xattrs(path, &Place::Named(node_path(parent, name)))?;
        let attributes = self.attributes(path, stat, xattrs);
        Ok(self.writer.node(path, attributes, kind)?)
    }

    fn regular(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        path: &[u8],
        stat: &Stat,
    ) -> Result<(), TreeError> {
        let open = open_same(parent, name, path, stat, OFlags::NONBLOCK)?;
        let xattrs = xattrs(path, &Place::Open(open.as_fd()))?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut file = File::from(open);
        let attributes = self.attributes(path, stat, xattrs);
        Ok(self.writer.regular(path, attributes, size, &mut file)?)
    }
}

fn failed(action: &'static str, path: &[u8], errno: Errno) -> TreeError {
    let path = if path.is_empty() { "/".to_owned() } else { shown(path) };
    TreeError::Read { action, path, errno }
}

/// Opens a name without following a link, and makes sure that it is still what
/// `stat` saw.
fn open_same(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    path: &[u8],
    stat: &Stat,
    flags: OFlags,
) -> Result<OwnedFd, TreeError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | flags;
    let open = fs::openat(parent, name, flags, Mode::empty())
        .map_err(|errno| failed("open", path, errno))?;
    let found = fs::fstat(&open).map_err(|errno| failed("read the attributes of", path, errno))?;
    if (found.st_dev, found.st_ino) != (stat.st_dev, stat.st_ino) {
        return Err(TreeError::Replaced { path: shown(path) });
    }
    Ok(open)
}

/// The names in a directory, sorted: hard links then name the same first file
/// on every machine.
fn names(directory: BorrowedFd<'_>) -> Result<BTreeSet<OsString>, Errno> {
    let mut names = BTreeSet::new();
    for entry in fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.insert(OsString::from_vec(name.to_vec()));
        }
    }
    Ok(names)
}

fn attributes(stat: &Stat, xattrs: BTreeMap<Vec<u8>, Vec<u8>>) -> Attributes {
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: Timestamp { seconds: stat.st_mtime, nanoseconds },
        xattrs,
    }
}

enum Place<'f> {
    Open(BorrowedFd<'f>),
    Named(PathBuf),
}

impl Place<'_> {
    /// Bytes of the list of names.
    fn list_length(&self) -> Result<usize, Errno> {
        match self {
            Place::Open(file) => fs::flistxattr_query(file),
            Place::Named(path) => fs::llistxattr_query(path),
        }
    }

    fn list(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Place::Open(file) => fs::flistxattr(file, buffer),
            Place::Named(path) => fs::llistxattr(path, buffer),
        }
    }

    fn get(&self, name: &OsStr, buffer: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Place::Open(file) => fs::fgetxattr(file, name, buffer),
            Place::Named(path) => fs::lgetxattr(path, name, buffer),
        }
    }
}

fn xattrs(path: &[u8], place: &Place<'_>) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, TreeError> {
    let mut attributes = BTreeMap::new();
    let length = match place.list_length() {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(attributes),
        Ok(length) => length,
        Err(errno) => return Err(failed("list the extended attributes of", path, errno)),
    };
    let mut list = vec![0; length];
    let length =
        place.list(&mut list).map_err(|e| failed("list the extended attributes of", path, e))?;
    for name in list[..length].split(|byte| *byte == 0) {
        if name.is_empty() || name == b"security.selinux" {
            continue;
        }
        let mut value = vec![0; limits::XATTR_BYTES];
        let length =
            place.get(OsStr::from_bytes(name), &mut value).map_err(|errno| match errno {
                Errno::RANGE => TreeError::XattrTooLarge { path: shown(path) },
                errno => failed("read an extended attribute of", path, errno),
            })?;
        value.truncate(length);
        attributes.insert(name.to_vec(), value);
    }
    Ok(attributes)
}
