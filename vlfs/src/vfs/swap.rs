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

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::node::Node;
use super::{ActiveSet, Notice, Result, Vfs};
use crate::layer::Layer;
use crate::union::changes::{Changes, changes};

/// What a layer set is called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetInfo {
    pub generation: Option<strata_core::GenerationId>,
    pub composition: Option<String>,
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

impl Vfs {
    /// Makes another layer set the active one, at once for every observer.
    /// On return the kernel shows nothing of the old set. Not for request threads.
    /// `layers` is topmost first.
    ///
    /// # Errors
    /// The private layer's disk fails. The set is swapped or not, never in part.
    pub fn swap(&self, layers: Vec<Arc<Layer>>, info: SetInfo) -> Result<SwapOutcome> {
        let swapping = self.swapping.lock().expect("no panic while held");
        let keep = |unit: &crate::private::UnitKey| layers.iter().any(|layer| layer.unit == *unit);
        let swapped = self.settle_loans(keep).and_then(|()| self.swap_locked(layers.clone(), info));
        self.private.loans.stay();
        drop(swapping);
        self.flush_notices();
        swapped
    }

    /// The swap itself. The caller holds `swapping`.
    pub(super) fn swap_locked(
        &self,
        layers: Vec<Arc<Layer>>,
        info: SetInfo,
    ) -> Result<SwapOutcome> {
        let old = self.active();
        let hidden = self.private.start_recording();
        let kept = |unit: &crate::private::UnitKey| layers.iter().any(|layer| layer.unit == *unit);
        let new = Arc::new(ActiveSet::build(layers.clone(), &hidden, info));
        let changes = changes(&old.union, &new.union);
        self.unsettled.store(true, Ordering::Release);
        let notices = self.notices(&changes);
        self.notify(notices.clone());
        let gone = {
            let _exclusive = self.namespace.write().expect("no panic while held");
            for (unit, path) in self.private.stop_recording() {
                if new.layers.iter().any(|layer| layer.unit == unit)
                    && let Some(at) = new.union.find(&path)
                {
                    new.union.hide(at);
                }
            }
            let gone = self.private.forget_pairs(kept);
            self.active.store(new.clone());
            self.epoch.fetch_add(1, Ordering::AcqRel);
            gone
        };
        self.swaps.fetch_add(1, Ordering::Relaxed);
        self.retire(&old, &new);
        self.notify(self.notices(&changes));
        self.private.drop_pairs(&gone)?;
        let names = changes.values().map(|directory| directory.names.len()).sum();
        Ok(SwapOutcome { names, directories: changes.len(), notices: notices.len() })
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
        let mut unlinked = self.unlinked.lock().expect("no panic while held");
        unlinked.retain(|layer| layer.strong_count() > 0);
        for layer in &old.layers {
            if !new.layers.iter().any(|kept| Arc::ptr_eq(kept, layer)) {
                unlinked.push(Arc::downgrade(layer));
            }
        }
        drop(unlinked);
        let now = std::time::Instant::now();
        self.retired.lock().expect("no panic while held").push((now, old.clone()));
        let stays = |layer: &Arc<Layer>| new.layers.iter().any(|kept| Arc::ptr_eq(kept, layer));
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

    /// Keeps swaps away while the guard lives. `None` where one is under way, or
    /// was a moment ago. On return the kernel has been told all that it was to be told.
    pub fn hold_swaps(&self) -> Option<std::sync::MutexGuard<'_, ()>> {
        let held = self.swapping.try_lock().ok()?;
        if !self.is_settled() {
            return None;
        }
        self.flush_notices();
        Some(held)
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
