//! Health checks that come or go.
//!
//! They are no part of a generation, and yet a command among them runs in every VA.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::desired::DesiredState;
use crate::health_checks::{HealthCheck, Probe};
use crate::inventory::VaGroup;
use crate::names::CompositionName;

/// What becomes of a check; one that is edited goes, and comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckChange {
    Added,
    Removed,
}

/// A health check that a composition gets or loses, its references' included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HealthChange {
    pub composition: CompositionName,
    pub change: CheckChange,
    /// The words of a command that runs in the VA.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<String>,
    pub deadline_ms: u64,
    pub retries: u32,
    /// VAs that are asked so, or no longer.
    pub vas: u64,
}

impl HealthChange {
    /// Whether VAs will run something that they did not run before.
    pub fn runs_in_vas(&self) -> bool {
        self.change == CheckChange::Added && self.command.is_some()
    }
}

/// By composition, those that go first.
pub(super) fn changes(
    base: &DesiredState,
    head: &DesiredState,
    vas: &[VaGroup],
) -> Vec<HealthChange> {
    let (before, after) = (base.health_checks(), head.health_checks());
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let mut changes = Vec::new();
    for name in names {
        // What the head does not define has no checks that anybody would run.
        if !head.definitions.contains_key(name) {
            continue;
        }
        let old = before.get(name).map_or(&[][..], Vec::as_slice);
        let new = after.get(name).map_or(&[][..], Vec::as_slice);
        let mine = vas.iter().filter(|group| group.composition == *name);
        let count = mine.map(|group| group.count).sum();
        let of = |change, check: &HealthCheck| entry(name, change, check, count);
        let gone = old.iter().filter(|check| !new.contains(check));
        changes.extend(gone.map(|check| of(CheckChange::Removed, check)));
        let come = new.iter().filter(|check| !old.contains(check));
        changes.extend(come.map(|check| of(CheckChange::Added, check)));
    }
    changes
}

fn entry(
    name: &CompositionName,
    change: CheckChange,
    check: &HealthCheck,
    vas: u64,
) -> HealthChange {
    let (mut command, mut http, mut tcp) = (None, None, None);
    match &check.probe {
        Probe::Command(words) => command = Some(words.clone()),
        Probe::Http(url) => http = Some(url.clone()),
        Probe::Tcp(address) => tcp = Some(address.clone()),
    }
    let HealthCheck { deadline_ms, retries, .. } = *check;
    let composition = name.clone();
    HealthChange { composition, change, command, http, tcp, deadline_ms, retries, vas }
}
