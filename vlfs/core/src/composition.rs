//! Composing: what an LDF and all that it references come to (§4.2, §5).
//!
//! Flattening follows the `@` lines, so that what is committed is exactly what
//! runs; nothing is solved here. A layer may come from several places if they
//! agree on its version. A line of the LDF itself that is held (`=`) wins over
//! what its references bring; any other disagreement is a fault.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;

use crate::configuration::Configuration;
use crate::data_paths::{DataPath, DataPaths, nested};
use crate::desired::{Definition, DefinitionRole};
use crate::diagnostic::Diagnostic;
use crate::generation::{Generation, GenerationError, LayerSetEntry};
use crate::ldf::{LayerLine, Reference};
use crate::limits;
use crate::metadata::LayerKind;
use crate::names::{CompositionName, LayerName, TEMPLATES_REPOSITORY};
use crate::shared_paths::stacking_order;
use crate::universe::{Barred, UnitId, Universe};
use crate::views::Views;

/// A layer line at its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedLayer {
    pub line: LayerLine,
    pub file: Arc<str>,
    pub number: u32,
    pub implicit: bool,
    /// The unit that the line names; `None` where it has a fault.
    pub unit: Option<UnitId>,
}

/// A layer of a flattened composition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlatLayer {
    pub placed: Arc<PlacedLayer>,
    /// The line of the composition's own LDF that brought it: its own line or an `@` line.
    pub via: u32,
    /// Whether it stands in the composition's own LDF.
    pub own: bool,
}

/// A composition without `@` lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlatComposition {
    pub name: CompositionName,
    pub file: Arc<str>,
    pub layers: Vec<FlatLayer>,
    /// The configuration layers from git, bottom first.
    pub trees: Vec<LayerSetEntry>,
    /// Data directories, its own and those of its references.
    pub data: BTreeMap<DataPath, PlacedData>,
    /// Whether nothing is missing from it because of a fault.
    pub whole: bool,
}

/// Where a data directory is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedData {
    pub file: Arc<str>,
    pub line: u32,
}

/// The definitions in an order in which each follows all that it references.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReferenceOrder {
    pub order: Vec<CompositionName>,
    /// References that lead nowhere, into a cycle or too deep; not in `order`
    /// where no order exists.
    pub broken: BTreeSet<CompositionName>,
}

/// Orders the definitions by their `@` lines; missing references, cycles and
/// chains deeper than [`limits::REFERENCE_DEPTH`] are reported.
pub fn reference_order(
    definitions: &BTreeMap<CompositionName, Definition>,
    configuration: &Configuration,
) -> (ReferenceOrder, Vec<Diagnostic>) {
    let mut result = ReferenceOrder::default();
    let mut diagnostics = Vec::new();
    let mut waiting: BTreeMap<&CompositionName, usize> = BTreeMap::new();
    let mut users: BTreeMap<&CompositionName, Vec<&CompositionName>> = BTreeMap::new();
    let mut depth: BTreeMap<&CompositionName, usize> = BTreeMap::new();
    for definition in definitions.values() {
        let mut count = 0;
        for (line, reference) in definition.ldf.references() {
            match target(definitions, configuration, reference) {
                Ok(target) => {
                    count += 1;
                    users.entry(&target.name).or_default().push(&definition.name);
                }
                Err((message, hint)) => {
                    let fault =
                        Diagnostic::error(&definition.file, line, "missing-reference", message);
                    diagnostics.push(fault.hint(hint));
                    result.broken.insert(definition.name.clone());
                }
            }
        }
        waiting.insert(&definition.name, count);
    }
    let mut ready: Vec<_> =
        waiting.iter().filter(|(_, count)| **count == 0).map(|(name, _)| *name).collect();
    while let Some(name) = ready.pop() {
        result.order.push(name.clone());
        waiting.remove(name);
        let below = depth.get(name).copied().unwrap_or(0);
        for user in users.get(name).into_iter().flatten() {
            let deepest = depth.entry(user).or_default();
            *deepest = (*deepest).max(below + 1);
            if let Some(count) = waiting.get_mut(user) {
                *count -= 1;
                if *count == 0 {
                    ready.push(user);
                }
            }
        }
        if below > limits::REFERENCE_DEPTH {
            let definition = &definitions[name];
            let line = definition.ldf.references().next().map_or(0, |(line, _)| line);
            let message =
                format!("references are nested deeper than {} levels", limits::REFERENCE_DEPTH);
            diagnostics.push(Diagnostic::error(&definition.file, line, "reference-depth", message));
            result.broken.insert(name.clone());
        }
    }
    report_cycles(definitions, configuration, &waiting, &mut diagnostics);
    result.broken.extend(waiting.into_keys().cloned());
    (result, diagnostics)
}

/// Walks from each definition that no order could be found for into its cycle.
fn report_cycles(
    definitions: &BTreeMap<CompositionName, Definition>,
    configuration: &Configuration,
    waiting: &BTreeMap<&CompositionName, usize>,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let mut seen: BTreeSet<&CompositionName> = BTreeSet::new();
    for start in waiting.keys() {
        let mut path: Vec<(&Definition, u32)> = Vec::new();
        let mut at = &definitions[*start];
        while seen.insert(&at.name) {
            let next = at.ldf.references().find_map(|(line, reference)| {
                let target = target(definitions, configuration, reference).ok()?;
                waiting.contains_key(&target.name).then_some((line, target))
            });
            let Some((line, next)) = next else { break };
            path.push((at, line));
            at = next;
        }
        let Some(first) = path.iter().position(|(d, _)| d.name == at.name) else { continue };
        let mut message = "the references form a cycle: ".to_owned();
        for (definition, _) in &path[first..] {
            let _infallible = write!(message, "{} → ", definition.name);
        }
        message.push_str(at.name.as_str());
        let (definition, line) = path[first];
        diagnostics.push(Diagnostic::error(&definition.file, line, "reference-cycle", message));
    }
}

/// The definition that a reference means, or what is wrong and what to do.
pub fn target<'d>(
    definitions: &'d BTreeMap<CompositionName, Definition>,
    configuration: &Configuration,
    reference: &Reference,
) -> Result<&'d Definition, (String, String)> {
    let role = match &reference.scope {
        None => None,
        Some(scope) if scope.as_str() == TEMPLATES_REPOSITORY => Some(DefinitionRole::Template),
        Some(scope) if scope.as_str() == DefinitionRole::Appliance.directory() => {
            Some(DefinitionRole::Appliance)
        }
        // The paper's @main/sql-server (Figure 3).
        Some(scope) if configuration.repository(scope).is_some() => None,
        Some(scope) => {
            let message = format!("{reference}: there is no repository {scope}");
            return Err((message, format!("write @{}", reference.name)));
        }
    };
    let found = definitions.get(&reference.name);
    match found.filter(|found| role.is_none_or(|role| found.role == role)) {
        Some(definition) => Ok(definition),
        None => {
            let directory = role.unwrap_or(DefinitionRole::Template).directory();
            let message = format!("{reference}: there is no {directory}/{}.ldf", reference.name);
            let hint = match found {
                Some(other) => format!("{} exists; write @{}", other.file, other.name),
                None => "commit that file, or remove this line".to_owned(),
            };
            Err((message, hint))
        }
    }
}

/// Looks up each layer line of one LDF; unknown repositories, layers and
/// versions, withdrawn units and unresolved lines are reported.
pub fn place_layers(
    definition: &Definition,
    configuration: &Configuration,
    universe: &Universe,
) -> (Vec<Arc<PlacedLayer>>, Vec<Diagnostic>) {
    let file: Arc<str> = definition.file.as_str().into();
    let mut diagnostics = Vec::new();
    let explicit = definition.ldf.explicit().map(|(number, line)| (number, line, false));
    let implicit = definition.ldf.implicit().map(|(number, line)| (number, line, true));
    let placed = explicit
        .chain(implicit)
        .map(|(number, line, implicit)| {
            let unit = match look_up(line, configuration, universe) {
                Ok(unit) => Some(unit),
                Err(fault) => {
                    let LineFault { code, message, hint, unit } = fault;
                    let fault = Diagnostic::error(&file, number, code, message);
                    diagnostics.push(match hint {
                        Some(hint) => fault.hint(hint),
                        None => fault,
                    });
                    unit
                }
            };
            let (line, file) = (line.clone(), file.clone());
            Arc::new(PlacedLayer { line, file, number, implicit, unit })
        })
        .collect();
    (placed, diagnostics)
}

struct LineFault {
    code: &'static str,
    message: String,
    hint: Option<String>,
    /// A withdrawn unit is known all the same.
    unit: Option<UnitId>,
}

fn look_up(
    line: &LayerLine,
    configuration: &Configuration,
    universe: &Universe,
) -> Result<UnitId, LineFault> {
    let LayerLine { repository, layer, version, .. } = line;
    let fault = |code, message: String, hint| Err(LineFault { code, message, hint, unit: None });
    if repository.as_str() == TEMPLATES_REPOSITORY {
        let message = format!(
            "{repository}/{layer}: configuration layers from git belong to their template and are not listed"
        );
        let hint = format!("to take in the template {layer}, write @{layer}");
        return fault("reserved-repository", message, Some(hint));
    }
    if configuration.repository(repository).is_none() {
        let message = format!("{repository}/{layer} is of an unknown repository");
        return fault("unknown-repository", message, Some(configuration.repositories_hint()));
    }
    let mut units = universe.in_repository(repository, layer).peekable();
    if units.peek().is_none() {
        let elsewhere: Vec<_> =
            universe.named(layer).map(|id| universe.repository(id).as_str()).collect();
        let hint = elsewhere.first().map(|found| format!("the repository {found} has {layer}"));
        let provider = universe.providers(layer).first();
        let hint = hint.or_else(|| {
            Some(format!("{layer} is no layer; {} provides it", universe.show(provider?.0)))
        });
        let message = format!("the repository {repository} has no layer {layer}");
        return fault("unknown-layer", message, hint);
    }
    let Some(version) = version else {
        let message = format!("{repository}/{layer} has no version yet");
        return fault("unresolved", message, Some("run `strata resolve`".to_owned()));
    };
    let Some(id) = universe.get(repository, layer, version) else {
        let known: Vec<_> = units
            .filter(|id| !universe.barred(*id))
            .take(5)
            .map(|id| universe.unit(id).metadata.version.to_string())
            .collect();
        let message = format!("{repository}/{layer} has no version {version}");
        let hint = (!known.is_empty()).then(|| format!("it has {}", known.join(", ")));
        return fault("unknown-version", message, hint);
    };
    let Some(bar) = universe.bar(id) else { return Ok(id) };
    let hint = match units.find(|id| !universe.barred(*id)) {
        Some(other) => format!("{} may be used", universe.show(other)),
        None => "no other version is left".to_owned(),
    };
    let code = match &bar {
        Barred::Withdrawn(_) => "withdrawn",
        Barred::Filtered(_) => "filtered",
    };
    let message = format!("{repository}/{layer} {version} is {bar}");
    Err(LineFault { code, message, hint: Some(hint), unit: Some(id) })
}

/// Flattens all definitions that have no fault in their references.
pub fn flatten_all(
    definitions: &BTreeMap<CompositionName, Definition>,
    configuration: &Configuration,
    universe: &Universe,
) -> BTreeMap<CompositionName, FlatComposition> {
    let (order, _) = reference_order(definitions, configuration);
    let views = Views::new(configuration, definitions, universe);
    let mut flats = BTreeMap::new();
    for name in order.order.iter().filter(|name| !order.broken.contains(*name)) {
        let definition = &definitions[name];
        let (own, _) = place_layers(definition, configuration, views.of(name));
        let (flat, _) = flatten(definition, &own, configuration, definitions, &flats);
        flats.insert(name.clone(), flat);
    }
    flats
}

/// Flattens one definition, whose references have been flattened already.
pub fn flatten(
    definition: &Definition,
    own: &[Arc<PlacedLayer>],
    configuration: &Configuration,
    definitions: &BTreeMap<CompositionName, Definition>,
    flats: &BTreeMap<CompositionName, FlatComposition>,
) -> (FlatComposition, Vec<Diagnostic>) {
    let file: Arc<str> = definition.file.as_str().into();
    let mut flat = FlatComposition {
        name: definition.name.clone(),
        file,
        layers: Vec::new(),
        trees: Vec::new(),
        data: own_data(definition),
        whole: !definition.partial && own.iter().all(|layer| layer.unit.is_some()),
    };
    let mut diagnostics = Vec::new();
    let mut index: HashMap<LayerName, usize> = HashMap::new();
    let mut included = Vec::new();
    for layer in own {
        index.insert(layer.line.layer.clone(), flat.layers.len());
        flat.layers.push(FlatLayer { placed: layer.clone(), via: layer.number, own: true });
    }
    for (via, reference) in definition.ldf.references() {
        let referenced = target(definitions, configuration, reference).ok();
        let Some(other) = referenced.and_then(|found| flats.get(&found.name)) else {
            flat.whole = false;
            continue;
        };
        flat.whole &= other.whole;
        for (path, placed) in &other.data {
            flat.data.entry(path.clone()).or_insert_with(|| placed.clone());
        }
        for tree in &other.trees {
            if !flat.trees.contains(tree) {
                flat.trees.push(tree.clone());
            }
        }
        for layer in &other.layers {
            match index.get(&layer.placed.line.layer) {
                None => {
                    index.insert(layer.placed.line.layer.clone(), flat.layers.len());
                    let placed = layer.placed.clone();
                    flat.layers.push(FlatLayer { placed, via, own: false });
                    included.push(flat.layers.len() - 1);
                }
                Some(at) => {
                    let there = &flat.layers[*at];
                    let same = there.placed.line.repository == layer.placed.line.repository
                        && there.placed.line.version == layer.placed.line.version;
                    let overridden = there.own && there.placed.line.hold;
                    if !same && !overridden && there.placed.line.version.is_some() {
                        diagnostics.push(two_versions(&flat.file, via, there, layer));
                    }
                }
            }
        }
    }
    diagnostics.extend(check_data(definition, &flat));
    flat.trees.extend(definition.tree.as_ref().map(|tree| tree.entry()));
    flat.whole &= diagnostics.is_empty();
    (flat, diagnostics)
}

/// The path of a composition's `.data` file in the GitOps repository.
fn data_file(definition: &Definition) -> String {
    format!("{}/{}.data", definition.role.directory(), definition.name)
}

fn own_data(definition: &Definition) -> BTreeMap<DataPath, PlacedData> {
    let file: Arc<str> = data_file(definition).into();
    let placed = |line: &u32| PlacedData { file: file.clone(), line: *line };
    definition.data.iter().map(|(path, line)| (path.clone(), placed(line))).collect()
}

/// Data directories that lie in one another, or are too many. A fault stands
/// where its own file has a part in it, else at the LDF that brings both together.
fn check_data(definition: &Definition, flat: &FlatComposition) -> Vec<Diagnostic> {
    let own = data_file(definition);
    let mut diagnostics = Vec::new();
    for (outer, inner) in nested(flat.data.keys()) {
        let (a, b) = (&flat.data[outer], &flat.data[inner]);
        let message = format!(
            "the data directory {inner} ({}:{}) is in {outer} ({}:{})",
            b.file, b.line, a.file, a.line
        );
        let at = [b, a].into_iter().find(|placed| *placed.file == own);
        let (file, line) = at.map_or((&*flat.file, 0), |placed| (&*placed.file, placed.line));
        let hint = "one mount cannot be in the other: remove one of the two";
        diagnostics.push(Diagnostic::error(file, line, "nested-data", message).hint(hint));
    }
    if flat.data.len() > limits::DATA_PATHS {
        let (most, count) = (limits::DATA_PATHS, flat.data.len());
        let message = format!("{count} data directories, the limit is {most}");
        diagnostics.push(Diagnostic::error(&flat.file, 0, "too-many-data", message));
    }
    diagnostics
}

fn two_versions(file: &str, via: u32, there: &FlatLayer, other: &FlatLayer) -> Diagnostic {
    let (a, b) = (&there.placed, &other.placed);
    let line = if there.own { there.via } else { via };
    let message = format!(
        "two units of the layer {}: {} ({}:{}) and {} ({}:{})",
        a.line.layer, a.line, a.file, a.number, b.line, b.file, b.number
    );
    let hint = format!(
        "run `strata resolve --upgrade {}`, or hold one version here with a line that starts with =",
        a.line.layer
    );
    Diagnostic::error(file, line, "two-versions", message).hint(hint)
}

impl FlatComposition {
    /// Seals the layer set: software layers by name, each above what it replaces
    /// ([`stacking_order`]), then configuration layers,
    /// included ones first in the order of the `@` lines, its own last.
    ///
    /// # Errors
    /// More layers than a generation may have.
    ///
    /// # Panics
    /// Never for a composition that is [`Self::whole`].
    pub fn seal(&self, universe: &Universe) -> Result<Generation, GenerationError> {
        let unit = |layer: &FlatLayer| layer.placed.unit.expect("a whole composition");
        let kind = |layer: &&FlatLayer| universe.unit(unit(layer)).metadata.kind;
        let mut software: Vec<_> =
            self.layers.iter().filter(|l| kind(l) == LayerKind::Software).collect();
        software.sort_by(|a, b| a.placed.line.layer.cmp(&b.placed.line.layer));
        let configuration = |own: bool| {
            self.layers.iter().filter(move |l| l.own == own && kind(l) == LayerKind::Configuration)
        };
        let configuration_count = configuration(false).count() + configuration(true).count();
        let ordered: Vec<_> =
            software.into_iter().chain(configuration(false)).chain(configuration(true)).collect();
        let (stacked, above) = ordered.split_at(ordered.len() - configuration_count);
        let metadata: Vec<_> =
            stacked.iter().map(|layer| &universe.unit(unit(layer)).metadata).collect();
        let stacked = stacking_order(&metadata).into_iter().map(|at| stacked[at]);
        let layers: Vec<_> = stacked
            .chain(above.iter().copied())
            .map(|layer| universe.entry(unit(layer)))
            .chain(self.trees.iter().cloned())
            .collect();
        let data = self.data.keys().cloned().collect();
        let data = DataPaths::new(data).expect("a whole composition has sound data directories");
        Ok(Generation::new(self.name.clone(), layers, self.print(&ordered))?.with_data(data))
    }

    /// The flattened LDF: canonical, so that comments and the order of lines
    /// do not make another generation.
    fn print(&self, ordered: &[&FlatLayer]) -> String {
        let mut text = String::new();
        for layer in ordered.iter().filter(|layer| !layer.placed.implicit) {
            let _infallible = writeln!(text, "{}", layer.placed.line);
        }
        let implicit = ordered.iter().filter(|layer| layer.placed.implicit);
        let lines: Vec<_> = implicit
            .map(|layer| layer.placed.line.to_string())
            .chain(self.trees.iter().map(LayerSetEntry::to_string))
            .collect();
        if !lines.is_empty() && !text.is_empty() {
            text.push('\n');
        }
        for line in lines {
            text.push_str(&line);
            text.push('\n');
        }
        text
    }
}
