//! What an upgrade leaves behind, and why.

use std::collections::BTreeSet;

use serde::Serialize;

use super::solve::Demand;
use super::{Cause, Root, Task, Upgrade};
use crate::names::LayerName;
use crate::universe::UnitId;

/// Layers whose reason one upgrade works out at most: each is a resolution of its own.
const MOST_EXPLAINED: usize = 32;

/// A layer that stays behind its best version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct KeptBack {
    pub layer: LayerName,
    /// `repository/layer version` that it has now.
    pub at: String,
    /// The unit that is better.
    pub best: String,
    /// One sentence.
    pub reason: String,
}

impl Task<'_> {
    /// Every layer that `upgrade` was to bring to its best version and did not.
    pub(super) fn kept_back(&self, units: &BTreeSet<UnitId>, upgrade: &Upgrade) -> Vec<KeptBack> {
        let universe = self.universe;
        let mut kept: Vec<_> = self.held_back(units, upgrade);
        let mut explained = 0;
        for before in &self.upgraded {
            let name = universe.name_of(*before);
            let now = units.iter().copied().find(|unit| universe.name_of(*unit) == name);
            let (Some(now), Some(best)) = (now, self.best(*before)) else { continue };
            if now == best {
                continue;
            }
            explained += 1;
            let reason = match explained {
                _ if universe.compare_versions(best, now).is_lt() => {
                    "it is older, and nothing is downgraded; write its version to have it"
                        .to_owned()
                }
                ..=MOST_EXPLAINED => self.against(best),
                _ => format!(
                    "ask with --why-not '{} {}'",
                    universe.layer(best),
                    universe.version(best)
                ),
            };
            let (at, best) = (universe.show(now), universe.show(best));
            kept.push(KeptBack { layer: universe.layer(now), at, best, reason });
        }
        kept.sort();
        kept
    }

    /// What stands against a unit, given everything else that is asked for.
    fn against(&self, unit: UnitId) -> String {
        match self.asking_for(unit).run() {
            Err(fault) => fault.message,
            // Each could be had, but not all of them.
            Ok(_) => "it does not go together with what was upgraded before it".to_owned(),
        }
    }

    /// The same resolution with one more demand.
    pub(super) fn asking_for(&self, unit: UnitId) -> Self {
        let mut task = self.clone();
        // The line itself is what is to be upgraded.
        task.roots.retain(|root| {
            !(root.demand.units.len() > 1
                && root.demand.units.contains(&unit)
                && matches!(root.cause, Cause::Line { own: true, .. }))
        });
        let demand = Demand { units: vec![unit] };
        task.roots.push(Root { demand, cause: Cause::Asked });
        task
    }

    /// Held layers of which there is a better unit.
    fn held_back(&self, units: &BTreeSet<UnitId>, upgrade: &Upgrade) -> Vec<KeptBack> {
        let universe = self.universe;
        let ldf = &self.definition.ldf;
        let held = ldf.explicit().chain(ldf.implicit()).filter(|(_, line)| line.hold);
        let named = held.filter(|(_, line)| match upgrade {
            Upgrade::Nothing => false,
            Upgrade::Layers(names) => names.contains(&line.layer),
            Upgrade::Everything => true,
        });
        named
            .filter_map(|(number, line)| {
                let of_layer = |unit: &&UnitId| universe.layer_text(**unit) == line.layer.as_str();
                let now = *units.iter().find(of_layer)?;
                let mut all = universe.in_repository(&line.repository, &line.layer);
                let best = all.find(|unit| !universe.barred(*unit))?;
                (best != now).then(|| KeptBack {
                    layer: line.layer.clone(),
                    at: universe.show(now),
                    best: universe.show(best),
                    reason: format!("line {number} holds it"),
                })
            })
            .collect()
    }
}
