//! What was changed in the store by hand: links of VAs that are none, and generations that
//! are not what they were sealed as. It is told once, and put back where the policy says so;
//! what was found is set aside, never deleted. Rings' links are the rollouts' to put back.
//!
//! A generation is looked into only where its files are not like before, so an idle pass reads
//! none. One is sealed anew from the commit that is brought in, or else as this process has read
//! it before: then it is whole again with nothing else asked.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;

use strata_core::audit::Who;
use strata_core::event::{Event, EventRecord};
use strata_core::generation::Generation;
use strata_core::plan::Observed;
use strata_core::rollout::policy::DriftMode;
use strata_core::{GenerationId, MacAddr};
use strata_store::{GenerationStamp, Store, StoreError};

use super::judgement::Accepted;
use super::{Keeper, PassError, PassReport, now_ms};
use crate::rollout::pins;

/// What is known of the store's generations and of what was told.
#[derive(Debug, Default)]
pub(super) struct HandMade {
    /// What the files of generations were like when they were looked at last, `None` where
    /// they are to be looked at again; and what is known of their content.
    seen: BTreeMap<GenerationId, (Option<GenerationStamp>, Option<Generation>)>,
    /// What was told and is not done, and whether it was said that it is put back.
    left: BTreeSet<(String, bool)>,
}

/// Whether a fault says that a generation was changed, not that it cannot be read now.
fn is_tampering(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { source, .. } if source.kind() == ErrorKind::NotFound)
        || matches!(
            error,
            StoreError::Damaged { .. }
                | StoreError::NoGeneration(_)
                | StoreError::Generation { .. }
                | StoreError::Data { .. }
                | StoreError::Policy { .. }
                | StoreError::TooLarge { .. }
                | StoreError::NotRegular(_)
        )
}

impl Keeper {
    /// Finds what was changed by hand of all that the commit and the rings are about.
    pub(super) fn put_back(
        &mut self,
        accepted: &Accepted,
        observed: &mut Observed,
        report: &mut PassReport,
    ) -> Result<(), PassError> {
        let enforce = accepted.taken.policy.drift.links == DriftMode::Enforce;
        if enforce {
            for mac in std::mem::take(&mut observed.foreign_va_links) {
                if !self.put_back_va(&accepted.taken.who, mac, report)? {
                    observed.foreign_va_links.insert(mac);
                } else if let Some(target) = self.store.va_target(mac)? {
                    observed.va_links.insert(mac, target);
                }
            }
        }
        let used: BTreeSet<_> =
            observed.generations.iter().chain(observed.rings.values()).copied().collect();
        self.hand_made.seen.retain(|id, _| used.contains(id));
        // Rings may be on what the commit before wanted for long.
        if let Some(former) = self.accepted.as_ref().map(|former| &former.materials.generations) {
            for (id, (_, whole)) in &mut self.hand_made.seen {
                if whole.is_none() && !accepted.materials.generations.contains_key(id) {
                    *whole = former.get(id).cloned();
                }
            }
        }
        for id in used {
            self.look_at(id, accepted, enforce, report)?;
        }
        Ok(())
    }

    /// Sets aside what stands in the place of a VA's link, and pins the VA again that was
    /// pinned; one that was not follows its ring by the plan. Returns whether it could.
    fn put_back_va(
        &mut self,
        who: &Who,
        mac: MacAddr,
        report: &mut PassReport,
    ) -> Result<bool, PassError> {
        let Err(found) = self.store.va_target(mac) else { return Ok(true) };
        let (store, at_ms) = (self.store.clone(), now_ms());
        let aside = store.aside(&format!("va-{mac}"), at_ms);
        let event = tampered(&store, &format!("va/{mac}"), &found, aside.as_deref().ok());
        self.tell_and(who, event, report, || {
            store.set_va_aside(mac, &aside?)?;
            match pins::read(&store, mac)? {
                Some(pin) => store.claim_va(mac, &pin.target()),
                None => Ok(()),
            }
        })
    }

    /// Looks at a generation that has changed since it was looked at last.
    fn look_at(
        &mut self,
        id: GenerationId,
        accepted: &Accepted,
        enforce: bool,
        report: &mut PassReport,
    ) -> Result<(), PassError> {
        let Some((stamp, found)) = self.changed(&id) else { return Ok(()) };
        let found = match found {
            Err(found) => found,
            Ok(whole) => {
                // The commit has its own already.
                let is_wanted = accepted.materials.generations.contains_key(&id);
                let whole = Some(whole).filter(|_| !is_wanted);
                self.hand_made.seen.insert(id, (Some(stamp), whole));
                return Ok(());
            }
        };
        // It stays known until the end: what fails on the way is done by the next pass.
        let known = self.hand_made.seen.get(&id).and_then(|(_, whole)| whole.clone());
        let taken = &accepted.taken;
        let (whole, origin) = match (accepted.materials.generations.get(&id), known) {
            (Some(whole), _) => (Some(whole.clone()), taken.commit.clone()),
            (None, known) => (known, self.store.generation_origin(&id).unwrap_or_default()),
        };
        let (store, path) = (self.store.clone(), format!("generations/{id}"));
        let aside = match (enforce, &whole) {
            (true, Some(_)) => Some(store.aside(&format!("generation-{id}"), now_ms())),
            _ => None,
        };
        let place = aside.as_ref().and_then(|aside| aside.as_deref().ok());
        let event = tampered(&store, &path, &found, place);
        let stamp = match (aside, &whole) {
            (Some(aside), Some(whole)) => {
                let work = || store.reseal_generation(whole, &origin, &aside?);
                match self.tell_and(&taken.who, event, report, work)? {
                    true => Some(self.store.generation_stamp(&id)?),
                    false => None,
                }
            }
            _ => {
                self.tell(&taken.who, event, report)?;
                Some(stamp)
            }
        };
        self.hand_made.seen.insert(id, (stamp, whole));
        Ok(())
    }

    /// A generation whose files are not like they were at the last look: what they are like,
    /// and what they say or why that is not what was sealed. Nothing where it cannot be read now.
    fn changed(
        &self,
        id: &GenerationId,
    ) -> Option<(GenerationStamp, Result<Generation, StoreError>)> {
        let unreadable = |error: &StoreError| {
            tracing::warn!(generation = %id, %error, "a generation cannot be looked at");
        };
        let stamp = self.store.generation_stamp(id).inspect_err(unreadable).ok()?;
        if self.hand_made.seen.get(id).is_some_and(|(known, _)| known.as_ref() == Some(&stamp)) {
            return None;
        }
        match self.store.generation(id) {
            Err(error) if !is_tampering(&error) => {
                unreadable(&error);
                None
            }
            found => Some((stamp, found)),
        }
    }

    /// Tells what was found, then puts it right. What cannot be put right is told once so,
    /// and tried again by the next pass.
    fn tell_and(
        &mut self,
        who: &Who,
        event: Event,
        report: &mut PassReport,
        work: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<bool, PassError> {
        let Event::StoreTampered { path, restored, .. } = &event else { return Ok(false) };
        let told = (path.clone(), *restored);
        if !self.hand_made.left.contains(&told) {
            self.tell(who, event, report)?;
        }
        match work() {
            Ok(()) => {
                self.hand_made.left.retain(|(path, _)| *path != told.0);
                Ok(true)
            }
            Err(error) => {
                tracing::error!(path = told.0, %error, "what was changed by hand cannot be put back");
                self.hand_made.left.insert(told);
                Ok(false)
            }
        }
    }

    fn tell(&self, who: &Who, event: Event, report: &mut PassReport) -> Result<(), PassError> {
        let record = EventRecord::new(now_ms(), event);
        self.audit.tell(who, std::slice::from_ref(&record))?;
        report.events.push(record);
        report.news = true;
        Ok(())
    }
}

/// What is told; what is set aside is put back, too.
pub(crate) fn tampered(
    store: &Store,
    path: &str,
    found: &StoreError,
    aside: Option<&std::path::Path>,
) -> Event {
    let below = |aside: &std::path::Path| {
        aside.strip_prefix(store.root()).unwrap_or(aside).display().to_string()
    };
    let set_aside = aside.map(below);
    let (path, found, restored) = (path.to_owned(), found.to_string(), set_aside.is_some());
    Event::StoreTampered { path, found, restored, set_aside }
}
