//! Reading and writing files in the tree of an appliance from outside of it.
//!
//! The tree is made of other people's layers, so a path may lead through any
//! symbolic link: paths are resolved by the kernel with the tree's top as the root
//! (openat2(2), `RESOLVE_IN_ROOT`), and nothing outside of it is ever reached.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

#[derive(Debug, thiserror::Error)]
pub enum RootedError {
    #[error("cannot {action} {path} in the appliance's tree: {source}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{path} in the appliance's tree has more than {limit} bytes")]
    TooLarge { path: PathBuf, limit: u64 },
}

/// The top of a tree.
#[derive(Debug)]
pub struct Rooted {
    top: OwnedFd,
}

fn at<E: Into<std::io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> RootedError {
    move |error| RootedError::Io { action, path: path.to_owned(), source: error.into() }
}

impl Rooted {
    /// # Errors
    /// `root` is no directory.
    pub fn open(root: &Path) -> Result<Self, RootedError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Rooted { top: fs::open(root, flags, Mode::empty()).map_err(at("open", root))? })
    }

    fn resolve(&self, path: &Path, flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let opened = OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = if flags.contains(OFlags::PATH) { OFlags::empty() } else { opened };
        let flags = flags | OFlags::CLOEXEC | opened;
        fs::openat2(&self.top, path, flags, Mode::from_raw_mode(mode), resolve)
    }

    /// A regular file's content; `None` where there is no such file.
    ///
    /// # Errors
    /// It cannot be read or is larger than `limit` bytes.
    pub fn read(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>, RootedError> {
        let Some(content) = self.read_start(path, limit + 1)? else { return Ok(None) };
        if content.len() as u64 > limit {
            return Err(RootedError::TooLarge { path: path.to_owned(), limit });
        }
        Ok(Some(content))
    }

    /// What a regular file begins with, `length` bytes or all it has; `None` where there is
    /// no such file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read_start(&self, path: &Path, length: u64) -> Result<Option<Vec<u8>>, RootedError> {
        let file = match self.resolve(path, OFlags::RDONLY, 0) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            file => File::from(file.map_err(at("open", path))?),
        };
        if !file.metadata().map_err(at("look at", path))?.is_file() {
            let source = std::io::Error::other("it is no regular file");
            return Err(at("read", path)(source));
        }
        let mut content = Vec::new();
        file.take(length).read_to_end(&mut content).map_err(at("read", path))?;
        Ok(Some(content))
    }

    /// Whether anything stands at a path, a dangling link too.
    ///
    /// # Errors
    /// The path cannot be looked at.
    pub fn exists(&self, path: &Path) -> Result<bool, RootedError> {
        match self.resolve(path, OFlags::PATH | OFlags::NOFOLLOW, 0) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(errno) => Err(at("look at", path)(errno)),
        }
    }

    /// Whether anything stands at a path, no link followed on the way to it.
    ///
    /// # Errors
    /// The path cannot be looked at.
    pub fn exists_plainly(&self, path: &Path) -> Result<bool, RootedError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match fs::openat2(&self.top, path, flags, Mode::empty(), resolve) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
            Err(errno) => Err(at("look at", path)(errno)),
        }
    }

    /// Makes a directory and those above it, root's, 0755, where they are not there.
    ///
    /// # Errors
    /// Something else is in the way.
    pub fn make_directories(&self, path: &Path) -> Result<(), RootedError> {
        let mut made = PathBuf::new();
        for component in path.components() {
            made.push(component);
            let (parent, name) = self.place(&made)?;
            let mode = Mode::from_raw_mode(0o755);
            match fs::mkdirat(&parent, name, mode) {
                // Whatever the umask of the caller.
                Ok(()) => fs::chmodat(&parent, name, mode, AtFlags::empty())
                    .map_err(at("set the mode of", path))?,
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(at("make", path)(errno)),
            }
        }
        Ok(())
    }

    /// The directory that a path is in, and its name there.
    fn place<'p>(&self, path: &'p Path) -> Result<(OwnedFd, &'p OsStr), RootedError> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let directory = self.resolve(parent, flags, 0).map_err(at("open", parent))?;
        Ok((directory, path.file_name().unwrap_or(path.as_os_str())))
    }

    /// Writes a file, anew or in the place of a former one; the directories above are
    /// made.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path, content: &[u8], mode: u32) -> Result<(), RootedError> {
        if let Some(parent) = path.parent() {
            self.make_directories(parent)?;
        }
        self.remove(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let file = self.resolve(path, flags, mode).map_err(at("write", path))?;
        let mut file = File::from(file);
        file.write_all(content).map_err(at("write", path))?;
        fs::fchmod(&file, Mode::from_raw_mode(mode)).map_err(at("set the mode of", path))
    }

    /// Makes a symbolic link, where nothing is.
    ///
    /// # Errors
    /// Something stands there.
    pub fn link(&self, path: &Path, target: &Path) -> Result<(), RootedError> {
        let (parent, name) = self.place(path)?;
        fs::symlinkat(target, &parent, name).map_err(at("link", path))
    }

    /// Removes anything but a directory. It is no error that nothing is there.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, path: &Path) -> Result<(), RootedError> {
        let (parent, name) = match self.place(path) {
            Err(RootedError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                return Ok(());
            }
            place => place?,
        };
        match fs::unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(at("remove", path)(errno)),
        }
    }

    /// The names in a directory, sorted; none where it is not there.
    ///
    /// # Errors
    /// It cannot be listed.
    pub fn list(&self, path: &Path) -> Result<Vec<std::ffi::OsString>, RootedError> {
        use std::os::unix::ffi::OsStringExt as _;
        let directory = match self.resolve(path, OFlags::RDONLY | OFlags::DIRECTORY, 0) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
            directory => directory.map_err(at("open", path))?,
        };
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(&directory).map_err(at("list", path))? {
            let name = entry.map_err(at("list", path))?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(std::ffi::OsString::from_vec(name));
            }
        }
        names.sort();
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_of_the_tree_lead_nowhere_outside_of_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let tree = directory.path().join("tree");
        std::fs::create_dir_all(tree.join("real")).expect("made");
        let outside = directory.path().join("outside");
        std::fs::create_dir(&outside).expect("made");
        symlink(&outside, tree.join("absolute")).expect("linked");
        symlink("../outside", tree.join("relative")).expect("linked");
        symlink("/real", tree.join("inside")).expect("linked");
        let rooted = Rooted::open(&tree).expect("opened");

        rooted.write(Path::new("inside/file"), b"text", 0o640).expect("written");
        assert_eq!(std::fs::read(tree.join("real/file")).expect("there"), b"text");
        for path in ["absolute/file", "relative/file", "../outside/file"] {
            // Resolved in the tree, where there is no such directory, or made there.
            let _either = rooted.write(Path::new(path), b"evil", 0o644);
            assert_eq!(std::fs::read_dir(&outside).expect("listed").count(), 0, "{path}");
        }
        assert_eq!(rooted.read(Path::new("real/none"), 10).expect("no error"), None);
        let large = rooted.read(Path::new("real/file"), 3);
        assert!(matches!(large, Err(RootedError::TooLarge { .. })), "{large:?}");
    }
}
