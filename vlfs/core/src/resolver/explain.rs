//! Why there is no solution, in the operator's words: the smallest set of
//! lines to blame, the reason in one sentence, and what could be changed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use resolvo::conflict::{ConflictCause, ConflictEdge, ConflictNode};

use super::provider::unit;
use super::solve::{Demand, Limit, Solving};
use super::{Cause, Hold, Root, Task};
use crate::diagnostic::Diagnostic;
use crate::names::LayerName;
use crate::relation::{Dependency, Relation};
use crate::universe::{UnitId, Universe};

/// Reasons that one explanation gives at most.
const MOST_REASONS: usize = 4;
/// Versions that one list shows at most.
const MOST_VERSIONS: usize = 4;
/// Resolutions that the search for a smaller set takes at most.
const MOST_TRIALS: usize = 256;

/// A root or a hold: what the operator could change.
#[derive(Clone, Copy)]
enum Blamed<'t> {
    Root(&'t Root),
    Hold(&'t Hold),
}

impl<'t> Blamed<'t> {
    /// Those that are blamed only where nothing else can be come first.
    fn reluctance(self) -> u8 {
        match self {
            Blamed::Root(root) => match root.cause {
                Cause::Essential => 0,
                Cause::Base { .. } => 1,
                Cause::Line { own: false, .. } => 2,
                Cause::Line { own: true, .. } => 4,
                Cause::Asked => 5,
            },
            Blamed::Hold(_) => 3,
        }
    }

    fn is_base(self) -> bool {
        matches!(self, Blamed::Root(Root { cause: Cause::Base { .. }, .. }))
    }

    fn is_included(self) -> bool {
        matches!(self, Blamed::Root(Root { cause: Cause::Line { own: false, .. }, .. }))
    }

    fn is_asked(self) -> bool {
        matches!(self, Blamed::Root(Root { cause: Cause::Asked, .. }))
    }

    /// The line of the LDF that is being resolved.
    fn line(self) -> Option<u32> {
        match self {
            Blamed::Root(Root { cause: Cause::Line { via, .. }, .. }) => Some(*via),
            Blamed::Root(_) => None,
            Blamed::Hold(hold) => Some(hold.placed.number),
        }
    }

    fn show(self, task: &Task<'_>) -> String {
        let first = |root: &Root| &task.universe.unit(root.demand.units[0]).metadata.layer;
        match self {
            Blamed::Root(root) => match &root.cause {
                Cause::Line { placed, own: true, .. } => {
                    format!("{} (line {})", placed.line, placed.number)
                }
                Cause::Line { placed, .. } => {
                    format!("{} ({}:{})", placed.line, placed.file, placed.number)
                }
                Cause::Base { line } => {
                    format!("the base layer {} (strata.toml:{line})", first(root))
                }
                Cause::Essential => format!("the essential layer {}", first(root)),
                Cause::Asked => task.universe.show(root.demand.units[0]),
            },
            Blamed::Hold(hold) => {
                format!("the hold {} (line {})", hold.placed.line, hold.placed.number)
            }
        }
    }
}

/// Explains a task that has no solution.
pub(super) fn explain(task: &Task<'_>) -> Diagnostic {
    let mut solving = Solving::new(task.universe, &[], []);
    let core = irreducible(task, &mut solving);
    let core = smallest(task, &mut solving, core);
    let (demands, limits) = split(&core);
    let shown: Vec<_> = core.iter().map(|blamed| blamed.show(task)).collect();
    let mut message = match shown.as_slice() {
        [] => "the composition cannot be resolved".to_owned(),
        [only] => format!("{only} cannot be had"),
        [rest @ .., last] => format!("{} and {last} cannot go together", rest.join(", ")),
    };
    let reasons = reasons(task.universe, &mut solving, &demands, &limits);
    for (at, reason) in reasons.iter().take(MOST_REASONS).enumerate() {
        message.push_str(if at == 0 { ": " } else { "; " });
        message.push_str(reason);
    }
    if reasons.len() > MOST_REASONS {
        message.push_str("; …");
    }
    let line = core.iter().filter_map(|blamed| blamed.line()).max().unwrap_or(0);
    let fault = Diagnostic::error(&task.definition.file, line, "unsolvable", message);
    fault.hint(advice(task, &mut solving, &core))
}

fn split<'t>(blamed: &[Blamed<'t>]) -> (Vec<&'t Demand>, Vec<Limit>) {
    let (mut demands, mut limits) = (Vec::new(), Vec::new());
    for blamed in blamed {
        match blamed {
            Blamed::Root(root) => demands.push(&root.demand),
            Blamed::Hold(hold) => limits.push(hold.limit.clone()),
        }
    }
    (demands, limits)
}

/// All that could be blamed, in the order in which it is let off.
fn blameable<'t>(task: &'t Task<'_>) -> Vec<Blamed<'t>> {
    let mut all: Vec<Blamed<'t>> = task.roots.iter().map(Blamed::Root).collect();
    all.extend(task.holds.iter().map(Blamed::Hold));
    all.sort_by_key(|blamed| blamed.reluctance());
    all
}

/// A set without a solution of which no member could be left out.
/// Halves are tried before single members, so that a hundred included lines
/// cost a few attempts only.
fn irreducible<'t>(task: &'t Task<'_>, solving: &mut Solving<'_>) -> Vec<Blamed<'t>> {
    let mut core = blameable(task);
    let mut size = core.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        while at < core.len() {
            let end = (at + size).min(core.len());
            let rest: Vec<_> = core[..at].iter().chain(&core[end..]).copied().collect();
            let (demands, limits) = split(&rest);
            if !rest.is_empty() && solving.attempt(&demands, &limits).is_none() {
                core = rest;
            } else {
                at = end;
            }
        }
        if size == 1 {
            return core;
        }
        size = size.div_ceil(2);
    }
}

/// A set with fewer members that has no solution either, where there is one: several faults
/// may meet in one LDF, and the simplest is told first. Single members are tried, then pairs,
/// and no larger sets: nobody grasps those at a glance.
fn smallest<'t>(
    task: &'t Task<'_>,
    solving: &mut Solving<'_>,
    core: Vec<Blamed<'t>>,
) -> Vec<Blamed<'t>> {
    let all = blameable(task);
    // What is dearest to the operator comes last there, and is what they can change.
    let singles = all.iter().rev().map(|blamed| vec![*blamed]);
    let pairs =
        all.iter().enumerate().rev().flat_map(|(at, second)| {
            all[..at].iter().rev().map(move |first| vec![*first, *second])
        });
    // What was resolved before goes together: the lines of references, and all but the unit
    // that is asked about.
    let is_asking = all.iter().any(|blamed| blamed.is_asked());
    let is_suspect = |set: &Vec<Blamed<'_>>| match is_asking {
        true => set.iter().any(|blamed| blamed.is_asked()),
        false => !set.iter().all(|blamed| blamed.is_included()),
    };
    let sets = singles.chain(pairs).filter(is_suspect).take(MOST_TRIALS);
    for set in sets.take_while(|set| set.len() < core.len()) {
        let (demands, limits) = split(&set);
        if !demands.is_empty() && solving.attempt(&demands, &limits).is_none() {
            return set;
        }
    }
    core
}

/// The facts that meet, each with the way that leads to it.
fn reasons(
    universe: &Universe,
    solving: &mut Solving<'_>,
    demands: &[&Demand],
    limits: &[Limit],
) -> Vec<String> {
    let Some(conflict) = solving.conflict(demands, limits) else { return Vec::new() };
    let nodes: Vec<Option<UnitId>> = conflict
        .graph
        .raw_nodes()
        .iter()
        .map(|node| match node.weight {
            ConflictNode::Solvable(solvable) => Some(unit(solvable)),
            ConflictNode::Root | ConflictNode::UnresolvedDependency | ConflictNode::Excluded(_) => {
                None
            }
        })
        .collect();
    let mut children: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for edge in conflict.graph.raw_edges() {
        if let ConflictEdge::Requires(_) = edge.weight {
            children.entry(edge.source().index()).or_default().push(edge.target().index());
        }
    }
    let ways = Ways::new(universe, &nodes, conflict.root_node.index(), &children);
    let mut reasons: BTreeSet<(usize, String)> = BTreeSet::new();
    let mut rivals: BTreeMap<LayerName, BTreeSet<UnitId>> = BTreeMap::new();
    let mut excluded: BTreeMap<(UnitId, String), BTreeSet<UnitId>> = BTreeMap::new();
    for edge in conflict.graph.raw_edges() {
        let (source, target) = (nodes[edge.source().index()], nodes[edge.target().index()]);
        match (edge.weight, source, target) {
            (ConflictEdge::Requires(_), Some(from), None) => {
                for dependency in unmet(universe, from) {
                    reasons.insert((ways.length(from), ways.unmet(from, dependency)));
                }
            }
            (ConflictEdge::Conflict(ConflictCause::Constrains(_)), Some(from), Some(to)) => {
                excluded.entry((from, ways.conflict(from, to))).or_default().insert(to);
            }
            // The root's constraints are the holds.
            (ConflictEdge::Conflict(ConflictCause::Constrains(_)), None, Some(to)) => {
                reasons.insert((ways.length(to), ways.needed(to)));
            }
            (ConflictEdge::Conflict(ConflictCause::ForbidMultipleInstances), Some(a), Some(b)) => {
                let name = universe.unit(a).metadata.layer.clone();
                rivals.entry(name).or_default().extend([a, b]);
            }
            _ => {}
        }
    }
    for ((from, said), units) in excluded {
        let reason = format!("{} {said}, which is {}", ways.show(from), ways.either(&units));
        reasons.insert((ways.length(from), reason));
    }
    for units in rivals.into_values() {
        let length = units.iter().map(|unit| ways.length(*unit)).max().unwrap_or(0);
        reasons.insert((length, ways.rivals(&units)));
    }
    reasons.into_iter().map(|(_, reason)| reason).collect()
}

/// The dependencies of a unit that nothing in the universe satisfies.
fn unmet(universe: &Universe, from: UnitId) -> impl Iterator<Item = &Dependency> {
    let metadata = &universe.unit(from).metadata;
    metadata.pre_depends.iter().chain(&metadata.depends).filter(move |dependency| {
        !dependency
            .alternatives
            .iter()
            .flat_map(|relation| universe.satisfiers(relation, from))
            .any(|unit| !universe.barred(unit))
    })
}

/// The shortest ways from the blamed lines to each unit.
struct Ways<'u> {
    universe: &'u Universe,
    before: BTreeMap<UnitId, (usize, Option<UnitId>)>,
}

impl<'u> Ways<'u> {
    fn new(
        universe: &'u Universe,
        nodes: &[Option<UnitId>],
        root: usize,
        children: &BTreeMap<usize, Vec<usize>>,
    ) -> Self {
        let mut before = BTreeMap::new();
        let mut open = VecDeque::from([(root, 0)]);
        while let Some((node, depth)) = open.pop_front() {
            let mut next: Vec<_> = children.get(&node).into_iter().flatten().copied().collect();
            next.sort_by_key(|child| nodes[*child]);
            for child in next {
                if let Some(unit) = nodes[child]
                    && !before.contains_key(&unit)
                {
                    before.insert(unit, (depth, nodes[node]));
                    open.push_back((child, depth + 1));
                }
            }
        }
        Ways { universe, before }
    }

    fn length(&self, unit: UnitId) -> usize {
        self.before.get(&unit).map_or(0, |(length, _)| *length)
    }

    /// `a → b → c`, with the middle of a long way left out.
    fn show(&self, unit: UnitId) -> String {
        let mut way = vec![self.universe.show(unit)];
        let mut at = unit;
        while let Some((_, Some(before))) = self.before.get(&at) {
            way.push(self.universe.show(*before));
            at = *before;
        }
        way.reverse();
        if way.len() > 4 {
            let end = way.split_off(way.len() - 2);
            way.truncate(1);
            way.push("…".to_owned());
            way.extend(end);
        }
        way.join(" → ")
    }

    /// Why a unit is needed that a hold does not let in.
    fn needed(&self, unit: UnitId) -> String {
        let before = self.before.get(&unit).and_then(|(_, before)| *before);
        let dependency = before.and_then(|from| {
            let metadata = &self.universe.unit(from).metadata;
            let all = metadata.pre_depends.iter().chain(&metadata.depends);
            let mut all = all.filter(|dependency| {
                let mut relations = dependency.alternatives.iter();
                relations.any(|relation| self.universe.satisfies(unit, relation, from))
            });
            Some((from, all.next()?))
        });
        match dependency {
            Some((from, dependency)) => {
                format!("{} depends on {}", self.show(from), brief(dependency))
            }
            None => format!("{} is needed", self.show(unit)),
        }
    }

    fn unmet(&self, from: UnitId, dependency: &Dependency) -> String {
        let universe = self.universe;
        let show = |unit: UnitId, provides: String| match universe.bar(unit) {
            Some(bar) => format!("{}{provides} ({bar})", universe.show(unit)),
            None => format!("{}{provides}", universe.show(unit)),
        };
        let alternatives = &dependency.alternatives;
        // Of each alternative something, as long as that stays short.
        let each = (MOST_VERSIONS / alternatives.len().max(1)).max(1);
        let mut known: Vec<String> = Vec::new();
        for Relation { name, constraint, .. } in alternatives {
            let named = universe.named(name).map(|unit| show(unit, String::new()));
            let providers = universe.providers(name).iter().map(|(unit, version)| {
                let version = match (version, constraint) {
                    (Some(version), _) => format!(" {version}"),
                    (None, Some(_)) => " in no version".to_owned(),
                    (None, None) => String::new(),
                };
                show(*unit, format!(", which provides {name}{version}"))
            });
            known.extend(named.chain(providers).take(each));
        }
        if known.len() > MOST_VERSIONS {
            known.truncate(MOST_VERSIONS);
            known.push("…".to_owned());
        }
        let found = match known.as_slice() {
            [] => "no repository has it".to_owned(),
            _ => format!("there is only {}", known.join(", ")),
        };
        format!("{} depends on {}, and {found}", self.show(from), brief(dependency))
    }

    /// What a unit says against another.
    fn conflict(&self, from: UnitId, to: UnitId) -> String {
        let metadata = &self.universe.unit(from).metadata;
        let meant = |relation: &&_| self.universe.satisfies(to, relation, from);
        metadata
            .conflicts
            .iter()
            .find(meant)
            .map(|relation| format!("conflicts with {relation}"))
            .or_else(|| {
                metadata.breaks.iter().find(meant).map(|relation| format!("breaks {relation}"))
            })
            .unwrap_or_else(|| "conflicts with it".to_owned())
    }

    fn rivals(&self, units: &BTreeSet<UnitId>) -> String {
        format!("only one of these can be in: {}", self.either(units))
    }

    fn either(&self, units: &BTreeSet<UnitId>) -> String {
        let mut ways: Vec<_> =
            units.iter().take(MOST_VERSIONS).map(|unit| self.show(*unit)).collect();
        ways.sort();
        ways.join(" or ")
    }
}

/// A dependency with as many of its alternatives as people read.
fn brief(dependency: &Dependency) -> String {
    let alternatives = dependency.alternatives.iter().take(MOST_VERSIONS);
    let mut shown: Vec<_> = alternatives.map(ToString::to_string).collect();
    if dependency.alternatives.len() > MOST_VERSIONS {
        shown.push("…".to_owned());
    }
    shown.join(" | ")
}

/// What would help, each tried by resolving again: another version of one
/// blamed line, a hold that is dropped, a line that is removed.
fn advice(task: &Task<'_>, solving: &mut Solving<'_>, core: &[Blamed<'_>]) -> String {
    let universe = task.universe;
    for blamed in core.iter().rev() {
        let (demand, what) = match blamed {
            Blamed::Root(Root { demand, cause: Cause::Line { placed, own, .. } }) => {
                if demand.units.len() > 1 {
                    continue;
                }
                let place = match own {
                    true => format!("on line {}", placed.number),
                    false => format!("in {}:{}", placed.file, placed.number),
                };
                (Some(demand), (placed, place))
            }
            Blamed::Hold(hold) => (None, (&hold.placed, format!("on line {}", hold.placed.number))),
            Blamed::Root(_) => continue,
        };
        let (placed, place) = what;
        let others: Vec<UnitId> = universe
            .in_repository(&placed.line.repository, &placed.line.layer)
            .filter(|unit| !universe.barred(*unit) && Some(*unit) != placed.unit)
            .collect();
        if others.is_empty() {
            continue;
        }
        let replaced = Demand { units: others.clone() };
        let demands: Vec<&Demand> = task
            .roots
            .iter()
            .map(|root| &root.demand)
            .filter(|other| demand.is_none_or(|demand| !std::ptr::eq(*other, demand)))
            .chain([&replaced])
            .collect();
        let limits: Vec<_> = task
            .holds
            .iter()
            .filter(|hold| !std::ptr::eq(&hold.placed, placed))
            .map(|hold| hold.limit.clone())
            .collect();
        if let Some(found) = solving.attempt(&demands, &limits)
            && let Some(unit) = found.into_iter().find(|unit| others.contains(unit))
        {
            let version = universe.version_text(unit);
            return match blamed {
                Blamed::Hold(_) => format!("drop the hold {place}: {version} would do"),
                Blamed::Root(_) => format!("{place}, {} {version} would do", placed.line.layer),
            };
        }
    }
    if let Some(removal) = removal(task, solving, core) {
        return removal;
    }
    match core.iter().filter(|blamed| blamed.line().is_some()).count() {
        0 if core.iter().any(|blamed| blamed.is_base()) => {
            "change `base` in strata.toml, or the repositories".to_owned()
        }
        0 => "import what is lacking, or ask for another version".to_owned(),
        1 if core.len() > 1 => "remove that line".to_owned(),
        1 => "remove that line, or import what it lacks".to_owned(),
        _ => "remove one of these lines; others have faults as well".to_owned(),
    }
}

/// The lines of which each alone may go, tried by resolving without it.
fn removal(task: &Task<'_>, solving: &mut Solving<'_>, core: &[Blamed<'_>]) -> Option<String> {
    let lines: Vec<_> = core.iter().filter(|blamed| blamed.line().is_some()).collect();
    if lines.len() < 2 {
        return None;
    }
    let mut enough = Vec::new();
    for blamed in lines {
        let Blamed::Root(out) = blamed else { continue };
        let roots = task.roots.iter().filter(|root| !std::ptr::eq(*root, *out));
        let demands: Vec<_> = roots.map(|root| &root.demand).collect();
        let holds: Vec<_> = task.holds.iter().map(|hold| hold.limit.clone()).collect();
        if solving.attempt(&demands, &holds).is_some() {
            enough.extend(blamed.line());
        }
    }
    enough.sort_unstable();
    enough.dedup();
    match enough.as_slice() {
        [] => None,
        [only] => Some(format!("remove line {only}")),
        [rest @ .., last] => {
            let rest: Vec<_> = rest.iter().map(ToString::to_string).collect();
            Some(format!("remove line {} or {last}", rest.join(", ")))
        }
    }
}
