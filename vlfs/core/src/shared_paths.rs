//! Software layers that share a path (§3, §5.2): found from their manifests.
//!
//! Exempt are directories, and entries that are the same in every respect
//! (several architectures of one package ship equal files). Everything else
//! that two layers have at one path would obscure one of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::Arc;

use crate::generation::LayerSetEntry;
use crate::manifest::{Entry, Kind, Manifest};

/// Where manifests come from: the store, or a test.
pub trait ManifestSource {
    /// The manifest of a unit; `None` where it cannot be had.
    fn manifest(&self, entry: &LayerSetEntry) -> Option<Arc<Manifest>>;
}

impl<F: Fn(&LayerSetEntry) -> Option<Arc<Manifest>>> ManifestSource for F {
    fn manifest(&self, entry: &LayerSetEntry) -> Option<Arc<Manifest>> {
        self(entry)
    }
}

/// Two layers (indices into the given manifests, ascending) that share paths.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SharedPath {
    pub first: usize,
    pub second: usize,
    /// The first such path in manifest order, relative to the root.
    pub path: Vec<u8>,
    /// How many paths the two share.
    pub count: usize,
}

/// Finds all pairs of layers that share a path. Linear in the entries of all
/// manifests; nothing is copied but the paths that are reported.
pub fn shared_paths(manifests: &[&Manifest]) -> Vec<SharedPath> {
    let total = manifests.iter().map(|manifest| manifest.entries().len()).sum();
    let mut owners: HashMap<&[u8], (usize, &Entry)> = HashMap::with_capacity(total);
    let mut found: HashMap<(usize, usize), SharedPath> = HashMap::new();
    for (second, manifest) in manifests.iter().enumerate() {
        for entry in manifest.entries() {
            match owners.entry(&entry.path) {
                Slot::Vacant(slot) => {
                    slot.insert((second, entry));
                }
                Slot::Occupied(slot) => {
                    let (first, owner) = *slot.get();
                    if first == second || may_share(manifests[first], owner, manifest, entry) {
                        continue;
                    }
                    let pair = found.entry((first, second)).or_insert_with(|| SharedPath {
                        first,
                        second,
                        path: entry.path.clone(),
                        count: 0,
                    });
                    pair.count += 1;
                }
            }
        }
    }
    let mut found: Vec<_> = found.into_values().collect();
    found.sort_unstable();
    found
}

fn may_share(first: &Manifest, a: &Entry, second: &Manifest, b: &Entry) -> bool {
    if a.kind == Kind::Directory && b.kind == Kind::Directory {
        return true;
    }
    // A hard link has the content and the attributes of its target.
    let resolved = |manifest: &'_ Manifest, entry: &Entry| -> Option<Entry> {
        let mut entry = match &entry.kind {
            Kind::HardLink { target } => manifest.get(target)?.clone(),
            _ => entry.clone(),
        };
        entry.path.clear();
        entry.link_count = 1;
        Some(entry)
    };
    match (resolved(first, a), resolved(second, b)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::manifest::Timestamp;

    /// A manifest of files (with the given content) and the directories above them.
    pub(crate) fn manifest(files: &[(&str, &str)]) -> Manifest {
        let entry = |path: &str, kind| Entry {
            path: path.into(),
            kind,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            link_count: 1,
            xattrs: Default::default(),
        };
        let mut entries = vec![entry("", Kind::Directory)];
        let mut directories = std::collections::BTreeSet::new();
        for (path, content) in files {
            directories.extend(path.match_indices('/').map(|(at, _)| &path[..at]));
            let digest = Digest::of(content.as_bytes());
            entries.push(entry(path, Kind::Regular { size: content.len() as u64, digest }));
        }
        entries.extend(directories.iter().map(|path| entry(path, Kind::Directory)));
        Manifest::new(entries).expect("a valid tree")
    }

    #[test]
    fn directories_and_equal_files_may_be_shared() {
        let a = manifest(&[("usr/bin/a", "1"), ("usr/share/doc", "same")]);
        let b = manifest(&[("usr/bin/b", "1"), ("usr/share/doc", "same")]);
        assert_eq!(shared_paths(&[&a, &b]), []);
    }

    #[test]
    fn every_pair_is_named_once() {
        let a = manifest(&[("usr/bin/x", "1"), ("usr/bin/y", "1")]);
        let b = manifest(&[("usr/bin/x", "2"), ("usr/bin/y", "2")]);
        let c = manifest(&[("usr/bin", "a file where others have a directory")]);
        let found: Vec<_> = shared_paths(&[&a, &b, &c])
            .into_iter()
            .map(|s| (s.first, s.second, String::from_utf8(s.path).expect("ASCII"), s.count))
            .collect();
        assert_eq!(found, [(0, 1, "usr/bin/x".to_owned(), 2), (0, 2, "usr/bin".to_owned(), 1)]);
    }

    #[test]
    fn four_hundred_layers_are_fast() {
        let layers: Vec<_> = (0..400)
            .map(|layer| {
                let paths: Vec<_> =
                    (0..150).map(|file| format!("usr/share/package-{layer}/file-{file}")).collect();
                let files: Vec<_> = paths.iter().map(|path| (path.as_str(), "x")).collect();
                manifest(&files)
            })
            .collect();
        let layers: Vec<_> = layers.iter().collect();
        let started = std::time::Instant::now();
        assert_eq!(shared_paths(&layers), []);
        let took = started.elapsed();
        eprintln!("400 layers, {} paths: {took:?}", 400 * 153);
        assert!(took.as_millis() < 500, "{took:?}; the goal is 50 ms on an idle machine");
    }
}
