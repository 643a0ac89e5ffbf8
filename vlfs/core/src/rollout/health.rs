//! How well a VA and a ring do: what lets a rollout go on, and what stops it.

use serde::{Deserialize, Serialize};

use super::policy::Gate;
use crate::digest::GenerationId;
use crate::names::MacAddr;
use crate::status::{
    LONGEST_INTERVAL_S, ObservedVa, Reason, ReportView, STALE_INTERVALS, SyncState, VaStatus,
};

/// Unhealthy VAs that are named; the others are counted.
pub const NAMED: usize = 10;

/// How a VA does with the generation that its link names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VaHealth {
    /// Its file system serves it, and its checks pass.
    Healthy,
    /// It had its chance.
    Unhealthy(String),
    /// On its way: it swaps, or is being checked.
    Swapping,
    /// It does not run, or was silent long before: it tells nothing.
    Idle,
    /// It should tell and does not.
    Unknown,
}

/// What the health checks of a VA's template say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckOutcome {
    /// The template has none.
    None,
    UnderWay,
    Passed,
    Failed(String),
}

/// Judges a VA: its file system must serve what it should, then its checks count.
pub fn va_health(va: &ObservedVa, status: &VaStatus, check: &CheckOutcome) -> VaHealth {
    match (status.state, &status.reason) {
        (SyncState::InSync, Some(Reason::AsOfLastReport { .. })) => VaHealth::Idle,
        // Its layers' scripts failed (§5.1).
        (SyncState::InSync, _) if !status.conditions.is_empty() => {
            let messages = status.conditions.iter().map(|condition| condition.message.clone());
            VaHealth::Unhealthy(messages.collect::<Vec<_>>().join("; "))
        }
        (SyncState::InSync, _) => match check {
            CheckOutcome::None | CheckOutcome::Passed => VaHealth::Healthy,
            CheckOutcome::UnderWay => VaHealth::Swapping,
            CheckOutcome::Failed(why) => VaHealth::Unhealthy(why.clone()),
        },
        (SyncState::Pending, Some(Reason::SwapUnderWay | Reason::NotRolledOut)) => {
            VaHealth::Swapping
        }
        (SyncState::Pending, _) => VaHealth::Idle,
        (SyncState::Drifted | SyncState::Failed, why) => {
            let why = why.as_ref().map(ToString::to_string);
            VaHealth::Unhealthy(why.unwrap_or_else(|| status.state.to_string()))
        }
        (SyncState::Unknown, _) if was_silent_before(va) => VaHealth::Idle,
        (SyncState::Unknown, _) => VaHealth::Unknown,
    }
}

/// Whether a VA's last report was too old already when its ring moved: then its
/// silence says nothing about what it was moved to.
fn was_silent_before(va: &ObservedVa) -> bool {
    let (ReportView::Read { report, age_ms }, Some(ring_age_ms)) = (&va.report, va.ring_age_ms)
    else {
        return false;
    };
    let interval_s = report.interval_s.clamp(1, LONGEST_INTERVAL_S);
    *age_ms > ring_age_ms.saturating_add(STALE_INTERVALS * u64::from(interval_s) * 1000)
}

/// A VA of a ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub mac: MacAddr,
    /// The generation that its link names.
    pub desired: Option<GenerationId>,
    pub health: VaHealth,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnhealthyVa {
    pub mac: MacAddr,
    pub reason: String,
}

/// The VAs of a ring, counted with respect to one generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RingHealth {
    pub generation: GenerationId,
    pub healthy: u32,
    pub unhealthy: u32,
    /// Swapping or being checked.
    pub swapping: u32,
    pub unknown: u32,
    /// They do not run: they take the generation when they go on.
    pub idle: u32,
    /// They run, and their link does not name the generation yet.
    pub waiting: u32,
    pub first_unhealthy: Vec<UnhealthyVa>,
    /// Some of those that wait, for the next batch.
    #[serde(skip)]
    pub ready: Vec<MacAddr>,
}

impl RingHealth {
    /// Counts the members of a ring; `ready` takes up to `batch` of those that wait.
    pub fn of<'m>(
        generation: GenerationId,
        members: impl IntoIterator<Item = &'m Member>,
        batch: usize,
    ) -> Self {
        let mut health = RingHealth {
            generation,
            healthy: 0,
            unhealthy: 0,
            swapping: 0,
            unknown: 0,
            idle: 0,
            waiting: 0,
            first_unhealthy: Vec::new(),
            ready: Vec::new(),
        };
        for member in members {
            health.add(member, batch);
        }
        health
    }

    fn add(&mut self, member: &Member, batch: usize) {
        match &member.health {
            VaHealth::Idle => self.idle += 1,
            _ if member.desired != Some(self.generation) => {
                self.waiting += 1;
                if self.ready.len() < batch {
                    self.ready.push(member.mac);
                }
            }
            VaHealth::Healthy => self.healthy += 1,
            VaHealth::Swapping => self.swapping += 1,
            VaHealth::Unknown => self.unknown += 1,
            VaHealth::Unhealthy(reason) => {
                self.unhealthy += 1;
                if self.first_unhealthy.len() < NAMED {
                    let (mac, reason) = (member.mac, reason.clone());
                    self.first_unhealthy.push(UnhealthyVa { mac, reason });
                }
            }
        }
    }

    /// VAs that run and have the generation.
    pub fn active(&self) -> u32 {
        self.healthy + self.unhealthy + self.swapping + self.unknown
    }

    pub fn is_empty(&self) -> bool {
        self.active() + self.idle + self.waiting == 0
    }

    /// Whether enough VAs are healthy.
    pub(super) fn meets(&self, gate: &Gate) -> bool {
        let wanted = u64::from(self.active()) * u64::from(gate.success.0);
        self.waiting == 0 && u64::from(self.healthy) * 100 >= wanted
    }

    /// How many VAs are unhealthy, where those are too many. `overdue`: who has not
    /// arrived by now counts.
    pub(super) fn too_many(&self, gate: &Gate, overdue: bool) -> Option<u32> {
        let late = if overdue { self.swapping + self.unknown } else { 0 };
        let total = self.active() + self.waiting;
        let allowed = match gate.unhealthy {
            Some(share) => share.of(total),
            None => {
                let spare = u64::from(total) * u64::from(100 - gate.success.0) / 100;
                u32::try_from(spare).unwrap_or(u32::MAX)
            }
        };
        let bad = self.unhealthy + late;
        (bad > allowed).then_some(bad)
    }
}
