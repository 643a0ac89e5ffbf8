//! The check of a whole GitOps repository: what `strata check` prints and what
//! the reconciler demands of a commit.
//!
//! A commit is taken whole or refused whole, with every fault at once. What is
//! in git is exactly what runs: the check composes and never solves.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::composition::{self, FlatComposition, FlatLayer};
use crate::consistency::{Rules, consistency};
use crate::desired::{Definition, DesiredState};
use crate::diagnostic::{Diagnostic, Severity};
use crate::digest::Digest;
use crate::generation::Generation;
use crate::manifest::{Kind, Manifest};
use crate::metadata::LayerKind;
use crate::names::CompositionName;
use crate::shared_paths::{ManifestSource, may_obscure, shared_paths, stacking_order};
use crate::source::SourceTree;
use crate::universe::{UnitId, Universe};
use crate::views::Views;

/// What the check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckResult {
    pub desired: DesiredState,
    /// By file and line, each once.
    pub diagnostics: Vec<Diagnostic>,
    /// The compositions without faults. A commit with an error is refused
    /// whole, whatever stands here.
    pub compositions: BTreeMap<CompositionName, Generation>,
    /// Those with faults whose layers are all known nevertheless (one was
    /// withdrawn, say): to compare with, never to run.
    pub faulty: BTreeMap<CompositionName, Generation>,
}

impl CheckResult {
    /// Whether the commit may be taken: warnings do not stand in the way.
    pub fn accepted(&self) -> bool {
        self.diagnostics.iter().all(|found| found.severity == Severity::Warning)
    }
}

/// Reads and checks a commit.
pub fn check(
    tree: &SourceTree,
    universe: &Universe,
    manifests: &dyn ManifestSource,
) -> CheckResult {
    let (desired, diagnostics) = DesiredState::read(tree);
    check_desired(desired, diagnostics, universe, manifests)
}

/// Checks what [`DesiredState::read`] gave, with the faults it found.
pub fn check_desired(
    desired: DesiredState,
    mut diagnostics: Vec<Diagnostic>,
    universe: &Universe,
    manifests: &dyn ManifestSource,
) -> CheckResult {
    let DesiredState { configuration, definitions, .. } = &desired;
    let (order, faults) = composition::reference_order(definitions, configuration);
    diagnostics.extend(faults);
    let views = Views::new(configuration, definitions, universe);
    let common = Rules::new(configuration, universe);
    let mut paths = PathCheck { universe, manifests, passed: HashSet::new() };
    let mut flats: BTreeMap<CompositionName, FlatComposition> = BTreeMap::new();
    let mut compositions = BTreeMap::new();
    let mut faulty: HashSet<&CompositionName> = HashSet::new();
    let mut faulty_compositions = BTreeMap::new();
    let ordered: HashSet<_> = order.order.iter().collect();
    for definition in definitions.values().filter(|d| !ordered.contains(&d.name)) {
        let universe = views.of(&definition.name);
        diagnostics.extend(composition::place_layers(definition, configuration, universe).1);
    }
    for name in &order.order {
        let definition = &definitions[name];
        let own_rules = views.is_narrowed(name).then(|| Rules::new(configuration, views.of(name)));
        let rules = own_rules.as_ref().unwrap_or(&common);
        let (own, faults) = composition::place_layers(definition, configuration, rules.universe);
        let mut sound = faults.is_empty();
        diagnostics.extend(faults);
        let (mut flat, faults) =
            composition::flatten(definition, &own, configuration, definitions, &flats);
        diagnostics.extend(faults);
        flat.whole &= !order.broken.contains(name);
        let mut faults = consistency(definition, &flat, rules);
        faults.extend(paths.check(&flat));
        faults.extend(paths.check_data(&flat, definitions));
        sound &= faults.iter().all(|fault| fault.severity == Severity::Warning);
        sound &= definition.ldf.references().all(|(_, r)| !faulty.contains(&r.name));
        diagnostics.extend(faults);
        let seal = |flat: &FlatComposition| {
            flat.seal(universe).map(|sealed| sealed.with_scripts(configuration.scripts))
        };
        if !flat.whole || !sound {
            faulty.insert(name);
            if let Some(generation) = flat.whole.then(|| seal(&flat).ok()).flatten() {
                faulty_compositions.insert(name.clone(), generation);
            }
        } else {
            match seal(&flat) {
                Ok(generation) => {
                    compositions.insert(name.clone(), generation);
                }
                Err(error) => {
                    let message = error.to_string();
                    diagnostics.push(Diagnostic::error(&flat.file, 0, "composition", message));
                }
            }
        }
        flats.insert(name.clone(), flat);
    }
    diagnostics.sort();
    diagnostics.dedup();
    CheckResult { desired, diagnostics, compositions, faulty: faulty_compositions }
}

/// Faults that can be found without any repository: syntax, names, references.
pub fn check_source(tree: &SourceTree) -> (DesiredState, Vec<Diagnostic>) {
    let (desired, mut diagnostics) = DesiredState::read(tree);
    let (_, faults) = composition::reference_order(&desired.definitions, &desired.configuration);
    diagnostics.extend(faults);
    diagnostics.sort();
    diagnostics.dedup();
    (desired, diagnostics)
}

/// Looks for shared paths, once for each set of software layers.
struct PathCheck<'a> {
    universe: &'a Universe,
    manifests: &'a dyn ManifestSource,
    passed: HashSet<Digest>,
}

impl PathCheck<'_> {
    fn check(&mut self, flat: &FlatComposition) -> Vec<Diagnostic> {
        let mut layers: Vec<(UnitId, &FlatLayer)> = flat
            .layers
            .iter()
            .filter_map(|layer| Some((layer.placed.unit?, layer)))
            .filter(|(id, _)| self.universe.unit(*id).metadata.kind == LayerKind::Software)
            .collect();
        layers.sort_by_key(|(id, _)| *id);
        let metadata: Vec<_> =
            layers.iter().map(|(id, _)| &self.universe.unit(*id).metadata).collect();
        let order = stacking_order(&metadata);
        let layers: Vec<_> = order.into_iter().map(|at| layers[at]).collect();
        let bytes: Vec<u8> = layers.iter().flat_map(|(id, _)| id.0.to_le_bytes()).collect();
        let key = Digest::of(&bytes);
        if self.passed.contains(&key) {
            return Vec::new();
        }
        let mut diagnostics = Vec::new();
        let mut known: Vec<(UnitId, &FlatLayer, Arc<Manifest>)> = Vec::new();
        let entries: Vec<_> = layers.iter().map(|(id, _)| self.universe.entry(*id)).collect();
        self.manifests.prepare(&entries);
        for ((id, layer), entry) in layers.into_iter().zip(&entries) {
            match self.manifests.manifest(entry) {
                Some(manifest) => known.push((id, layer, manifest)),
                None => {
                    let message =
                        format!("the manifest of {} cannot be read", self.universe.show(id));
                    let (file, line) = (&layer.placed.file, layer.placed.number);
                    let hint = format!(
                        "mirror the layer with `strata repo mirror`, or run `strata repo index {}`",
                        self.universe.repository(id)
                    );
                    diagnostics
                        .push(Diagnostic::error(file, line, "no-manifest", message).hint(hint));
                }
            }
        }
        let manifests: Vec<&Manifest> = known.iter().map(|(_, _, manifest)| &**manifest).collect();
        let metadata = |at: usize| &self.universe.unit(known[at].0).metadata;
        let permits = |upper: usize, lower: usize, path: &[u8]| {
            may_obscure(metadata(upper), metadata(lower), path)
        };
        for shared in shared_paths(&manifests, permits) {
            let (first, second) = (&known[shared.first], &known[shared.second]);
            let path = String::from_utf8_lossy(&shared.path);
            let more = match shared.count {
                1 => String::new(),
                count => format!(" and {} more", count - 1),
            };
            let (mut a, mut b) = (first, second);
            if (a.1.own, a.1.placed.number) > (b.1.own, b.1.placed.number) {
                (a, b) = (b, a);
            }
            let message = format!(
                "{} and {} ({}:{}) share the path /{path}{more}",
                self.universe.show(b.0),
                self.universe.show(a.0),
                a.1.placed.file,
                a.1.placed.number
            );
            let same_file = a.1.placed.file == b.1.placed.file;
            let (file, line) = if same_file || b.1.own {
                (&b.1.placed.file, b.1.placed.number)
            } else {
                (&flat.file, b.1.via)
            };
            diagnostics.push(
                Diagnostic::error(file, line, "shared-path", message)
                    .hint("software layers must not obscure one another: remove one of the two, or let one say Replaces or Diverts"),
            );
        }
        if diagnostics.is_empty() {
            self.passed.insert(key);
        }
        diagnostics
    }

    /// A data directory is mounted on a directory: no layer may have anything else
    /// at its path or above it, above all no symbolic link.
    fn check_data(
        &self,
        flat: &FlatComposition,
        definitions: &BTreeMap<CompositionName, Definition>,
    ) -> Vec<Diagnostic> {
        if flat.data.is_empty() {
            return Vec::new();
        }
        let units =
            flat.layers.iter().filter_map(|layer| Some(self.universe.entry(layer.placed.unit?)));
        let units = units.filter_map(|entry| Some((self.manifests.manifest(&entry)?, entry)));
        let from_git = definitions.values().filter_map(|definition| definition.tree.as_ref());
        let trees: Vec<_> = from_git
            .map(|tree| (tree.entry(), tree.manifest()))
            .filter(|(entry, _)| flat.trees.contains(entry))
            .collect();
        let units: Vec<_> = units.collect();
        let layers = units.iter().map(|(manifest, entry)| (entry, &**manifest));
        let layers = layers.chain(trees.iter().map(|(entry, manifest)| (entry, *manifest)));
        let mut diagnostics = Vec::new();
        for (entry, manifest) in layers {
            for (path, placed) in &flat.data {
                let obstacle = path.prefixes().find(|prefix| {
                    let found = manifest.get(prefix.as_bytes());
                    found.is_some_and(|found| found.kind != Kind::Directory)
                });
                let Some(obstacle) = obstacle else { continue };
                let message = format!(
                    "{path} cannot be a data directory: {entry} has /{obstacle}, which is no directory"
                );
                diagnostics.push(
                    Diagnostic::error(&placed.file, placed.line, "data-path", message)
                        .hint("name the directory itself, not by way of a symbolic link"),
                );
            }
        }
        diagnostics
    }
}

#[cfg(test)]
mod tests;
