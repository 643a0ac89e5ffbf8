//! What the private layer hides in each layer unit: in memory, and as markers on disk
//! ([`markers`]).
//!
//! A white-out belongs to one unit and goes with it (§5.5). While the index of a new set is
//! built aside, what gets hidden meanwhile is noted, so that the new set hides it as well.

use std::collections::BTreeMap;

use rustix::fs::RenameFlags;
use rustix::io::Errno;
use strata_core::manifest::Timestamp;

use super::{Private, UnitKey, markers};
use crate::backing;
use crate::whiteout::WhiteoutTree;

/// White-outs in memory, and what was added while an index is being built aside.
#[derive(Debug, Default)]
pub(super) struct Hidden {
    pub(super) units: BTreeMap<UnitKey, WhiteoutTree>,
    recording: Option<Vec<(UnitKey, Vec<u8>)>>,
}

impl Private {
    /// Hides a path in a layer unit, on disk and in memory.
    pub fn hide(&self, unit: &UnitKey, path: &[u8]) -> Result<(), Errno> {
        let changed = markers::mark(self, unit, path)?;
        let mut hidden = self.hidden.lock().expect("no panic while held");
        let tree = hidden.units.entry(unit.clone()).or_default();
        tree.hide(path);
        if let (Some(changed), Some(above)) = (changed, strata_core::manifest::parent_path(path)) {
            tree.date(above, changed);
        }
        if let Some(recording) = &mut hidden.recording {
            recording.push((unit.clone(), path.to_vec()));
        }
        Ok(())
    }

    /// Shows a path of a layer unit again. Returns whether it was hidden.
    pub fn show(&self, unit: &UnitKey, path: &[u8]) -> Result<bool, Errno> {
        {
            let hidden = self.hidden.lock().expect("no panic while held");
            if !hidden.units.get(unit).is_some_and(|tree| tree.hides(path)) {
                return Ok(false);
            }
        }
        *self.last_marked.lock().expect("no panic while held") = None;
        let changed = markers::unmark(self, unit, path)?;
        let above = strata_core::manifest::parent_path(path).unwrap_or_default();
        let mut hidden = self.hidden.lock().expect("no panic while held");
        if let Some(tree) = hidden.units.get_mut(unit) {
            tree.show(path);
            tree.date(above, changed);
        }
        Ok(true)
    }

    /// Makes room for the white-out of a path, which [`Private::hide`] writes later.
    pub fn prepare_to_hide(&self, unit: &UnitKey, path: &[u8]) -> Result<(), Errno> {
        markers::prepare(self, unit, path)
    }

    /// When a name of a directory of a layer unit was hidden or shown again last, if
    /// one is hidden there.
    pub fn changed(&self, unit: &UnitKey, directory: &[u8]) -> Option<Timestamp> {
        self.hidden.lock().expect("no panic while held").units.get(unit)?.changed(directory)
    }

    /// The white-outs of all units, as they are now.
    pub fn hidden(&self) -> BTreeMap<UnitKey, WhiteoutTree> {
        self.hidden.lock().expect("no panic while held").units.clone()
    }

    /// Starts to note what gets hidden from now on, and gives what is hidden already.
    pub fn start_recording(&self) -> BTreeMap<UnitKey, WhiteoutTree> {
        let mut hidden = self.hidden.lock().expect("no panic while held");
        hidden.recording = Some(Vec::new());
        hidden.units.clone()
    }

    /// What got hidden since [`Private::start_recording`].
    pub fn stop_recording(&self) -> Vec<(UnitKey, Vec<u8>)> {
        self.hidden.lock().expect("no panic while held").recording.take().unwrap_or_default()
    }

    /// Forgets the white-outs of every unit that `keep` refuses: the unit was
    /// replaced, and a replacement starts with an empty white-out layer (§5.5).
    /// Returns what [`Private::drop_pairs`] should remove on disk.
    pub fn forget_pairs(&self, keep: impl Fn(&UnitKey) -> bool) -> Vec<UnitKey> {
        let mut hidden = self.hidden.lock().expect("no panic while held");
        let gone: Vec<_> = hidden.units.keys().filter(|unit| !keep(unit)).cloned().collect();
        for unit in &gone {
            hidden.units.remove(unit);
        }
        gone
    }

    /// Removes white-out layers on disk, durably: first their names, then their content.
    pub fn drop_pairs(&self, units: &[UnitKey]) -> Result<(), Errno> {
        *self.last_marked.lock().expect("no panic while held") = None;
        for unit in units {
            let repository =
                match backing::open_directory(&self.whiteouts, unit.repository.as_bytes()) {
                    Err(Errno::NOENT) => continue,
                    other => other?,
                };
            let aside = self.next_name();
            let (from, to) = ((&repository, unit.unit.as_bytes()), (&self.work, &aside[..]));
            match self.disk.rename(from, to, RenameFlags::empty()) {
                Ok(()) => self.disk.remove_tree(&self.work, &aside)?,
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        if units.is_empty() { Ok(()) } else { self.sync() }
    }
}
