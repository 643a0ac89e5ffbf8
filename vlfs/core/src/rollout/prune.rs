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
use crate::report::ServingState;
use crate::status::{ReportView, RunState, is_fresh};

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
    /// VAs that may run on some host, see [`may_run`]: they stay until they are stopped.
    pub busy: &'a BTreeSet<MacAddr>,
}

/// Whether a VA may run, or be suspended, on any host. `machine`: what its machine does on
/// the host `host`, where it has one. Only that host's machines can be asked; of all others
/// the VA's last report speaks, and that a VA is silent does not say that it is stopped.
pub fn may_run(machine: Option<RunState>, report: &ReportView, host: &str) -> bool {
    if machine.is_some_and(|state| state != RunState::Stopped) {
        return true;
    }
    match report {
        ReportView::Missing => false,
        ReportView::Unreadable(_) => true,
        ReportView::Read { report, age_ms } => match report.state {
            ServingState::Stopped => false,
            ServingState::Serving | ServingState::Failed => {
                // It ended here without a word.
                let ended = machine.is_some() && report.host == host;
                !ended || is_fresh(report, *age_ms)
            }
        },
    }
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
    fn a_va_may_run_unless_all_that_is_known_says_that_it_does_not() {
        let golden = include_bytes!("../../golden/report");
        let golden: crate::report::Report = serde_json::from_slice(golden).expect("a report");
        let report = |state, host: &str, age_ms| {
            let report = crate::report::Report { state, host: host.to_owned(), ..golden.clone() };
            ReportView::Read { report: Box::new(report), age_ms }
        };
        let (serving, failed) = (ServingState::Serving, ServingState::Failed);
        let (stopped, old) = (Some(RunState::Stopped), u64::MAX);
        for (machine, view, expected) in [
            (None, ReportView::Missing, false),
            (stopped, ReportView::Missing, false),
            (Some(RunState::Running), ReportView::Missing, true),
            (Some(RunState::Suspended), report(ServingState::Stopped, "here", 0), true),
            (None, ReportView::Unreadable(String::new()), true),
            (None, report(ServingState::Stopped, "there", 0), false),
            (None, report(serving, "here", old), true),
            (None, report(failed, "there", old), true),
            (stopped, report(serving, "there", 0), true),
            (stopped, report(serving, "there", old), true),
            (stopped, report(serving, "here", 0), true),
            (stopped, report(serving, "here", old), false),
        ] {
            assert_eq!(may_run(machine, &view, "here"), expected, "{machine:?} {view:?}");
        }
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
