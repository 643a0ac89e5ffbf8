//! The one place that writes into a store.
//!
//! Each operation is a sequence of numbered steps in the order content, sync,
//! rename, sync of the directory. [`Disk::failing_at`] makes step *n* and all
//! later ones fail, which leaves on disk just what a crash before that step
//! would have left: tests run every operation once for each of its steps.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::error::{Context, StoreError};
use crate::temporary;

/// How much was written since the store was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Writes {
    /// `rename(2)` calls: files, links and directories put into place.
    pub renames: u64,
    /// Links and directories made or removed without a rename.
    pub entries: u64,
}

/// The writer. Counts its renames; can be told to fail at a step.
#[derive(Debug)]
pub struct Disk {
    step: AtomicU64,
    fail_at: Option<u64>,
    renames: AtomicU64,
    entries: AtomicU64,
    /// The disk was found not to share blocks between files.
    no_clones: AtomicBool,
}

impl Default for Disk {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Disk {
    fn new(fail_at: Option<u64>) -> Self {
        Disk {
            step: AtomicU64::new(0),
            fail_at,
            renames: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            no_clones: AtomicBool::new(false),
        }
    }

    /// A disk whose step `step` (from 0) and all later ones fail.
    pub fn failing_at(step: u64) -> Self {
        Self::new(Some(step))
    }

    /// The number of steps taken or refused so far.
    pub fn steps(&self) -> u64 {
        self.step.load(Ordering::Relaxed)
    }

    pub fn writes(&self) -> Writes {
        Writes {
            renames: self.renames.load(Ordering::Relaxed),
            entries: self.entries.load(Ordering::Relaxed),
        }
    }

    fn step(&self) -> io::Result<()> {
        let step = self.step.fetch_add(1, Ordering::Relaxed);
        match self.fail_at {
            Some(fail_at) if step >= fail_at => {
                Err(io::Error::other(format!("injected failure at step {step}")))
            }
            _ => Ok(()),
        }
    }

    /// Writes a whole file: the old content or the new is there, never a part.
    ///
    /// # Errors
    /// Any step failed; the old file stands.
    pub fn write_file(&self, path: &Path, content: &[u8], mode: u32) -> Result<(), StoreError> {
        let temporary = temporary::beside(path);
        let written = self.write_and_rename(&temporary, path, content, mode);
        self.clean_up(written.is_err(), &temporary);
        written
    }

    fn write_and_rename(
        &self,
        temporary: &Path,
        path: &Path,
        content: &[u8],
        mode: u32,
    ) -> Result<(), StoreError> {
        self.step().at("create", temporary)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::open(temporary, flags, Mode::from_raw_mode(mode))
            .at("create", temporary)?;
        let mut file = File::from(file);
        self.step().at("write", temporary)?;
        file.write_all(content).at("write", temporary)?;
        self.step().at("sync", temporary)?;
        file.sync_all().at("sync", temporary)?;
        self.rename(temporary, path, RenameFlags::empty())
    }

    /// Adds to the end of a file that has `length` bytes, and waits until that is on
    /// disk. After a crash a part of `content` may stand there.
    ///
    /// # Errors
    /// The file is not there or has another length, or a step failed: then it is cut
    /// back to its length, where that can be done.
    pub fn append(&self, path: &Path, length: u64, content: &[u8]) -> Result<(), StoreError> {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(path, flags, Mode::empty()).at("open", path)?;
        let mut file = File::from(file);
        if file.metadata().at("stat", path)?.len() != length {
            let error = io::Error::other("another process has written to it");
            return Err(error).at("append to", path);
        }
        let (first, second) = content.split_at(content.len() / 2);
        // Two steps, so that a test can stop in the middle.
        let written = [first, second].into_iter().try_for_each(|part| {
            self.step()?;
            file.write_all(part)
        });
        let done = written.and_then(|()| {
            self.step()?;
            file.sync_data()
        });
        if done.is_err()
            && self.fail_at.is_none()
            && let Err(error) = file.set_len(length)
        {
            tracing::warn!(path = %path.display(), %error, "a part of a line stays");
        }
        done.at("append to", path)
    }

    /// Puts a symbolic link in place, instead of what stands there.
    ///
    /// # Errors
    /// Any step failed; the old link stands.
    pub fn replace_link(&self, path: &Path, target: &Path) -> Result<(), StoreError> {
        let temporary = temporary::beside(path);
        let replaced = self
            .step()
            .and_then(|()| std::os::unix::fs::symlink(target, &temporary))
            .at("link", &temporary)
            .and_then(|()| self.rename(&temporary, path, RenameFlags::empty()));
        self.clean_up(replaced.is_err(), &temporary);
        replaced
    }

    /// Makes a symbolic link where nothing stands, without a sync: `EEXIST` tells
    /// two claimants apart. Follow a batch with [`Disk::sync_file_system`].
    ///
    /// # Errors
    /// Something stands there, or the link cannot be made.
    pub fn create_link(&self, path: &Path, target: &Path) -> Result<(), StoreError> {
        self.step().at("link", path)?;
        std::os::unix::fs::symlink(target, path).at("link", path)?;
        self.entries.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Makes a file where nothing stands, without a sync. Follow a batch with
    /// [`Disk::sync_file_system`].
    ///
    /// # Errors
    /// Something stands there, or the file cannot be made.
    pub fn create_file(&self, path: &Path, content: &[u8], mode: u32) -> Result<(), StoreError> {
        self.step().at("create", path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::from_raw_mode(mode)).at("create", path)?;
        self.step().at("write", path)?;
        File::from(file).write_all(content).at("write", path)?;
        self.entries.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Removes a file or link; it is no error that nothing stands there.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove_file(&self, path: &Path) -> Result<(), StoreError> {
        self.step().at("remove", path)?;
        match fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).at("remove", path),
        }
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.sync_parent(path)
    }

    /// Makes a directory; it is no error that it is there already.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create_directory(&self, path: &Path) -> Result<(), StoreError> {
        if path.is_dir() {
            return Ok(());
        }
        self.step().at("create", path)?;
        fs::create_dir_all(path).at("create", path)?;
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.sync_parent(path)
    }

    /// Puts a finished directory in place, whole, where nothing stands: its
    /// content is on disk before its name is.
    ///
    /// # Errors
    /// Something stands there, or a step failed.
    pub fn publish_directory(&self, staged: &Path, path: &Path) -> Result<(), StoreError> {
        self.sync_file_system(staged)?;
        self.rename(staged, path, RenameFlags::NOREPLACE)
    }

    /// Puts finished directories in place as [`Disk::publish_directory`] does, all
    /// with one sync of their contents and one of the directory they are in: it
    /// must be the same for all.
    ///
    /// # Errors
    /// Something stands at one of the places, or a step failed; those before it
    /// are in place.
    pub fn publish_directories(&self, places: &[(&Path, &Path)]) -> Result<(), StoreError> {
        let Some((staged, path)) = places.first() else { return Ok(()) };
        self.sync_file_system(staged)?;
        for (staged, path) in places {
            self.step().at("rename", path)?;
            rustix::fs::renameat_with(CWD, *staged, CWD, *path, RenameFlags::NOREPLACE)
                .at("rename", path)?;
            self.renames.fetch_add(1, Ordering::Relaxed);
        }
        self.sync_parent(path)
    }

    /// Puts a finished directory in the place of another, in one step; what stood
    /// there stands at `staged` then.
    ///
    /// # Errors
    /// Nothing stands there, or a step failed.
    pub fn exchange_directory(&self, staged: &Path, path: &Path) -> Result<(), StoreError> {
        self.sync_file_system(staged)?;
        self.rename(staged, path, RenameFlags::EXCHANGE)
    }

    /// Gives a file one more name, without a sync.
    ///
    /// # Errors
    /// Something stands there, or the file takes no more names.
    pub fn hard_link(&self, path: &Path, name: &Path) -> Result<(), StoreError> {
        self.step().at("link", name)?;
        fs::hard_link(path, name).at("link", name)?;
        self.entries.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Makes a file that shares the blocks of another one, without a sync; `None`
    /// where the disk cannot.
    ///
    /// # Errors
    /// Something stands there, or it cannot be made.
    pub fn clone_file(&self, source: &File, path: &Path) -> Result<Option<File>, StoreError> {
        if self.no_clones.load(Ordering::Relaxed) {
            return Ok(None);
        }
        self.step().at("create", path)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o600)).at("create", path)?;
        let file = File::from(file);
        match rustix::fs::ioctl_ficlone(&file, source) {
            Ok(()) => {
                self.entries.fetch_add(1, Ordering::Relaxed);
                Ok(Some(file))
            }
            Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY) => {
                self.no_clones.store(true, Ordering::Relaxed);
                fs::remove_file(path).at("remove", path)?;
                Ok(None)
            }
            Err(error) => Err(error).at("clone into", path),
        }
    }

    /// Whether files in this directory can share their blocks with one another.
    ///
    /// # Errors
    /// No file can be made there.
    pub fn can_clone(&self, directory: &Path) -> Result<bool, StoreError> {
        if self.no_clones.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let [one, other] = ["one", "other"].map(|name| temporary::beside(&directory.join(name)));
        let made = File::create_new(&one).at("create", &one)?;
        let cloned = self.clone_file(&made, &other);
        self.clean_up(true, &one);
        self.clean_up(matches!(cloned, Ok(Some(_))), &other);
        cloned.map(|file| file.is_some())
    }

    /// Puts a finished file in the place of another one in an open directory, without
    /// a sync.
    ///
    /// # Errors
    /// It cannot be renamed; it is removed, and the other one stands.
    pub fn move_into(
        &self,
        file: &Path,
        directory: &impl AsFd,
        name: &std::ffi::OsStr,
    ) -> Result<(), StoreError> {
        let moved = self
            .step()
            .and_then(|()| Ok(rustix::fs::renameat(CWD, file, directory, name)?))
            .at("rename", file);
        self.clean_up(moved.is_err(), file);
        self.renames.fetch_add(1, Ordering::Relaxed);
        moved
    }

    /// Gives a directory a name that nobody reads, without a sync.
    ///
    /// # Errors
    /// It cannot be renamed.
    pub fn set_aside(&self, path: &Path, aside: &Path) -> Result<(), StoreError> {
        self.step().at("rename", path)?;
        rustix::fs::renameat_with(CWD, path, CWD, aside, RenameFlags::NOREPLACE)
            .at("rename", path)?;
        self.renames.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Waits until the entries of a directory are on disk.
    ///
    /// # Errors
    /// The file system reports a failed write.
    pub fn sync_directory(&self, path: &Path) -> Result<(), StoreError> {
        self.step().at("sync", path)?;
        File::open(path).and_then(|directory| directory.sync_all()).at("sync", path)
    }

    /// Seals an open file for good (fs-verity).
    ///
    /// # Errors
    /// As [`crate::verity::enable`].
    pub fn seal(&self, file: impl AsFd) -> io::Result<()> {
        self.step()?;
        Ok(crate::verity::enable(file)?)
    }

    /// Waits until everything written to the file system of `path` is on disk.
    ///
    /// # Errors
    /// The file system reports a failed write.
    pub fn sync_file_system(&self, path: &Path) -> Result<(), StoreError> {
        self.step().at("sync", path)?;
        let directory = File::open(path).at("open", path)?;
        rustix::fs::syncfs(directory.as_fd()).at("sync", path)
    }

    fn rename(&self, from: &Path, to: &Path, flags: RenameFlags) -> Result<(), StoreError> {
        self.step().at("rename", to)?;
        rustix::fs::renameat_with(CWD, from, CWD, to, flags).at("rename", to)?;
        self.renames.fetch_add(1, Ordering::Relaxed);
        self.sync_parent(to)
    }

    fn sync_parent(&self, path: &Path) -> Result<(), StoreError> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        // A plain name is one in the working directory.
        let here = parent.as_os_str().is_empty();
        self.sync_directory(if here { Path::new(".") } else { parent })
    }

    /// Removes a temporary file after a failure, unless a crash is being played.
    fn clean_up(&self, failed: bool, temporary: &Path) {
        if failed
            && self.fail_at.is_none()
            && let Err(error) = fs::remove_file(temporary)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %temporary.display(), %error, "a temporary file stays");
        }
    }
}
