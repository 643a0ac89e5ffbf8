//! Which layers of a composition come, go and change their version.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::desired::Definition;
use crate::generation::LayerSetEntry;
use crate::metadata::LayerKind;
use crate::names::LayerName;
use crate::universe::Universe;
use crate::version::LayerVersion;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerChangeKind {
    Added,
    Removed,
    Upgraded,
    Downgraded,
    /// Another unit of the same version: of another repository, or with other content.
    Replaced,
    /// A configuration tree of the GitOps repository with other content.
    Edited,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerChange {
    pub layer: LayerName,
    pub kind: LayerKind,
    pub change: LayerChangeKind,
    /// `repository/layer version`
    pub from: Option<String>,
    pub to: Option<String>,
}

/// A held layer that has something newer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Held {
    pub file: String,
    pub line: u32,
    pub layer: LayerName,
    pub version: LayerVersion,
    pub newest: LayerVersion,
}

type Key<'a> = (&'a LayerName, LayerKind);

fn by_layer(entries: &[LayerSetEntry]) -> BTreeMap<Key<'_>, &LayerSetEntry> {
    entries.iter().map(|entry| ((&entry.layer, entry.kind), entry)).collect()
}

/// The changes from one layer set to another, by layer.
pub fn changes(old: &[LayerSetEntry], new: &[LayerSetEntry]) -> Vec<LayerChange> {
    let (before, after) = (by_layer(old), by_layer(new));
    let mut keys: Vec<_> = before.keys().chain(after.keys()).copied().collect();
    keys.sort_unstable();
    keys.dedup();
    let mut changes = Vec::new();
    for key in keys {
        let (from, to) = (before.get(&key).copied(), after.get(&key).copied());
        let Some(change) = change(from, to) else { continue };
        changes.push(LayerChange {
            layer: key.0.clone(),
            kind: key.1,
            change,
            from: from.map(ToString::to_string),
            to: to.map(ToString::to_string),
        });
    }
    changes
}

fn change(from: Option<&LayerSetEntry>, to: Option<&LayerSetEntry>) -> Option<LayerChangeKind> {
    use std::cmp::Ordering;
    let (from, to) = match (from, to) {
        (Some(from), Some(to)) => (from, to),
        (None, Some(_)) => return Some(LayerChangeKind::Added),
        (Some(_), None) => return Some(LayerChangeKind::Removed),
        (None, None) => return None,
    };
    if from == to {
        return None;
    }
    let from_git =
        |entry: &LayerSetEntry| entry.repository == crate::names::RepositoryName::templates();
    if from_git(from) && from_git(to) {
        return Some(LayerChangeKind::Edited);
    }
    Some(match from.version.cmp(&to.version) {
        Ordering::Less => LayerChangeKind::Upgraded,
        Ordering::Greater => LayerChangeKind::Downgraded,
        Ordering::Equal => LayerChangeKind::Replaced,
    })
}

/// The units of `new` that are not in `old`, in the order of the layer set.
pub(super) fn arriving<'n>(
    old: &[LayerSetEntry],
    new: &'n [LayerSetEntry],
) -> Vec<&'n LayerSetEntry> {
    let before = by_layer(old);
    let is_new = |entry: &&LayerSetEntry| {
        before.get(&(&entry.layer, entry.kind)).is_none_or(|there| *there != *entry)
    };
    new.iter().filter(is_new).collect()
}

/// Held lines of a definition whose repository has a newer unit that may be used.
pub(super) fn held(definition: &Definition, universe: &Universe) -> Vec<Held> {
    let lines = definition.ldf.explicit().chain(definition.ldf.implicit());
    let held = lines.filter(|(_, line)| line.hold).filter_map(|(number, line)| {
        let version = line.version.clone()?;
        let mut units = universe.in_repository(&line.repository, &line.layer);
        let newest = units.find(|id| !universe.barred(*id))?;
        let newest = universe.unit(newest).metadata.version.clone();
        (newest > version).then(|| Held {
            file: definition.file.clone(),
            line: number,
            layer: line.layer.clone(),
            version,
            newest,
        })
    });
    held.collect()
}
