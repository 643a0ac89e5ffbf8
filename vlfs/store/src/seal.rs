//! Sealing the files of layer units by fs-verity, where the store's disk has it.
//!
//! A unit is immutable by contract; sealed, it is so by the kernel, for root as well.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use strata_core::manifest::Kind;
use strata_core::{LayerName, LayerVersion, RepositoryName};

use crate::error::{Context, StoreError};
use crate::store::Store;

/// What a unit's sealing did: names of files, those with several counted for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sealed {
    pub sealed: usize,
    /// They were sealed before, or by another name.
    pub already: usize,
}

impl Store {
    /// Seals all regular files of a unit. A part of them may be sealed after a failure;
    /// sealing again goes on.
    ///
    /// # Errors
    /// [`StoreError::NoVerity`]: the kernel or the disk has no fs-verity, and nothing was
    /// changed. The unit is missing or not as its manifest says.
    pub fn seal_unit(
        &self,
        repository: &RepositoryName,
        layer: &LayerName,
        version: &LayerVersion,
    ) -> Result<Sealed, StoreError> {
        let manifest = self.manifest(repository, layer, version)?;
        let root = self.unit_path(repository, layer, version).join("filesystem");
        let directory = File::open(&root).at("open", &root)?;
        let mut done = Sealed::default();
        for entry in manifest.entries() {
            if !matches!(entry.kind, Kind::Regular { .. }) {
                continue;
            }
            let path = root.join(os(&entry.path));
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            let file =
                rustix::fs::openat2(&directory, os(&entry.path), flags, Mode::empty(), beneath)
                    .at("open", &path)?;
            match self.disk.seal(&file) {
                Ok(()) => done.sealed += 1,
                Err(error) if is(&error, &[Errno::EXIST]) => done.already += 1,
                Err(error) if is(&error, &[Errno::NOTTY, Errno::OPNOTSUPP, Errno::NOSYS]) => {
                    return Err(StoreError::NoVerity { path });
                }
                Err(error) => return Err(error).at("seal", &path),
            }
        }
        Ok(done)
    }
}

fn is(error: &io::Error, wanted: &[Errno]) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| wanted.contains(&errno))
}

fn os(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}
