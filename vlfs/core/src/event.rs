//! What happens to a fleet, as data: the one source for the log, the audit log,
//! notifications and metrics.
//!
//! An event says what was decided or found, once, by whoever decided or found it.
//! The JSON form is versioned and specified in `docs/formats.md`, "Events".

mod text;

use serde::{Deserialize, Serialize};

use crate::digest::GenerationId;
use crate::names::{CompositionName, MacAddr, RingName, VaName};
use crate::rollout::health::UnhealthyVa;
use crate::status::SyncState;

/// The version of the JSON form.
pub const VERSION: u32 = 1;

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Importance {
    Info,
    /// Something is not as it should be.
    Warning,
    /// An operator must act.
    Error,
}

/// An event with its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    pub version: u32,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// The operator whose order it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    #[serde(flatten)]
    pub event: Event,
}

impl EventRecord {
    pub fn new(at_ms: u64, event: Event) -> Self {
        EventRecord { version: VERSION, at_ms, by: None, event }
    }

    /// The event, as ordered by an operator.
    #[must_use]
    pub fn by(mut self, operator: &str) -> Self {
        self.by = Some(operator.to_owned());
        self
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A commit wants another generation of a composition.
    RolloutStarted {
        composition: CompositionName,
        generation: GenerationId,
        commit: String,
    },
    RingMoved {
        composition: CompositionName,
        ring: RingName,
        from: Option<GenerationId>,
        to: GenerationId,
    },
    /// Some VAs of a ring that swaps in batches were moved.
    BatchMoved {
        composition: CompositionName,
        ring: RingName,
        to: GenerationId,
        vas: Vec<MacAddr>,
    },
    /// A ring was healthy for as long as it had to be.
    RingPassed {
        composition: CompositionName,
        ring: RingName,
        generation: GenerationId,
    },
    /// A ring's deadline has passed, and as many VAs are unhealthy as keep it from passing:
    /// the ring allows them, so it does not fail either.
    RingStuck {
        composition: CompositionName,
        ring: RingName,
        generation: GenerationId,
        /// VAs that run.
        of: u32,
        /// The first unhealthy ones.
        unhealthy: Vec<UnhealthyVa>,
    },
    RolloutDone {
        composition: CompositionName,
        generation: GenerationId,
        commit: String,
    },
    RolloutHalted {
        composition: CompositionName,
        ring: RingName,
        generation: GenerationId,
        reason: String,
        unhealthy: Vec<UnhealthyVa>,
    },
    /// The rings went back; the commit is not applied to this composition again.
    RolledBack {
        composition: CompositionName,
        /// The ring that failed; none where an operator gave the order.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ring: Option<RingName>,
        generation: GenerationId,
        commit: String,
        reason: String,
        unhealthy: Vec<UnhealthyVa>,
    },
    Paused {
        composition: CompositionName,
        reason: String,
    },
    Resumed {
        composition: CompositionName,
        reason: String,
        /// Also with what was quarantined.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        quarantined: bool,
    },
    Promoted {
        composition: CompositionName,
        all: bool,
        reason: String,
    },
    /// A window or freeze was passed over by an operator.
    WindowOverridden {
        composition: CompositionName,
        reason: String,
    },
    /// A ring's link is not where Strata put it.
    LinkDrifted {
        composition: CompositionName,
        ring: RingName,
        found: Option<GenerationId>,
        expected: GenerationId,
        restored: bool,
    },
    /// Something in the store is not what Strata put there.
    StoreTampered {
        /// Its path in the store.
        path: String,
        /// What is wrong with it.
        found: String,
        /// Whether what belongs there is put back.
        restored: bool,
        /// Where in the store what was found lies then.
        set_aside: Option<String>,
    },
    /// A file of a VA's private layer changed that should not.
    PrivateDrift {
        name: VaName,
        mac: MacAddr,
        paths: Vec<String>,
        more: u64,
    },
    VaPinned {
        mac: MacAddr,
        generation: GenerationId,
        reason: String,
        expires_at_ms: Option<u64>,
    },
    VaUnpinned {
        mac: MacAddr,
        expired: bool,
    },
    /// More would be removed than one pass may.
    RemovalsWait {
        count: u32,
        limit: u32,
        token: String,
    },
    VaRemoved {
        name: VaName,
        mac: MacAddr,
    },
    RingRemoved {
        composition: CompositionName,
        ring: RingName,
    },
    /// The link of a declared VA is made or moved.
    VaLinked {
        name: VaName,
        mac: MacAddr,
        /// Where it led, as text.
        from: Option<String>,
        to: String,
    },
    /// A pass made the store say what a commit says, as far as rollouts are.
    CommitApplied {
        commit: String,
        took_ms: u64,
    },
    CommitRefused {
        commit: String,
        reason: String,
        message: String,
        /// The first problems, with file and line.
        problems: Vec<String>,
        took_ms: u64,
    },
    /// The source or the store cannot be used; it is tried again.
    PassFailed {
        message: String,
    },
    /// The source and the store can be used again.
    PassRecovered {
        /// Why the last pass had failed.
        message: String,
        /// Since the first one that failed so.
        failing_ms: u64,
    },
    /// All VAs of a ring that was moved say that they serve its generation.
    RingVerified {
        composition: CompositionName,
        ring: RingName,
        generation: GenerationId,
        vas: u64,
        /// Since its link was moved.
        took_ms: u64,
    },
    /// VAs of a ring that was moved do not serve its generation although they had the
    /// time.
    RingUnverified {
        composition: CompositionName,
        ring: RingName,
        generation: GenerationId,
        waiting: u64,
        /// Of those, VAs that are suspended or stopped.
        idle: u64,
        of: u64,
        first: Vec<MacAddr>,
    },
    /// A VA was found drifted or failed.
    VaTroubled {
        mac: MacAddr,
        name: Option<VaName>,
        composition: CompositionName,
        state: SyncState,
        reason: Option<String>,
        desired: Option<GenerationId>,
        active: Option<GenerationId>,
    },
    /// It serves what it should again.
    VaRecovered {
        mac: MacAddr,
        name: Option<VaName>,
        composition: CompositionName,
        active: Option<GenerationId>,
    },
    /// A VA was not seen for long.
    VaSilent {
        mac: MacAddr,
        days: u64,
    },
    /// An operator's command is about to change something.
    CommandBegun {
        command: String,
    },
    CommandEnded {
        command: String,
        /// Its exit status: 0 done, 1 a difference, 2 an error.
        status: u8,
        /// Why, of one that failed.
        message: Option<String>,
        took_ms: u64,
    },
    /// The reconciler began or ended, or took another configuration, or did not.
    Reconciler {
        change: ReconcilerChange,
        source: String,
        /// Why, of settings that were refused.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    /// A file of the reconciler's state was gone, and was made anew.
    StateRebuilt {
        /// Its path in the store.
        file: String,
        /// What the audit log told that the links do not.
        kept: Vec<String>,
        /// Why it may not have told all.
        doubt: Option<String>,
    },
    /// A branch that reverts what was rolled back is where the commits come from.
    RevertPushed {
        composition: CompositionName,
        /// The quarantined commit.
        commit: String,
        branch: String,
        remote: String,
        /// The commits that it reverts, newest first.
        reverted: Vec<String>,
    },
    RevertFailed {
        composition: CompositionName,
        commit: String,
        branch: String,
        message: String,
        /// It is not tried again.
        given_up: bool,
    },
}

/// What happened to the reconciler itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReconcilerChange {
    Started,
    Ended,
    Reloaded,
    /// The settings were read anew and not taken; those before hold.
    SettingsRefused,
}

impl Event {
    /// The names of all kinds.
    pub const KINDS: [&'static str; 36] = [
        "rollout-started",
        "ring-moved",
        "batch-moved",
        "ring-passed",
        "ring-stuck",
        "rollout-done",
        "rollout-halted",
        "rolled-back",
        "paused",
        "resumed",
        "promoted",
        "window-overridden",
        "link-drifted",
        "store-tampered",
        "private-drift",
        "va-pinned",
        "va-unpinned",
        "removals-wait",
        "va-removed",
        "ring-removed",
        "va-linked",
        "commit-applied",
        "commit-refused",
        "pass-failed",
        "pass-recovered",
        "ring-verified",
        "ring-unverified",
        "va-troubled",
        "va-recovered",
        "va-silent",
        "command-begun",
        "command-ended",
        "reconciler",
        "state-rebuilt",
        "revert-pushed",
        "revert-failed",
    ];

    /// Of one that puts an end to something, how that was told when it began: whoever was
    /// told of it then is told of its end.
    pub fn begins(&self) -> Option<Event> {
        match self {
            Event::PassRecovered { message, .. } => {
                Some(Event::PassFailed { message: message.clone() })
            }
            _ => None,
        }
    }

    /// The name of its kind, as in the JSON form.
    pub fn kind(&self) -> &'static str {
        match self {
            Event::RolloutStarted { .. } => "rollout-started",
            Event::RingMoved { .. } => "ring-moved",
            Event::BatchMoved { .. } => "batch-moved",
            Event::RingPassed { .. } => "ring-passed",
            Event::RingStuck { .. } => "ring-stuck",
            Event::RolloutDone { .. } => "rollout-done",
            Event::RolloutHalted { .. } => "rollout-halted",
            Event::RolledBack { .. } => "rolled-back",
            Event::Paused { .. } => "paused",
            Event::Resumed { .. } => "resumed",
            Event::Promoted { .. } => "promoted",
            Event::WindowOverridden { .. } => "window-overridden",
            Event::LinkDrifted { .. } => "link-drifted",
            Event::StoreTampered { .. } => "store-tampered",
            Event::PrivateDrift { .. } => "private-drift",
            Event::VaPinned { .. } => "va-pinned",
            Event::VaUnpinned { .. } => "va-unpinned",
            Event::RemovalsWait { .. } => "removals-wait",
            Event::VaRemoved { .. } => "va-removed",
            Event::RingRemoved { .. } => "ring-removed",
            Event::VaLinked { .. } => "va-linked",
            Event::CommitApplied { .. } => "commit-applied",
            Event::CommitRefused { .. } => "commit-refused",
            Event::PassFailed { .. } => "pass-failed",
            Event::PassRecovered { .. } => "pass-recovered",
            Event::RingVerified { .. } => "ring-verified",
            Event::RingUnverified { .. } => "ring-unverified",
            Event::VaTroubled { .. } => "va-troubled",
            Event::VaRecovered { .. } => "va-recovered",
            Event::VaSilent { .. } => "va-silent",
            Event::CommandBegun { .. } => "command-begun",
            Event::CommandEnded { .. } => "command-ended",
            Event::Reconciler { .. } => "reconciler",
            Event::StateRebuilt { .. } => "state-rebuilt",
            Event::RevertPushed { .. } => "revert-pushed",
            Event::RevertFailed { .. } => "revert-failed",
        }
    }

    pub fn importance(&self) -> Importance {
        match self {
            Event::RolloutHalted { .. }
            | Event::RolledBack { .. }
            | Event::RemovalsWait { .. }
            | Event::StoreTampered { restored: false, .. }
            | Event::StateRebuilt { doubt: Some(_), .. }
            | Event::CommitRefused { .. } => Importance::Error,
            Event::LinkDrifted { .. }
            | Event::StoreTampered { restored: true, .. }
            | Event::PrivateDrift { .. }
            | Event::WindowOverridden { .. }
            | Event::RingStuck { .. }
            | Event::PassFailed { .. }
            | Event::RingUnverified { .. }
            | Event::VaTroubled { .. }
            | Event::StateRebuilt { doubt: None, .. }
            | Event::RevertFailed { .. }
            | Event::VaSilent { .. } => Importance::Warning,
            Event::CommandEnded { status: 2.., .. }
            | Event::Reconciler { change: ReconcilerChange::SettingsRefused, .. } => {
                Importance::Warning
            }
            Event::RolloutStarted { .. }
            | Event::RingMoved { .. }
            | Event::BatchMoved { .. }
            | Event::RingPassed { .. }
            | Event::RolloutDone { .. }
            | Event::Paused { .. }
            | Event::Resumed { .. }
            | Event::Promoted { .. }
            | Event::VaPinned { .. }
            | Event::VaUnpinned { .. }
            | Event::VaRemoved { .. }
            | Event::RingRemoved { .. }
            | Event::VaLinked { .. }
            | Event::CommitApplied { .. }
            | Event::PassRecovered { .. }
            | Event::RingVerified { .. }
            | Event::VaRecovered { .. }
            | Event::CommandBegun { .. }
            | Event::CommandEnded { .. }
            | Event::RevertPushed { .. }
            | Event::Reconciler { .. } => Importance::Info,
        }
    }

    /// The template it is about.
    pub fn composition(&self) -> Option<&CompositionName> {
        match self {
            Event::RolloutStarted { composition, .. }
            | Event::RingMoved { composition, .. }
            | Event::BatchMoved { composition, .. }
            | Event::RingPassed { composition, .. }
            | Event::RingStuck { composition, .. }
            | Event::RolloutDone { composition, .. }
            | Event::RolloutHalted { composition, .. }
            | Event::RolledBack { composition, .. }
            | Event::Paused { composition, .. }
            | Event::Resumed { composition, .. }
            | Event::Promoted { composition, .. }
            | Event::WindowOverridden { composition, .. }
            | Event::LinkDrifted { composition, .. }
            | Event::RevertPushed { composition, .. }
            | Event::RevertFailed { composition, .. }
            | Event::RingRemoved { composition, .. }
            | Event::RingVerified { composition, .. }
            | Event::RingUnverified { composition, .. }
            | Event::VaTroubled { composition, .. }
            | Event::VaRecovered { composition, .. } => Some(composition),
            Event::PrivateDrift { .. }
            | Event::StoreTampered { .. }
            | Event::VaPinned { .. }
            | Event::VaUnpinned { .. }
            | Event::RemovalsWait { .. }
            | Event::VaRemoved { .. }
            | Event::VaLinked { .. }
            | Event::CommitApplied { .. }
            | Event::CommitRefused { .. }
            | Event::PassFailed { .. }
            | Event::PassRecovered { .. }
            | Event::VaSilent { .. }
            | Event::CommandBegun { .. }
            | Event::CommandEnded { .. }
            | Event::StateRebuilt { .. }
            | Event::Reconciler { .. } => None,
        }
    }

    /// The ring it is about; a rollback is about all rings of its template.
    pub fn ring(&self) -> Option<&RingName> {
        match self {
            Event::RingMoved { ring, .. }
            | Event::BatchMoved { ring, .. }
            | Event::RingPassed { ring, .. }
            | Event::RingStuck { ring, .. }
            | Event::RolloutHalted { ring, .. }
            | Event::LinkDrifted { ring, .. }
            | Event::RingRemoved { ring, .. }
            | Event::RingVerified { ring, .. }
            | Event::RingUnverified { ring, .. } => Some(ring),
            _ => None,
        }
    }

    /// Whether it is about this VA itself, not about its ring as a whole.
    pub fn names_va(&self, wanted: MacAddr) -> bool {
        match self {
            Event::BatchMoved { vas, .. } => vas.contains(&wanted),
            Event::RolloutHalted { unhealthy, .. }
            | Event::RingStuck { unhealthy, .. }
            | Event::RolledBack { unhealthy, .. } => unhealthy.iter().any(|va| va.mac == wanted),
            Event::RingUnverified { first, .. } => first.contains(&wanted),
            Event::PrivateDrift { mac, .. }
            | Event::VaPinned { mac, .. }
            | Event::VaUnpinned { mac, .. }
            | Event::VaRemoved { mac, .. }
            | Event::VaLinked { mac, .. }
            | Event::VaTroubled { mac, .. }
            | Event::VaRecovered { mac, .. }
            | Event::VaSilent { mac, .. } => *mac == wanted,
            _ => false,
        }
    }
}

/// The beginning of a commit's id.
pub fn short(commit: &str) -> &str {
    commit.get(..12).unwrap_or(commit)
}

#[cfg(test)]
mod tests;
