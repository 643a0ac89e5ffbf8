//! What becomes of paths when software layers change, and which configuration
//! lies over what changed.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Manifests, layers};
use crate::generation::LayerSetEntry;
use crate::manifest::{Entry, Kind};
use crate::metadata::LayerKind;
use crate::names::LayerName;

/// Changes of paths other than directories. Paths are absolute; bytes that are not
/// UTF-8 are shown replaced.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct PathChanges {
    /// Of software layers.
    pub appear: Vec<FileChange>,
    pub vanish: Vec<FileChange>,
    /// From one layer to another.
    pub handed_over: Vec<HandedPath>,
    /// Software paths that stay with their layer and change content or attributes.
    pub modified: u64,
    /// Of configuration layers.
    pub configuration: Vec<ConfigurationFile>,
    /// Changed software files that a configuration layer hides, so that the change
    /// is not seen.
    pub shadowed: Vec<ShadowedPath>,
    /// Units whose files are not known here.
    pub unknown_units: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FileChange {
    pub path: String,
    pub layer: LayerName,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct HandedPath {
    pub path: String,
    pub from: LayerName,
    pub to: LayerName,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ConfigurationFile {
    pub path: String,
    pub layer: LayerName,
    /// `added`, `modified` or `removed`.
    pub change: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ShadowedPath {
    pub path: String,
    pub software: LayerName,
    pub configuration: LayerName,
}

/// Where a path is, before and after.
#[derive(Default)]
struct Owners<'a> {
    before: Option<(&'a LayerName, &'a Entry)>,
    after: Option<(&'a LayerName, &'a Entry)>,
}

impl Owners<'_> {
    fn changes(&self) -> bool {
        match (self.before, self.after) {
            (Some((a, old)), Some((b, new))) => a != b || !alike(old, new),
            _ => true,
        }
    }
}

/// Whether two entries of one path show the same.
fn alike(a: &Entry, b: &Entry) -> bool {
    (&a.kind, a.mode, a.uid, a.gid, &a.xattrs) == (&b.kind, b.mode, b.uid, b.gid, &b.xattrs)
}

fn shown(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

/// Compares the files of the units that differ between two layer sets. Units that
/// are in both are looked at only for what they say of those paths.
pub(super) fn changes(
    old: &[LayerSetEntry],
    new: &[LayerSetEntry],
    manifests: &Manifests<'_>,
) -> PathChanges {
    let mut changes = PathChanges::default();
    let leaving = layers::arriving(new, old);
    let arriving = layers::arriving(old, new);
    let mut load = |entries: &[&LayerSetEntry]| {
        let mut loaded = Vec::new();
        for entry in entries {
            match manifests.get(entry) {
                Some(manifest) => loaded.push(((*entry).clone(), manifest)),
                None => changes.unknown_units.push(entry.to_string()),
            }
        }
        loaded
    };
    let (gone, come) = (load(&leaving), load(&arriving));
    let (software, configuration) = (
        compare(&gone, &come, LayerKind::Software),
        compare(&gone, &come, LayerKind::Configuration),
    );
    let shared = kept_paths(old, new, manifests, &software);
    for (path, owners) in &software {
        match (owners.before, owners.after) {
            (None, Some(_)) | (Some(_), None) if shared.contains_key(*path) => {}
            (None, Some((layer, _))) => {
                changes.appear.push(FileChange { path: shown(path), layer: layer.clone() });
            }
            (Some((layer, _)), None) => {
                changes.vanish.push(FileChange { path: shown(path), layer: layer.clone() });
            }
            (Some((from, _)), Some((to, _))) if from != to => {
                let (from, to) = (from.clone(), to.clone());
                changes.handed_over.push(HandedPath { path: shown(path), from, to });
            }
            (Some(_), Some(_)) => changes.modified += u64::from(owners.changes()),
            (None, None) => {}
        }
    }
    changes.configuration = configuration_files(&configuration);
    changes.shadowed = shadowed(new, manifests, &software);
    changes.unknown_units.sort();
    changes.unknown_units.dedup();
    changes
}

type Loaded = Vec<(LayerSetEntry, std::sync::Arc<crate::manifest::Manifest>)>;

fn compare<'a>(
    gone: &'a Loaded,
    come: &'a Loaded,
    kind: LayerKind,
) -> BTreeMap<&'a [u8], Owners<'a>> {
    let mut paths: BTreeMap<&[u8], Owners<'a>> = BTreeMap::new();
    for (loaded, after) in [(gone, false), (come, true)] {
        for (unit, manifest) in loaded.iter().filter(|(unit, _)| unit.kind == kind) {
            for entry in manifest.entries().iter().filter(|e| e.kind != Kind::Directory) {
                let owners = paths.entry(&entry.path).or_default();
                let place = if after { &mut owners.after } else { &mut owners.before };
                *place = Some((&unit.layer, entry));
            }
        }
    }
    paths
}

/// Paths among `paths` that a software layer has which is in both sets: equal
/// files may be in several layers.
fn kept_paths(
    old: &[LayerSetEntry],
    new: &[LayerSetEntry],
    manifests: &Manifests<'_>,
    paths: &BTreeMap<&[u8], Owners<'_>>,
) -> BTreeMap<Vec<u8>, ()> {
    let mut kept = BTreeMap::new();
    let one_sided: Vec<_> = paths
        .iter()
        .filter(|(_, owners)| owners.before.is_none() || owners.after.is_none())
        .map(|(path, _)| *path)
        .collect();
    if one_sided.is_empty() {
        return kept;
    }
    let stays = |entry: &&LayerSetEntry| entry.kind == LayerKind::Software && old.contains(entry);
    for entry in new.iter().filter(stays) {
        let Some(manifest) = manifests.get(entry) else { continue };
        let has =
            |path: &&&[u8]| manifest.get(path).is_some_and(|found| found.kind != Kind::Directory);
        kept.extend(one_sided.iter().filter(has).map(|path| (path.to_vec(), ())));
    }
    kept
}

fn configuration_files(paths: &BTreeMap<&[u8], Owners<'_>>) -> Vec<ConfigurationFile> {
    let of = |(path, owners): (&&[u8], &Owners<'_>)| {
        let (layer, change) = match (owners.before, owners.after) {
            (None, Some((layer, _))) => (layer, "added"),
            (Some((layer, _)), None) => (layer, "removed"),
            (Some(_), Some((layer, _))) if owners.changes() => (layer, "modified"),
            _ => return None,
        };
        Some(ConfigurationFile { path: shown(path), layer: layer.clone(), change })
    };
    paths.iter().filter_map(of).collect()
}

/// Changed software paths over which the head has configuration.
fn shadowed(
    new: &[LayerSetEntry],
    manifests: &Manifests<'_>,
    paths: &BTreeMap<&[u8], Owners<'_>>,
) -> Vec<ShadowedPath> {
    let mut shadowed = Vec::new();
    for entry in new.iter().filter(|entry| entry.kind == LayerKind::Configuration) {
        let Some(manifest) = manifests.get(entry) else { continue };
        for file in manifest.entries().iter().filter(|e| e.kind != Kind::Directory) {
            let Some(owners) = paths.get(&file.path[..]).filter(|owners| owners.changes()) else {
                continue;
            };
            let Some((software, _)) = owners.after.or(owners.before) else { continue };
            shadowed.push(ShadowedPath {
                path: shown(&file.path),
                software: software.clone(),
                configuration: entry.layer.clone(),
            });
        }
    }
    shadowed.sort();
    shadowed
}
