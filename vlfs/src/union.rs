//! The union of one layer set as one VA sees it (§5.5): the set's sealed index, which
//! all VAs share, under what this VA hides.
//!
//! A node is one path of the layers; its contributions are the entries of the
//! layers there, topmost first. The first contribution decides what the path is;
//! a directory merges with the directories under it, down to the first
//! contribution that is none. A lookup is one binary search whatever the number
//! of layers.
//!
//! A path can be hidden while the union is active ([`Union::hide`]), and a plain file
//! shown again ([`Union::show`]); showing a directory again takes a new union, over the
//! same index.

pub mod changes;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::index::format::NodeRecord;
use crate::index::overlay::{Hiding, Overlay};
pub use crate::index::{Contribution, Contributions, Index, ROOT};
use crate::tree::Entry;

#[derive(Debug)]
pub struct Union {
    index: Arc<Index>,
    overlay: Overlay,
}

impl Union {
    /// `hiding` is what each layer of the index hides, topmost first.
    pub fn build(index: Arc<Index>, hiding: &[Hiding<'_>]) -> Union {
        let overlay = Overlay::build(&index, hiding);
        Union { index, overlay }
    }

    pub fn index(&self) -> &Arc<Index> {
        &self.index
    }

    /// The index does not hold: nothing that it answers is to be trusted.
    pub fn is_damaged(&self) -> bool {
        self.index.is_damaged()
    }

    /// Number of paths in all layers, hidden ones counted.
    pub fn node_count(&self) -> usize {
        self.index.node_count() as usize
    }

    /// All contributions that are not hidden, topmost first.
    pub fn contributions(&self, node: u32) -> Contributions<'_> {
        self.overlay.contributions(&self.index, node, &self.index.node(node))
    }

    /// The topmost contribution; a union of no layers has none at its root.
    pub fn top(&self, node: u32) -> Option<Contribution> {
        self.contributions(node).get(0)
    }

    /// What stands at a node.
    pub fn entry(&self, node: u32) -> Option<Entry<'_>> {
        self.index.entry(self.top(node)?)
    }

    fn is_directory(&self, node: u32) -> bool {
        self.top(node).is_some_and(|top| self.index.is_directory(top))
    }

    /// The node of a directory; one without children for all else.
    fn directory(&self, node: u32) -> NodeRecord {
        let record = self.index.node(node);
        let plain = record.flags & NodeRecord::OBSCURES == 0 && !self.overlay.is_partial(node);
        if plain || self.is_directory(node) { record } else { NodeRecord::default() }
    }

    pub fn parent(&self, node: u32) -> u32 {
        self.index.node(node).parent
    }

    /// The children of a directory that are not hidden, in order of their names.
    fn listed(&self, node: u32) -> impl Iterator<Item = u32> {
        let record = self.directory(node);
        (record.first_child..record.first_child.saturating_add(record.children))
            .take_while(|_| !self.is_damaged())
            .filter(|child| !self.is_hidden(*child))
    }

    /// The children of a directory that are not hidden, by name.
    pub fn children(&self, node: u32) -> impl Iterator<Item = (u32, Entry<'_>)> {
        self.listed(node).filter_map(|child| Some((child, self.entry(child)?)))
    }

    fn name(&self, node: u32) -> &[u8] {
        self.index.name(&self.index.node(node))
    }

    /// The child of that name, unless it is hidden.
    pub fn child(&self, node: u32, name: &[u8]) -> Option<u32> {
        let found = self.index.child(&self.directory(node), name)?;
        (!self.is_hidden(found)).then_some(found)
    }

    /// The node at a path, unless it or a directory above it is hidden.
    pub fn find(&self, path: &[u8]) -> Option<u32> {
        if path.is_empty() {
            return Some(ROOT);
        }
        path.split(|b| *b == b'/').try_fold(ROOT, |node, name| self.child(node, name))
    }

    pub fn path(&self, node: u32) -> Vec<u8> {
        self.index.path_of(node)
    }

    /// The nodes from a node's directory to the root.
    fn parents(&self, node: u32) -> impl Iterator<Item = u32> + '_ {
        let above = |node: u32| (node != ROOT).then(|| self.parent(node));
        std::iter::successors(above(node), move |node| above(*node))
            .take(strata_core::limits::PATH_BYTES)
    }

    /// Hides a path, with all below it when it is a directory.
    pub fn hide(&self, node: u32) {
        self.overlay.hide(node, self.is_directory(node), self.parents(node));
    }

    /// Shows a path again that no unit hides any more. `false`, and nothing changes, where
    /// that takes a new union: it is a directory or hides one, one of several hard links,
    /// or only some of its layers, or of those of the directories above it, are shown.
    /// Not with layers that hide in the ones below them.
    pub fn show(&self, node: u32) -> bool {
        let plain = |c: Contribution| {
            let entry = self.index.entry(c);
            entry.is_some_and(|entry| !entry.is_directory() && !entry.has_links)
        };
        let whole = std::iter::once(node).chain(self.parents(node));
        let shows = self.is_hidden(node)
            && whole.into_iter().all(|node| !self.overlay.is_partial(node))
            && self.contributions(node).into_iter().all(plain);
        if shows {
            self.overlay.show(node);
        }
        shows
    }

    /// Whether all that the layers have at a node is shown once no white-out hides the node
    /// itself. Not with layers that hide in the ones below them.
    pub fn is_open(&self, node: u32) -> bool {
        let is_whole = |node| !self.overlay.is_partial(node);
        let is_plain = |above| self.index.node(above).flags & NodeRecord::OBSCURES == 0;
        let leads_there = |above| is_whole(above) && is_plain(above) && !self.is_hidden(above);
        is_whole(node) && self.parents(node).all(leads_there)
    }

    /// Whether a white-out stands at or below a directory, or stood there.
    pub fn is_touched(&self, node: u32) -> bool {
        self.overlay.is_touched(node)
    }

    /// Whether the node itself was hidden.
    pub fn is_hidden(&self, node: u32) -> bool {
        self.overlay.is_hidden(node)
    }

    /// Whether the node and all directories above it are shown.
    pub fn is_reachable(&self, node: u32) -> bool {
        !self.is_hidden(node)
            && self.parents(node).all(|above| !self.is_hidden(above) && self.is_directory(above))
    }

    /// `st_nlink` of a directory by its merged content.
    pub fn directory_links(&self, node: u32) -> u32 {
        let more = self.overlay.more_directories(node);
        self.index.node(node).directories.saturating_add_signed(more).saturating_add(2)
    }

    /// The reachable names of the object at `node`: itself alone, unless the
    /// object has several hard links in its layer.
    pub fn links(&self, node: u32) -> Vec<u32> {
        let Some(top) = self.top(node) else { return vec![node] };
        match self.index.links(top) {
            alone if alone.len() < 2 => vec![node],
            mut links => {
                // In the order of the layer, which is that of the names.
                links.sort_unstable();
                let shows = |(of, node): &(Contribution, u32)| {
                    self.top(*node) == Some(*of) && self.is_reachable(*node)
                };
                links.into_iter().filter(shows).map(|(_, node)| node).collect()
            }
        }
    }
}
