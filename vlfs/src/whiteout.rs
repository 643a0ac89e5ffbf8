//! White-outs as data: the paths that are hidden in one layer (§5.5), and when that
//! last changed in each directory.
//!
//! A hidden directory hides all below it, so a marked node has no children.
//! No I/O; `private/markers.rs` keeps the trees on disk.

use std::collections::BTreeMap;

use strata_core::manifest::Timestamp;

/// A set of hidden paths, as a trie over names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WhiteoutTree {
    hidden: bool,
    /// Of a directory with hidden names: when one of them came or went.
    changed: Option<Timestamp>,
    children: BTreeMap<Box<[u8]>, WhiteoutTree>,
}

impl WhiteoutTree {
    /// Hides `path` (relative, never the root); what was hidden below it is forgotten.
    pub fn hide(&mut self, path: &[u8]) {
        let mut at = self;
        for name in path.split(|b| *b == b'/') {
            if at.hidden {
                return;
            }
            at = at.children.entry(name.into()).or_default();
        }
        at.hidden = true;
        at.changed = None;
        at.children.clear();
    }

    /// Shows `path` again. Returns whether it was hidden itself.
    pub fn show(&mut self, path: &[u8]) -> bool {
        let (name, rest) = match path.iter().position(|b| *b == b'/') {
            Some(slash) => (&path[..slash], Some(&path[slash + 1..])),
            None => (path, None),
        };
        let Some(child) = self.children.get_mut(name) else { return false };
        let shown = match rest {
            Some(rest) => child.show(rest),
            None => child.hidden,
        };
        if rest.is_none() || (child.children.is_empty() && !child.hidden) {
            self.children.remove(name);
        }
        shown
    }

    /// Notes when names came or went below a directory that has hidden ones.
    pub fn date(&mut self, directory: &[u8], time: Timestamp) {
        let mut at = self;
        for name in directory.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            match at.children.get_mut(name) {
                Some(child) => at = child,
                None => return,
            }
        }
        if !at.hidden {
            at.changed = Some(time);
        }
    }

    /// When a name of a directory was hidden or shown last, if any is hidden there.
    pub fn changed(&self, directory: &[u8]) -> Option<Timestamp> {
        let names = directory.split(|b| *b == b'/').filter(|name| !name.is_empty());
        let mut at = self;
        for name in names {
            at = at.child(name)?;
        }
        at.changed
    }

    pub fn is_hidden(&self) -> bool {
        self.hidden
    }

    pub fn is_empty(&self) -> bool {
        !self.hidden && self.children.is_empty()
    }

    pub fn child(&self, name: &[u8]) -> Option<&WhiteoutTree> {
        self.children.get(name)
    }

    /// What is hidden below, by name.
    pub fn children(&self) -> impl Iterator<Item = (&[u8], &WhiteoutTree)> {
        self.children.iter().map(|(name, tree)| (&**name, tree))
    }

    /// Adds all paths of `other`.
    pub fn merge(&mut self, other: &WhiteoutTree) {
        for path in other.paths() {
            self.hide(&path);
        }
    }

    /// All hidden paths, in order of their names.
    pub fn paths(&self) -> Vec<Vec<u8>> {
        let mut paths = Vec::new();
        let mut pending = vec![(Vec::new(), self)];
        while let Some((path, tree)) = pending.pop() {
            if tree.hidden {
                paths.push(path);
                continue;
            }
            for (name, child) in tree.children.iter().rev() {
                let mut below = path.clone();
                if !below.is_empty() {
                    below.push(b'/');
                }
                below.extend_from_slice(name);
                pending.push((below, child));
            }
        }
        paths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hiding_a_directory_forgets_what_was_hidden_below() {
        let mut tree = WhiteoutTree::default();
        tree.hide(b"usr/share/doc/a");
        tree.hide(b"usr/share/doc/b");
        tree.hide(b"etc/motd");
        assert_eq!(tree.paths(), [&b"etc/motd"[..], b"usr/share/doc/a", b"usr/share/doc/b"]);
        tree.hide(b"usr/share");
        tree.hide(b"usr/share/man");
        assert_eq!(tree.paths(), [&b"etc/motd"[..], b"usr/share"]);
    }

    #[test]
    fn a_directory_is_dated_while_something_is_hidden_in_it() {
        let at = |seconds| Timestamp { seconds, nanoseconds: 7 };
        let mut tree = WhiteoutTree::default();
        tree.date(b"a", at(1));
        assert_eq!(tree.changed(b"a"), None, "nothing is hidden there");
        tree.hide(b"a/b");
        tree.date(b"a", at(2));
        tree.hide(b"a/c");
        tree.date(b"a", at(3));
        assert_eq!((tree.changed(b"a"), tree.changed(b"")), (Some(at(3)), None));
        tree.show(b"a/b");
        assert_eq!(tree.changed(b"a"), Some(at(3)));
        tree.show(b"a/c");
        assert_eq!(tree.changed(b"a"), None);
        tree.hide(b"a/b");
        tree.date(b"a", at(4));
        tree.hide(b"a");
        assert_eq!(tree.changed(b"a"), None, "it is hidden itself");
    }

    #[test]
    fn showing_prunes() {
        let mut tree = WhiteoutTree::default();
        tree.hide(b"a/b/c");
        assert!(!tree.show(b"a/b"));
        tree.hide(b"a/b/c");
        assert!(tree.show(b"a/b/c"));
        assert!(tree.is_empty());
        assert!(!tree.show(b"a/b/c"));
    }
}
