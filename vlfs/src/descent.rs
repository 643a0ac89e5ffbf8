//! A walk through a tree of directories of any depth: no recursion, one descriptor.
//!
//! The way back up is `..`, and the directory found there must be the one that was
//! left: a tree that somebody moves meanwhile is an error and leads nowhere else. No
//! symbolic link is followed.

use std::os::fd::{AsFd, OwnedFd};
use std::vec::IntoIter;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::backing::{self, Name};

/// Where a walk is.
#[derive(Debug)]
pub struct Descent {
    here: OwnedFd,
    names: IntoIter<Name>,
    above: Vec<Above>,
}

/// A directory above, to go on with.
#[derive(Debug)]
struct Above {
    /// Device and inode number.
    identity: (u64, u64),
    names: IntoIter<Name>,
    /// The name that was entered.
    entered: Box<[u8]>,
}

impl Descent {
    /// A walk that begins in `top`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn new(top: OwnedFd) -> Result<Descent, Errno> {
        Ok(Descent { names: names(&top)?, here: top, above: Vec::new() })
    }

    /// The directory that the walk is in.
    pub fn here(&self) -> &OwnedFd {
        &self.here
    }

    /// The next name here, in order, as they were when it was entered.
    pub fn next_name(&mut self) -> Option<Name> {
        self.names.next()
    }

    /// Goes down into a directory.
    ///
    /// # Errors
    /// It is none, or cannot be read; the walk stays where it is.
    pub fn enter(&mut self, name: &[u8]) -> Result<(), Errno> {
        let below = backing::open_directory(&self.here, name)?;
        let below_names = names(&below)?;
        let identity = identity(&self.here)?;
        let names = std::mem::replace(&mut self.names, below_names);
        self.here = below;
        self.above.push(Above { identity, names, entered: name.into() });
        Ok(())
    }

    /// Goes back up. Returns the name of what was left; none at the top.
    ///
    /// # Errors
    /// `ESTALE`: the tree was moved meanwhile.
    pub fn leave(&mut self) -> Result<Option<Box<[u8]>>, Errno> {
        let Some(above) = self.above.pop() else { return Ok(None) };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(&self.here, "..", flags, Mode::empty())?;
        if identity(&directory)? != above.identity {
            return Err(Errno::STALE);
        }
        self.here = directory;
        self.names = above.names;
        Ok(Some(above.entered))
    }
}

fn names(directory: &OwnedFd) -> Result<IntoIter<Name>, Errno> {
    let mut names = backing::list(directory)?;
    names.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(names.into_iter())
}

fn identity(directory: impl AsFd) -> Result<(u64, u64), Errno> {
    let stat = rustix::fs::fstat(directory)?;
    Ok((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_walked_in_order_and_a_moved_one_is_left() {
        let top = tempfile::tempdir().expect("a directory");
        for path in ["a/b/c", "a/d", "e"] {
            std::fs::create_dir_all(top.path().join(path)).expect("made");
        }
        let mut walk = Descent::new(backing::open_root(top.path()).expect("opened")).expect("read");
        let mut seen = Vec::new();
        loop {
            if let Some(name) = walk.next_name() {
                walk.enter(&name.name).expect("entered");
                seen.push(format!("+{}", String::from_utf8_lossy(&name.name)));
            } else if let Some(left) = walk.leave().expect("left") {
                seen.push(format!("-{}", String::from_utf8_lossy(&left)));
            } else {
                break;
            }
        }
        assert_eq!(seen, ["+a", "+b", "+c", "-c", "-b", "+d", "-d", "-a", "+e", "-e"]);

        let mut walk = Descent::new(backing::open_root(top.path()).expect("opened")).expect("read");
        walk.enter(b"a").expect("entered");
        walk.enter(b"b").expect("entered");
        std::fs::rename(top.path().join("a/b"), top.path().join("e/b")).expect("moved");
        assert_eq!(walk.leave(), Err(Errno::STALE));
    }
}
