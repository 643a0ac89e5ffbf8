//! What a swap changes: the names that two indexes show differently.
//!
//! The cost follows what changed: a directory to which the same layers
//! contribute the same entries in both indexes, and no white-out below it in
//! either, is skipped with all below it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Contribution, ROOT, Union};
use crate::tree::{Entry, Kind};

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

/// Compares two indexes.
pub fn changes(old: &Union, new: &Union) -> Changes {
    let mut changes = Changes::new();
    let mut pending = vec![(Vec::new(), ROOT, ROOT)];
    while let Some((path, a, b)) = pending.pop() {
        if same_sources(old, a, new, b) {
            continue;
        }
        let mut found = DirectoryChanges::default();
        let mut left = old.children(a).peekable();
        let mut right = new.children(b).peekable();
        loop {
            let order = match (left.peek(), right.peek()) {
                (None, None) => break,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some((_, a)), Some((_, b))) => a.name.cmp(&b.name),
            };
            let one = if order.is_le() { left.next() } else { None };
            let two = if order.is_ge() { right.next() } else { None };
            match (one, two) {
                (Some((a, first)), Some((b, second))) if same_object(first, second) => {
                    if first.is_directory() {
                        pending.push((join(&path, &first.name), a, b));
                    }
                    let same_links =
                        first.is_directory() || old.links(a).len() == new.links(b).len();
                    if first.attributes != second.attributes || !same_links {
                        found.attributes.push(first.name.to_vec());
                    }
                }
                (Some((_, entry)), _) | (None, Some((_, entry))) => {
                    found.names.push(entry.name.to_vec());
                }
                (None, None) => {}
            }
        }
        if found != DirectoryChanges::default() {
            changes.insert(path, found);
        }
    }
    changes
}

/// Whether two nodes are merged from the same entries of the same layers, with
/// no white-out at or below either.
fn same_sources(old: &Union, a: u32, new: &Union, b: u32) -> bool {
    let (first, second) = (old.contributions(a), new.contributions(b));
    let same = |(x, y): (&Contribution, &Contribution)| {
        x.entry == y.entry
            && Arc::ptr_eq(&old.trees[x.layer as usize], &new.trees[y.layer as usize])
    };
    first.len() == second.len()
        && first.iter().zip(second).all(same)
        && !old.is_touched(a)
        && !new.is_touched(b)
}

fn same_object(a: &Entry, b: &Entry) -> bool {
    a.identity == b.identity
        && match (&a.kind, &b.kind) {
            (Kind::Directory { .. }, Kind::Directory { .. }) => true,
            (a, b) => a == b,
        }
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}
