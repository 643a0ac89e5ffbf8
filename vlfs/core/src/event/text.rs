//! Events as lines for people.

use std::fmt::{self, Write as _};

use super::{Event, ReconcilerChange, short};
use crate::names::{MacAddr, VaName};
use crate::printable::OneLine;
use crate::rollout::health::UnhealthyVa;
use crate::status::Age;

impl fmt::Display for Event {
    /// One line, whatever the reasons, messages and names in it are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(&mut OneLine(f))
    }
}

impl Event {
    fn write(&self, f: &mut OneLine<'_, '_>) -> fmt::Result {
        match self {
            Event::RolloutStarted { composition, generation, commit } => {
                write!(f, "{composition}: {} starts, from {}", generation.short(), short(commit))
            }
            Event::RingMoved { composition, ring, from, to } => {
                let from = from.map_or_else(|| "nothing".to_owned(), |from| from.short());
                write!(f, "{composition}: {ring} moved from {from} to {}", to.short())
            }
            Event::BatchMoved { composition, ring, to, vas } => {
                write!(f, "{composition}: {} VAs of {ring} moved to {}", vas.len(), to.short())
            }
            Event::RingPassed { composition, ring, generation } => {
                write!(f, "{composition}: {ring} is healthy on {}", generation.short())
            }
            Event::RingStuck { composition, ring, generation, of, unhealthy } => {
                write!(
                    f,
                    "{composition}: {ring} neither passes nor fails on {}: of {of} VAs it allows these to be unhealthy and does not pass with them",
                    generation.short()
                )?;
                let mut separator = ": ";
                for UnhealthyVa { mac, reason } in unhealthy {
                    write!(f, "{separator}{mac} ({reason})")?;
                    separator = ", ";
                }
                Ok(())
            }
            Event::RolloutDone { composition, generation, commit } => {
                write!(
                    f,
                    "{composition}: {} is everywhere, from {}",
                    generation.short(),
                    short(commit)
                )
            }
            Event::RolloutHalted { composition, ring, generation, reason, .. } => {
                write!(f, "{composition}: {} halted in {ring}: {reason}", generation.short())
            }
            Event::RolledBack { composition, generation, commit, reason, .. } => write!(
                f,
                "{composition}: {} rolled back, {} quarantined: {reason}",
                generation.short(),
                short(commit)
            ),
            Event::Paused { composition, reason } => write!(f, "{composition}: paused: {reason}"),
            Event::Resumed { composition, reason, .. } => {
                write!(f, "{composition}: resumed: {reason}")
            }
            Event::Promoted { composition, all, reason } => {
                let what = if *all { "all rings" } else { "the next ring" };
                write!(f, "{composition}: {what} promoted: {reason}")
            }
            Event::WindowOverridden { composition, reason } => {
                write!(f, "{composition}: windows and freezes overridden: {reason}")
            }
            Event::LinkDrifted { composition, ring, restored, .. } => {
                let then = if *restored { "; it was put back" } else { "" };
                write!(f, "{composition}: the link of {ring} was moved by hand{then}")
            }
            Event::StoreTampered { path, found, restored, set_aside } => {
                write!(f, "{path} was changed by hand: {found}")?;
                match (restored, set_aside) {
                    (false, _) => write!(f, "; it is left"),
                    (true, None) => write!(f, "; it was put back"),
                    (true, Some(aside)) => {
                        write!(f, "; it was put back, and {aside} has what was there")
                    }
                }
            }
            Event::PrivateDrift { name, paths, more, .. } => {
                write!(f, "{name}: changed {}", paths.join(", "))?;
                if *more > 0 { write!(f, " and {more} more") } else { Ok(()) }
            }
            Event::VaPinned { mac, generation, reason, .. } => {
                write!(f, "{mac} pinned to {}: {reason}", generation.short())
            }
            Event::VaUnpinned { mac, expired: true } => write!(f, "{mac}: the pin expired"),
            Event::VaUnpinned { mac, expired: false } => write!(f, "{mac} unpinned"),
            Event::RemovalsWait { count, limit, token } => write!(
                f,
                "{count} removals wait for a confirmation (limit {limit}): strata rollout confirm {token}"
            ),
            Event::VaRemoved { name, .. } => {
                write!(f, "{name} is no longer declared; its link is gone")
            }
            Event::RingRemoved { composition, ring } => {
                write!(f, "{composition}: the link of {ring} is gone, as git no longer has it")
            }
            Event::VaLinked { name, to, .. } => write!(f, "{name} follows {to}"),
            Event::CommitApplied { commit, took_ms } => {
                write!(f, "{} applied in {took_ms} ms", short(commit))
            }
            Event::CommitRefused { commit, message, .. } => {
                write!(f, "{} refused: {message}", short(commit))
            }
            Event::PassFailed { message } => write!(f, "a pass failed: {message}"),
            Event::PassRecovered { message, failing_ms } => {
                write!(f, "passes work again, after {} of: {message}", Age(*failing_ms))
            }
            Event::RingVerified { composition, ring, generation, vas, took_ms } => write!(
                f,
                "{composition}: all {vas} VAs of {ring} serve {} after {took_ms} ms",
                generation.short()
            ),
            Event::RingUnverified { composition, ring, generation, waiting, idle, of, .. } => {
                write!(
                    f,
                    "{composition}: {waiting} of {of} VAs of {ring} do not serve {} yet",
                    generation.short()
                )?;
                if *idle > 0 { write!(f, ", {idle} of them do not run") } else { Ok(()) }
            }
            Event::VaTroubled { mac, name, state, reason, .. } => {
                let reason = reason.as_deref().unwrap_or("no reason is known");
                write!(f, "{} is {state}: {reason}", va(name.as_ref(), *mac))
            }
            Event::VaRecovered { mac, name, .. } => {
                write!(f, "{} is in sync again", va(name.as_ref(), *mac))
            }
            Event::VaSilent { mac, days } => write!(f, "{mac} was not seen for {days} days"),
            Event::CommandBegun { command } => write!(f, "runs: {command}"),
            Event::CommandEnded { command, status, message, took_ms } => {
                write!(f, "ran in {took_ms} ms, exit status {status}: {command}")?;
                message.as_ref().map_or(Ok(()), |message| write!(f, ": {message}"))
            }
            Event::Reconciler { change, source, message } => match change {
                ReconcilerChange::Started => write!(f, "the reconciler of {source} starts"),
                ReconcilerChange::Ended => write!(f, "the reconciler of {source} ends"),
                ReconcilerChange::Reloaded => {
                    write!(f, "the reconciler of {source} took its new configuration")
                }
                ReconcilerChange::SettingsRefused => {
                    write!(f, "the reconciler of {source} did not take its new configuration")?;
                    message.as_ref().map_or(Ok(()), |message| write!(f, ": {message}"))
                }
            },
            Event::StateRebuilt { file, doubt, .. } if file == crate::audit::PATH => {
                let doubt = doubt.as_deref().unwrap_or_default();
                write!(f, "{file} was removed or cut off, and goes on without: {doubt}")
            }
            Event::StateRebuilt { file, kept, doubt } => {
                write!(f, "{file} was gone and is made anew from the store and the audit log")?;
                if !kept.is_empty() {
                    write!(f, ": {}", kept.join(", "))?;
                }
                doubt.as_ref().map_or(Ok(()), |doubt| write!(f, "; {doubt}"))
            }
            Event::RevertPushed { composition, commit, branch, .. } => {
                write!(f, "{composition}: the branch {branch} reverts {}", short(commit))
            }
            Event::RevertFailed { composition, commit, message, given_up, .. } => {
                let then = if *given_up { "" } else { ", it is tried again" };
                write!(f, "{composition}: {} is not reverted{then}: {message}", short(commit))
            }
        }
    }
}

/// A VA by name where it has one.
fn va(name: Option<&VaName>, mac: MacAddr) -> String {
    name.map_or_else(|| mac.to_string(), VaName::to_string)
}
