//! Why a layer is in a composition: the shortest chain from a line that asks
//! for it.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

use crate::composition::{FlatLayer, flatten_all};
use crate::consistency::{Rules, Set, always_in};
use crate::desired::{Definition, DesiredState};
use crate::names::{CompositionName, LayerName};
use crate::universe::Universe;

/// The way to a layer in one composition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Chain {
    pub composition: CompositionName,
    /// What asks for the first unit of the chain.
    pub from: Origin,
    pub steps: Vec<Step>,
}

/// What a chain starts at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Origin {
    /// An explicit line, its own or of a reference.
    Line { file: String, line: u32 },
    /// `base` in `strata.toml`.
    Base { line: u32 },
    /// The unit is essential.
    Essential,
    /// Nothing leads to it: an implicit layer that nothing needs.
    Nothing { file: String, line: u32 },
}

/// One unit of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// `repository/layer version`
    pub unit: String,
    /// How the unit before it needs it, as in `depends on ssl (>= 2)`; of the first unit `None`.
    pub needed_by: Option<String>,
}

/// The shortest chain to a layer in each composition that has it.
pub fn why(desired: &DesiredState, universe: &Universe, layer: &LayerName) -> Vec<Chain> {
    let rules = Rules::new(&desired.configuration, universe);
    let flats = flatten_all(&desired.definitions, &desired.configuration, universe);
    let chain = |(name, flat)| {
        let set = Set::new(flat, universe);
        chain(&desired.definitions[name], &set, &rules, layer)
    };
    flats.iter().filter_map(chain).collect()
}

fn chain(
    definition: &Definition,
    set: &Set<'_>,
    rules: &Rules<'_>,
    layer: &LayerName,
) -> Option<Chain> {
    let universe = rules.universe;
    let target = set.units.iter().position(|(id, _)| universe.layer_text(*id) == layer.as_str())?;
    let essential = always_in(definition, rules);
    // What people wrote comes first, then what is always in.
    let origins: [FindOrigin<'_>; 3] = [
        &|layer| {
            let (file, line) = (layer.placed.file.to_string(), layer.placed.number);
            (!layer.placed.implicit).then_some(Origin::Line { file, line })
        },
        &|layer| {
            let line = &layer.placed.line;
            let base = rules.configuration.base.iter().find(|base| {
                base.value.repository == line.repository && base.value.layer == line.layer
            });
            base.map(|base| Origin::Base { line: base.line })
        },
        &|layer| essential.contains(&&layer.placed.line.layer).then_some(Origin::Essential),
    ];
    let found = origins.iter().find_map(|origin| {
        let starts = set.units.iter().enumerate();
        let starts = starts.filter_map(|(at, (_, layer))| Some((at, origin(layer)?)));
        shortest(set, universe, &starts.collect(), target)
    });
    let (from, steps) = found.unwrap_or_else(|| {
        let (id, layer) = set.units[target];
        let (file, line) = (layer.placed.file.to_string(), layer.placed.number);
        let step = Step { unit: universe.show(id), needed_by: None };
        (Origin::Nothing { file, line }, vec![step])
    });
    Some(Chain { composition: definition.name.clone(), from, steps })
}

type FindOrigin<'a> = &'a dyn Fn(&FlatLayer) -> Option<Origin>;

/// Breadth first from all starts at once.
fn shortest(
    set: &Set<'_>,
    universe: &Universe,
    starts: &BTreeMap<usize, Origin>,
    target: usize,
) -> Option<(Origin, Vec<Step>)> {
    let mut before: BTreeMap<usize, Option<(usize, String)>> =
        starts.keys().map(|at| (*at, None)).collect();
    let mut open: VecDeque<usize> = starts.keys().copied().collect();
    while let Some(at) = open.pop_front() {
        if at == target {
            break;
        }
        let id = set.units[at].0;
        let metadata = &universe.unit(id).metadata;
        let pre = metadata.pre_depends.iter().map(|dependency| (dependency, "pre-depends on"));
        let plain = metadata.depends.iter().map(|dependency| (dependency, "depends on"));
        for (dependency, verb) in pre.chain(plain) {
            let relations = dependency.alternatives.iter();
            for next in relations.flat_map(|relation| set.satisfying(relation, id)) {
                before.entry(next).or_insert_with(|| {
                    open.push_back(next);
                    Some((at, format!("{verb} {dependency}")))
                });
            }
        }
    }
    let mut steps = Vec::new();
    let mut at = target;
    loop {
        let unit = universe.show(set.units[at].0);
        match before.get(&at)? {
            Some((from, needed_by)) => {
                steps.push(Step { unit, needed_by: Some(needed_by.clone()) });
                at = *from;
            }
            None => {
                steps.push(Step { unit, needed_by: None });
                steps.reverse();
                return Some((starts[&at].clone(), steps));
            }
        }
    }
}
