//! What one VA sees of a sealed index: which paths its white-outs hide (§5.5).
//!
//! Sparse: two bits a path, and more only for what differs from the index: for
//! directories that lost or gained subdirectories, and for paths of which some
//! contributions are hidden and others are not. Where a directory is merged
//! from fewer layers than have it, all below it is listed; its cost follows that.

use std::collections::{BTreeSet, HashMap};
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::format::NodeRecord;
use super::{Contribution, Contributions, Index, ROOT};
use crate::whiteout::WhiteoutTree;

/// What is hidden by one layer of the set.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hiding<'a> {
    /// What is hidden in this layer: the white-out layer paired with it (§5.5).
    pub hidden: Option<&'a WhiteoutTree>,
    /// What this layer hides in all layers below it: a former private layer (§4.2).
    pub hides_below: Option<&'a WhiteoutTree>,
}

#[derive(Debug)]
struct Bits(Vec<AtomicU64>);

impl Bits {
    fn new(count: u32) -> Bits {
        let words = (count as usize).div_ceil(64);
        Bits(std::iter::repeat_with(AtomicU64::default).take(words).collect())
    }

    fn get(&self, at: u32) -> bool {
        let word = self.0.get(at as usize / 64);
        word.is_some_and(|word| word.load(Ordering::Acquire) & (1 << (at % 64)) != 0)
    }

    fn clear(&self, at: u32) {
        if let Some(word) = self.0.get(at as usize / 64) {
            word.fetch_and(!(1 << (at % 64)), Ordering::AcqRel);
        }
    }

    /// Sets a bit. Returns whether it was set.
    fn set(&self, at: u32) -> bool {
        let bit = 1 << (at % 64);
        let word = self.0.get(at as usize / 64);
        word.is_some_and(|word| word.fetch_or(bit, Ordering::AcqRel) & bit != 0)
    }
}

#[derive(Debug)]
pub struct Overlay {
    hidden: Bits,
    /// Directories with a white-out at or below them.
    touched: Bits,
    /// Contributions that are left, of paths of which some are hidden.
    partial: HashMap<u32, Box<[Contribution]>>,
    /// How many subdirectories more than in the index a directory shows.
    directories: RwLock<HashMap<u32, i32>>,
}

#[derive(Clone, Copy)]
struct Rule<'a> {
    layer: u32,
    /// Hides in the layer itself, or in all below it.
    below: bool,
    tree: &'a WhiteoutTree,
}

/// A directory whose children are still to be looked at.
struct Pending<'a> {
    node: u32,
    /// The layers it is merged from, where that is fewer than have it as a directory.
    merged: Option<Vec<u32>>,
    /// White-outs that have more to say below here.
    rules: Vec<Rule<'a>>,
}

impl Overlay {
    /// Applies what the layers hide, topmost first.
    pub fn build(index: &Index, hiding: &[Hiding<'_>]) -> Overlay {
        let mut overlay = Overlay {
            hidden: Bits::new(index.node_count()),
            touched: Bits::new(index.node_count()),
            partial: HashMap::new(),
            directories: RwLock::default(),
        };
        let mut rules = Vec::new();
        for (layer, hiding) in (0..).zip(hiding) {
            let add = |tree, below| Rule { layer, below, tree };
            rules.extend(hiding.hidden.map(|tree| add(tree, false)));
            rules.extend(hiding.hides_below.map(|tree| add(tree, true)));
        }
        rules.retain(|rule| !rule.tree.is_empty());
        let mut pending = vec![Pending { node: ROOT, merged: None, rules }];
        while let Some(directory) = pending.pop() {
            overlay.look_at(index, &directory, &mut pending);
        }
        overlay
    }

    fn look_at<'a>(
        &mut self,
        index: &Index,
        directory: &Pending<'a>,
        pending: &mut Vec<Pending<'a>>,
    ) {
        let record = index.node(directory.node);
        if !directory.rules.is_empty() {
            self.touched.set(directory.node);
        }
        let mut more_directories = 0;
        for child in children_to_look_at(index, &record, directory) {
            let node = index.node(child);
            let all = index.contributions(&node);
            let (visible, rules) = visible(index.name(&node), all, directory);
            let is_directory = |c: &Contribution| index.is_directory(*c);
            let was_directory = all.get(0).is_some_and(|top| is_directory(&top));
            let now_directory = visible.first().is_some_and(is_directory);
            more_directories += i32::from(now_directory) - i32::from(was_directory);
            if visible.is_empty() {
                self.hidden.set(child);
                continue;
            }
            let merged: Vec<_> = visible.iter().copied().take_while(is_directory).collect();
            let have = all.into_iter().filter(is_directory).count();
            let whole = merged.len() == have;
            if visible.len() < all.len() {
                self.partial.insert(child, visible.into());
            }
            let below = node.flags & NodeRecord::OBSCURES_BELOW != 0;
            if !merged.is_empty() && (!whole || below || !rules.is_empty()) {
                let merged = (!whole).then(|| merged.iter().map(|c| c.layer).collect());
                pending.push(Pending { node: child, merged, rules });
            }
        }
        if more_directories != 0 {
            let directories = self.directories.get_mut().expect("no panic while held");
            directories.insert(directory.node, more_directories);
        }
    }

    /// The contributions of a node that are not hidden, topmost first.
    pub fn contributions<'a>(
        &'a self,
        index: &'a Index,
        node: u32,
        record: &NodeRecord,
    ) -> Contributions<'a> {
        match self.partial.get(&node) {
            Some(visible) => Contributions::Listed(visible),
            None => index.contributions(record),
        }
    }

    /// Whether some contributions of the node are hidden and others are not.
    pub fn is_partial(&self, node: u32) -> bool {
        self.partial.contains_key(&node)
    }

    /// Whether the node itself is hidden.
    pub fn is_hidden(&self, node: u32) -> bool {
        self.hidden.get(node)
    }

    pub fn is_touched(&self, node: u32) -> bool {
        self.touched.get(node)
    }

    /// How many subdirectories more than the index says a directory shows.
    pub fn more_directories(&self, node: u32) -> i32 {
        let directories = self.directories.read().expect("no panic while held");
        directories.get(&node).copied().unwrap_or(0)
    }

    /// Hides a node altogether. `parents` leads from its directory to the root.
    pub fn hide(&self, node: u32, is_directory: bool, parents: impl Iterator<Item = u32>) {
        let hidden_before = self.hidden.set(node);
        for (step, parent) in parents.enumerate() {
            if step == 0 && is_directory && !hidden_before {
                let mut directories = self.directories.write().expect("no panic while held");
                *directories.entry(parent).or_default() -= 1;
            }
            self.touched.set(parent);
        }
    }

    /// Shows a hidden node that is no directory, with all its contributions.
    pub fn show(&self, node: u32) {
        self.hidden.clear(node);
    }
}

/// The children of a directory of which the VA may see anything but the whole.
fn children_to_look_at(index: &Index, record: &NodeRecord, directory: &Pending<'_>) -> Vec<u32> {
    let all = record.first_child..record.first_child.saturating_add(record.children);
    if directory.merged.is_some() {
        return all.take_while(|_| !index.is_damaged()).collect();
    }
    let mut found = BTreeSet::new();
    if record.flags & NodeRecord::OBSCURES_BELOW != 0 {
        let all = all.take_while(|_| !index.is_damaged());
        found.extend(all.filter(|child| index.node(*child).flags != 0));
    }
    for rule in &directory.rules {
        found.extend(rule.tree.children().filter_map(|(name, _)| index.child(record, name)));
    }
    found.into_iter().collect()
}

/// What is left of a child's contributions, and the white-outs that hold below it.
fn visible<'a>(
    name: &[u8],
    all: Contributions<'_>,
    directory: &Pending<'a>,
) -> (Vec<Contribution>, Vec<Rule<'a>>) {
    let merges = |c: &Contribution| {
        directory.merged.as_ref().is_none_or(|merged| merged.binary_search(&c.layer).is_ok())
    };
    let mut visible: Vec<_> = all.into_iter().filter(merges).collect();
    let mut rules = Vec::new();
    for rule in &directory.rules {
        let Some(tree) = rule.tree.child(name) else { continue };
        if !tree.is_hidden() {
            rules.push(Rule { tree, ..*rule });
        } else if rule.below {
            visible.retain(|c| c.layer <= rule.layer);
        } else {
            visible.retain(|c| c.layer != rule.layer);
        }
    }
    (visible, rules)
}
