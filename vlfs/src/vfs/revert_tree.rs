//! Revert of a directory with all below it: every private copy and white-out goes.
//!
//! What no layer has stays: it has no original. Name by name, so that a crash leaves
//! each either as it was or as the layers have it.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FileType, Gid, Mode, Uid, XattrFlags};

use super::{ActiveSet, Caller, Errno, Notice, Result, SetTime, Vfs};
use crate::backing;
use crate::descent::Descent;
use crate::private::UnitKey;
use crate::tree::Entry;

/// What a revert of a tree did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct RevertedTree {
    pub copies: usize,
    pub whiteouts: usize,
    /// Private objects without an original.
    pub left: usize,
}

/// A walk of the private layer.
struct Walk {
    active: Arc<ActiveSet>,
    /// The same layers without the white-outs that go: what has an original there.
    shown: Arc<ActiveSet>,
    done: RevertedTree,
    notices: Vec<Notice>,
}

impl Vfs {
    /// Reverts a directory and all below it; of anything else, the path alone. For root.
    ///
    /// # Errors
    /// `ENODATA`: no layer of the active set has it; `EPERM`: not root.
    pub fn revert_tree(&self, path: &[u8], caller: &Caller) -> Result<RevertedTree> {
        let reverted = self.revert_tree_now(path, caller);
        self.flush_notices();
        reverted
    }

    pub(super) fn revert_tree_now(&self, path: &[u8], caller: &Caller) -> Result<RevertedTree> {
        if caller.uid != 0 {
            return Err(Errno::PERM);
        }
        let _swapping = self.swapping.lock().expect("no panic while held");
        let active = self.active();
        active.union.index().find(path).ok_or(Errno::NODATA)?;
        let (shown, done) = (active.clone(), RevertedTree::default());
        let mut walk = Walk { active, shown, done, notices: Vec::new() };
        let reverted = {
            let _exclusive = self.namespace.write().expect("no panic while held");
            self.show_below(&mut walk, path).and_then(|()| self.revert_top(&mut walk, path))
        };
        // What was done before it failed is seen too.
        if walk.done.whiteouts > 0 {
            self.swap_to_same();
        }
        self.notify(walk.notices);
        reverted.map(|()| walk.done)
    }

    fn show_below(&self, walk: &mut Walk, path: &[u8]) -> Result<()> {
        for (unit, hidden) in self.hidden_below(&walk.active, path) {
            walk.done.whiteouts += usize::from(self.private.show(&unit, &hidden)?);
        }
        if walk.done.whiteouts > 0 {
            let (set, info) = (walk.active.set(), walk.active.info.clone());
            walk.shown = Arc::new(ActiveSet::build(set, &self.private.hidden(), info));
        }
        Ok(())
    }

    /// The white-outs at and below a path, of units of the active set.
    fn hidden_below(&self, active: &ActiveSet, path: &[u8]) -> Vec<(UnitKey, Vec<u8>)> {
        let units: BTreeSet<_> = active.layers.iter().map(|layer| &layer.unit).collect();
        let is_below = |hidden: &[u8]| match hidden.strip_prefix(path) {
            Some(rest) => path.is_empty() || rest.is_empty() || rest[0] == b'/',
            None => false,
        };
        let mut found = Vec::new();
        for (unit, tree) in self.private.hidden() {
            if units.contains(&unit) {
                let paths = tree.paths().into_iter().filter(|hidden| is_below(hidden));
                found.extend(paths.map(|hidden| (unit.clone(), hidden)));
            }
        }
        found
    }

    fn revert_top(&self, walk: &mut Walk, path: &[u8]) -> Result<()> {
        if !path.is_empty() {
            let parent = strata_core::manifest::parent_path(path).ok_or(Errno::INVAL)?;
            let name = strata_core::manifest::file_name(path);
            let above = match backing::open_directory(&self.private.upper, parent) {
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
                other => other?,
            };
            let found = match backing::stat_at(&above, name) {
                Err(Errno::NOENT) => return Ok(()),
                found => found?,
            };
            if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
                return self.revert_object(walk, &above, path);
            }
        }
        self.revert_directory(walk, backing::open_directory(&self.private.upper, path)?, path)
    }

    fn revert_object(&self, walk: &mut Walk, above: &OwnedFd, path: &[u8]) -> Result<()> {
        let name = strata_core::manifest::file_name(path);
        if walk.shown.union.find(path).is_none() {
            walk.done.left += 1;
            return Ok(());
        }
        let parent = strata_core::manifest::parent_path(path).unwrap_or_default();
        let known = self.table.find(parent);
        let stat = self.private.described(backing::stat_at(above, name)?);
        self.drop_copy(&walk.active, known.as_ref(), above, name)?;
        if stat.st_nlink == 1 {
            self.owes_nothing(stat.st_ino);
        }
        walk.done.copies += 1;
        if let Some(parent) = known.map(|node| node.id) {
            walk.notices.push(Notice::Expire { parent, name: name.into() });
            walk.notices.push(Notice::Invalidate { node: parent });
        }
        Ok(())
    }

    fn revert_directory(&self, walk: &mut Walk, top: OwnedFd, path: &[u8]) -> Result<()> {
        let mut path = path.to_vec();
        let mut descent = Descent::new(top)?;
        // Directories that no layer has, from the first of them down to here.
        let mut own = 0;
        loop {
            if let Some(entry) = descent.next_name() {
                let length = path.len();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(&entry.name);
                let mode = backing::stat_at(descent.here(), &entry.name)?.st_mode;
                if FileType::from_raw_mode(mode) == FileType::Directory {
                    descent.enter(&entry.name)?;
                    if own > 0 || walk.shown.union.find(&path).is_none() {
                        own += 1;
                    }
                    continue;
                }
                if own > 0 {
                    walk.done.left += 1;
                } else {
                    self.revert_object(walk, descent.here(), &path)?;
                }
                path.truncate(length);
                continue;
            }
            if own > 0 {
                walk.done.left += 1;
                own -= 1;
            } else {
                self.revert_attributes(walk, descent.here(), &path)?;
            }
            let Some(left) = descent.leave()? else { return Ok(()) };
            path.truncate(path.len().saturating_sub(left.len() + 1));
        }
    }

    fn revert_attributes(&self, walk: &mut Walk, directory: &OwnedFd, path: &[u8]) -> Result<()> {
        let active = walk.shown.clone();
        let at = active.union.find(path);
        match at.and_then(|at| Some((at, active.union.entry(at)?))) {
            Some((at, entry)) if entry.is_directory() => {
                self.restore_attributes(directory, &active, at, &entry)?;
                let known = self.table.find(path);
                walk.notices.extend(known.map(|node| Notice::Invalidate { node: node.id }));
            }
            _ => walk.done.left += 1,
        }
        Ok(())
    }

    /// Gives a private directory the attributes that the layers show there, and their
    /// time where nothing private is left in it.
    fn restore_attributes(
        &self,
        directory: &OwnedFd,
        active: &ActiveSet,
        at: u32,
        entry: &Entry<'_>,
    ) -> Result<()> {
        let (disk, attributes) = (&self.private.disk, &entry.attributes);
        let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        disk.chown_open(directory, (Some(uid), Some(gid)))?;
        for name in backing::xattrs(&backing::path_of(directory, b"."))?.into_keys() {
            if attributes.xattrs.get(&name).is_none() {
                disk.remove_xattr_open(directory, &name)?;
            }
        }
        for (name, value) in &attributes.xattrs {
            disk.set_xattr_open(directory, name, value, XattrFlags::empty())?;
        }
        disk.chmod_open(directory, Mode::from_raw_mode(attributes.mode))?;
        if backing::list(directory)?.is_empty() {
            let time = SetTime::At(self.dated(active, at, entry));
            disk.set_times_open(directory, &super::attr::times(None, Some(time)))?;
        }
        self.directory_changes.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
        Ok(())
    }
}
