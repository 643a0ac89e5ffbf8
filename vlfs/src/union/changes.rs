//! What a swap changes: the names that two unions show differently.
//!
//! The cost follows what changed: a path to which the same layers contribute the
//! same entries in both, and no white-out at or below it in either, is passed over
//! with all below it.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::{Contribution, ROOT, Union};
use crate::tree::Entry;

/// Changes below one directory; paths are relative to the root.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct DirectoryChanges {
    /// Names that came, went, or became another object.
    pub names: Vec<Vec<u8>>,
    /// Names of the same object with other attributes.
    pub attributes: Vec<Vec<u8>>,
}

/// Changed names by the path of their directory.
pub type Changes = BTreeMap<Vec<u8>, DirectoryChanges>;

/// Compares two unions. `kept` gives for each layer of the old set its position in
/// the new one, if it is there.
pub fn changes(old: &Union, new: &Union, kept: &[Option<u32>]) -> Changes {
    let mut comparison = Comparison { old, new, kept, changes: Changes::new() };
    let mut pending = vec![(ROOT, ROOT)];
    while let Some((a, b)) = pending.pop() {
        if !comparison.is_same(a, b) {
            comparison.directory(a, b, &mut pending);
        }
    }
    for directory in comparison.changes.values_mut() {
        directory.attributes.sort_unstable();
        directory.attributes.dedup();
    }
    comparison.changes
}

struct Comparison<'a> {
    old: &'a Union,
    new: &'a Union,
    kept: &'a [Option<u32>],
    changes: Changes,
}

impl Comparison<'_> {
    /// Whether two nodes are merged from the same entries of the same layers, with
    /// no white-out at or below either.
    fn is_same(&self, a: u32, b: u32) -> bool {
        self.has_same_sources(a, b) && !self.old.is_touched(a) && !self.new.is_touched(b)
    }

    fn has_same_sources(&self, a: u32, b: u32) -> bool {
        let (first, second) = (self.old.contributions(a), self.new.contributions(b));
        let same = |(x, y): (Contribution, Contribution)| {
            x.entry == y.entry && self.kept.get(x.layer as usize) == Some(&Some(y.layer))
        };
        first.len() == second.len() && first.into_iter().zip(second).all(same)
    }

    /// Compares the names of a directory.
    fn directory(&mut self, a: u32, b: u32, pending: &mut Vec<(u32, u32)>) {
        let (old, new) = (self.old, self.new);
        let mut found = DirectoryChanges::default();
        let mut left = old.listed(a).peekable();
        let mut right = new.listed(b).peekable();
        loop {
            let order = match (left.peek(), right.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => old.name(*a).cmp(new.name(*b)),
            };
            let one = if order.is_le() { left.next() } else { None };
            let two = if order.is_ge() { right.next() } else { None };
            if let (Some(a), Some(b)) = (one, two)
                && self.has_same_sources(a, b)
            {
                if old.is_touched(a) || new.is_touched(b) {
                    pending.push((a, b));
                }
                continue;
            }
            self.name(one, two, &mut found, pending);
        }
        if found != DirectoryChanges::default() {
            let changed = self.changes.entry(old.path(a)).or_default();
            changed.names.append(&mut found.names);
            changed.attributes.append(&mut found.attributes);
        }
    }

    /// One name that is not merged from the same in both.
    fn name(
        &mut self,
        a: Option<u32>,
        b: Option<u32>,
        found: &mut DirectoryChanges,
        pending: &mut Vec<(u32, u32)>,
    ) {
        let first = a.and_then(|a| self.old.entry(a));
        let second = b.and_then(|b| self.new.entry(b));
        for (union, node, entry) in [(self.old, a, &first), (self.new, b, &second)] {
            if let (Some(node), Some(entry)) = (node, entry)
                && entry.has_links
            {
                self.note_links(union, node);
            }
        }
        match (first, second) {
            (Some(first), Some(second)) if same_object(&first, &second) => {
                if let (true, Some(a), Some(b)) = (first.is_directory(), a, b) {
                    pending.push((a, b));
                }
                if first.attributes != second.attributes {
                    found.attributes.push(first.name.to_vec());
                }
            }
            (Some(entry), _) | (None, Some(entry)) => found.names.push(entry.name.to_vec()),
            (None, None) => {}
        }
    }

    /// The other names of an object show another number of links.
    fn note_links(&mut self, union: &Union, node: u32) {
        for link in union.links(node) {
            let path = union.path(link);
            let directory = strata_core::manifest::parent_path(&path).unwrap_or_default();
            let name = strata_core::manifest::file_name(&path).to_vec();
            self.changes.entry(directory.to_vec()).or_default().attributes.push(name);
        }
    }
}

fn same_object(a: &Entry<'_>, b: &Entry<'_>) -> bool {
    a.identity == b.identity && a.kind == b.kind
}
