//! Resolution: the implicit part of each LDF from its explicit part (§5.2).
//!
//! What stands in an LDF is kept wherever that is possible. Explicit versions
//! and holds are demands; versions of implicit layers are wishes, given up only
//! as far as the demands make it necessary, and downgrades last of all. Layers
//! that nothing needs any more are removed. A withdrawn unit is never chosen.
//! The result depends on nothing but the LDFs and the repositories.
//!
//! What it deliberately does not do: change what a reference brings. The lines
//! of a template are the template's; whoever includes it takes them as they are
//! or holds a layer at another version with a line of their own.

pub mod edit;
mod explain;
mod kept_back;
mod order;
mod provider;
mod solve;
mod why;
mod why_not;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::composition::{self, FlatComposition, FlatLayer, PlacedLayer};
use crate::configuration::CONFIGURATION_FILE;
use crate::consistency::{Rules, always_in, not_admitted};
use crate::desired::{Definition, DesiredState};
use crate::diagnostic::Diagnostic;
use crate::ldf::{LayerLine, Ldf};
use crate::names::{CompositionName, LayerName};
use crate::universe::{Barred, UnitId, Universe};
use crate::views::Views;
pub use kept_back::KeptBack;
use solve::{Demand, Limit, Solving};
pub use why::{Chain, Origin, Step, why};
pub use why_not::{WhyNot, why_not};

/// Which layers are to be brought to their best version.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Upgrade {
    #[default]
    Nothing,
    Layers(BTreeSet<LayerName>),
    Everything,
}

impl Upgrade {
    fn covers(&self, line: &LayerLine) -> bool {
        match self {
            Upgrade::Nothing => false,
            Upgrade::Layers(names) => !line.hold && names.contains(&line.layer),
            Upgrade::Everything => !line.hold,
        }
    }
}

/// What happened to one layer of an LDF.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Change {
    pub layer: LayerName,
    /// `repository/layer version` as it stood; `None` for a new layer.
    pub before: Option<String>,
    /// As it stands now; `None` for a removed layer.
    pub after: Option<String>,
}

/// A resolved definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    pub file: String,
    pub ldf: Ldf,
    /// Whether the text changed: a layer can also move between the parts.
    pub rewritten: bool,
    /// By layer; empty where no layer came, went or changed.
    pub changes: Vec<Change>,
    /// What was to be upgraded and is not at its best version, by layer.
    pub kept_back: Vec<KeptBack>,
}

/// What resolving a whole GitOps repository gave.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resolution {
    pub resolved: BTreeMap<CompositionName, Resolved>,
    /// Why others could not be resolved, by file and line.
    pub diagnostics: Vec<Diagnostic>,
}

/// Why something must be in, for explanations.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Cause {
    /// A line of some LDF. `own` means the one that is being resolved.
    Line {
        placed: Arc<PlacedLayer>,
        via: u32,
        own: bool,
    },
    Base {
        line: u32,
    },
    Essential,
    /// The operator asks what stands against it.
    Asked,
}

/// A demand with its cause.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Root {
    demand: Demand,
    cause: Cause,
}

/// A hold on an implicit layer, with its line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hold {
    limit: Limit,
    placed: Arc<PlacedLayer>,
}

/// Everything about one resolution.
#[derive(Clone)]
struct Task<'a> {
    universe: &'a Universe,
    definition: &'a Definition,
    roots: Vec<Root>,
    holds: Vec<Hold>,
    /// The units of the present implicit part that may stay.
    present: Vec<UnitId>,
    /// Those that are to be upgraded.
    upgraded: BTreeSet<UnitId>,
}

/// Resolves every definition, each after all that it references.
pub fn resolve(desired: &DesiredState, universe: &Universe, upgrade: &Upgrade) -> Resolution {
    let mut definitions = desired.definitions.clone();
    let configuration = &desired.configuration;
    let (order, mut diagnostics) = composition::reference_order(&definitions, configuration);
    let views = Views::new(configuration, &desired.definitions, universe);
    let common = Rules::new(configuration, universe);
    let mut flats: BTreeMap<CompositionName, FlatComposition> = BTreeMap::new();
    let mut resolution = Resolution::default();
    for name in &order.order {
        let definition = &definitions[name];
        let own_rules = views.is_narrowed(name).then(|| Rules::new(configuration, views.of(name)));
        let rules = own_rules.as_ref().unwrap_or(&common);
        let found = prepare(definition, &definitions, rules, &flats, upgrade).and_then(|task| {
            let units = task.run().map_err(|fault| vec![fault])?;
            let kept_back = task.kept_back(&units, upgrade);
            Ok((units, task.included_names(), kept_back))
        });
        match found {
            Err(faults) => diagnostics.extend(faults),
            Ok((units, included, kept_back)) => {
                let mut resolved = rewrite(definition, universe, &units, &included);
                resolved.kept_back = kept_back;
                if let Some(definition) = definitions.get_mut(name) {
                    definition.ldf = resolved.ldf.clone();
                }
                resolution.resolved.insert(name.clone(), resolved);
            }
        }
        let definition = &definitions[name];
        let (own, _) = composition::place_layers(definition, configuration, rules.universe);
        let (mut flat, _) =
            composition::flatten(definition, &own, configuration, &definitions, &flats);
        flat.whole = resolution.resolved.contains_key(name);
        flats.insert(name.clone(), flat);
    }
    diagnostics.sort();
    diagnostics.dedup();
    resolution.diagnostics = diagnostics;
    resolution
}

impl Resolution {
    /// Counts what was edited before resolving among the changes.
    pub fn count_edits(&mut self, before: &DesiredState) {
        for (name, resolved) in &mut self.resolved {
            if let Some(definition) = before.definitions.get(name) {
                resolved.changes = changes(&definition.ldf, &resolved.ldf);
                resolved.rewritten = definition.ldf != resolved.ldf;
            }
        }
    }
}

/// Gathers demands, holds and wishes of one definition.
fn prepare<'a>(
    definition: &'a Definition,
    definitions: &BTreeMap<CompositionName, Definition>,
    rules: &Rules<'a>,
    flats: &BTreeMap<CompositionName, FlatComposition>,
    upgrade: &Upgrade,
) -> Result<Task<'a>, Vec<Diagnostic>> {
    let universe = rules.universe;
    let (own, faults) = composition::place_layers(definition, rules.configuration, universe);
    let mut faults: Vec<_> =
        faults.into_iter().filter(|fault| !settled(definition, upgrade, fault)).collect();
    let held: Vec<_> =
        own.iter().filter(|layer| !layer.implicit && layer.line.hold).cloned().collect();
    let (included, clashes) =
        composition::flatten(definition, &held, rules.configuration, definitions, flats);
    faults.extend(clashes);
    if definition.partial || !faults.is_empty() {
        return Err(faults);
    }
    if let Some(reference) = missing_reference(definition, flats) {
        return Err(vec![reference]);
    }
    let mut task = Task {
        universe,
        definition,
        roots: Vec::new(),
        holds: Vec::new(),
        present: Vec::new(),
        upgraded: BTreeSet::new(),
    };
    for layer in own.iter().filter(|layer| !layer.implicit) {
        task.add_explicit(layer, upgrade).map_err(|fault| vec![fault])?;
    }
    for layer in included.layers.iter().filter(|layer| !layer.own) {
        // A reference that was resolved brings no withdrawn unit.
        if task.add_included(layer).is_err()
            && let Some(fault) = not_admitted(layer, &definition.file, universe)
        {
            return Err(vec![fault]);
        }
    }
    for base in &rules.configuration.base {
        let units = universe.in_repository(&base.value.repository, &base.value.layer);
        task.add_root(units.collect(), Cause::Base { line: base.line }).map_err(|()| {
            let message = format!(
                "{} belongs to every composition ({CONFIGURATION_FILE}:{}) and no repository has it",
                base.value, base.line
            );
            vec![Diagnostic::error(CONFIGURATION_FILE, base.line, "unknown-layer", message)]
        })?;
    }
    for name in always_in(definition, rules) {
        // The name was found on a unit that is not withdrawn.
        let _there = task.add_root(universe.named(name).collect(), Cause::Essential);
    }
    for layer in own.iter().filter(|layer| layer.implicit) {
        task.add_present(layer, upgrade);
    }
    Ok(task)
}

/// Whether a fault of a line goes away by resolving.
fn settled(definition: &Definition, upgrade: &Upgrade, fault: &Diagnostic) -> bool {
    let implicit = definition.ldf.implicit().map(|(number, line)| (number, line, true));
    let explicit = definition.ldf.explicit().map(|(number, line)| (number, line, false));
    let Some((_, line, implicit)) =
        implicit.chain(explicit).find(|(number, _, _)| *number == fault.line)
    else {
        return false;
    };
    match fault.code {
        "unresolved" => true,
        "withdrawn" | "filtered" => !line.hold && (implicit || upgrade.covers(line)),
        "unknown-version" => upgrade.covers(line),
        "unknown-layer" => implicit && upgrade.covers(line),
        _ => false,
    }
}

fn missing_reference(
    definition: &Definition,
    flats: &BTreeMap<CompositionName, FlatComposition>,
) -> Option<Diagnostic> {
    let (line, reference) = definition
        .ldf
        .references()
        .find(|(_, reference)| !flats.get(&reference.name).is_some_and(|flat| flat.whole))?;
    let message = format!("{reference} could not be resolved itself");
    Some(Diagnostic::error(&definition.file, line, "unresolved-reference", message))
}

impl Task<'_> {
    fn add_root(&mut self, mut units: Vec<UnitId>, cause: Cause) -> Result<(), ()> {
        units.retain(|unit| !self.universe.barred(*unit));
        if units.is_empty() {
            return Err(());
        }
        self.roots.push(Root { demand: Demand { units }, cause });
        Ok(())
    }

    fn add_explicit(
        &mut self,
        layer: &Arc<PlacedLayer>,
        upgrade: &Upgrade,
    ) -> Result<(), Diagnostic> {
        let line = &layer.line;
        let cause = Cause::Line { placed: layer.clone(), via: layer.number, own: true };
        let exact = layer.unit.filter(|_| !upgrade.covers(line));
        let units = match exact {
            Some(unit) => vec![unit],
            None => self.universe.in_repository(&line.repository, &line.layer).collect(),
        };
        if exact.is_none()
            && let Some(unit) = layer.unit
        {
            self.upgraded.insert(unit);
        }
        self.add_root(units, cause).map_err(|()| {
            let mut all = self.universe.in_repository(&line.repository, &line.layer);
            let best = all.find_map(|unit| Some((unit, self.universe.bar(unit)?)));
            let code = match &best {
                Some((_, Barred::Filtered(_))) => "filtered",
                Some((_, Barred::Withdrawn(_))) | None => "withdrawn",
            };
            let because =
                best.map(|(unit, bar)| format!("; {} is {bar}", self.universe.show(unit)));
            let message = format!(
                "no version of {}/{} may be used{}",
                line.repository,
                line.layer,
                because.unwrap_or_default()
            );
            Diagnostic::error(&layer.file, layer.number, code, message)
                .hint("remove the line, or publish a version that may be used")
        })
    }

    fn add_included(&mut self, layer: &FlatLayer) -> Result<(), ()> {
        let cause = Cause::Line { placed: layer.placed.clone(), via: layer.via, own: false };
        self.add_root(layer.placed.unit.into_iter().collect(), cause)
    }

    fn add_present(&mut self, layer: &Arc<PlacedLayer>, upgrade: &Upgrade) {
        let Some(unit) = layer.unit.filter(|unit| !self.universe.barred(*unit)) else { return };
        if layer.line.hold {
            let limit = Limit { name: self.universe.name_of(unit), units: vec![unit] };
            self.holds.push(Hold { limit, placed: layer.clone() });
        }
        if upgrade.covers(&layer.line) {
            self.upgraded.insert(unit);
        }
        self.present.push(unit);
    }

    fn included_names(&self) -> BTreeSet<LayerName> {
        let included = self.roots.iter().filter_map(|root| match &root.cause {
            Cause::Line { placed, own: false, .. } => Some(placed.line.layer.clone()),
            Cause::Line { .. } | Cause::Base { .. } | Cause::Essential | Cause::Asked => None,
        });
        included.collect()
    }

    /// All units of the composition, or why there are none.
    fn run(&self) -> Result<BTreeSet<UnitId>, Diagnostic> {
        match self.within(&[]) {
            Some(units) => self.ordered(units),
            None => Err(explain::explain(self)),
        }
    }

    /// All units of the composition within further limits, if that is possible.
    fn within(&self, limits: &[Limit]) -> Option<BTreeSet<UnitId>> {
        let demands: Vec<&Demand> = self.roots.iter().map(|root| &root.demand).collect();
        let holds = self.holds.iter().map(|hold| hold.limit.clone());
        let holds: Vec<Limit> = holds.chain(limits.iter().cloned()).collect();
        let levels = self.wishes();
        let favoured: Vec<_> =
            self.present.iter().copied().filter(|unit| !self.upgraded.contains(unit)).collect();
        let chosen = self.present.iter().copied();
        let mut solving = Solving::new(self.universe, &favoured, chosen);
        let found = solving.best(&demands, &holds, &levels)?;
        let mut units = solving.sweep(&found, &demands);
        // What was chosen along the way may make an earlier choice superfluous;
        // settle until resolving again would change nothing.
        loop {
            let settled: Vec<_> = units.iter().copied().collect();
            let mut solving = Solving::new(self.universe, &settled, []);
            let only =
                |unit: &UnitId| Limit { name: self.universe.name_of(*unit), units: vec![*unit] };
            let limits: Vec<_> = settled.iter().map(only).collect();
            let Some(found) = solving.attempt(&demands, holds.iter().chain(&limits)) else {
                return Some(units);
            };
            let again = solving.sweep(&found, &demands);
            if again.len() >= units.len() {
                return Some(units);
            }
            units = again;
        }
    }

    /// The best unit that may take the place of a given one.
    fn best(&self, unit: UnitId) -> Option<UnitId> {
        let root = self.roots.iter().find(|root| {
            matches!(root.cause, Cause::Line { own: true, .. }) && root.demand.units.contains(&unit)
        });
        match root {
            Some(root) => root.demand.units.first().copied(),
            None => {
                let candidates = self.universe.candidates(self.universe.name_of(unit));
                candidates.iter().copied().find(|unit| !self.universe.barred(*unit))
            }
        }
    }

    /// The wishes in their order: nothing is downgraded; what is to be
    /// upgraded has its best version; everything else stays as it is.
    fn wishes(&self) -> Vec<Vec<Limit>> {
        let universe = self.universe;
        let candidates =
            |name| universe.candidates(name).iter().copied().filter(|unit| !universe.barred(*unit));
        let no_downgrade = |unit: &UnitId| {
            let name = universe.name_of(*unit);
            let as_new = |other: &UnitId| universe.compare_versions(*other, *unit).is_ge();
            Limit { name, units: candidates(name).filter(as_new).collect() }
        };
        let best = |unit: &UnitId| {
            let name = universe.name_of(*unit);
            Limit { name, units: self.best(*unit).into_iter().collect() }
        };
        let exact = |unit: &UnitId| Limit { name: universe.name_of(*unit), units: vec![*unit] };
        let staying = self.present.iter().filter(|unit| !self.upgraded.contains(unit));
        vec![
            self.present.iter().chain(&self.upgraded).map(no_downgrade).collect(),
            self.upgraded.iter().map(best).collect(),
            staying.map(exact).collect(),
        ]
    }
}

/// The LDF with its versions and its implicit part as resolved. `included` are
/// the names that references bring.
fn rewrite(
    definition: &Definition,
    universe: &Universe,
    units: &BTreeSet<UnitId>,
    included: &BTreeSet<LayerName>,
) -> Resolved {
    let mut ldf = definition.ldf.clone();
    let mut explicit = BTreeSet::new();
    let chosen: BTreeMap<(&str, &str), UnitId> = units
        .iter()
        .map(|unit| ((universe.repository(*unit).as_str(), universe.layer_text(*unit)), *unit))
        .collect();
    for (_, line) in definition.ldf.explicit() {
        explicit.insert(line.layer.clone());
        if let Some(chosen) = chosen.get(&(line.repository.as_str(), line.layer.as_str())) {
            ldf.set_version(&line.repository, &line.layer, &universe.version(*chosen));
        }
    }
    let held: BTreeSet<_> = definition
        .ldf
        .implicit()
        .filter(|(_, line)| line.hold)
        .map(|(_, line)| line.layer.clone())
        .collect();
    let mut implicit: Vec<_> = units
        .iter()
        .filter(|unit| {
            let layer = universe.layer_text(**unit);
            !explicit.contains(layer) && !included.contains(layer)
        })
        .map(|unit| LayerLine {
            hold: held.contains(universe.layer_text(*unit)),
            repository: universe.repository(*unit).clone(),
            layer: universe.layer(*unit),
            version: Some(universe.version(*unit)),
        })
        .collect();
    implicit.sort_by(|a, b| a.layer.cmp(&b.layer));
    ldf.set_implicit(&implicit);
    let changes = changes(&definition.ldf, &ldf);
    let rewritten = ldf != definition.ldf;
    Resolved { file: definition.file.clone(), ldf, rewritten, changes, kept_back: Vec::new() }
}

fn changes(before: &Ldf, after: &Ldf) -> Vec<Change> {
    let (before, after) = (lines_by_layer(before), lines_by_layer(after));
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    names
        .into_iter()
        .filter(|name| before.get(*name) != after.get(*name))
        .map(|name| Change {
            layer: name.clone(),
            before: before.get(name).cloned(),
            after: after.get(name).cloned(),
        })
        .collect()
}

fn lines_by_layer(ldf: &Ldf) -> BTreeMap<LayerName, String> {
    ldf.explicit()
        .chain(ldf.implicit())
        .map(|(_, line)| (line.layer.clone(), line.to_string()))
        .collect()
}

#[cfg(test)]
mod question_tests;
#[cfg(test)]
mod tests;

#[cfg(test)]
mod view_tests;
