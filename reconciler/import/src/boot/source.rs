//! Where a kernel comes from: Debian packages, or directories that hold what they hold.
//!
//! Files are handed out one at a time, those that are asked for, with a limit for each.
//! A package's names are checked as when it is imported; in a directory nothing is
//! reached through a link that leads out of it. Links themselves are no kernel's files.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::ar::ArReader;
use crate::boot::error::BootError;
use crate::deb::{self, DebError};
use crate::member::{member_path, shown};
use crate::placing::EntryError;
use crate::rooted::Rooted;
use crate::tarball::TarKind;

/// Names that are looked at in one source: a package of all drivers has 5,000.
const NAMES: usize = 200_000;
/// Where a kernel has its files.
const PLACES: [&str; 3] = ["boot", "usr/lib/modules", "lib/modules"];

/// A place that holds a kernel or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelSource {
    Package(PathBuf),
    Directory(PathBuf),
}

/// Says of a path how large its file may be; `None` where it is not wanted.
pub type Wanted<'a> = &'a dyn Fn(&str) -> Option<u64>;
/// Takes a wanted file.
pub type Take<'a> = &'a mut dyn FnMut(&str, Vec<u8>) -> Result<(), BootError>;

impl KernelSource {
    /// A directory is one, anything else a package.
    pub fn at(path: &Path) -> Self {
        if path.is_dir() {
            KernelSource::Directory(path.to_owned())
        } else {
            KernelSource::Package(path.to_owned())
        }
    }

    pub fn path(&self) -> &Path {
        match self {
            KernelSource::Package(path) | KernelSource::Directory(path) => path,
        }
    }

    /// Hands out the wanted files by their paths, without a leading `/`.
    ///
    /// # Errors
    /// The source cannot be read, a file is too large, or `take` refuses one.
    pub fn visit(&self, wanted: Wanted<'_>, take: Take<'_>) -> Result<(), BootError> {
        match self {
            KernelSource::Package(path) => visit_package(path, wanted, take),
            KernelSource::Directory(path) => visit_directory(path, wanted, take),
        }
    }
}

fn visit_package(package: &Path, wanted: Wanted<'_>, take: Take<'_>) -> Result<(), BootError> {
    let broken = |source| BootError::Package { path: package.to_owned(), source };
    let input = File::open(package)
        .map_err(|source| BootError::Read { path: package.to_owned(), source })?;
    let mut ar = ArReader::new(input).map_err(|error| broken(error.into()))?;
    deb::check_format(&mut ar).map_err(broken)?;
    deb::next_archive(&mut ar, "control.tar").map_err(broken)?;
    let (member, compression) = deb::next_archive(&mut ar, "data.tar").map_err(broken)?;
    let mut tar = deb::open(&mut ar, &member, compression).map_err(broken)?;
    let mut names = 0;
    loop {
        let entry = tar
            .next_entry()
            .map_err(|source| broken(DebError::Tar { member: member.clone(), source }))?;
        let Some(entry) = entry else { return Ok(()) };
        count(&mut names, package)?;
        let failed = |source: EntryError| {
            let (member, entry) = (member.clone(), shown(&entry.name));
            broken(DebError::Entry { member, entry, source })
        };
        let path = member_path(&entry.name).map_err(|error| failed(error.into()))?;
        let (TarKind::Regular, Ok(path)) = (entry.kind, std::str::from_utf8(&path)) else {
            continue;
        };
        let Some(limit) = wanted(path) else { continue };
        if entry.size > limit {
            return Err(BootError::TooLarge { path: path.into(), bytes: entry.size, limit });
        }
        let mut content = Vec::new();
        let read = tar.content().read_to_end(&mut content);
        read.map_err(|error| {
            broken(DebError::Tar { member: member.clone(), source: error.into() })
        })?;
        take(path, content)?;
    }
}

fn visit_directory(top: &Path, wanted: Wanted<'_>, take: Take<'_>) -> Result<(), BootError> {
    let rooted = Rooted::open(top)?;
    let mut names = 0;
    for place in PLACES {
        let place = Path::new(place);
        // One of the two is often a link to the other.
        if place == Path::new("lib/modules") && !rooted.list(Path::new(PLACES[1]))?.is_empty() {
            continue;
        }
        let mut left = vec![place.to_owned()];
        while let Some(directory) = left.pop() {
            for name in rooted.list(&directory)? {
                count(&mut names, top)?;
                let path = directory.join(name);
                let Some(shown) = path.to_str().map(ToOwned::to_owned) else { continue };
                match wanted(&shown) {
                    Some(limit) => {
                        if let Some(content) = rooted.read(&path, limit)? {
                            take(&shown, content)?;
                        }
                    }
                    // A directory, or nothing that can be listed.
                    None if path.components().count() < strata_core::limits::TREE_DEPTH => {
                        left.push(path);
                    }
                    None => {}
                }
            }
        }
    }
    Ok(())
}

fn count(names: &mut usize, source: &Path) -> Result<(), BootError> {
    *names += 1;
    if *names > NAMES {
        return Err(BootError::TooManyNames { path: source.to_owned(), limit: NAMES });
    }
    Ok(())
}
