//! How well a VA and a ring do: what lets a rollout go on, and what stops it.

use serde::{Deserialize, Serialize};

use super::policy::Gate;
use crate::digest::GenerationId;
use crate::names::MacAddr;
use crate::scripts::outcome::ScriptsState;
use crate::status::{
    LONGEST_INTERVAL_S, ObservedVa, Reason, ReportView, STALE_INTERVALS, SWAP_GRACE_MS, SyncState,
    VaStatus,
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
    /// Its checks wait for those of other VAs: that is no time of its own.
    Queued,
    /// It does not run, or was silent long before: it tells nothing.
    Idle,
    /// It should tell and does not, or what it tells cannot be read, for this reason.
    Unknown(Option<String>),
}

/// What the health checks of a VA's template say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckOutcome {
    /// The template has none.
    None,
    /// Those of other VAs come first.
    Queued,
    UnderWay,
    Passed,
    Failed(String),
}

/// Judges a VA: its file system must serve what it should, then its checks count.
/// `expected_ms`: for how long it has been expected to be healthy (see [`Member`]).
pub fn va_health(
    va: &ObservedVa,
    status: &VaStatus,
    check: &CheckOutcome,
    expected_ms: u64,
) -> VaHealth {
    let had_time = expected_ms > SWAP_GRACE_MS;
    match (status.state, &status.reason) {
        (SyncState::InSync, Some(Reason::AsOfLastReport { .. })) => VaHealth::Idle,
        // Its layers' scripts failed (§5.1).
        (SyncState::InSync, _) if !status.conditions.is_empty() => {
            let messages = status.conditions.iter().map(|condition| condition.message.clone());
            VaHealth::Unhealthy(messages.collect::<Vec<_>>().join("; "))
        }
        (SyncState::InSync, _) if runs_scripts(va) => VaHealth::Swapping,
        (SyncState::InSync, _) => match check {
            CheckOutcome::None | CheckOutcome::Passed => VaHealth::Healthy,
            CheckOutcome::Queued => VaHealth::Queued,
            CheckOutcome::UnderWay => VaHealth::Swapping,
            CheckOutcome::Failed(why) => VaHealth::Unhealthy(why.clone()),
        },
        (SyncState::Pending, Some(Reason::SwapUnderWay | Reason::NotRolledOut)) => {
            VaHealth::Swapping
        }
        (SyncState::Pending, _) => VaHealth::Idle,
        // It has just come back, or lost its ring's generation.
        (SyncState::Drifted, _) if !had_time => VaHealth::Swapping,
        (SyncState::Failed, _) if !had_time && !tried(va) => VaHealth::Swapping,
        (SyncState::Drifted | SyncState::Failed, why) => {
            let why = why.as_ref().map(ToString::to_string);
            VaHealth::Unhealthy(why.unwrap_or_else(|| status.state.to_string()))
        }
        (SyncState::Unknown, _) if was_silent_before(va) => VaHealth::Idle,
        (SyncState::Unknown, Some(why @ Reason::UnreadableReport { .. })) => {
            VaHealth::Unknown(Some(why.to_string()))
        }
        (SyncState::Unknown, _) => VaHealth::Unknown(None),
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

fn runs_scripts(va: &ObservedVa) -> bool {
    let ReportView::Read { report, .. } = &va.report else { return false };
    report.scripts.as_ref().is_some_and(|scripts| scripts.state == ScriptsState::Running)
}

/// Whether a VA's report speaks of the generation that it should serve now.
fn tried(va: &ObservedVa) -> bool {
    matches!(&va.report, ReportView::Read { report, .. } if report.desired == va.desired)
}

/// A VA of a ring, and since when it owes to be healthy.
///
/// **Invariant:** this is the only clock of a gate's `deadline`. It belongs to one VA and
/// starts when its link names another generation, when it was healthy and no longer is,
/// and when it goes on after a rest. Whoever looks at a VA for the first time says when
/// it started: a process that has just begun to look, then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub mac: MacAddr,
    /// The generation that its link names.
    pub desired: Option<GenerationId>,
    pub health: VaHealth,
    /// Since when it is expected to be healthy; of one that is, of no meaning.
    pub since_ms: u64,
}

impl Member {
    /// Since when a VA owes to be healthy that is looked at at `now_ms`, if it is not.
    /// `before`: what the last look found; `first_ms` counts where there was none.
    pub fn owes_since(
        before: Option<&Member>,
        desired: Option<GenerationId>,
        first_ms: u64,
        now_ms: u64,
    ) -> u64 {
        let since_ms = match before {
            None => first_ms,
            Some(before) if before.desired != desired => now_ms,
            Some(before) => match before.health {
                VaHealth::Healthy | VaHealth::Idle | VaHealth::Queued => now_ms,
                VaHealth::Unhealthy(_) | VaHealth::Swapping | VaHealth::Unknown(_) => {
                    before.since_ms
                }
            },
        };
        // A clock that was set back makes nobody wait for it.
        since_ms.min(now_ms)
    }
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
    /// Of those that swap or are unknown, who has had the whole deadline.
    #[serde(default)]
    pub late: u32,
    /// When the next one of them has, in milliseconds from now.
    #[serde(skip)]
    pub late_in_ms: Option<u64>,
    /// They do not run: they take the generation when they go on.
    pub idle: u32,
    /// They run, and their link does not name the generation yet.
    pub waiting: u32,
    pub first_unhealthy: Vec<UnhealthyVa>,
    /// Some of those that wait, for the next batch.
    #[serde(skip)]
    pub ready: Vec<MacAddr>,
}

/// The time that the VAs of a ring have, and what time it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    pub deadline_ms: u64,
    /// In the time of [`Member::since_ms`].
    pub now_ms: u64,
}

impl RingHealth {
    /// Counts the members of a ring; `ready` takes up to `batch` of those that wait.
    pub fn of<'m>(
        generation: GenerationId,
        members: impl IntoIterator<Item = &'m Member>,
        batch: usize,
        clock: Clock,
    ) -> Self {
        let mut health = RingHealth {
            generation,
            healthy: 0,
            unhealthy: 0,
            swapping: 0,
            unknown: 0,
            late: 0,
            late_in_ms: None,
            idle: 0,
            waiting: 0,
            first_unhealthy: Vec::new(),
            ready: Vec::new(),
        };
        let mut late = Vec::new();
        for member in members {
            health.add(member, batch);
            late.extend(health.count_time(member, clock));
        }
        // Who said what is wrong tells more than who said nothing.
        late.truncate(NAMED.saturating_sub(health.first_unhealthy.len()));
        health.first_unhealthy.append(&mut late);
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
            VaHealth::Queued | VaHealth::Swapping => self.swapping += 1,
            VaHealth::Unknown(_) => self.unknown += 1,
            VaHealth::Unhealthy(reason) => {
                self.unhealthy += 1;
                if self.first_unhealthy.len() < NAMED {
                    let (mac, reason) = (member.mac, reason.clone());
                    self.first_unhealthy.push(UnhealthyVa { mac, reason });
                }
            }
        }
    }

    /// Counts the time of a VA that owes to be healthy; returns it where that is up.
    fn count_time(&mut self, member: &Member, clock: Clock) -> Option<UnhealthyVa> {
        let reason = match &member.health {
            VaHealth::Unknown(None) => "no word by the deadline".to_owned(),
            VaHealth::Unknown(Some(why)) => format!("no word by the deadline: {why}"),
            VaHealth::Swapping => "not ready by the deadline".to_owned(),
            VaHealth::Healthy | VaHealth::Unhealthy(_) | VaHealth::Queued | VaHealth::Idle => {
                return None;
            }
        };
        if member.desired != Some(self.generation) {
            return None;
        }
        let owed_ms = clock.now_ms.saturating_sub(member.since_ms);
        if let Some(left_ms) = clock.deadline_ms.checked_sub(owed_ms) {
            self.late_in_ms = self.late_in_ms.into_iter().chain([left_ms]).min();
            return None;
        }
        self.late += 1;
        Some(UnhealthyVa { mac: member.mac, reason })
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

    /// Whether time alone changes nothing: all that run have the generation, and each is
    /// healthy, unhealthy or late.
    pub(super) fn is_stuck(&self) -> bool {
        self.waiting == 0 && self.healthy + self.unhealthy + self.late == self.active()
    }

    /// How many VAs are unhealthy or late, where those are too many.
    pub(super) fn too_many(&self, gate: &Gate) -> Option<u32> {
        let bad = self.unhealthy + self.late;
        (bad > self.allowed(gate)).then_some(bad)
    }

    /// Whether it would be too many if all who owe an answer were late.
    pub(super) fn is_short(&self, gate: &Gate) -> bool {
        self.unhealthy + self.swapping + self.unknown > self.allowed(gate)
    }

    fn allowed(&self, gate: &Gate) -> u32 {
        let total = self.active() + self.waiting;
        match gate.unhealthy {
            Some(share) => share.of(total),
            None => {
                let spare = u64::from(total) * u64::from(100 - gate.success.0) / 100;
                u32::try_from(spare).unwrap_or(u32::MAX)
            }
        }
    }
}
