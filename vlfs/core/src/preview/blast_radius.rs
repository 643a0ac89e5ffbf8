//! How much of the fleet a commit touches, beside what it may touch.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::appliances::ApplianceChange;
use super::health::HealthChange;
use super::{CompositionPreview, Existence};
use crate::desired::DesiredState;
use crate::inventory::VaGroup;
use crate::names::CompositionName;

/// VAs that are touched: those that follow a composition that changes or that gets a
/// health check with a command, and those that move to another composition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BlastRadius {
    pub touched_vas: u64,
    /// Those of them that are touched by nothing but a move.
    pub moved_vas: u64,
    pub fleet_vas: u64,
    /// The limits of the base's `strata.toml`, or the head's where that is tighter: no
    /// commit widens its own. `None` where neither sets one.
    pub most_vas: Option<u64>,
    pub most_percent: Option<u32>,
    pub within_limits: bool,
}

impl BlastRadius {
    /// Of the whole fleet, in whole percent, rounded up; 0 of an empty fleet.
    pub fn percent(&self) -> u64 {
        let touched = u128::from(self.touched_vas) * 100;
        u64::try_from(touched.div_ceil(u128::from(self.fleet_vas.max(1)))).unwrap_or(u64::MAX)
    }
}

pub(super) fn of(
    base: &DesiredState,
    head: &DesiredState,
    compositions: &[CompositionPreview],
    appliances: &[ApplianceChange],
    health: &[HealthChange],
    vas: &[VaGroup],
) -> BlastRadius {
    let changed = compositions.iter().filter(|one| one.change != Existence::Removed);
    let mut touched: BTreeSet<_> = changed.map(|one| &one.composition).collect();
    let commands = health.iter().filter(|change| change.runs_in_vas());
    touched.extend(commands.map(|change| &change.composition));
    // Pinned VAs stay; how many VAs follow each composition.
    let mut following: BTreeMap<&CompositionName, u64> = BTreeMap::new();
    for group in vas.iter().filter(|group| group.pinned.is_none()) {
        *following.entry(&group.composition).or_default() += group.count;
    }
    let mut moved: BTreeMap<&CompositionName, u64> = BTreeMap::new();
    for change in appliances {
        if let ApplianceChange::Moved { from, to, .. } = change
            && from.composition != to.composition
        {
            *moved.entry(&from.composition).or_default() += 1;
        }
    }
    let (mut touched_vas, mut moved_vas) = (0, 0);
    for (composition, count) in following {
        if touched.contains(composition) {
            touched_vas += count;
        } else {
            // A VA that is declared and has no link yet is not moved.
            moved_vas += moved.get(composition).copied().unwrap_or(0).min(count);
        }
    }
    touched_vas += moved_vas;
    let (base, head) = (&base.configuration, &head.configuration);
    let mut radius = BlastRadius {
        touched_vas,
        moved_vas,
        fleet_vas: vas.iter().map(|group| group.count).sum(),
        most_vas: tighter(base.most_touched_vas, head.most_touched_vas).map(u64::from),
        most_percent: tighter(base.most_touched_percent, head.most_touched_percent),
        within_limits: true,
    };
    radius.within_limits = radius.most_vas.is_none_or(|most| radius.touched_vas <= most)
        && radius.most_percent.is_none_or(|most| radius.percent() <= u64::from(most));
    radius
}

fn tighter(base: Option<u32>, head: Option<u32>) -> Option<u32> {
    base.into_iter().chain(head).min()
}
