//! Whether the Pre-Depends of a set of units leave an order in which to run their scripts
//! (§5.2).

use std::collections::HashMap;

use crate::universe::{UnitId, Universe};

/// The circles of units that wait for each other: each member for the next one, the last for
/// the first. Of alternatives, one that can go first is enough. Members are indices.
pub(crate) fn cycles(universe: &Universe, units: &[UnitId]) -> Vec<Vec<usize>> {
    let mut waits = waits(universe, units);
    let mut placed = vec![false; units.len()];
    let mut moved = true;
    while moved {
        moved = false;
        for at in 0..waits.len() {
            waits[at].retain(|on| !on.iter().any(|on| placed[*on]));
            moved |= !placed[at] && waits[at].is_empty();
            placed[at] |= waits[at].is_empty();
        }
    }
    let mut seen = vec![false; units.len()];
    let mut cycles = Vec::new();
    for start in (0..waits.len()).filter(|at| !placed[*at]) {
        let mut path = Vec::new();
        let mut at = start;
        while !std::mem::replace(&mut seen[at], true) {
            path.push(at);
            at = waits[at][0][0];
        }
        if let Some(first) = path.iter().position(|member| *member == at) {
            cycles.push(path.split_off(first));
        }
    }
    cycles
}

/// For each unit, the alternatives of each Pre-Depends that other units here satisfy.
fn waits(universe: &Universe, units: &[UnitId]) -> Vec<Vec<Vec<usize>>> {
    let mut by_name: HashMap<&str, Vec<usize>> = HashMap::new();
    let metadata = |unit: UnitId| &universe.unit(unit).metadata;
    if units.iter().all(|unit| metadata(*unit).pre_depends.is_empty()) {
        return vec![Vec::new(); units.len()];
    }
    for (at, unit) in units.iter().enumerate() {
        let provided = metadata(*unit).provides.iter().map(|provided| provided.name.as_str());
        for name in provided.chain([metadata(*unit).layer.as_str()]) {
            by_name.entry(name).or_default().push(at);
        }
    }
    let satisfying = |relation: &crate::relation::Relation, from: UnitId| {
        let named = by_name.get(relation.name.as_str()).into_iter().flatten().copied();
        named.filter(|at| universe.satisfies(units[*at], relation, from)).collect::<Vec<_>>()
    };
    let of_unit = |(at, unit): (usize, &UnitId)| {
        let dependencies = metadata(*unit).pre_depends.iter();
        let waits = dependencies.map(|dependency| {
            let relations = dependency.alternatives.iter();
            relations.flat_map(|relation| satisfying(relation, *unit)).collect::<Vec<_>>()
        });
        waits.filter(|on| !on.is_empty() && !on.contains(&at)).collect::<Vec<_>>()
    };
    units.iter().enumerate().map(of_unit).collect()
}

/// `a → b → a`.
pub(crate) fn message(universe: &Universe, cycle: impl Iterator<Item = UnitId> + Clone) -> String {
    let shown: Vec<_> =
        cycle.clone().chain(cycle.take(1)).map(|unit| universe.show(unit)).collect();
    format!("the Pre-Depends form a cycle: {}", shown.join(" → "))
}
