//! Software layers that share a path (§3, §5.2): found from their manifests.
//!
//! Exempt are directories, entries that are the same in every respect
//! (several architectures of one package ship equal files), and what one layer
//! says that it takes over from the other ([`obscures`]), where it stands above
//! it. Everything else that two layers have at one path would obscure one of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::Arc;

use crate::generation::LayerSetEntry;
use crate::manifest::{Entry, Kind, Manifest};
use crate::metadata::Metadata;
use crate::names::LayerName;
use crate::relation::Relation;

/// Where manifests come from: the store, or a test.
pub trait ManifestSource {
    /// The manifest of a unit; `None` where it cannot be had.
    fn manifest(&self, entry: &LayerSetEntry) -> Option<Arc<Manifest>>;

    /// Says what will be asked for next, for those who can read several at once.
    fn prepare(&self, _entries: &[LayerSetEntry]) {}
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

/// Whether the layer `upper` takes over what `lower` has at `path` (relative to
/// the root): it replaces that layer's files (`Replaces`, as dpkg understands it
/// without a conflict), or diverts the path (`Diverts`).
pub fn obscures(upper: &Metadata, lower: &Metadata, path: &[u8]) -> bool {
    replaces(upper, lower) || upper.diverts.iter().any(|diversion| diversion.path() == path)
}

/// Whether `upper` says that its files replace those of `lower`.
pub fn replaces(upper: &Metadata, lower: &Metadata) -> bool {
    let meant =
        |relation: &Relation| relation.name == lower.layer && relation.admits(&lower.version);
    upper.replaces.iter().any(meant)
}

/// The rule for two software layers that both have `path` and are not alike there:
/// the upper one takes it over, and the lower one does not claim as much.
pub fn may_obscure(upper: &Metadata, lower: &Metadata, path: &[u8]) -> bool {
    obscures(upper, lower, path) && !obscures(lower, upper, path)
}

/// The order of software layers in a set, bottom first: by name, but each above
/// those that it replaces, and layers that divert paths above those that do not.
/// Layers that replace each other in a circle stay by name.
pub fn stacking_order(layers: &[&Metadata]) -> Vec<usize> {
    let key = |at: usize| (!layers[at].diverts.is_empty(), &layers[at].layer, &layers[at].version);
    let mut by_name: Vec<usize> = (0..layers.len()).collect();
    by_name.sort_by_key(|at| key(*at));
    let mut names: HashMap<&LayerName, Vec<usize>> = HashMap::new();
    for (at, layer) in layers.iter().enumerate() {
        names.entry(&layer.layer).or_default().push(at);
    }
    // What must stand below each, where it is in the set and does not claim the same.
    let below: Vec<Vec<usize>> = (0..layers.len())
        .map(|at| {
            let mut found: Vec<usize> = layers[at]
                .replaces
                .iter()
                .flat_map(|relation| names.get(&relation.name).into_iter().flatten().copied())
                .filter(|other| *other != at && replaces(layers[at], layers[*other]))
                .filter(|other| !replaces(layers[*other], layers[at]))
                .collect();
            found.sort_by_key(|at| key(*at));
            found.dedup();
            found
        })
        .collect();
    let mut order = Vec::with_capacity(layers.len());
    let mut seen = vec![false; layers.len()];
    for at in by_name {
        // Depth first, so that what is below comes before; a circle is cut where it closes.
        let mut path = vec![(at, 0)];
        if std::mem::replace(&mut seen[at], true) {
            continue;
        }
        while let Some((at, next)) = path.last_mut() {
            match below[*at].get(*next) {
                None => {
                    order.push(*at);
                    path.pop();
                }
                Some(lower) => {
                    *next += 1;
                    if !std::mem::replace(&mut seen[*lower], true) {
                        path.push((*lower, 0));
                    }
                }
            }
        }
    }
    order
}

/// Finds all pairs of layers that share a path, of layers in the order of their
/// set, bottom first. `permits(upper, lower, path)` tells where one may obscure
/// the other ([`may_obscure`]). Linear in the entries of all manifests, as long as
/// few paths are permitted; nothing is copied but the paths that are reported.
pub fn shared_paths(
    manifests: &[&Manifest],
    permits: impl Fn(usize, usize, &[u8]) -> bool,
) -> Vec<SharedPath> {
    let total = manifests.iter().map(|manifest| manifest.entries().len()).sum();
    let mut owners: HashMap<&[u8], (usize, &Entry)> = HashMap::with_capacity(total);
    // Further layers that have a path which an upper one takes over.
    let mut others: HashMap<&[u8], Vec<(usize, &Entry)>> = HashMap::new();
    let mut found: HashMap<(usize, usize), SharedPath> = HashMap::new();
    for (second, manifest) in manifests.iter().enumerate() {
        for entry in manifest.entries() {
            match owners.entry(&entry.path) {
                Slot::Vacant(slot) => {
                    slot.insert((second, entry));
                }
                Slot::Occupied(slot) => {
                    let owner = *slot.get();
                    let alike = |(first, owner): (usize, &Entry)| {
                        first == second || may_share(manifests[first], owner, manifest, entry)
                    };
                    let known = others.get(entry.path.as_slice()).map_or(&[][..], Vec::as_slice);
                    if known.is_empty() && alike(owner) {
                        continue;
                    }
                    let unlike = std::iter::once(&owner)
                        .chain(known)
                        .find(|lower| !alike(**lower) && !permits(second, lower.0, &entry.path));
                    let Some((first, _)) = unlike.copied() else {
                        others.entry(&entry.path).or_default().push((second, entry));
                        continue;
                    };
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

    fn never(_: usize, _: usize, _: &[u8]) -> bool {
        false
    }

    fn metadata(text: &str) -> Metadata {
        Metadata::parse(text.as_bytes()).expect("valid metadata")
    }

    #[test]
    fn a_layer_above_may_take_over_what_it_says() {
        let old = metadata("Layer: zsh-old\nVersion: 1\n");
        let new = metadata("Layer: a-new\nVersion: 1\nReplaces: zsh-old (<< 2)\n");
        let diverting = metadata("Layer: b\nVersion: 1\nDiverts: /bin/x => /bin/x.real\n");
        assert!(may_obscure(&new, &old, b"bin/x") && !may_obscure(&old, &new, b"bin/x"));
        assert!(
            may_obscure(&diverting, &old, b"bin/x") && !may_obscure(&diverting, &old, b"bin/y")
        );
        let newer = metadata("Layer: zsh-old\nVersion: 2\n");
        assert!(!may_obscure(&new, &newer, b"bin/x"));
        let back = metadata("Layer: zsh-old\nVersion: 1\nReplaces: a-new\n");
        assert!(!may_obscure(&new, &back, b"bin/x"), "both claim it");
        // Of three, each pair must agree.
        let all = [&old, &new, &diverting];
        let (x1, x2, x3) =
            (manifest(&[("x", "1")]), manifest(&[("x", "2")]), manifest(&[("x", "3")]));
        let permits =
            |upper: usize, lower: usize, path: &[u8]| may_obscure(all[upper], all[lower], path);
        assert_eq!(shared_paths(&[&x1, &x2], permits), []);
        let found = shared_paths(&[&x1, &x2, &x3], permits);
        assert_eq!(found.iter().map(|s| (s.first, s.second)).collect::<Vec<_>>(), [(0, 2)]);
        assert_eq!(shared_paths(&[&x1, &x3, &x3], permits).len(), 1);
    }

    #[test]
    fn layers_stand_above_what_they_replace() {
        let texts = [
            "Layer: a\nVersion: 1\nReplaces: c, x\n",
            "Layer: b\nVersion: 1\nDiverts: /x => /y\n",
            "Layer: c\nVersion: 1\nReplaces: d (<< 2)\n",
            "Layer: d\nVersion: 1\n",
            "Layer: e\nVersion: 1\nReplaces: f\n",
            "Layer: f\nVersion: 1\nReplaces: e\n",
        ];
        let layers: Vec<_> = texts.iter().map(|text| metadata(text)).collect();
        let order = stacking_order(&layers.iter().collect::<Vec<_>>());
        let names: Vec<_> = order.iter().map(|at| layers[*at].layer.as_str()).collect();
        assert_eq!(names, ["d", "c", "a", "e", "f", "b"]);
    }

    #[test]
    fn directories_and_equal_files_may_be_shared() {
        let a = manifest(&[("usr/bin/a", "1"), ("usr/share/doc", "same")]);
        let b = manifest(&[("usr/bin/b", "1"), ("usr/share/doc", "same")]);
        assert_eq!(shared_paths(&[&a, &b], never), []);
    }

    #[test]
    fn every_pair_is_named_once() {
        let a = manifest(&[("usr/bin/x", "1"), ("usr/bin/y", "1")]);
        let b = manifest(&[("usr/bin/x", "2"), ("usr/bin/y", "2")]);
        let c = manifest(&[("usr/bin", "a file where others have a directory")]);
        let found: Vec<_> = shared_paths(&[&a, &b, &c], never)
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
        assert_eq!(shared_paths(&layers, never), []);
        let took = started.elapsed();
        eprintln!("400 layers, {} paths: {took:?}", 400 * 153);
        assert!(took.as_millis() < 500, "{took:?}; the goal is 50 ms on an idle machine");
    }
}
