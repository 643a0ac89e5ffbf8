//! The universe as the solver `resolvo` wants to see it.
//!
//! A version set of ours is a list of units of one name, worked out here, so
//! that the solver knows nothing of versions, Provides or architectures. What
//! the solver demands and this module takes care of: a version set holds one
//! name only (a dependency on a virtual name is a union over its providers, a
//! conflict with one a set for each), and the order of alternatives is ours to
//! make: what is chosen already comes first, then the order of the metadata.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Display;

use resolvo::{
    Candidates, Condition, ConditionId, ConditionalRequirement, Dependencies, DependencyProvider,
    HintDependenciesAvailable, Interner, KnownDependencies, Requirement, SolvableId, SolverCache,
    StringId, VersionSetId, VersionSetUnionId,
};

use crate::universe::{NameId, UnitId, Universe};

fn solver_name(name: NameId) -> resolvo::NameId {
    resolvo::NameId::from_raw(name.0)
}

fn own_name(name: resolvo::NameId) -> NameId {
    NameId(name.into_raw())
}

pub(super) fn solvable(unit: UnitId) -> SolvableId {
    SolvableId::from_raw(unit.0)
}

pub(super) fn unit(solvable: SolvableId) -> UnitId {
    UnitId(solvable.into_raw())
}

/// What was made for the solver so far; it refers to sets and unions by number.
#[derive(Default)]
struct Interned {
    sets: Vec<(NameId, Vec<UnitId>)>,
    set_ids: HashMap<(NameId, Vec<UnitId>), VersionSetId>,
    unions: Vec<Vec<VersionSetId>>,
    union_ids: HashMap<Vec<VersionSetId>, VersionSetUnionId>,
}

pub(super) struct Provider<'u> {
    pub(super) universe: &'u Universe,
    /// Units to be tried first.
    favoured: HashSet<UnitId>,
    /// Their names.
    chosen: HashSet<NameId>,
    interned: RefCell<Interned>,
}

impl<'u> Provider<'u> {
    pub(super) fn new(
        universe: &'u Universe,
        favoured: HashSet<UnitId>,
        chosen: HashSet<NameId>,
    ) -> Self {
        Provider { universe, favoured, chosen, interned: RefCell::default() }
    }

    /// The set of exactly these units of one name.
    pub(super) fn version_set(&self, name: NameId, mut units: Vec<UnitId>) -> VersionSetId {
        units.sort_unstable();
        units.dedup();
        let interned = &mut *self.interned.borrow_mut();
        *interned.set_ids.entry((name, units)).or_insert_with_key(|key| {
            interned.sets.push(key.clone());
            VersionSetId((interned.sets.len() - 1) as u32)
        })
    }

    /// The requirement that one of these units is in, in this order of names.
    pub(super) fn requirement(&self, units: &[UnitId]) -> Option<Requirement> {
        let sets = self.by_name(units);
        self.union(sets)
    }

    fn by_name(&self, units: &[UnitId]) -> Vec<VersionSetId> {
        let mut groups: Vec<(NameId, Vec<UnitId>)> = Vec::new();
        for unit in units.iter().copied() {
            let name = self.universe.name_of(unit);
            match groups.iter_mut().find(|(found, _)| *found == name) {
                Some((_, group)) => group.push(unit),
                None => groups.push((name, vec![unit])),
            }
        }
        groups.into_iter().map(|(name, group)| self.version_set(name, group)).collect()
    }

    fn union(&self, sets: Vec<VersionSetId>) -> Option<Requirement> {
        match sets.as_slice() {
            [] => None,
            [single] => Some(Requirement::Single(*single)),
            _ => {
                let interned = &mut *self.interned.borrow_mut();
                let id = interned.union_ids.entry(sets).or_insert_with_key(|sets| {
                    interned.unions.push(sets.clone());
                    VersionSetUnionId((interned.unions.len() - 1) as u32)
                });
                Some(Requirement::Union(*id))
            }
        }
    }

    /// What a unit needs: for each dependency the units that satisfy it and may
    /// be chosen, the preferred first.
    pub(super) fn needs(&self, from: UnitId) -> impl Iterator<Item = Vec<UnitId>> {
        self.universe.needs(from).iter().map(|satisfiers| {
            let units = satisfiers.iter().copied().filter(|unit| !self.universe.barred(*unit));
            let (mut first, rest): (Vec<_>, Vec<_>) = units.partition(|unit| {
                let name = self.universe.name_of(*unit);
                self.favoured.contains(unit) || self.chosen.contains(&name)
            });
            first.extend(rest);
            first
        })
    }

    /// The sets that the conflicts of a unit leave of each name they concern.
    fn constraints(&self, from: UnitId) -> Vec<VersionSetId> {
        let excluded = self.universe.excluded(from);
        let names: BTreeSet<_> = excluded.iter().map(|unit| self.universe.name_of(*unit)).collect();
        let allowed = |name| {
            let left = |unit: &UnitId| excluded.binary_search(unit).is_err();
            self.version_set(name, self.candidates_of(name).filter(left).collect())
        };
        names.into_iter().map(allowed).collect()
    }

    /// The units of a name that may be chosen, best first.
    fn candidates_of(&self, name: NameId) -> impl Iterator<Item = UnitId> {
        let all = self.universe.candidates(name).iter().copied();
        all.filter(|unit| !self.universe.barred(*unit))
    }
}

impl Interner for Provider<'_> {
    type NameId = resolvo::NameId;
    type SolvableId = SolvableId;

    fn display_solvable(&self, solvable: SolvableId) -> impl Display + '_ {
        self.universe.show(unit(solvable))
    }

    fn display_name(&self, name: resolvo::NameId) -> impl Display + '_ {
        let first = self.universe.candidates(own_name(name)).first();
        first.map_or("", |unit| self.universe.unit(*unit).metadata.layer.as_str())
    }

    fn display_version_set(&self, set: VersionSetId) -> impl Display + '_ {
        let interned = self.interned.borrow();
        let version = |unit: &UnitId| self.universe.unit(*unit).metadata.version.to_string();
        let versions: Vec<_> = interned.sets[set.0 as usize].1.iter().map(version).collect();
        versions.join(", ")
    }

    fn display_string(&self, _: StringId) -> impl Display + '_ {
        "excluded"
    }

    fn version_set_name(&self, set: VersionSetId) -> resolvo::NameId {
        solver_name(self.interned.borrow().sets[set.0 as usize].0)
    }

    fn solvable_name(&self, solvable: SolvableId) -> resolvo::NameId {
        solver_name(self.universe.name_of(unit(solvable)))
    }

    fn version_sets_in_union(
        &self,
        union: VersionSetUnionId,
    ) -> impl Iterator<Item = VersionSetId> {
        self.interned.borrow().unions[union.0 as usize].clone().into_iter()
    }

    fn resolve_condition(&self, _: ConditionId) -> Condition {
        unreachable!("no conditional requirement is ever made here")
    }
}

impl DependencyProvider for Provider<'_> {
    async fn filter_candidates(
        &self,
        candidates: &[SolvableId],
        set: VersionSetId,
        inverse: bool,
    ) -> Vec<SolvableId> {
        let interned = self.interned.borrow();
        let members = &interned.sets[set.0 as usize].1;
        let is_member = |s: &&SolvableId| members.binary_search(&unit(**s)).is_ok() != inverse;
        candidates.iter().filter(is_member).copied().collect()
    }

    async fn get_candidates(&self, name: resolvo::NameId) -> Option<Candidates<SolvableId>> {
        Some(Candidates {
            candidates: self.candidates_of(own_name(name)).map(solvable).collect(),
            // `All` makes the solver look at three times as much and changes its answer.
            hint_dependencies_available: HintDependenciesAvailable::None,
            ..Candidates::default()
        })
    }

    async fn sort_candidates(&self, _: &SolverCache<Self>, solvables: &mut [SolvableId]) {
        let Some(first) = solvables.first() else { return };
        let name = self.universe.name_of(unit(*first));
        let order = self.universe.candidates(name);
        solvables.sort_by_key(|solvable| {
            let unit = unit(*solvable);
            let rank = order.iter().position(|found| *found == unit);
            (!self.favoured.contains(&unit), rank)
        });
    }

    async fn get_dependencies(&self, solvable: SolvableId) -> Dependencies {
        let from = unit(solvable);
        let mut known = KnownDependencies::default();
        for units in self.needs(from) {
            let nothing =
                || Requirement::Single(self.version_set(self.universe.name_of(from), vec![]));
            let requirement = self.requirement(&units).unwrap_or_else(nothing);
            known.requirements.push(ConditionalRequirement::from(requirement));
        }
        known.constrains = self.constraints(from);
        Dependencies::Known(known)
    }
}
