//! White-outs as data: the paths that are hidden in one layer (§5.5), and when that
//! last changed in each directory.
//!
//! A hidden directory hides all below it, so a marked node has no children.
//! No I/O; `private/markers.rs` keeps the trees on disk. Who rules a private directory
//! makes them as deep as he likes: nothing here recurses, and a copy shares what it
//! does not change.

use std::collections::BTreeMap;
use std::sync::Arc;

use strata_core::manifest::Timestamp;

/// A set of hidden paths, as a trie over names.
#[derive(Clone, Default)]
pub struct WhiteoutTree {
    hidden: bool,
    /// Of a directory with hidden names: when one of them came or went.
    changed: Option<Timestamp>,
    children: BTreeMap<Box<[u8]>, Arc<WhiteoutTree>>,
}

impl std::fmt::Debug for WhiteoutTree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |path: Vec<u8>| String::from_utf8_lossy(&path).into_owned();
        f.debug_set().entries(self.paths().into_iter().map(shown)).finish()
    }
}

impl Drop for WhiteoutTree {
    fn drop(&mut self) {
        let mut pending: Vec<_> = std::mem::take(&mut self.children).into_values().collect();
        while let Some(child) = pending.pop() {
            if let Some(mut child) = Arc::into_inner(child) {
                pending.extend(std::mem::take(&mut child.children).into_values());
            }
        }
    }
}

impl WhiteoutTree {
    /// Hides `path` (relative, never the root); what was hidden below it is forgotten.
    pub fn hide(&mut self, path: &[u8]) {
        let mut at = self;
        for name in path.split(|b| *b == b'/') {
            if at.hidden {
                return;
            }
            at = Arc::make_mut(at.children.entry(name.into()).or_default());
        }
        at.hidden = true;
        at.changed = None;
        at.children.clear();
    }

    /// Shows `path` again. Returns whether it was hidden itself; else nothing changes.
    pub fn show(&mut self, path: &[u8]) -> bool {
        let names: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
        // The last directory on the way that leads elsewhere, too: it loses a name.
        let (mut stays, mut at) = (0, &*self);
        for (depth, name) in names.iter().enumerate() {
            if at.children.len() > 1 {
                stays = depth;
            }
            match at.child(name) {
                Some(child) => at = child,
                None => return false,
            }
        }
        if !at.hidden {
            return false;
        }
        let mut at = self;
        for name in &names[..stays] {
            match at.children.get_mut(*name) {
                Some(child) => at = Arc::make_mut(child),
                None => return false,
            }
        }
        at.children.remove(names[stays]);
        true
    }

    /// Whether `path` itself is hidden.
    pub fn hides(&self, path: &[u8]) -> bool {
        let at = path.split(|b| *b == b'/').try_fold(self, |at, name| at.child(name));
        at.is_some_and(WhiteoutTree::is_hidden)
    }

    /// Notes when names came or went below a directory that has hidden ones.
    pub fn date(&mut self, directory: &[u8], time: Timestamp) {
        let mut at = self;
        for name in directory.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            match at.children.get_mut(name) {
                Some(child) => at = Arc::make_mut(child),
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
        self.children.get(name).map(|child| &**child)
    }

    /// What is hidden below, by name.
    pub fn children(&self) -> impl Iterator<Item = (&[u8], &WhiteoutTree)> {
        self.children.iter().map(|(name, tree)| (&**name, &**tree))
    }

    /// Adds all paths of `other`.
    pub fn merge(&mut self, other: &WhiteoutTree) {
        for path in other.paths() {
            self.hide(&path);
        }
    }

    /// All hidden paths, in order of their names.
    pub fn paths(&self) -> Vec<Vec<u8>> {
        if self.hidden {
            return vec![Vec::new()];
        }
        let (mut paths, mut path) = (Vec::new(), Vec::new());
        // The directories on the way, with the lengths of their paths.
        let mut levels = vec![(self.children(), 0)];
        while let Some((children, length)) = levels.last_mut() {
            path.truncate(*length);
            let Some((name, child)) = children.next() else {
                levels.pop();
                continue;
            };
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            if child.hidden {
                paths.push(path.clone());
            } else {
                levels.push((child.children(), path.len()));
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
        assert_eq!(tree.paths(), [b"a/b/c"], "what is hidden below stays so");
        assert!(tree.hides(b"a/b/c") && !tree.hides(b"a/b") && !tree.hides(b"a/b/c/d"));
        assert!(tree.show(b"a/b/c"));
        assert!(tree.is_empty() && !tree.hides(b"a/b/c"));
        assert!(!tree.show(b"a/b/c"));
        for path in [&b"a/b/c"[..], b"a/d/e/f", b"a/d/g"] {
            tree.hide(path);
        }
        let before = tree.clone();
        assert!(tree.show(b"a/d/e/f"));
        assert_eq!(tree.paths(), [&b"a/b/c"[..], b"a/d/g"]);
        assert_eq!(before.paths(), [&b"a/b/c"[..], b"a/d/e/f", b"a/d/g"]);
    }

    #[test]
    fn a_tree_may_be_deeper_than_a_stack() {
        let mut tree = WhiteoutTree::default();
        let path = [&b"d/".repeat(200_000)[..], b"gone"].concat();
        tree.hide(&path);
        let mut copy = tree.clone();
        copy.hide(b"d/d/other");
        assert!(tree.show(&path));
        assert!(tree.is_empty());
        assert_eq!(copy.paths().len(), 2);
    }
}
