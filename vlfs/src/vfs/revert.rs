//! Revert: drop the private copy or the white-out, show the original again (§5.5).
//!
//! The original is that of the layer set that is active now.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::FileType;

use super::held::affordable;
use super::node::{Node, Upper};
use super::{ActiveSet, Caller, Errno, Notice, Object, Result, Vfs};
use crate::backing;
use crate::private::UnitKey;

/// What a revert did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reverted {
    /// A private copy was dropped.
    Copy,
    /// A white-out was dropped.
    Whiteout,
    /// Both: the file had been replaced.
    Both,
}

impl Vfs {
    /// Reverts a path, relative to the root. Not for request threads.
    ///
    /// # Errors
    /// `ENODATA`: no layer of the active set has the path, or it is unchanged;
    /// `EISDIR`: a private directory stands there (see [`Vfs::revert_tree`]); `EPERM`: neither root nor owner.
    pub fn revert(&self, path: &[u8], caller: &Caller) -> Result<Reverted> {
        let reverted = self.revert_path(path, caller);
        self.flush_notices();
        reverted
    }

    fn revert_path(&self, path: &[u8], caller: &Caller) -> Result<Reverted> {
        let _swapping = self.swapping.lock().expect("no panic while held");
        let mut rebuild = false;
        let reverted = {
            let _exclusive = self.namespace.write().expect("no panic while held");
            self.revert_locked(path, caller, &mut rebuild)
        };
        // White-outs may have gone before it failed.
        if rebuild {
            self.swap_to_same();
        }
        let (reverted, parent) = reverted?;
        if let Some(parent) = parent {
            let name = strata_core::manifest::file_name(path).into();
            self.notify(vec![Notice::Expire { parent, name }, Notice::Invalidate { node: parent }]);
        }
        self.notify(self.notices_of_links(path));
        Ok(reverted)
    }

    /// The same layers with the white-outs of now. The caller holds `swapping`.
    pub(super) fn swap_to_same(&self) {
        let active = self.active();
        self.swap_locked(active.set(), active.info.clone());
    }

    /// The names of a file that has one more now.
    fn notices_of_links(&self, path: &[u8]) -> Vec<Notice> {
        let active = self.active();
        let Some(at) = active.union.find(path) else { return Vec::new() };
        let links = active.union.links(at);
        let links = links.iter().filter(|_| links.len() > 1);
        let known = links.filter_map(|link| self.table.find(&active.union.path(*link)));
        known.map(|node| Notice::Invalidate { node: node.id }).collect()
    }

    /// Reverts a name in a directory that the kernel knows.
    pub(super) fn revert_in(&self, id: u64, name: &[u8], caller: &Caller) -> Result<Reverted> {
        self.revert_path(&self.path_below(id, name)?, caller)
    }

    /// The path of a name in a directory that the kernel knows.
    pub(super) fn path_below(&self, id: u64, name: &[u8]) -> Result<Vec<u8>> {
        if name.is_empty() || name.contains(&b'/') || matches!(name, b"." | b"..") {
            return Err(Errno::INVAL);
        }
        let mut names: Vec<Box<[u8]>> = vec![name.into()];
        let mut node = self.directory_node(id)?;
        while let Some((parent, above)) = node.name() {
            names.push(above);
            node = parent;
        }
        names.reverse();
        Ok(names.join(&b'/'))
    }

    /// Returns what was done, and the directory if the kernel knows it. `rebuild` is set
    /// where white-outs have gone that the active union still has.
    fn revert_locked(
        &self,
        path: &[u8],
        caller: &Caller,
        rebuild: &mut bool,
    ) -> Result<(Reverted, Option<u64>)> {
        let active = self.active();
        let index = active.union.index();
        let at = index.find(path).ok_or(Errno::NODATA)?;
        // Whatever hides them: that is what a revert takes away.
        let originals = index.contributions(&index.node(at));
        let original = originals.get(0).ok_or(Errno::NODATA)?;
        let original_owner = index.entry(original).ok_or(Errno::IO)?.attributes.uid;
        let parent_path = strata_core::manifest::parent_path(path).ok_or(Errno::INVAL)?;
        let name = strata_core::manifest::file_name(path);
        let known = self.table.find(parent_path);
        let directory = match backing::open_directory(&self.private.upper, parent_path) {
            Ok(directory) => Some(directory),
            Err(Errno::NOENT | Errno::NOTDIR) => None,
            Err(error) => return Err(error),
        };
        let copy = match directory.as_ref().map(|directory| backing::stat_at(directory, name)) {
            None | Some(Err(Errno::NOENT)) => None,
            Some(stat) => Some(self.private.described(stat?)),
        };
        let owner = copy.as_ref().map_or(original_owner, |stat| stat.st_uid);
        if caller.uid != 0 && caller.uid != owner {
            return Err(Errno::PERM);
        }
        if copy
            .as_ref()
            .is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
        {
            return Err(Errno::ISDIR);
        }
        if !self.shows_again(&active, at, path) {
            return Err(Errno::NODATA);
        }
        // First the white-out, which the private copy obscures; then the copy.
        let units = originals.into_iter().map(|of| &active.layers[of.layer as usize].unit);
        let shown = self.show_in_all(units, path, rebuild)?;
        *rebuild |= shown;
        if let (Some(directory), Some(copy)) = (&directory, &copy) {
            self.drop_copy(&active, known.as_ref(), directory, name)?;
            if copy.st_nlink == 1 {
                self.owes_nothing(copy.st_ino);
            }
        }
        let reverted = match (copy.is_some(), shown) {
            (true, true) => Reverted::Both,
            (true, false) => Reverted::Copy,
            (false, true) => Reverted::Whiteout,
            (false, false) => return Err(Errno::NODATA),
        };
        *rebuild = shown && !self.show_in_place(&active, at);
        Ok((reverted, known.map(|node| node.id)))
    }

    /// Whether a path has an original to be seen once its own white-outs are gone: what hides
    /// a directory above it, or a layer that hides or obscures it, stays.
    fn shows_again(&self, active: &ActiveSet, at: u32, path: &[u8]) -> bool {
        let plain = active.layers.iter().all(|layer| layer.hides_below.is_none());
        if active.union.find(path).is_some() || (plain && active.union.is_open(at)) {
            return true;
        }
        let mut hidden = self.private.hidden();
        for tree in hidden.values_mut() {
            tree.show(path);
        }
        let shown = ActiveSet::build(active.set(), &hidden, active.info.clone());
        shown.union.find(path).is_some()
    }

    /// Drops the white-outs of a path, or none: `stuck` is set where one that was dropped
    /// cannot be written again.
    fn show_in_all<'a>(
        &self,
        units: impl Iterator<Item = &'a UnitKey>,
        path: &[u8],
        stuck: &mut bool,
    ) -> Result<bool> {
        let mut shown = Vec::new();
        for unit in units {
            match self.private.show(unit, path) {
                Ok(true) => shown.push(unit),
                Ok(false) => {}
                Err(error) => {
                    for unit in shown {
                        if let Err(error) = self.private.hide(unit, path) {
                            tracing::error!(%error, "a white-out is lost by a revert that failed");
                            *stuck = true;
                        }
                    }
                    return Err(error);
                }
            }
        }
        Ok(!shown.is_empty())
    }

    /// Shows a path that no unit hides any more in the union that is active. `false`:
    /// that takes a new one.
    fn show_in_place(&self, active: &ActiveSet, at: u32) -> bool {
        // A former private layer hides in the layers below it: the union was made with that.
        let shown =
            active.layers.iter().all(|layer| layer.hides_below.is_none()) && active.union.show(at);
        if shown {
            self.epoch.fetch_add(1, Ordering::AcqRel);
        }
        shown
    }

    /// Removes a private copy. The namespace is held exclusively.
    pub(super) fn drop_copy(
        &self,
        active: &Arc<ActiveSet>,
        parent: Option<&Arc<Node>>,
        directory: &std::os::fd::OwnedFd,
        name: &[u8],
    ) -> Result<()> {
        if let Some(parent) = parent {
            let object = self.find(active, parent, name)?;
            let Object::Private { stat, .. } = &object else { return Err(Errno::STALE) };
            let last = stat.st_nlink == 1;
            let node = self.intern(active, parent, name, &object)?;
            let flags = rustix::fs::OFlags::PATH;
            let fd = backing::open_beneath(directory, name, flags, rustix::fs::Mode::empty())?;
            let fd = affordable(fd)?;
            self.private.disk.unlink(directory, name)?;
            let mut place = node.place.write().expect("no panic while held");
            place.names.retain(|(p, n)| p.id != parent.id || **n != *name);
            if last {
                place.upper = Upper::Orphan(Arc::new(fd));
                node.reverted.store(true, Ordering::Release);
            }
            drop(place);
            node.unresolve();
            self.table.remove_child(parent.id, name);
            return Ok(());
        }
        self.private.disk.unlink(directory, name)
    }
}
