//! What a commit would change, for people, before it is merged: the content of
//! `strata plan`.
//!
//! A pure comparison of two checked commits, with the repositories' manifests
//! and the numbers of VAs beside them. It says what is known and names what is
//! not; it decides nothing. What a reconciler would do in a store is
//! [`crate::plan`].

mod appliances;
mod blast_radius;
mod health;
mod layers;
mod paths;
mod settings;
mod units;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

pub use appliances::{ApplianceChange, Place};
pub use blast_radius::BlastRadius;
pub use health::{CheckChange, HealthChange};
pub use layers::{Held, LayerChange, LayerChangeKind, changes as layer_changes};
pub use paths::{ConfigurationFile, FileChange, HandedPath, PathChanges, ShadowedPath};
pub use settings::SettingChange;
pub use units::{KnownUnits, UnitSource};

use crate::check::CheckResult;
use crate::data_paths::DataPath;
use crate::desired::DefinitionRole;
use crate::diagnostic::Diagnostic;
use crate::digest::GenerationId;
use crate::generation::{Generation, LayerSetEntry};
use crate::inventory::VaGroup;
use crate::manifest::Manifest;
use crate::names::CompositionName;
use crate::universe::Universe;
use crate::views::Views;

/// One of the two commits.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    pub checked: &'a CheckResult,
    pub universe: &'a Universe,
}

/// What changes between two commits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Preview {
    /// Whether the head may be taken.
    pub accepted: bool,
    /// Of the head.
    pub diagnostics: Vec<Diagnostic>,
    /// Those whose generation changes, by name.
    pub compositions: Vec<CompositionPreview>,
    /// Compositions of the head that cannot be compared, as they have errors.
    pub unknown: Vec<CompositionName>,
    pub appliances: Vec<ApplianceChange>,
    /// What `strata.toml` says otherwise: repositories, rings, gates, windows, limits,
    /// what may be removed, how scripts run.
    pub settings: Vec<SettingChange>,
    /// Health checks that come or go, by composition.
    pub health: Vec<HealthChange>,
    pub blast_radius: BlastRadius,
}

impl Preview {
    pub fn is_empty(&self) -> bool {
        self.compositions.is_empty()
            && self.unknown.is_empty()
            && self.appliances.is_empty()
            && self.settings.is_empty()
            && self.health.is_empty()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Existence {
    Added,
    Changed,
    Removed,
}

/// What changes for one composition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CompositionPreview {
    pub composition: CompositionName,
    pub role: Role,
    pub change: Existence,
    pub from: Option<GenerationId>,
    pub to: Option<GenerationId>,
    /// By layer.
    pub layers: Vec<LayerChange>,
    /// Layers that the head holds although a newer unit is there.
    pub held: Vec<Held>,
    pub paths: PathChanges,
    /// Those of units that go, then those of units that come, each in the order of the
    /// layer set; the order of the swap itself is [`crate::scripts`]'s.
    pub scripts: Vec<ScriptRun>,
    /// Data directories that come or go, by path.
    pub data: Vec<DataChange>,
    /// Sizes of the files of units that come in.
    pub bytes_added: u64,
    /// Those of them that the store does not have yet.
    pub bytes_to_mirror: u64,
    /// VAs that follow a ring of this composition.
    pub vas: Vec<VaGroup>,
    /// VAs of this composition that stay, as they are pinned.
    pub pinned_vas: u64,
}

impl CompositionPreview {
    /// VAs that will change.
    pub fn touched_vas(&self) -> u64 {
        self.vas.iter().map(|group| group.count).sum()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Template,
    Appliance,
}

impl From<DefinitionRole> for Role {
    fn from(role: DefinitionRole) -> Self {
        match role {
            DefinitionRole::Template => Role::Template,
            DefinitionRole::Appliance => Role::Appliance,
        }
    }
}

/// A data directory that a composition gets or loses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DataChange {
    pub change: Existence,
    pub path: DataPath,
}

/// A script that each VA of the composition runs in the swap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ScriptRun {
    /// `repository/layer version`
    pub unit: String,
    pub script: String,
}

/// Compares two commits.
pub fn preview(base: Side<'_>, head: Side<'_>, units: &dyn UnitSource, vas: &[VaGroup]) -> Preview {
    let manifests = Manifests { units, sides: [base, head] };
    let mut compositions = Vec::new();
    let mut unknown = Vec::new();
    let (before, after) = (&base.checked.desired.definitions, &head.checked.desired.definitions);
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let views = Views::new(&head.checked.desired.configuration, after, head.universe);
    for name in names {
        let from = generation(base.checked, name);
        let to = generation(head.checked, name);
        if after.contains_key(name) && to.is_none() {
            unknown.push(name.clone());
            continue;
        }
        let (from_id, to_id) = (from.map(Generation::id), to.map(Generation::id));
        if from_id == to_id {
            continue;
        }
        let definition = after.get(name).or_else(|| before.get(name)).expect("of one of the two");
        let change = match (from, to) {
            (None, _) => Existence::Added,
            (_, None) => Existence::Removed,
            (Some(_), Some(_)) => Existence::Changed,
        };
        let of = |generation: Option<&Generation>| {
            generation.map(|found| found.layers().to_vec()).unwrap_or_default()
        };
        let (old, new) = (of(from), of(to));
        let layers = layers::changes(&old, &new);
        let arriving = layers::arriving(&old, &new);
        let size = |entry: &&LayerSetEntry| manifests.content_bytes(entry);
        // A composition that goes leaves its VAs as they are.
        let mine = |group: &&VaGroup| group.composition == *name;
        let follow = |group: &&VaGroup| mine(group) && group.pinned.is_none();
        let pinned = vas.iter().filter(|group| mine(group) && group.pinned.is_some());
        let moved = change != Existence::Removed;
        compositions.push(CompositionPreview {
            composition: name.clone(),
            role: definition.role.into(),
            change,
            from: from_id,
            to: to_id,
            held: to.map(|_| layers::held(definition, views.of(name))).unwrap_or_default(),
            paths: paths::changes(&old, &new, &manifests),
            scripts: scripts(&old, &new, units),
            data: data(from, to),
            bytes_added: arriving.iter().map(size).sum(),
            bytes_to_mirror: arriving
                .iter()
                .filter(|entry| !manifests.is_from_git(entry) && !units.is_present(entry))
                .map(size)
                .sum(),
            vas: vas.iter().filter(follow).filter(|_| moved).cloned().collect(),
            pinned_vas: pinned.map(|group| group.count).sum(),
            layers,
        });
    }
    let (before, after) = (&base.checked.desired, &head.checked.desired);
    let appliances = appliances::changes(before, after);
    let health = health::changes(before, after, vas);
    let blast_radius = blast_radius::of(before, after, &compositions, &appliances, &health, vas);
    Preview {
        accepted: head.checked.accepted(),
        diagnostics: head.checked.diagnostics.clone(),
        compositions,
        unknown,
        settings: settings::changes(&before.configuration.stated, &after.configuration.stated),
        appliances,
        health,
        blast_radius,
    }
}

/// A composition's layer set; of the base also one that has faults by now, as
/// what is withdrawn since is just what a commit may be about.
fn generation<'a>(checked: &'a CheckResult, name: &CompositionName) -> Option<&'a Generation> {
    checked.compositions.get(name).or_else(|| checked.faulty.get(name))
}

/// Removal scripts of units that go, then installation scripts of those that come.
fn scripts(old: &[LayerSetEntry], new: &[LayerSetEntry], units: &dyn UnitSource) -> Vec<ScriptRun> {
    let mut runs = Vec::new();
    let leaving = layers::arriving(new, old);
    let arriving = layers::arriving(old, new);
    for (entries, phase) in [(leaving, "-remove"), (arriving, "-install")] {
        for entry in entries {
            for script in units.scripts(entry).unwrap_or_default() {
                if script.ends_with(phase) {
                    runs.push(ScriptRun { unit: entry.to_string(), script });
                }
            }
        }
    }
    runs
}

/// Data directories that only one of the two has.
fn data(from: Option<&Generation>, to: Option<&Generation>) -> Vec<DataChange> {
    let of = |generation: Option<&Generation>| -> BTreeSet<DataPath> {
        generation.map(|found| found.data().iter().cloned().collect()).unwrap_or_default()
    };
    let (old, new) = (of(from), of(to));
    let change = |path: &DataPath| match (old.contains(path), new.contains(path)) {
        (false, true) => Some(Existence::Added),
        (true, false) => Some(Existence::Removed),
        _ => None,
    };
    let all = old.union(&new);
    all.filter_map(|path| Some(DataChange { change: change(path)?, path: path.clone() })).collect()
}

/// Manifests of units and of the two commits' own trees.
struct Manifests<'a> {
    units: &'a dyn UnitSource,
    sides: [Side<'a>; 2],
}

impl Manifests<'_> {
    fn tree_of(&self, entry: &LayerSetEntry) -> Option<&Manifest> {
        let definitions =
            self.sides.iter().flat_map(|side| side.checked.desired.definitions.values());
        let mut trees = definitions.filter_map(|definition| definition.tree.as_ref());
        trees.find(|tree| tree.entry() == *entry).map(|tree| tree.manifest())
    }

    fn is_from_git(&self, entry: &LayerSetEntry) -> bool {
        self.tree_of(entry).is_some()
    }

    fn get(&self, entry: &LayerSetEntry) -> Option<Arc<Manifest>> {
        match self.tree_of(entry) {
            Some(manifest) => Some(Arc::new(manifest.clone())),
            None => self.units.manifest(entry),
        }
    }

    fn content_bytes(&self, entry: &LayerSetEntry) -> u64 {
        let known = self.sides.iter().find_map(|side| {
            let id = side.universe.get(&entry.repository, &entry.layer, &entry.version)?;
            Some(side.universe.unit(id).content_bytes)
        });
        known.or_else(|| self.tree_of(entry).map(Manifest::content_bytes)).unwrap_or(0)
    }
}

/// VAs by run state, for one line of text: `412 running, 88 suspended`.
pub fn by_run_state(groups: &[VaGroup]) -> BTreeMap<Option<crate::status::RunState>, u64> {
    let mut counts = BTreeMap::new();
    for group in groups {
        *counts.entry(group.run_state).or_default() += group.count;
    }
    counts
}

#[cfg(test)]
mod tests;
