//! Units whose Pre-Depends wait for each other are not chosen together: nothing could run
//! their scripts, and the check refuses them.
//!
//! The solver does not know of orders. Where what it chose has a cycle, it chooses again
//! without one of the cycle's members, fewer exclusions before more.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::solve::Limit;
use super::{Cause, Task};
use crate::diagnostic::Diagnostic;
use crate::pre_depends;
use crate::universe::{NameId, UnitId};

/// Choices that are tried at most.
const MOST_ATTEMPTS: usize = 64;

impl Task<'_> {
    /// What was chosen, or another choice that has an order.
    ///
    /// # Errors
    /// Every choice that was tried has a cycle.
    pub(super) fn ordered(&self, units: BTreeSet<UnitId>) -> Result<BTreeSet<UnitId>, Diagnostic> {
        let Some(first) = self.cycle(&units) else { return Ok(units) };
        let mut open = VecDeque::from([(BTreeSet::new(), first.clone())]);
        let mut attempts = 0;
        while let Some((excluded, cycle)) = open.pop_front() {
            let mut members = cycle;
            // What stays as it is goes last.
            members.sort_by_key(|unit| self.present.contains(unit));
            for member in members {
                attempts += 1;
                if attempts > MOST_ATTEMPTS {
                    return Err(self.no_order(&first));
                }
                let mut excluded: BTreeSet<UnitId> = excluded.clone();
                excluded.insert(member);
                let Some(units) = self.within(&self.others(&excluded)) else { continue };
                match self.cycle(&units) {
                    None => return Ok(units),
                    Some(cycle) => open.push_back((excluded, cycle)),
                }
            }
        }
        Err(self.no_order(&first))
    }

    fn cycle(&self, units: &BTreeSet<UnitId>) -> Option<Vec<UnitId>> {
        let units: Vec<_> = units.iter().copied().collect();
        let cycle = pre_depends::cycles(self.universe, &units).into_iter().next()?;
        Some(cycle.into_iter().map(|at| units[at]).collect())
    }

    /// Each name of these units, as any unit but these.
    fn others(&self, excluded: &BTreeSet<UnitId>) -> Vec<Limit> {
        let mut limits: BTreeMap<NameId, Limit> = BTreeMap::new();
        for unit in excluded {
            let name = self.universe.name_of(*unit);
            let others = self.universe.candidates(name).iter().copied();
            let units = others.filter(|other| !excluded.contains(other)).collect();
            limits.insert(name, Limit { name, units });
        }
        limits.into_values().collect()
    }

    fn no_order(&self, cycle: &[UnitId]) -> Diagnostic {
        let message = pre_depends::message(self.universe, cycle.iter().copied());
        let lines = self.roots.iter().filter_map(|root| match &root.cause {
            Cause::Line { via, .. } => {
                root.demand.units.iter().any(|unit| cycle.contains(unit)).then_some(*via)
            }
            Cause::Base { .. } | Cause::Essential | Cause::Asked => None,
        });
        let line = lines.max().unwrap_or(0);
        let fault = Diagnostic::error(&self.definition.file, line, "pre-depends-cycle", message);
        fault.hint("no order runs their scripts: import another version of one of them")
    }
}
