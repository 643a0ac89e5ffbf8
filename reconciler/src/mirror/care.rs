//! Keeping the mirror sound: what killed fetches left, damage, and packs that pile up.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use git2::Repository;

use super::{FetchLimits, Fetched, Mirror, MirrorError, OWN_CONFIGURATION, REBUILT};
use crate::child::{self, Bounds, ChildError};
use crate::git;

/// Every fetch leaves a pack; more than so many are put together.
const PACKS: usize = 50;
/// Directories below `refs/` that are looked through.
const DEPTH: u32 = 64;

impl Mirror {
    /// Fetches the mirror again, beside the one that is there, and puts it in its place.
    ///
    /// # Errors
    /// As of [`Mirror::fetch`], or a directory cannot be removed or made: the mirror is as
    /// it was.
    pub fn fetch_anew(
        &mut self,
        limits: FetchLimits,
        cancelled: &AtomicBool,
    ) -> Result<Fetched, MirrorError> {
        let place = self.path.clone();
        let (fresh, former) = beside(&place);
        self.path = fresh;
        let fetched = self.make_empty().and_then(|()| {
            let fetched = self.fetch_here(limits, cancelled)?;
            self.set_reference(REBUILT, fetched.commit)?;
            Ok(fetched)
        });
        let fresh = std::mem::replace(&mut self.path, place.clone());
        let replaced = fetched.and_then(|fetched| {
            remove(&former).map_err(|error| self.io(error))?;
            let moved = match fs::rename(&place, &former) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                moved => moved,
            };
            let put = moved.and_then(|()| {
                fs::rename(&fresh, &place).or_else(|error| {
                    fs::rename(&former, &place)?;
                    Err(error)
                })
            });
            put.map_err(|error| self.io(error))?;
            self.damaged = false;
            Ok(fetched)
        });
        let left = if place.exists() { vec![&fresh, &former] } else { vec![&fresh] };
        for left in left {
            if let Err(error) = remove(left) {
                tracing::warn!(path = %left.display(), %error, "what is left of a mirror stays");
            }
        }
        replaced
    }

    /// Finishes a replacement that was cut short. The old mirror is moved away only when
    /// the new one is whole.
    pub(super) fn finish_replacement(&self) -> Result<(), MirrorError> {
        let (fresh, former) = beside(&self.path);
        let is_there = |path: &Path| path.symlink_metadata().is_ok();
        if !is_there(&self.path) && is_there(&former) && is_there(&fresh) {
            fs::rename(&fresh, &self.path).map_err(|error| self.io(error))?;
        }
        [&fresh, &former]
            .into_iter()
            .try_for_each(|path| remove(path))
            .map_err(|error| self.io(error))
    }

    /// Makes a mirror without anything, whatever stands in its place.
    pub(super) fn make_empty(&self) -> Result<(), MirrorError> {
        remove(&self.path).map_err(|error| self.io(error))?;
        let mut options = git2::RepositoryInitOptions::new();
        options.bare(true).external_template(false);
        Repository::init_opts(&self.path, &options).map_err(|error| self.git(error))?;
        fs::write(self.path.join("config"), OWN_CONFIGURATION).map_err(|error| self.io(error))
    }

    /// Fails with [`MirrorError::Damaged`] where the mirror's references cannot be read or
    /// something that they lead to is missing.
    pub(super) fn refuse_damage(
        &self,
        limits: FetchLimits,
        cancelled: &AtomicBool,
    ) -> Result<(), MirrorError> {
        let mut command = git::local_command(&self.path, &self.configuration);
        command.args(["fsck", "--connectivity-only", "--no-dangling", "--no-progress"]);
        let FetchLimits { deadline, bytes } = limits;
        let bounds = Bounds { deadline, file_bytes: bytes, cancelled };
        let ended = match child::run(&mut command, bounds) {
            Err(ChildError::Deadline { .. }) => {
                tracing::warn!("the mirror is too large to be looked through");
                return Ok(());
            }
            ended => ended?,
        };
        if ended.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&ended.stderr);
        let message = said.lines().next().unwrap_or_default().to_owned();
        Err(MirrorError::Damaged { path: self.path.clone(), message })
    }

    /// Puts packs together where they are many. A mirror that cannot be tidied is used as
    /// it is.
    pub fn tidy(&self, limits: FetchLimits, cancelled: &AtomicBool) {
        let packs = fs::read_dir(self.path.join("objects/pack")).map(|entries| {
            let names = entries.flatten().map(|entry| entry.file_name());
            names.filter(|name| name.to_string_lossy().ends_with(".pack")).count()
        });
        if packs.is_ok_and(|packs| packs <= PACKS) {
            return;
        }
        let mut command = git::local_command(&self.path, &self.configuration);
        // In a geometric progression, so that what is large is seldom written again; what
        // no reference leads to any more stays, as it may be what was applied last.
        command.args(["repack", "-d", "-q", "--geometric=2"]);
        let FetchLimits { deadline, bytes } = limits;
        let bounds = Bounds { deadline, file_bytes: bytes.saturating_mul(PACKS as u64), cancelled };
        match child::run(&mut command, bounds) {
            Ok(ended) if ended.status.success() => {
                tracing::debug!("the mirror's packs are put together")
            }
            Ok(ended) => {
                let message = String::from_utf8_lossy(&ended.stderr);
                tracing::warn!(%message, "the mirror's packs cannot be put together");
            }
            Err(error) => tracing::warn!(%error, "the mirror's packs cannot be put together"),
        }
    }

    /// Removes what a killed fetch left. Only the holder of the reconciler's lock comes here.
    pub(super) fn remove_leftovers(&self) -> Result<(), MirrorError> {
        for path in self.leftovers()? {
            tracing::debug!(path = %path.display(), "removing what a killed fetch left");
            fs::remove_file(&path).map_err(|error| self.io(error))?;
        }
        Ok(())
    }

    /// Bytes of the largest file that a killed fetch left.
    pub(super) fn largest_leftover(&self) -> Result<u64, MirrorError> {
        let sizes = self.leftovers()?.into_iter().map(|path| fs::metadata(path).map(|m| m.len()));
        let sizes: Result<Vec<_>, _> = sizes.collect();
        Ok(sizes.map_err(|error| self.io(error))?.into_iter().max().unwrap_or(0))
    }

    /// What a killed fetch left: its temporary packs, and the locks on references that
    /// would refuse every later one.
    fn leftovers(&self) -> Result<Vec<PathBuf>, MirrorError> {
        let is_lock = |name: &str| name.ends_with(".lock");
        let is_leftover = |name: &str| name.starts_with("tmp_") || is_lock(name);
        let mut found = Vec::new();
        // No reference has a name that ends so.
        self.find(&self.path.join("refs"), DEPTH, &is_lock, &mut found)?;
        self.find(&self.path.join("objects/pack"), 0, &is_leftover, &mut found)?;
        self.find(&self.path, 0, &is_leftover, &mut found)?;
        Ok(found)
    }

    /// Finds the files of a directory and of those below it, down to `depth`.
    fn find(
        &self,
        directory: &Path,
        depth: u32,
        is_wanted: &dyn Fn(&str) -> bool,
        found: &mut Vec<PathBuf>,
    ) -> Result<(), MirrorError> {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.io(error)),
        };
        for entry in entries {
            let entry = entry.map_err(|error| self.io(error))?;
            if !entry.file_type().map_err(|error| self.io(error))?.is_dir() {
                if is_wanted(&entry.file_name().to_string_lossy()) {
                    found.push(entry.path());
                }
            } else if let Some(depth) = depth.checked_sub(1) {
                self.find(&entry.path(), depth, is_wanted, found)?;
            }
        }
        Ok(())
    }
}

/// The places of a mirror in the making, and of the one that it replaces.
fn beside(place: &Path) -> (PathBuf, PathBuf) {
    (place.with_extension("new.git"), place.with_extension("former.git"))
}

/// Removes a file, a link or a directory with all in it.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
