//! What git no longer has: links of VAs that were declared, links of rings of templates
//! that are gone.
//!
//! Only what is there is removed, and only what a commit once declared: VAs that people
//! provisioned themselves are never touched. Private layers and records stay.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, GenerationId};
use crate::links::VaTarget;
use crate::names::{CompositionName, MacAddr, RingName, VaName};
use crate::plan::Desired;

/// One thing to remove.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "remove", rename_all = "kebab-case")]
pub enum Removal {
    Va { name: VaName, mac: MacAddr },
    Ring { composition: CompositionName, ring: RingName },
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Removal::Va { name, mac } => write!(f, "the link of {name} ({mac})"),
            Removal::Ring { composition, ring } => write!(f, "the ring {ring} of {composition}"),
        }
    }
}

/// What stands in a store.
#[derive(Debug, Clone, Copy)]
pub struct Standing<'a> {
    pub rings: &'a BTreeMap<(CompositionName, RingName), GenerationId>,
    pub links: &'a BTreeMap<MacAddr, VaTarget>,
    /// VAs that run or are suspended: they stay until they are stopped.
    pub busy: &'a BTreeSet<MacAddr>,
}

/// What is to be removed, in order. `former`: VAs that a commit declared.
pub fn removals(
    former: &BTreeMap<MacAddr, VaName>,
    desired: &Desired,
    standing: &Standing<'_>,
) -> Vec<Removal> {
    let mut gone = BTreeSet::new();
    let mut removals = Vec::new();
    for (mac, name) in former {
        let linked = matches!(standing.links.get(mac), Some(VaTarget::Ring { .. }));
        let wanted = desired.appliances.contains_key(mac);
        if linked && !wanted && !standing.busy.contains(mac) {
            gone.insert(*mac);
            removals.push(Removal::Va { name: name.clone(), mac: *mac });
        }
    }
    let left = standing.links.iter().filter(|(mac, _)| !gone.contains(mac));
    let used: BTreeSet<_> = left.map(|(_, target)| target.composition()).collect();
    for (composition, ring) in standing.rings.keys() {
        if !desired.compositions.contains_key(composition) && !used.contains(composition) {
            let (composition, ring) = (composition.clone(), ring.clone());
            removals.push(Removal::Ring { composition, ring });
        }
    }
    removals
}

/// Names a list of removals, so that exactly these are confirmed.
pub fn token(removals: &[Removal]) -> String {
    let lines: Vec<_> = removals.iter().map(ToString::to_string).collect();
    Digest::of(lines.join("\n").as_bytes()).short()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::DeclaredVa;
    use crate::rollout::tests::{id, name};

    fn target(composition: &str) -> VaTarget {
        VaTarget::Ring { composition: name(composition), ring: name("all") }
    }

    #[test]
    fn only_what_was_declared_rests_and_is_used_by_nobody() {
        let mac = |n: u8| MacAddr::locally_administered([2, 0, 0, 0, 0, n]);
        let former = (1..=5).map(|n| (mac(n), name(&format!("va-{n}")))).collect();
        let mut desired = Desired::default();
        desired.compositions.insert(name("web"), id("web"));
        let kept = DeclaredVa { name: name("va-1"), composition: name("web"), ring: name("all") };
        desired.appliances.insert(mac(1), kept);
        let pinned = VaTarget::Pinned { composition: name("web"), generation: id("one") };
        let links = BTreeMap::from([
            (mac(1), target("web")),
            (mac(2), target("web")),
            (mac(3), target("sql")),
            (mac(4), pinned),
            (mac(6), target("dns")),
        ]);
        let rings: BTreeMap<_, _> = ["web", "sql", "dns", "old"]
            .map(|composition| ((name(composition), name("all")), id(composition)))
            .into();
        let busy = BTreeSet::from([mac(3)]);
        let standing = Standing { rings: &rings, links: &links, busy: &busy };
        let found = removals(&former, &desired, &standing);
        let shown: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["the link of va-2 (02:00:00:00:00:02)", "the ring all of old"]);
        let busy = BTreeSet::new();
        let more = removals(&former, &desired, &Standing { busy: &busy, ..standing });
        assert_eq!(more.len(), 4, "a stopped VA goes, and then its template's ring: {more:?}");
        assert_ne!(token(&found), token(&more));
    }
}
