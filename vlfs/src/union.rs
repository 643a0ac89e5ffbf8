//! The merged index of one layer set: the union's directory tree (§5.5), pure data.
//!
//! Built from the layers' trees and their white-outs without any I/O. A node is
//! one path that at least one layer shows; its contributions are the entries of
//! the layers there, topmost first. The first contribution decides what the
//! path is; a directory merges with the directories under it, down to the first
//! contribution that is none. Every contribution that a white-out hides is left
//! out already, so a lookup is one binary search whatever the number of layers.
//!
//! The index never changes, except that a path can be hidden in it while it is
//! active ([`Union::hide`]); showing a path again takes a new index.

pub mod changes;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::tree::{Entry, Tree};
use crate::whiteout::WhiteoutTree;

/// Index of the root node.
pub const ROOT: u32 = 0;

/// An entry of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contribution {
    /// Position in the layer set, 0 is the topmost.
    pub layer: u32,
    /// Entry of that layer's tree.
    pub entry: u32,
}

/// One layer as the merge sees it.
pub struct Input<'a> {
    pub tree: Arc<Tree>,
    /// What is hidden in this layer: the white-out layer paired with it (§5.5).
    pub hidden: Option<&'a WhiteoutTree>,
    /// What this layer hides in all layers below it: a former private layer (§4.2).
    pub hides_below: Option<&'a WhiteoutTree>,
}

#[derive(Debug)]
struct Node {
    parent: u32,
    first_contribution: u32,
    contribution_count: u32,
    first_child: u32,
    child_count: u32,
    /// Directories among the children that are not hidden, for `st_nlink`.
    directory_count: AtomicU32,
    hidden: AtomicBool,
    /// A white-out stands at or below this directory.
    touched: AtomicBool,
}

#[derive(Debug)]
pub struct Union {
    trees: Vec<Arc<Tree>>,
    nodes: Vec<Node>,
    contributions: Vec<Contribution>,
    /// The nodes of each hard-linked object: by layer and first entry.
    link_groups: HashMap<(u32, u32), Vec<u32>>,
}

/// A directory whose children are still to be merged.
struct Pending<'a> {
    node: u32,
    /// Its directory contributions.
    merged: Vec<Contribution>,
    /// White-outs that have more to say below here.
    rules: Vec<Rule<'a>>,
}

#[derive(Clone, Copy)]
struct Rule<'a> {
    layer: u32,
    /// Hides in the layer itself, or in all below it.
    below: bool,
    tree: &'a WhiteoutTree,
}

impl Union {
    /// Merges layers, the topmost first.
    pub fn build(layers: &[Input<'_>]) -> Union {
        let trees: Vec<_> = layers.iter().map(|layer| layer.tree.clone()).collect();
        let mut union = Union {
            trees,
            nodes: Vec::new(),
            contributions: Vec::new(),
            link_groups: HashMap::new(),
        };
        let mut rules = Vec::new();
        for (layer, input) in (0..).zip(layers) {
            let add = |tree, below| Rule { layer, below, tree };
            rules.extend(input.hidden.map(|tree| add(tree, false)));
            rules.extend(input.hides_below.map(|tree| add(tree, true)));
        }
        rules.retain(|rule| !rule.tree.is_empty());
        let roots: Vec<_> =
            (0..).zip(layers).map(|(layer, _)| Contribution { layer, entry: 0 }).collect();
        union.add_node(ROOT, &roots);
        let mut pending = std::collections::VecDeque::new();
        pending.push_back(Pending { node: ROOT, merged: roots, rules });
        while let Some(directory) = pending.pop_front() {
            union.merge_children(&directory, &mut pending);
        }
        union
    }

    fn add_node(&mut self, parent: u32, contributions: &[Contribution]) -> u32 {
        let index = u32::try_from(self.nodes.len()).expect("a union has under 2^32 paths");
        let first = u32::try_from(self.contributions.len()).expect("under 2^32 contributions");
        self.contributions.extend_from_slice(contributions);
        self.nodes.push(Node {
            parent,
            first_contribution: first,
            contribution_count: u32::try_from(contributions.len()).expect("under 2^32 layers"),
            first_child: 0,
            child_count: 0,
            directory_count: AtomicU32::new(0),
            hidden: AtomicBool::new(false),
            touched: AtomicBool::new(false),
        });
        if let Some(top) = contributions.first() {
            let entry = self.trees[top.layer as usize].entry(top.entry);
            if let Some(group) = entry.link_group {
                self.link_groups.entry((top.layer, group)).or_default().push(index);
            }
        }
        index
    }

    fn merge_children<'a>(
        &mut self,
        directory: &Pending<'a>,
        pending: &mut std::collections::VecDeque<Pending<'a>>,
    ) {
        let mut found: Vec<Contribution> = Vec::new();
        for Contribution { layer, entry } in &directory.merged {
            let children = self.trees[*layer as usize].children(*entry);
            found
                .extend(children.iter().map(|entry| Contribution { layer: *layer, entry: *entry }));
        }
        let trees = self.trees.clone();
        let name = |c: &Contribution| &*trees[c.layer as usize].entry(c.entry).name;
        if directory.merged.len() > 1 {
            found.sort_by(|a, b| name(a).cmp(name(b)).then(a.layer.cmp(&b.layer)));
        }
        let first_child = u32::try_from(self.nodes.len()).expect("a union has under 2^32 paths");
        let (mut children, mut directories) = (0, 0);
        for same_name in found.chunk_by(|a, b| name(a) == name(b)) {
            let mut visible = same_name.to_vec();
            let mut rules = Vec::new();
            for rule in &directory.rules {
                let Some(tree) = rule.tree.child(name(&same_name[0])) else { continue };
                if !tree.is_hidden() {
                    rules.push(Rule { tree, ..*rule });
                } else if rule.below {
                    visible.retain(|c| c.layer <= rule.layer);
                } else {
                    visible.retain(|c| c.layer != rule.layer);
                }
            }
            if visible.is_empty() {
                continue;
            }
            let is_directory =
                |c: &Contribution| trees[c.layer as usize].entry(c.entry).is_directory();
            let merged: Vec<_> = visible.iter().copied().take_while(is_directory).collect();
            let node = self.add_node(directory.node, &visible);
            children += 1;
            if !merged.is_empty() {
                directories += 1;
                pending.push_back(Pending { node, merged, rules });
            }
        }
        let node = &mut self.nodes[directory.node as usize];
        node.first_child = first_child;
        node.child_count = children;
        node.directory_count = AtomicU32::new(directories);
        node.touched = AtomicBool::new(!directory.rules.is_empty());
    }

    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    pub fn trees(&self) -> &[Arc<Tree>] {
        &self.trees
    }

    /// All contributions that are not hidden, topmost first.
    pub fn contributions(&self, node: u32) -> &[Contribution] {
        let node = &self.nodes[node as usize];
        let first = node.first_contribution as usize;
        &self.contributions[first..first + node.contribution_count as usize]
    }

    /// The topmost contribution; a union of no layers has none at its root.
    pub fn top(&self, node: u32) -> Option<Contribution> {
        self.contributions(node).first().copied()
    }

    /// What stands at a node.
    pub fn entry(&self, node: u32) -> Option<&Entry> {
        let top = self.top(node)?;
        Some(self.trees[top.layer as usize].entry(top.entry))
    }

    fn name(&self, node: u32) -> &[u8] {
        self.entry(node).map_or(&[], |entry| &entry.name)
    }

    pub fn parent(&self, node: u32) -> u32 {
        self.nodes[node as usize].parent
    }

    /// The children of a directory that are not hidden, by name.
    pub fn children(&self, node: u32) -> impl Iterator<Item = (u32, &Entry)> {
        let Node { first_child, child_count, .. } = self.nodes[node as usize];
        (first_child..first_child + child_count)
            .filter(|child| !self.is_hidden(*child))
            .filter_map(|child| Some((child, self.entry(child)?)))
    }

    /// The child of that name, unless it is hidden.
    pub fn child(&self, node: u32, name: &[u8]) -> Option<u32> {
        let Node { first_child, child_count, .. } = self.nodes[node as usize];
        let (mut low, mut high) = (first_child, first_child + child_count);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.name(middle).cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return (!self.is_hidden(middle)).then_some(middle),
            }
        }
        None
    }

    /// The node at a path, unless it or a directory above it is hidden.
    pub fn find(&self, path: &[u8]) -> Option<u32> {
        if path.is_empty() {
            return Some(ROOT);
        }
        path.split(|b| *b == b'/').try_fold(ROOT, |node, name| self.child(node, name))
    }

    pub fn path(&self, node: u32) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = node;
        while at != ROOT {
            names.push(self.name(at));
            at = self.parent(at);
        }
        names.reverse();
        names.join(&b'/')
    }

    /// Hides a path, with all below it when it is a directory.
    pub fn hide(&self, node: u32) {
        let hidden_before = self.nodes[node as usize].hidden.swap(true, Ordering::AcqRel);
        if !hidden_before && node != ROOT && self.entry(node).is_some_and(Entry::is_directory) {
            let parent = &self.nodes[self.parent(node) as usize];
            parent.directory_count.fetch_sub(1, Ordering::AcqRel);
        }
        let mut at = node;
        while at != ROOT {
            at = self.parent(at);
            self.nodes[at as usize].touched.store(true, Ordering::Release);
        }
    }

    fn is_touched(&self, node: u32) -> bool {
        self.nodes[node as usize].touched.load(Ordering::Acquire)
    }

    /// Whether the node itself was hidden.
    pub fn is_hidden(&self, node: u32) -> bool {
        self.nodes[node as usize].hidden.load(Ordering::Acquire)
    }

    /// Whether the node and all directories above it are shown.
    pub fn is_reachable(&self, node: u32) -> bool {
        let mut at = node;
        while at != ROOT {
            if self.is_hidden(at) {
                return false;
            }
            at = self.parent(at);
        }
        true
    }

    /// `st_nlink` of a directory by its merged content.
    pub fn directory_links(&self, node: u32) -> u32 {
        2 + self.nodes[node as usize].directory_count.load(Ordering::Acquire)
    }

    /// The reachable names of the object at `node`: itself alone, unless the
    /// object has several hard links in its layer.
    pub fn links(&self, node: u32) -> Vec<u32> {
        let group = self.top(node).and_then(|top| {
            let entry = self.trees[top.layer as usize].entry(top.entry);
            self.link_groups.get(&(top.layer, entry.link_group?))
        });
        match group {
            None => vec![node],
            Some(nodes) => nodes.iter().copied().filter(|node| self.is_reachable(*node)).collect(),
        }
    }
}
