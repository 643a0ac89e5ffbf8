//! Makes the store say what a commit says that was taken: what is desired is planned
//! against what the store shows, and the plan is carried out.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use strata_core::RepositoryName;
use strata_core::plan::{self, Action, Desired, Observed, Plan};
use strata_store::{Store, StoreError};
use tracing::Span;
use tracing::field::Empty;

use super::judgement::Accepted;
use super::report::lap;
use super::{Keeper, PassError, PassReport, PassResult, now_ms};
use crate::apply;
use crate::audit::passes;
use crate::rollout::{Pending, RolloutError, Taken};
use crate::traces::spans::{self, span};

impl Keeper {
    /// Makes the store say what a commit says, as far as its rollouts are.
    pub(super) fn bring_in(
        &mut self,
        accepted: &Arc<Accepted>,
        report: &mut PassReport,
        since: &mut Instant,
        cancelled: &AtomicBool,
    ) -> Result<(), PassError> {
        let taken = &accepted.taken;
        let span = span!("plan", actions = Empty);
        let Plan { actions, notes } = spans::step(&span, || {
            let mut observed = observe(&self.store, &taken.desired)?;
            self.put_back(accepted, &mut observed, report)?;
            Ok::<_, PassError>(plan::plan(&taken.desired, &observed))
        })?;
        span.record("actions", actions.len());
        drop(span);
        report.timings.plan_ms = lap(since);
        spans::step(&span!("apply"), || self.apply(accepted, actions, report, cancelled))?;
        report.timings.apply_ms = lap(since);
        report.notes.extend(notes);
        report.notes.sort();
        report.result = match report.actions.is_empty() {
            true => PassResult::Unchanged,
            false => PassResult::Applied,
        };
        report.news |= !report.actions.is_empty();
        Ok(())
    }

    /// Carries a plan out, and takes the next step of every rollout.
    fn apply(
        &mut self,
        accepted: &Arc<Accepted>,
        actions: Vec<Action>,
        report: &mut PassReport,
        cancelled: &AtomicBool,
    ) -> Result<(), PassError> {
        let Accepted { taken, materials, .. } = &**accepted;
        // Nothing is linked before its ring has a generation.
        let is_link = |action: &Action| matches!(action, Action::LinkVa { .. });
        let (links, seals): (Vec<_>, Vec<_>) = actions.into_iter().partition(is_link);
        let span = some(&seals, || span!("seal", actions = seals.len()));
        spans::step(&span, || apply::apply(&self.store, &seals, materials, &taken.commit))?;
        drop(span);
        self.admit(accepted, report)?;
        let links = self.hand_over_moves(accepted, links)?;
        let mut stepped =
            self.rollouts.step(Some(taken), true, &mut self.checks, (now_ms(), cancelled))?;
        let failed = stepped.failed.take();
        report.actions = seals;
        report.add(stepped);
        self.link(accepted, links, report)?;
        failed.map_or(Ok(()), |error| Err(RolloutError::from(error).into()))
    }

    /// Finds links of VAs that are not where a commit wants them. Those that lead elsewhere
    /// go with the rollouts; returned are those that are to be made.
    pub(super) fn look_at_links(&mut self, accepted: &Accepted) -> Result<Vec<Action>, PassError> {
        let Accepted { taken: Taken { desired, .. }, .. } = accepted;
        let observed = observe_links(&self.store, desired)?;
        let links = plan::plan_appliances(desired, &observed).actions;
        self.hand_over_moves(accepted, links)
    }

    /// Who follows another ring already goes when the rollouts let him. Returns the links
    /// that are to be made.
    fn hand_over_moves(
        &mut self,
        accepted: &Accepted,
        links: Vec<Action>,
    ) -> Result<Vec<Action>, PassError> {
        let is_new = |action: &Action| matches!(action, Action::LinkVa { from: None, .. });
        let (links, moves): (Vec<_>, Vec<_>) = links.into_iter().partition(is_new);
        let transfers = Pending::new(&self.store, moves, &accepted.taken.desired)?;
        self.rollouts.set_transfers(transfers);
        Ok(links)
    }

    /// Makes links of VAs.
    pub(super) fn link(
        &mut self,
        accepted: &Accepted,
        links: Vec<Action>,
        report: &mut PassReport,
    ) -> Result<(), PassError> {
        let Accepted { taken, materials, .. } = accepted;
        self.audit.tell(&taken.who, &passes::links(&links, now_ms()))?;
        let span = some(&links, || span!("link", vas = links.len()));
        spans::step(&span, || apply::apply(&self.store, &links, materials, &taken.commit))?;
        report.actions.extend(links);
        Ok(())
    }

    /// From here on links may be moved for the commit: it is the high-water mark,
    /// whatever happens next, and rollouts go by it.
    fn admit(&mut self, accepted: &Arc<Accepted>, report: &PassReport) -> Result<(), PassError> {
        let mut next = self.state.admit(&accepted.taken.commit, now_ms());
        next.testing.clone_from(&report.testing);
        if next != self.state {
            next.write(&self.store)?;
            self.state = next;
        }
        self.accept(accepted.clone());
        Ok(())
    }
}

/// No span for nothing.
fn some(actions: &[Action], span: impl FnOnce() -> Span) -> Span {
    if actions.is_empty() { Span::none() } else { span() }
}

/// Looks at all that the desired state names, and at every ring.
fn observe(store: &Store, desired: &Desired) -> Result<Observed, PassError> {
    let mut observed = Observed { rings: store.rings()?, ..Observed::default() };
    if !desired.layers.is_empty() {
        let templates = match store.database(&RepositoryName::templates()) {
            Ok(database) => database,
            Err(StoreError::NoRepository(_)) => Default::default(),
            Err(error) => return Err(error.into()),
        };
        for unit in templates.units() {
            let metadata = &unit.metadata;
            observed.layers.insert((metadata.layer.clone(), metadata.version.clone()));
        }
    }
    let ids = desired.compositions.values();
    observed.generations.extend(ids.filter(|id| store.has_generation(id)));
    let Observed { va_links, foreign_va_links, .. } = observe_links(store, desired)?;
    Ok(Observed { va_links, foreign_va_links, ..observed })
}

/// Looks at the links of the VAs that the desired state declares.
fn observe_links(store: &Store, desired: &Desired) -> Result<Observed, PassError> {
    let mut observed = Observed::default();
    for mac in desired.appliances.keys() {
        match store.va_target(*mac) {
            Ok(Some(target)) => {
                observed.va_links.insert(*mac, target);
            }
            Ok(None) => {}
            Err(error) if error.is_foreign_link() => {
                observed.foreign_va_links.insert(*mac);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(observed)
}
