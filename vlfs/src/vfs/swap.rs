//! Swapping the layer set under a running file system (§5.5).
//!
//! The new index is built aside. Then: (1) answers from now on are not to be
//! kept by the kernel; (2) names that change expire; (3) one pointer changes;
//! (4) they expire again, for what was answered in between; and once more when
//! everything that began before has surely been answered. Names that do not
//! change are never touched, and what is mounted on them stays.
//!
//! A node whose object the new set does not show serves those who have it open
//! and nobody else. Only for requests that began before the swap is the old
//! set kept a moment longer.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::borrowed::SwapError;
use super::node::Node;
use super::{ActiveSet, Notice, Vfs};
use crate::layer::{Layer, LayerSet};
use crate::private::UnitKey;
use crate::union::changes::{Changes, changes as compare};

/// What a layer set is called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetInfo {
    pub generation: Option<strata_core::GenerationId>,
    pub composition: Option<String>,
    /// The data directories that the set's VAs have (see [`crate::data`]).
    pub data: strata_core::data_paths::DataPaths,
}

/// What a swap changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SwapOutcome {
    /// Names that came, went or became another object.
    pub names: usize,
    /// Directories that they are in.
    pub directories: usize,
    /// Names that the kernel was told about.
    pub notices: usize,
}

impl SetInfo {
    /// The value of a root attribute, without its prefix `user.strata.`.
    pub(super) fn attribute(&self, active: &ActiveSet, name: &[u8]) -> Option<Vec<u8>> {
        match name {
            b"generation" => self.generation.map(|id| id.to_string().into_bytes()),
            b"composition" => self.composition.clone().map(String::into_bytes),
            b"layers" => {
                let line = |layer: &Arc<Layer>| match &layer.digest {
                    Some(digest) => format!("{} {digest}\n", layer.name),
                    None => format!("{}\n", layer.name),
                };
                Some(active.layers.iter().map(line).collect::<String>().into_bytes())
            }
            _ => None,
        }
    }
}

/// For each layer of the old set, its position in the new one.
fn kept_layers(old: &ActiveSet, new: &LayerSet) -> Vec<Option<u32>> {
    let positions: HashMap<_, _> = new.layers.iter().map(Arc::as_ptr).zip(0..).collect();
    old.layers.iter().map(|layer| positions.get(&Arc::as_ptr(layer)).copied()).collect()
}

/// Hides in the new set what was hidden while it was made. `false`: only some of
/// the layers that have a path are concerned, which takes a new union.
fn hide_recorded(new: &ActiveSet, recorded: &[(UnitKey, Vec<u8>)]) -> bool {
    let mut by_path: BTreeMap<&[u8], HashSet<&UnitKey>> = BTreeMap::new();
    for (unit, path) in recorded {
        by_path.entry(path).or_default().insert(unit);
    }
    for (path, units) in by_path {
        let Some(at) = new.union.find(path) else { continue };
        let unit_of = |c: crate::union::Contribution| &new.layers[c.layer as usize].unit;
        let contributions = new.union.contributions(at);
        let hidden = contributions.into_iter().filter(|c| units.contains(unit_of(*c))).count();
        if hidden == contributions.len() {
            new.union.hide(at);
        } else if hidden > 0 {
            return false;
        }
    }
    true
}

impl Vfs {
    /// Makes another layer set the active one, at once for every observer.
    /// On return the kernel shows nothing of the old set. Not for request threads.
    ///
    /// # Errors
    /// Data that is borrowed from a layer that goes cannot be copied. The set is swapped or
    /// not, never in part.
    pub fn swap(
        &self,
        set: LayerSet,
        info: SetInfo,
    ) -> std::result::Result<SwapOutcome, SwapError> {
        let swapping = self.swapping.lock().expect("no panic while held");
        let units: HashSet<_> = set.layers.iter().map(|layer| &layer.unit).collect();
        let settled = self.settle_loans(|unit| units.contains(unit));
        let swapped = settled.map(|()| self.swap_locked(set.clone(), info));
        self.private.loans.stay();
        drop(swapping);
        self.flush_notices();
        swapped
    }

    /// The swap itself. The caller holds `swapping`.
    pub(super) fn swap_locked(&self, set: LayerSet, info: SetInfo) -> SwapOutcome {
        let old = self.active();
        let units: HashSet<UnitKey> = set.layers.iter().map(|layer| layer.unit.clone()).collect();
        let hidden = self.private.start_recording();
        let mut new = Arc::new(ActiveSet::build(set.clone(), &hidden, info.clone()));
        let kept = kept_layers(&old, &set);
        let mut changes = compare(&old.union, &new.union, &kept);
        self.unsettled.store(true, Ordering::Release);
        let notices = self.notices(&changes);
        self.notify(notices.clone());
        let rebuilt;
        let asked = Instant::now();
        let gone = {
            let _exclusive = self.namespace.write().expect("no panic while held");
            let recorded = self.private.stop_recording();
            rebuilt = !hide_recorded(&new, &recorded);
            if rebuilt {
                new = Arc::new(ActiveSet::build(set, &self.private.hidden(), info));
            }
            let gone = self.private.forget_pairs(|unit| units.contains(unit));
            self.active.store(new.clone());
            self.epoch.fetch_add(1, Ordering::AcqRel);
            gone
        };
        self.longest_exchange.note(asked.elapsed());
        self.swaps.fetch_add(1, Ordering::Relaxed);
        self.retire(&old, &new);
        if rebuilt {
            changes = compare(&old.union, &new.union, &kept);
        }
        self.notify(self.notices(&changes));
        // They are forgotten: what is left on the disk goes at the next mount.
        if let Err(error) = self.private.drop_pairs(&gone) {
            tracing::error!(%error, "white-outs of layers that are gone stay on the disk");
        }
        let names = changes.values().map(|directory| directory.names.len()).sum();
        SwapOutcome { names, directories: changes.len(), notices: notices.len() }
    }

    /// What the kernel knows of the changed names.
    fn notices(&self, changes: &Changes) -> Vec<Notice> {
        let mut notices = Vec::new();
        for (path, changed) in changes {
            let Some(directory) = self.table.find(path) else { continue };
            let parent = directory.id;
            for name in &changed.names {
                notices.push(Notice::Expire { parent, name: name.as_slice().into() });
            }
            if !changed.names.is_empty() {
                notices.push(Notice::Invalidate { node: parent });
            }
            for name in &changed.attributes {
                if let Some(node) = self.table.child(parent, name) {
                    notices.push(Notice::Invalidate { node: node.id });
                }
            }
        }
        notices
    }

    fn retire(&self, old: &Arc<ActiveSet>, new: &Arc<ActiveSet>) {
        let kept: HashSet<_> = new.layers.iter().map(Arc::as_ptr).collect();
        let stays = |layer: &Arc<Layer>| kept.contains(&Arc::as_ptr(layer));
        let mut unlinked = self.unlinked.lock().expect("no panic while held");
        unlinked.retain(|layer| layer.strong_count() > 0);
        unlinked.extend(old.layers.iter().filter(|layer| !stays(layer)).map(Arc::downgrade));
        drop(unlinked);
        let mut retired = self.retired.lock().expect("no panic while held");
        // One swap after the other may leave no time to settle.
        retired.retain(|(since, _)| since.elapsed() < super::GRACE);
        retired.push((Instant::now(), old.clone()));
        drop(retired);
        self.drop_kept(|backing| backing.layer.as_ref().is_none_or(stays));
    }

    /// Lets go of sets that were swapped away at least [`GRACE`](super::GRACE) ago, and
    /// with them of every layer that no open file holds. When none is left, what
    /// is answered from now on may be kept by the kernel again. Called from time to
    /// time by the thread that notifies the kernel.
    pub fn settle(&self) {
        let Ok(_swapping) = self.swapping.try_lock() else { return };
        let mut retired = self.retired.lock().expect("no panic while held");
        retired.retain(|(since, _)| since.elapsed() < super::GRACE);
        if retired.is_empty() {
            self.unsettled.store(false, Ordering::Release);
        }
    }

    /// Whether no swap is under way, and everything that began before the last one
    /// has surely been answered.
    pub fn is_grace_over(&self) -> bool {
        let Ok(_swapping) = self.swapping.try_lock() else { return false };
        let retired = self.retired.lock().expect("no panic while held");
        retired.iter().all(|(since, _)| since.elapsed() >= super::GRACE)
    }

    /// Keeps swaps away while the guard lives. `None` where one is under way, or
    /// was a moment ago, and while the mount is being made. On return the kernel has been told all that it was to be told.
    pub fn hold_swaps(&self) -> Option<std::sync::MutexGuard<'_, ()>> {
        let held = self.swapping.try_lock().ok()?;
        if !self.is_settled() || self.unfinished.load(Ordering::Acquire) {
            return None;
        }
        self.flush_notices();
        Some(held)
    }

    /// While set, nobody gets [`Vfs::hold_swaps`]: the mount is still being made.
    pub fn set_unfinished(&self, unfinished: bool) {
        self.unfinished.store(unfinished, Ordering::Release);
    }

    pub fn is_settled(&self) -> bool {
        !self.unsettled.load(Ordering::Acquire)
    }

    /// Layers of former sets that something still holds.
    pub fn unlinked_layers(&self) -> usize {
        let unlinked = self.unlinked.lock().expect("no panic while held");
        unlinked.iter().filter(|layer| layer.strong_count() > 0).count()
    }

    /// The path of a node, for messages; `None` once it has no name.
    pub fn path_of(&self, id: u64) -> Option<Vec<u8>> {
        let mut node: Arc<Node> = self.table.get(id)?;
        let mut names: Vec<Box<[u8]>> = Vec::new();
        while node.id != super::ROOT_ID {
            let (parent, name) = node.name()?;
            names.push(name);
            node = parent;
        }
        names.reverse();
        Some(names.join(&b'/'))
    }
}
