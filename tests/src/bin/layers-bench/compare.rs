//! Two layer sets for one goal, ours and apt's: where they differ, and why.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use strata_core::universe::{UnitId, Universe};

/// Why a unit is in one set and not in the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// A dependency that both sets have is met by another alternative or provider.
    OtherAlternative,
    /// Only units that differ themselves need it.
    Follows,
    /// Nothing in its set needs it.
    NotNeeded,
    /// Both have the layer, at different versions.
    OtherVersion,
    Unexplained,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::OtherAlternative => "another alternative of a dependency that both have",
            Reason::Follows => "needed only by what differs itself",
            Reason::NotNeeded => "needed by nothing in its own set",
            Reason::OtherVersion => "another version of the layer",
            Reason::Unexplained => "UNEXPLAINED",
        }
    }
}

#[derive(Debug, Clone)]
pub struct Difference {
    pub unit: String,
    pub only_in: &'static str,
    pub reason: Reason,
    /// The dependency where that is the reason.
    pub at: String,
}

impl Difference {
    pub fn json(&self) -> Value {
        json!({ "unit": self.unit, "only_in": self.only_in, "reason": self.reason.as_str(), "at": self.at })
    }
}

/// All differences between two sets.
pub fn differences(
    universe: &Universe,
    ours: &BTreeSet<UnitId>,
    apts: &BTreeSet<UnitId>,
) -> Vec<Difference> {
    let mut found = one_way(universe, ours, apts, "Strata");
    found.extend(one_way(universe, apts, ours, "apt"));
    found
}

fn one_way(
    universe: &Universe,
    set: &BTreeSet<UnitId>,
    other: &BTreeSet<UnitId>,
    only_in: &'static str,
) -> Vec<Difference> {
    let name = |unit: UnitId| &universe.unit(unit).metadata.layer;
    let others: BTreeMap<_, _> = other.iter().map(|unit| (name(*unit), *unit)).collect();
    let explain = |unit: UnitId| -> (Reason, String) {
        if let Some(there) = others.get(name(unit)) {
            return (Reason::OtherVersion, universe.show(*there));
        }
        let mut reason = Reason::NotNeeded;
        for from in set.iter().copied() {
            let metadata = &universe.unit(from).metadata;
            for dependency in metadata.pre_depends.iter().chain(&metadata.depends) {
                let met_by = |by: UnitId| {
                    dependency.alternatives.iter().any(|r| universe.satisfies(by, r, from))
                };
                if from == unit || !met_by(unit) {
                    continue;
                }
                if !other.contains(&from) {
                    reason = Reason::Follows;
                } else if other.iter().any(|by| met_by(*by)) {
                    let at = format!("{}: {dependency}", universe.show(from));
                    return (Reason::OtherAlternative, at);
                } else {
                    return (Reason::Unexplained, format!("{}: {dependency}", universe.show(from)));
                }
            }
        }
        (reason, String::new())
    };
    let only = set.difference(other).copied();
    only.map(|unit| {
        let (reason, at) = explain(unit);
        Difference { unit: universe.show(unit), only_in, reason, at }
    })
    .collect()
}
