//! White-outs as data: the paths that are hidden in one layer (§5.5).
//!
//! A hidden directory hides all below it, so a marked node has no children.
//! No I/O; `private/markers.rs` keeps the trees on disk.

use std::collections::BTreeMap;

/// A set of hidden paths, as a trie over names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WhiteoutTree {
    hidden: bool,
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
