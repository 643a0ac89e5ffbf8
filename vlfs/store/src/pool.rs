//! Identical files of different layer units, stored once.
//!
//! `pool/<2 digits>/<key>` is one more name of a file that some unit has. Where the disk
//! can, a further file with the same content keeps its own inode and shares the blocks
//! (reflink), and the key is a hash of the content. Elsewhere a further unit with the same file gets one more name of
//! the same inode. An inode has one owner, mode, time and set of attributes, so the key is a hash of all
//! these and the content, and two files of one unit never become one: its own hard links, which its
//! manifest lists, stay what they are. What is shared is compared byte for byte before, so a
//! damaged file does not spread. How many names an inode has on the disk nobody sees
//! in a VA: link counts are the manifest's.
//!
//! Sharing is never needed: where it fails (another file system, no permission, no
//! more links to an inode) the unit keeps its own file. An object whose unit is gone has one
//! name, and is swept; files that share its blocks keep them. `pool/` is open to its owner only, so that it leads
//! nobody around the permissions of a repository.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;
use strata_core::Digest;
use strata_core::manifest::{Entry, Kind, Manifest, Timestamp, file_name, parent_path};

use crate::error::{Context, StoreError};
use crate::read::optional;
use crate::store::Store;
use crate::temporary;

/// What files that are alike can have in common on this disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Common {
    Blocks,
    Inode,
}

impl Common {
    /// Bytes of the smallest files that are shared. That small files of two units have the same
    /// attributes, too, is so rare that it costs more to look for than the blocks that it saves.
    fn smallest(self) -> u64 {
        match self {
            Common::Blocks => 1,
            Common::Inode => 4096,
        }
    }
}

/// What sharing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shared {
    /// Files that now share with another unit.
    pub files: u64,
    pub bytes: u64,
}

/// What a sweep of the pool removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    pub objects: u64,
    pub bytes: u64,
}

impl Store {
    fn pool(&self) -> PathBuf {
        self.root().join("pool")
    }

    /// Shares the files of a unit with those of other units. What cannot be shared
    /// stays as it is and is told in the log.
    pub(crate) fn share(&self, unit: &Path, manifest: &Manifest) -> Shared {
        let mut shared = Shared::default();
        let mut seen = BTreeSet::new();
        let root = match open_directory(&unit.join("filesystem")) {
            Ok(root) => root,
            Err(error) => {
                tracing::warn!(unit = %unit.display(), %error, "its files are not shared");
                return shared;
            }
        };
        let common = match self.common() {
            Ok(common) => common,
            Err(error) => {
                tracing::debug!(unit = %unit.display(), %error, "its files are not shared");
                return shared;
            }
        };
        for entry in manifest.entries() {
            let Kind::Regular { size, digest } = &entry.kind else { continue };
            let key = key(entry, digest, common);
            let is_second = common == Common::Inode && !seen.insert(key);
            if *size < common.smallest() || entry.link_count != 1 || is_second {
                continue;
            }
            match self.share_file(&root, entry, &key, common, manifest) {
                Ok(true) => {
                    shared.files += 1;
                    shared.bytes += *size;
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(unit = %unit.display(), %error, "a file is not shared");
                    if gives_up(&error) {
                        break;
                    }
                }
            }
        }
        shared
    }

    /// Shares the files of a unit that is in its repository already.
    ///
    /// # Errors
    /// The unit cannot be read.
    pub fn share_unit(
        &self,
        entry: &strata_core::generation::LayerSetEntry,
    ) -> Result<Shared, StoreError> {
        let opened = self.open_unit(entry)?;
        Ok(self.share(&opened.path, &opened.manifest))
    }

    /// What this disk can.
    fn common(&self) -> Result<Common, StoreError> {
        // Where objects are, so that what a crash leaves of the question is swept like theirs.
        let directory = self.pool().join("00");
        self.make_private(&directory)?;
        let can_clone = self.disk.can_clone(&directory)?;
        Ok(if can_clone { Common::Blocks } else { Common::Inode })
    }

    /// Makes a directory of the pool, which is its owner's alone.
    fn make_private(&self, directory: &Path) -> Result<(), StoreError> {
        if directory.is_dir() {
            return Ok(());
        }
        self.disk.create_directory(directory)?;
        let private = fs::Permissions::from_mode(0o700);
        let pool = self.pool();
        fs::set_permissions(&pool, private).at("change the mode of", &pool)
    }

    /// Whether the file shares with another one now and did not before.
    fn share_file(
        &self,
        root: &OwnedFd,
        entry: &Entry,
        key: &Digest,
        common: Common,
        manifest: &Manifest,
    ) -> Result<bool, StoreError> {
        let key = key.to_string();
        let directory = self.pool().join(&key[..2]);
        let object = directory.join(&key);
        let place = Place::of(root, entry).at("open", &object)?;
        let own = place.stat().at("stat", &object)?;
        let pooled = optional(fs::symlink_metadata(&object).at("stat", &object))?;
        match pooled {
            Some(pooled) if (pooled.dev(), pooled.ino()) == (own.st_dev, own.st_ino) => {
                return Ok(false);
            }
            Some(_) if place.equals(&object, entry, common) => {}
            Some(_) => {
                tracing::warn!(object = %object.display(), "a damaged file of the pool is dropped");
                self.disk.remove_file(&object)?;
                return self.pool_file(&directory, &object, &place);
            }
            None => return self.pool_file(&directory, &object, &place),
        }
        let temporary = temporary::beside(&object);
        match common {
            Common::Blocks if self.clone_file(&object, &temporary, entry)? => {}
            Common::Blocks => return Ok(false),
            Common::Inode => match self.disk.hard_link(&object, &temporary) {
                // So many units have it that the inode takes no more names.
                Err(StoreError::Io { source, .. }) if is(&source, Errno::MLINK) => {
                    self.disk.remove_file(&object)?;
                    return self.pool_file(&directory, &object, &place);
                }
                linked => linked?,
            },
        }
        let replaced = self.disk.move_into(&temporary, &place.directory, place.name);
        let above = manifest.get(parent_path(&entry.path).unwrap_or(&[]));
        if let Some(above) = above {
            set_time(&place.directory, above.mtime).at("set the times of", &object)?;
        }
        replaced.map(|()| true)
    }

    /// Gives a unit's file its name in the pool.
    fn pool_file(
        &self,
        directory: &Path,
        object: &Path,
        place: &Place<'_>,
    ) -> Result<bool, StoreError> {
        self.make_private(directory)?;
        match self.disk.hard_link(&place.path(), object) {
            Err(StoreError::Io { source, .. }) if is(&source, Errno::EXIST) => Ok(false),
            linked => linked.map(|()| false),
        }
    }

    /// Makes a file of its own with the object's blocks; false where the disk cannot.
    fn clone_file(&self, object: &Path, new: &Path, entry: &Entry) -> Result<bool, StoreError> {
        let source = File::open(object).at("open", object)?;
        match self.disk.clone_file(&source, new) {
            Ok(Some(file)) => {
                let dressed = dress(&file, entry).at("set the attributes of", new);
                if dressed.is_err() {
                    self.disk.remove_file(new)?;
                }
                dressed.map(|()| true)
            }
            Ok(None) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes the objects of the pool that no unit has any more, and what crashed
    /// writers left. With `remove` false, counts them only.
    ///
    /// # Errors
    /// The pool cannot be read.
    pub fn sweep_pool(&self, remove: bool) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        let pool = self.pool();
        let Some(directories) = optional(fs::read_dir(&pool).at("list", &pool))? else {
            return Ok(swept);
        };
        for directory in directories {
            let directory = directory.at("list", &pool)?.path();
            if remove {
                temporary::sweep(&directory)?;
            }
            for object in fs::read_dir(&directory).at("list", &directory)? {
                let object = object.at("list", &directory)?;
                let hidden = object.file_name().as_bytes().starts_with(b".");
                let metadata = optional(object.metadata().at("stat", &object.path()))?;
                let Some(metadata) = metadata.filter(|found| found.nlink() == 1 && !hidden) else {
                    continue;
                };
                swept.objects += 1;
                swept.bytes += metadata.len();
                if remove {
                    let path = object.path();
                    optional(fs::remove_file(&path).at("remove", &path))?;
                }
            }
        }
        Ok(swept)
    }
}

/// Errors that the next file would meet as well.
fn gives_up(error: &StoreError) -> bool {
    match error {
        StoreError::Io { source, .. } => {
            [Errno::XDEV, Errno::ACCESS, Errno::ROFS, Errno::NOSPC, Errno::OPNOTSUPP]
                .iter()
                .any(|errno| is(source, *errno))
        }
        _ => false,
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// What files must have in common to share that much.
fn key(entry: &Entry, digest: &Digest, common: Common) -> Digest {
    if common == Common::Blocks {
        return *digest;
    }
    let Timestamp { seconds, nanoseconds } = entry.mtime;
    let (mode, uid, gid) = (entry.mode, entry.uid, entry.gid);
    let mut text =
        format!("strata-pool 1\n{digest} {mode:o} {uid} {gid} {seconds}.{nanoseconds:09}\n");
    for (name, value) in &entry.xattrs {
        text.push_str(&format!("{} {}\n", Digest::of(name), Digest::of(value)));
    }
    Digest::of(text.as_bytes())
}

fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// A file of a unit: its directory, opened without following a link, and its name.
struct Place<'e> {
    directory: OwnedFd,
    name: &'e OsStr,
}

impl<'e> Place<'e> {
    fn of(root: &OwnedFd, entry: &'e Entry) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let above = match parent_path(&entry.path) {
            None | Some([]) => b".".as_slice(),
            Some(above) => above,
        };
        let directory = rustix::fs::openat2(root, above, flags, Mode::empty(), resolve)?;
        Ok(Place { directory, name: OsStr::from_bytes(file_name(&entry.path)) })
    }

    fn stat(&self) -> Result<rustix::fs::Stat, Errno> {
        rustix::fs::statat(&self.directory, self.name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
    }

    fn open(&self) -> Result<File, Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        rustix::fs::openat(&self.directory, self.name, flags, Mode::empty()).map(File::from)
    }

    /// A path of it that follows no link of the unit's.
    fn path(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        let directory = format!("/proc/self/fd/{}", self.directory.as_raw_fd());
        Path::new(&directory).join(self.name)
    }

    /// Whether the object has the content and, if need be, the attributes that the entry says.
    fn equals(&self, object: &Path, entry: &Entry, common: Common) -> bool {
        let compare = || -> io::Result<bool> {
            let (mut own, mut other) = (self.open()?, File::open(object)?);
            let is_like = common == Common::Blocks || described(&other, entry)?;
            Ok(is_like && same_bytes(&mut own, &mut other)?)
        };
        compare().unwrap_or(false)
    }
}

/// Whether owner, mode, time and extended attributes are the entry's.
fn described(file: &File, entry: &Entry) -> io::Result<bool> {
    let found = file.metadata()?;
    let time = (found.mtime(), found.mtime_nsec());
    let expected = (entry.mtime.seconds, i64::from(entry.mtime.nanoseconds));
    let plain = found.is_file()
        && (found.mode() & 0o7777, found.uid(), found.gid()) == (entry.mode, entry.uid, entry.gid)
        && time == expected;
    if !plain {
        return Ok(false);
    }
    let mut list = vec![0; 64 << 10];
    let length = match rustix::fs::flistxattr(file, &mut list[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    // The host's policy labels files as it likes.
    let names: Vec<_> = names.filter(|name| *name != b"security.selinux").collect();
    if names.len() != entry.xattrs.len() {
        return Ok(false);
    }
    let mut value = vec![0; 64 << 10];
    for (name, expected) in &entry.xattrs {
        match rustix::fs::fgetxattr(file, OsStr::from_bytes(name), &mut value[..]) {
            Ok(length) if value[..length] == expected[..] => {}
            Ok(_) | Err(Errno::NODATA) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(true)
}

fn same_bytes(one: &mut File, other: &mut File) -> io::Result<bool> {
    let (mut a, mut b) = (vec![0; 128 << 10], vec![0; 128 << 10]);
    loop {
        let length = read_full(one, &mut a)?;
        if read_full(other, &mut b)? != length || a[..length] != b[..length] {
            return Ok(false);
        }
        if length == 0 {
            return Ok(true);
        }
    }
}

fn read_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Gives a new file the attributes of the entry: owner before mode before
/// capabilities, as each takes away from the next.
fn dress(file: &File, entry: &Entry) -> io::Result<()> {
    std::os::unix::fs::fchown(file, Some(entry.uid), Some(entry.gid))?;
    file.set_permissions(fs::Permissions::from_mode(entry.mode))?;
    for (name, value) in &entry.xattrs {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::fsetxattr(file, OsStr::from_bytes(name), value, flags)?;
    }
    Ok(set_time(file, entry.mtime)?)
}

fn set_time(file: impl AsFd, mtime: Timestamp) -> Result<(), Errno> {
    let time = Timespec { tv_sec: mtime.seconds, tv_nsec: i64::from(mtime.nanoseconds) };
    let access = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    rustix::fs::futimens(file, &Timestamps { last_access: access, last_modification: time })
}
