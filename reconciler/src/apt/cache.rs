//! What was fetched from apt's sources. All imports of a machine share it, at the same time.
//!
//! A file appears in `lists/` or `archives/` under its name by one rename, whole and checked,
//! and any import may take it out again. So what an import is using has another name besides,
//! in a directory of that import's own, `.import-…/`: a hard link to each package until it is a
//! layer, and the releases, which are fetched anew each time. The next import removes what a
//! killed one left of these.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FlockOperation;

use super::AptError;

/// What the directory of one import is called, before what tells it from others.
const PREFIX: &str = ".import-";

/// The cache and this import's part of it, which goes with the last clone.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
    own: Arc<OwnDirectory>,
}

#[derive(Debug)]
struct OwnDirectory {
    path: PathBuf,
    /// Held locked, so that a sweep can tell the living from the dead.
    _lock: File,
}

impl Cache {
    /// # Errors
    /// Its directories cannot be made, or what killed imports left cannot be looked at.
    pub fn open(root: &Path) -> Result<Self, AptError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| AptError::Read { path, source }
        };
        for directory in ["lists", "archives"].map(|name| root.join(name)) {
            fs::create_dir_all(&directory).map_err(at(&directory))?;
        }
        sweep(root).map_err(at(root))?;
        let own = loop {
            if let Some(own) = OwnDirectory::make(root).map_err(at(root))? {
                break Arc::new(own);
            }
        };
        Ok(Cache { root: root.to_owned(), own })
    }

    pub(super) fn lists(&self) -> PathBuf {
        self.root.join("lists")
    }

    pub(super) fn archives(&self) -> PathBuf {
        self.root.join("archives")
    }

    /// A place that no other import knows.
    pub(super) fn own(&self, name: &str) -> PathBuf {
        self.own.path.join(name)
    }

    /// Holds all imports but this one off what was seen of releases.
    pub(super) fn lock_lists(&self) -> Result<File, AptError> {
        let path = self.lists();
        let lock = || -> io::Result<File> {
            let directory = File::open(&path)?;
            rustix::fs::flock(&directory, FlockOperation::LockExclusive)?;
            Ok(directory)
        };
        lock().map_err(|source| AptError::Read { path: path.clone(), source })
    }

    /// Gives a package of the cache a name that no other import takes away.
    ///
    /// # Errors
    /// It is not there (any more), or the link cannot be made.
    pub(super) fn keep(&self, archive: &Path) -> io::Result<PathBuf> {
        let own = self.own(&archive.file_name().unwrap_or_default().to_string_lossy());
        fs::hard_link(archive, &own)?;
        Ok(own)
    }

    /// Removes a package that is a layer now, from what all share as well unless it `stays`.
    pub fn forget(&self, archive: &Path, stays: bool) {
        let own = self.own(&archive.file_name().unwrap_or_default().to_string_lossy());
        let shared = (!stays).then_some(archive);
        for path in [Some(own.as_path()), shared].into_iter().flatten() {
            match fs::remove_file(path) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a package stays in the cache");
                }
            }
        }
    }
}

impl OwnDirectory {
    /// `None` where a sweep took it in the instant before it was locked.
    fn make(root: &Path) -> io::Result<Option<Self>> {
        let path = tempfile::Builder::new().prefix(PREFIX).tempdir_in(root)?.keep();
        let lock = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        if !path.exists() {
            return Ok(None);
        }
        Ok(Some(OwnDirectory { path, _lock: lock }))
    }
}

impl Drop for OwnDirectory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "an import's part of the cache stays");
        }
    }
}

/// Removes what killed imports left of their own.
fn sweep(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) || !entry.file_type()?.is_dir()
        {
            continue;
        }
        // Its import may be ending at this very moment.
        let Ok(directory) = File::open(entry.path()) else { continue };
        if rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        match fs::remove_dir_all(entry.path()) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("listed");
        let name = |entry: io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
        let mut names: Vec<_> =
            entries.map(|entry| name(entry).to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_an_import_keeps_no_other_takes_away() {
        let root = tempfile::tempdir().expect("a directory");
        let [first, second] = [(), ()].map(|()| Cache::open(root.path()).expect("opened"));
        let archive = first.archives().join("a.deb");
        fs::write(&archive, "whole").expect("written");
        let [ours, theirs] = [&first, &second].map(|cache| cache.keep(&archive).expect("kept"));
        second.forget(&archive, false);
        assert!(!archive.exists() && !theirs.exists());
        assert_eq!(fs::read_to_string(&ours).expect("still there"), "whole");
        assert_eq!(first.keep(&archive).expect_err("gone").kind(), ErrorKind::NotFound);
        first.forget(&archive, false);
        fs::write(&archive, "again").expect("written");
        first.keep(&archive).expect("kept");
        first.forget(&archive, true);
        assert!(archive.exists(), "it is to stay");
    }

    #[test]
    fn the_living_keep_their_directories_and_the_dead_do_not() {
        let root = tempfile::tempdir().expect("a directory");
        let living = Cache::open(root.path()).expect("opened");
        let dead = root.path().join(format!("{PREFIX}dead"));
        fs::create_dir(&dead).expect("made");
        fs::write(dead.join("a.deb"), "").expect("written");
        let other = Cache::open(root.path()).expect("opened");
        assert!(!dead.exists() && living.own.path.exists() && other.own.path.exists());
        drop((living, other));
        assert_eq!(names(root.path()), ["archives", "lists"]);
    }
}
