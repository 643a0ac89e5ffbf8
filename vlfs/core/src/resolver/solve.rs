//! One resolution: hard demands, ordered wishes, and what is left after the sweep.

use std::collections::{BTreeSet, HashSet};

use resolvo::{ConditionalRequirement, Problem, Solver, VersionSetId};

use super::provider::{Provider, unit};
use crate::universe::{NameId, UnitId, Universe};

/// Something that must be in: one of these units. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Demand {
    pub units: Vec<UnitId>,
}

/// If the name is in at all, then as one of these units. As a hard limit it is
/// a hold, as a wish it may be given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Limit {
    pub name: NameId,
    pub units: Vec<UnitId>,
}

pub(super) struct Solving<'u> {
    pub(super) solver: Solver<Provider<'u>>,
    universe: &'u Universe,
}

impl<'u> Solving<'u> {
    /// `favoured` are tried before anything else; the names of `favoured` and
    /// `chosen` come first where a dependency has alternatives.
    pub(super) fn new(
        universe: &'u Universe,
        favoured: &[UnitId],
        chosen: impl IntoIterator<Item = UnitId>,
    ) -> Self {
        let favoured: HashSet<_> = favoured.iter().copied().collect();
        let names = favoured.iter().copied().chain(chosen).map(|unit| universe.name_of(unit));
        let names = names.collect();
        let solver = Solver::new(Provider::new(universe, favoured, names));
        Solving { solver, universe }
    }

    /// A set that meets the demands within the limits, if there is one.
    pub(super) fn attempt<'l>(
        &mut self,
        demands: &[&Demand],
        limits: impl IntoIterator<Item = &'l Limit>,
    ) -> Option<Vec<UnitId>> {
        self.solve(demands, limits).ok()
    }

    pub(super) fn solve<'l>(
        &mut self,
        demands: &[&Demand],
        limits: impl IntoIterator<Item = &'l Limit>,
    ) -> Result<Vec<UnitId>, resolvo::UnsolvableOrCancelled> {
        let provider = self.solver.provider();
        let requirements: Vec<_> = demands
            .iter()
            .filter_map(|demand| provider.requirement(&demand.units))
            .map(ConditionalRequirement::from)
            .collect();
        let constraints: Vec<VersionSetId> = limits
            .into_iter()
            .map(|limit| provider.version_set(limit.name, limit.units.clone()))
            .collect();
        let problem = Problem::new().requirements(requirements).constraints(constraints);
        let mut units: Vec<_> = self.solver.solve(problem)?.into_iter().map(unit).collect();
        units.sort_unstable();
        Ok(units)
    }

    /// The best set: it meets the demands within the hard limits, and of the
    /// wishes, an earlier level before a later one, as many as go together: no
    /// wish that was given up could be added.
    pub(super) fn best(
        &mut self,
        demands: &[&Demand],
        hard: &[Limit],
        levels: &[Vec<Limit>],
    ) -> Option<Vec<UnitId>> {
        if let Some(found) = self.attempt(demands, hard.iter().chain(levels.iter().flatten())) {
            return Some(found);
        }
        let mut accepted: Vec<&Limit> = hard.iter().collect();
        let mut found = self.attempt(demands, accepted.iter().copied())?;
        for level in levels {
            let all = accepted.iter().copied().chain(level);
            if let Some(better) = self.attempt(demands, all) {
                accepted.extend(level);
                found = better;
                continue;
            }
            let mut open: Vec<&Limit> = level.iter().collect();
            loop {
                let (met, unmet): (Vec<_>, Vec<_>) =
                    open.into_iter().partition(|wish| self.meets(&found, wish));
                accepted.extend(met);
                open = unmet;
                if open.is_empty() {
                    break;
                }
                let wish = open.remove(0);
                let trial = accepted.iter().copied().chain([wish]);
                if let Some(better) = self.attempt(demands, trial) {
                    accepted.push(wish);
                    found = better;
                }
            }
        }
        Some(found)
    }

    fn meets(&self, found: &[UnitId], wish: &Limit) -> bool {
        let mut of_name = found.iter().filter(|unit| self.universe.name_of(**unit) == wish.name);
        of_name.all(|unit| wish.units.contains(unit))
    }

    /// What of a solution is needed: the demanded units and, from them, one
    /// unit for each dependency. The solver itself may leave more than that.
    pub(super) fn sweep(&self, solution: &[UnitId], demands: &[&Demand]) -> BTreeSet<UnitId> {
        let present: HashSet<UnitId> = solution.iter().copied().collect();
        let mut needed = BTreeSet::new();
        let mut open: Vec<UnitId> = Vec::new();
        let mut choices: Vec<Vec<UnitId>> = demands
            .iter()
            .map(|demand| demand.units.iter().copied().filter(|u| present.contains(u)).collect())
            .collect();
        loop {
            // What is forced first, so that a choice sees all that is in anyway.
            choices.retain(|units| {
                if let [only] = units.as_slice() {
                    open.push(*only);
                }
                units.len() > 1
            });
            while let Some(unit) = open.pop() {
                if !needed.insert(unit) {
                    continue;
                }
                for mut units in self.solver.provider().needs(unit) {
                    units.retain(|unit| present.contains(unit));
                    match units.as_slice() {
                        [only] => open.push(*only),
                        _ => choices.push(units),
                    }
                }
            }
            choices.retain(|units| !units.iter().any(|unit| needed.contains(unit)));
            let Some(first) = choices.first().and_then(|units| units.first()) else {
                return needed;
            };
            open.push(*first);
        }
    }

    /// The graph of why there is no solution.
    pub(super) fn conflict(
        &mut self,
        demands: &[&Demand],
        limits: &[Limit],
    ) -> Option<resolvo::conflict::ConflictGraph> {
        match self.solve(demands, limits) {
            Err(resolvo::UnsolvableOrCancelled::Unsolvable(conflict)) => {
                Some(conflict.graph(&self.solver))
            }
            Ok(_) | Err(resolvo::UnsolvableOrCancelled::Cancelled(_)) => None,
        }
    }
}
