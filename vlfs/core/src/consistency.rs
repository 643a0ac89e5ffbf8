//! Whether the layers of one composition fit together, without solving (§5.2).

use std::collections::{HashMap, HashSet};

use crate::composition::{FlatComposition, FlatLayer};
use crate::configuration::{CONFIGURATION_FILE, Configuration};
use crate::desired::Definition;
use crate::diagnostic::Diagnostic;
use crate::names::{LayerName, RepositoryName};
use crate::pre_depends;
use crate::relation::{Dependency, Relation};
use crate::universe::{Barred, UnitId, Universe};

/// A composition with its layers indexed by the names they answer to.
pub(crate) struct Set<'a> {
    flat: &'a FlatComposition,
    universe: &'a Universe,
    pub(crate) units: Vec<(UnitId, &'a FlatLayer)>,
    by_name: HashMap<&'a LayerName, Vec<usize>>,
    /// Names of layers whose lines have faults of their own.
    unknown: HashSet<&'a LayerName>,
}

impl<'a> Set<'a> {
    pub(crate) fn new(flat: &'a FlatComposition, universe: &'a Universe) -> Self {
        let mut set = Set {
            flat,
            universe,
            units: Vec::with_capacity(flat.layers.len()),
            by_name: HashMap::with_capacity(flat.layers.len() * 2),
            unknown: HashSet::new(),
        };
        for layer in &flat.layers {
            let Some(id) = layer.placed.unit else {
                set.unknown.insert(&layer.placed.line.layer);
                continue;
            };
            let at = set.units.len();
            set.units.push((id, layer));
            let metadata = &universe.unit(id).metadata;
            set.by_name.entry(&metadata.layer).or_default().push(at);
            for provided in &metadata.provides {
                let at_name = set.by_name.entry(&provided.name).or_default();
                if at_name.last() != Some(&at) {
                    at_name.push(at);
                }
            }
        }
        set
    }

    /// The members that satisfy a relation of `from`.
    pub(crate) fn satisfying(
        &self,
        relation: &Relation,
        from: UnitId,
    ) -> impl Iterator<Item = usize> {
        self.by_name
            .get(&relation.name)
            .into_iter()
            .flatten()
            .copied()
            .filter(move |at| self.universe.satisfies(self.units[*at].0, relation, from))
    }

    /// Where a fault between these layers is best shown: in the file that
    /// holds them all, or else at the lines of the composition itself.
    fn place(&self, layers: &[&FlatLayer]) -> (&'a str, u32) {
        let file = &layers[0].placed.file;
        if layers.iter().all(|layer| layer.placed.file == *file) {
            let line = layers.iter().map(|layer| layer.placed.number).max().unwrap_or(0);
            let first = self.units.iter().find(|(_, layer)| layer.placed.file == *file);
            return (first.map_or(&self.flat.file, |(_, layer)| &layer.placed.file), line);
        }
        let own = layers.iter().filter(|layer| layer.own).map(|layer| layer.via).max();
        let line = own.or(layers.iter().map(|layer| layer.via).max()).unwrap_or(0);
        (&self.flat.file, line)
    }
}

/// What [`consistency`] needs to know besides the composition itself.
pub(crate) struct Rules<'a> {
    pub configuration: &'a Configuration,
    pub universe: &'a Universe,
    /// The essential layers of each repository.
    pub essential: HashMap<&'a RepositoryName, Vec<&'a LayerName>>,
}

impl<'a> Rules<'a> {
    pub(crate) fn new(configuration: &'a Configuration, universe: &'a Universe) -> Self {
        let essential = configuration
            .repositories
            .iter()
            .map(|repository| (&repository.name, universe.essential(&repository.name)))
            .collect();
        Rules { configuration, universe, essential }
    }
}

/// Checks dependencies, conflicts, the base layers, essential layers and
/// implicit layers that nothing needs.
pub(crate) fn consistency(
    definition: &Definition,
    flat: &FlatComposition,
    rules: &Rules<'_>,
) -> Vec<Diagnostic> {
    let set = Set::new(flat, rules.universe);
    let mut diagnostics = Vec::new();
    if flat.layers.len() + flat.trees.len() > rules.configuration.max_layers as usize {
        let message = format!(
            "the composition has {} layers, the limit is {}",
            flat.layers.len() + flat.trees.len(),
            rules.configuration.max_layers
        );
        let hint = format!("raise `layers` in the section [limits] of {CONFIGURATION_FILE}");
        diagnostics.push(Diagnostic::error(&flat.file, 0, "too-many-layers", message).hint(hint));
    }
    let included = flat.layers.iter().filter(|layer| !layer.own);
    diagnostics
        .extend(included.filter_map(|layer| not_admitted(layer, &flat.file, rules.universe)));
    check_dependencies(&set, definition.partial, &mut diagnostics);
    check_conflicts(&set, &mut diagnostics);
    check_order(&set, &mut diagnostics);
    check_systems(&set, &mut diagnostics);
    check_base(&set, definition, rules, &mut diagnostics);
    if flat.whole {
        let roots = always_in(definition, rules);
        check_essential(&set, definition, &roots, &mut diagnostics);
        check_needed(&set, rules, &roots, &mut diagnostics);
    }
    diagnostics
}

/// A layer of a reference that the composition itself may not draw on. What nobody may
/// draw on is told of the reference.
pub(crate) fn not_admitted(
    layer: &FlatLayer,
    file: &str,
    universe: &Universe,
) -> Option<Diagnostic> {
    let unit = layer.placed.unit?;
    let Barred::Filtered(reason) = universe.bar(unit)? else { return None };
    let message = format!("{} is filtered: {reason}", universe.show(unit));
    let hint = format!("it comes from {}:{}", layer.placed.file, layer.placed.number);
    Some(Diagnostic::error(file, layer.via, "filtered", message).hint(hint))
}

fn check_dependencies(set: &Set<'_>, partial: bool, diagnostics: &mut Vec<Diagnostic>) {
    for (id, layer) in &set.units {
        let metadata = &set.universe.unit(*id).metadata;
        let pre = metadata.pre_depends.iter().map(|dependency| (dependency, "pre-depends"));
        let plain = metadata.depends.iter().map(|dependency| (dependency, "depends"));
        for (dependency, verb) in pre.chain(plain) {
            let mut alternatives = dependency.alternatives.iter();
            let known = |relation: &Relation| set.unknown.contains(&relation.name);
            if alternatives.any(|a| known(a) || set.satisfying(a, *id).next().is_some()) {
                continue;
            }
            // A line that could not be read may be the one that is missed.
            if !partial {
                diagnostics.push(unsatisfied(set, *id, layer, dependency, verb));
            }
        }
    }
}

fn unsatisfied(
    set: &Set<'_>,
    id: UnitId,
    layer: &FlatLayer,
    dependency: &Dependency,
    verb: &str,
) -> Diagnostic {
    let universe = set.universe;
    let mut message =
        format!("{} {verb} on {dependency}, which no layer here satisfies", universe.show(id));
    for relation in &dependency.alternatives {
        let present = set.by_name.get(&relation.name).into_iter().flatten();
        for at in present.take(2) {
            message.push_str(&format!("; {} does not", universe.show(set.units[*at].0)));
        }
    }
    let mut candidates = dependency
        .alternatives
        .iter()
        .flat_map(|relation| universe.satisfiers(relation, id))
        .filter(|id| !universe.barred(*id));
    let hint = match candidates.next() {
        Some(found) => format!("run `strata resolve`; {} would satisfy it", universe.show(found)),
        None => "no repository has such a layer; import one or remove this line".to_owned(),
    };
    let (file, line) = set.place(&[layer]);
    Diagnostic::error(file, line, "unsatisfied", message).hint(hint)
}

/// Pre-Depends order the scripts of units (§5.2): units that wait for each other
/// have no order.
fn check_order(set: &Set<'_>, diagnostics: &mut Vec<Diagnostic>) {
    let units: Vec<_> = set.units.iter().map(|(unit, _)| *unit).collect();
    for cycle in pre_depends::cycles(set.universe, &units) {
        let message = pre_depends::message(set.universe, cycle.iter().map(|at| units[*at]));
        let layers: Vec<_> = cycle.iter().map(|at| set.units[*at].1).collect();
        let (file, line) = set.place(&layers);
        let hint = "no order runs their scripts: another version of one of them must break it";
        diagnostics.push(Diagnostic::error(file, line, "pre-depends-cycle", message).hint(hint));
    }
}

fn check_conflicts(set: &Set<'_>, diagnostics: &mut Vec<Diagnostic>) {
    for (at, (id, layer)) in set.units.iter().enumerate() {
        let metadata = &set.universe.unit(*id).metadata;
        let conflicts = metadata.conflicts.iter().map(|relation| (relation, "conflicts with"));
        let breaks = metadata.breaks.iter().map(|relation| (relation, "breaks"));
        for (relation, verb) in conflicts.chain(breaks) {
            for other in set.satisfying(relation, *id).filter(|other| *other != at) {
                let (other_id, other_layer) = set.units[other];
                let message = format!(
                    "{} {verb} {relation}, and {} is here ({}:{})",
                    set.universe.show(*id),
                    set.universe.show(other_id),
                    other_layer.placed.file,
                    other_layer.placed.number
                );
                let (file, line) = set.place(&[layer, other_layer]);
                diagnostics.push(Diagnostic::error(file, line, "conflict", message).hint(
                    "remove one of the two, or run `strata resolve` for versions that go together",
                ));
            }
        }
    }
}

/// Files and scripts of two package systems do not go together: neither system's
/// tools would know of the other's. The first layer that has a system decides.
fn check_systems(set: &Set<'_>, diagnostics: &mut Vec<Diagnostic>) {
    let system = |id: UnitId| set.universe.unit(id).metadata.system;
    let mut having = set.units.iter().filter_map(|(id, layer)| Some((*id, layer, system(*id)?)));
    let Some((first, first_layer, first_system)) = having.next() else { return };
    let Some((other, layer, other_system)) = having.find(|(_, _, other)| *other != first_system)
    else {
        return;
    };
    let message = format!(
        "{} comes from {other_system} packages, and {} ({}:{}) from {first_system} packages",
        set.universe.show(other),
        set.universe.show(first),
        first_layer.placed.file,
        first_layer.placed.number
    );
    let (file, line) = set.place(&[first_layer, layer]);
    diagnostics.push(
        Diagnostic::error(file, line, "two-systems", message)
            .hint("a composition draws on one package system; remove the layers of the other"),
    );
}

/// Checked where nothing is referenced: what is included brings its own base.
fn check_base(
    set: &Set<'_>,
    definition: &Definition,
    rules: &Rules<'_>,
    diagnostics: &mut Vec<Diagnostic>,
) {
    if definition.partial || definition.ldf.references().next().is_some() {
        return;
    }
    for base in &rules.configuration.base {
        let found = set.flat.layers.iter().any(|layer| {
            let line = &layer.placed.line;
            line.repository == base.value.repository && line.layer == base.value.layer
        });
        if !found {
            let message = format!(
                "{} belongs to every composition ({CONFIGURATION_FILE}:{}) and is not here",
                base.value, base.line
            );
            let fault = Diagnostic::error(&set.flat.file, 0, "missing-base", message);
            diagnostics.push(fault.hint("run `strata resolve`"));
        }
    }
}

/// The layers that are in without being asked for: base layers, and the
/// essential ones of each repository that an explicit line or a base layer names.
pub(crate) fn always_in<'a>(definition: &Definition, rules: &Rules<'a>) -> Vec<&'a LayerName> {
    let explicit = definition.ldf.explicit().map(|(_, line)| &line.repository);
    let base = rules.configuration.base.iter().map(|base| &base.value.repository);
    let mut names: Vec<_> = explicit
        .chain(base)
        .filter_map(|repository| rules.essential.get(repository))
        .flatten()
        .copied()
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn check_essential(
    set: &Set<'_>,
    definition: &Definition,
    essential: &[&LayerName],
    diagnostics: &mut Vec<Diagnostic>,
) {
    if definition.ldf.references().next().is_some() {
        return;
    }
    let missing: Vec<_> = essential
        .iter()
        .filter(|name| !set.flat.layers.iter().any(|l| l.placed.line.layer == ***name))
        .map(|name| name.as_str())
        .collect();
    if !missing.is_empty() {
        let message = format!(
            "{} essential to the repositories used here and not in the composition: {}",
            if missing.len() == 1 { "a layer is" } else { "layers are" },
            missing.join(", ")
        );
        let fault = Diagnostic::error(&set.flat.file, 0, "missing-essential", message);
        diagnostics.push(fault.hint("run `strata resolve`").warning());
    }
}

fn check_needed(
    set: &Set<'_>,
    rules: &Rules<'_>,
    essential: &[&LayerName],
    diagnostics: &mut Vec<Diagnostic>,
) {
    let root = |layer: &FlatLayer| {
        let line = &layer.placed.line;
        !layer.own
            || !layer.placed.implicit
            || essential.contains(&&line.layer)
            || rules.configuration.base.iter().any(|base| {
                base.value.repository == line.repository && base.value.layer == line.layer
            })
    };
    let mut needed = vec![false; set.units.len()];
    let mut open: Vec<_> = (0..set.units.len()).filter(|at| root(set.units[*at].1)).collect();
    while let Some(at) = open.pop() {
        if std::mem::replace(&mut needed[at], true) {
            continue;
        }
        let id = set.units[at].0;
        let metadata = &set.universe.unit(id).metadata;
        for dependency in metadata.pre_depends.iter().chain(&metadata.depends) {
            for relation in &dependency.alternatives {
                open.extend(set.satisfying(relation, id).filter(|at| !needed[*at]));
            }
        }
    }
    for (at, (id, layer)) in set.units.iter().enumerate() {
        if !needed[at] {
            let message = format!("nothing here needs {}", set.universe.show(*id));
            let (file, line) = set.place(&[layer]);
            let fault = Diagnostic::error(file, line, "not-needed", message).warning();
            diagnostics.push(
                fault.hint("run `strata resolve` to remove it, or move it into the explicit part"),
            );
        }
    }
}
