//! All rollouts of a store: one owner for their state, their links and what is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use strata_core::audit::Who;
use strata_core::event::{Event, EventRecord};
use strata_core::plan::{Action, Desired, Note};
use strata_core::rollout::policy::{RolloutPolicy, base_ring, staged_ring};
use strata_core::rollout::{
    Advance, Command, Input, RingView, RolloutState, Waiting, advance, apply_command,
};
use strata_core::{CompositionName, GenerationId, MacAddr, RingName};
use strata_machine::MachineError;
use strata_store::{Store, StoreError};

use super::file::{self, RolloutFile, RolloutFileError};
use super::moves::{self, MoveError};
use super::pins;
use super::prune;
use super::rebuild::{self, Told};
use super::request::{self, Ask, Request};
use super::transfers::{self, Pending};
use super::watcher::{Checks, RingKey, Wanted, Watcher};
use crate::audit::{AuditError, AuditLog, passes};

/// While a ring is waited for, its VAs are looked at this often.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    File(#[from] RolloutFileError),
    #[error(transparent)]
    Move(#[from] MoveError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Audit(#[from] AuditError),
}

/// What a commit that was accepted wants of rollouts.
#[derive(Debug)]
pub struct Taken {
    pub commit: String,
    /// On whose account all that follows from it happens.
    pub who: Who,
    pub desired: Desired,
    pub policy: RolloutPolicy,
}

/// What a step did.
#[derive(Debug, Default)]
pub struct Stepped {
    /// Moves of rings and VAs.
    pub actions: Vec<Action>,
    /// VAs that are to be moved and wait.
    pub notes: Vec<Note>,
    pub events: Vec<EventRecord>,
    /// What rollouts wait for.
    pub waiting: Vec<(CompositionName, Waiting)>,
    /// When to step again, in milliseconds since 1970, if nothing else happens.
    pub wake_at_ms: Option<u64>,
    /// Composition whose links could not be moved, after all others were.
    pub failed: Option<MoveError>,
}

#[derive(Debug)]
pub struct Rollouts {
    store: Arc<Store>,
    file: RolloutFile,
    watcher: Watcher,
    transfers: Pending,
    audit: Arc<AuditLog>,
    /// What is known all the same, where the file is gone although there are rings.
    lost: Option<Told>,
    /// Pins that cannot be read, of which was told.
    unreadable_pins: BTreeSet<MacAddr>,
}

impl Rollouts {
    /// Reads what is remembered. Where that is gone, the next step makes it anew.
    ///
    /// # Errors
    /// The state is damaged.
    pub fn open(store: Arc<Store>, audit: Arc<AuditLog>) -> Result<Self, RolloutError> {
        let found = RolloutFile::find(&store)?;
        let lost = match found.is_none() && !store.rings()?.is_empty() {
            true => Some(rebuild::replay(&store)?),
            false => None,
        };
        let (file, unreadable_pins) = (found.unwrap_or_default(), BTreeSet::new());
        let watcher = Watcher::new(store.clone());
        let transfers = Pending::default();
        Ok(Rollouts { store, file, watcher, transfers, audit, lost, unreadable_pins })
    }

    /// Says which VAs a commit gives to another template or ring: they go with the next
    /// steps, each when it may.
    pub fn set_transfers(&mut self, transfers: Pending) {
        self.transfers = transfers;
    }

    /// Takes the next step of every rollout: orders, then what the links and the
    /// VAs ask for.
    ///
    /// # Errors
    /// The store cannot be used. One composition whose links cannot be moved does
    /// not keep the others from theirs; it is in [`Stepped::failed`].
    pub fn step(
        &mut self,
        taken: &Taken,
        whole: bool,
        checks: &mut dyn Checks,
        now_ms: u64,
    ) -> Result<Stepped, RolloutError> {
        let mut stepped = Stepped::default();
        let mut file = self.file.clone();
        self.recover(taken, &mut file, now_ms, &mut stepped)?;
        let requests = self.orders(&mut file, now_ms, &mut stepped)?;
        // A process that has just started knows nothing yet of what is waited for.
        self.want(taken)?;
        self.watcher.tick(whole, checks)?;
        let rings = self.store.rings()?;
        let mut moves = Vec::new();
        file.drift = Some(taken.policy.drift.clone());
        file.silent_days = Some(taken.policy.silent_days);
        file.compositions.retain(|name, _| taken.desired.compositions.contains_key(name));
        for (composition, target) in &taken.desired.compositions {
            let views = self.views(composition, &rings, &taken.policy)?;
            let input = Input {
                composition,
                policy: &taken.policy,
                target: *target,
                commit: &taken.commit,
                rings: &views,
                now_ms,
            };
            let done = advance(&input, file.compositions.get(composition));
            let Advance { state, moves: wanted, events, wake_at_ms } = done;
            let records = events.into_iter().map(|event| EventRecord::new(now_ms, event));
            stepped.events.extend(records);
            if let Some(waiting) = &state.waiting {
                stepped.waiting.push((composition.clone(), waiting.clone()));
            }
            stepped.wake_at_ms = stepped.wake_at_ms.into_iter().chain(wake_at_ms).min();
            file.compositions.insert(composition.clone(), state);
            if !wanted.is_empty() {
                moves.push((composition.clone(), wanted));
            }
        }
        let mut events = Vec::new();
        let limit = taken.policy.prune;
        let removals =
            prune::decide(&self.store, &mut file, &taken.desired, &rings, limit, &mut events)?;
        events.extend(removals.events());
        stepped.events.extend(records(&mut events, now_ms));
        // What is decided is told before it is done: a crash may tell it twice.
        self.audit.tell(&taken.who, &stepped.events)?;
        self.keep(file)?;
        self.lost = None;
        for name in &requests {
            request::remove(&self.store, name)?;
        }
        self.take(&moves, &mut stepped)?;
        self.transfer(taken, now_ms, &mut stepped)?;
        prune::take(&self.store, removals)?;
        let unreadable = &mut self.unreadable_pins;
        let unpin_at_ms = pins::look_after(&self.store, now_ms, unreadable, |mut events| {
            let events = records(&mut events, now_ms);
            self.audit.tell(&taken.who, &events)?;
            stepped.events.extend(events);
            Ok(())
        })?;
        stepped.wake_at_ms = stepped.wake_at_ms.into_iter().chain(unpin_at_ms).min();
        self.want(taken)?;
        if !self.watcher.is_idle() {
            let soon = now_ms.saturating_add(LOOK_AGAIN.as_millis() as u64);
            stepped.wake_at_ms = stepped.wake_at_ms.into_iter().chain([soon]).min();
        }
        Ok(stepped)
    }

    /// Makes the states of rollouts anew, where they were lost.
    fn recover(
        &self,
        taken: &Taken,
        file: &mut RolloutFile,
        now_ms: u64,
        stepped: &mut Stepped,
    ) -> Result<(), RolloutError> {
        let Some(lost) = &self.lost else { return Ok(()) };
        let rings = self.store.rings()?;
        let (mut kept, mut events) = (Vec::new(), Vec::new());
        for (composition, target) in &taken.desired.compositions {
            let views = self.views(composition, &rings, &taken.policy)?;
            let input = Input {
                composition,
                policy: &taken.policy,
                target: *target,
                commit: &taken.commit,
                rings: &views,
                now_ms,
            };
            let Some((state, held)) = lost.rollout(&self.store, &input) else { continue };
            kept.extend(rebuild::kept(&input, &state));
            if let Some(pause) = state.paused.as_ref().filter(|_| held) {
                let (composition, reason) = (composition.clone(), pause.reason.clone());
                events.push(Event::Paused { composition, reason });
            }
            file.compositions.insert(composition.clone(), state);
        }
        let (path, doubt) = (file::PATH.to_owned(), lost.doubt.clone());
        events.insert(0, Event::StateRebuilt { file: path, kept, doubt });
        stepped.events.extend(records(&mut events, now_ms));
        Ok(())
    }

    /// Makes a state durable, where it is another one.
    fn keep(&mut self, file: RolloutFile) -> Result<(), RolloutError> {
        if file != self.file {
            file.write(&self.store)?;
            self.file = file;
        }
        Ok(())
    }

    fn take(
        &mut self,
        moves: &[(CompositionName, Vec<strata_core::rollout::RingMove>)],
        stepped: &mut Stepped,
    ) -> Result<(), RolloutError> {
        let mut file = self.file.clone();
        for (composition, moves) in moves {
            match moves::take(&self.store, composition, moves) {
                Ok(actions) => {
                    stepped.actions.extend(actions);
                    file.compositions.entry(composition.clone()).and_modify(RolloutState::settle);
                }
                Err(error) => {
                    tracing::error!(%error, "the links of a composition cannot be moved");
                    stepped.failed.get_or_insert(error);
                }
            }
        }
        self.keep(file)
    }

    /// Moves the VAs whose turn it is to their other template or ring.
    fn transfer(
        &mut self,
        taken: &Taken,
        now_ms: u64,
        stepped: &mut Stepped,
    ) -> Result<(), RolloutError> {
        if self.transfers.is_empty() {
            return Ok(());
        }
        let (states, watcher) = (&self.file.compositions, &self.watcher);
        let health = |key: &RingKey| watcher.health(key);
        let decided = self.transfers.decide(&self.store, states, &taken.policy, health, now_ms);
        let transfers::Decided { go, notes, wake_at_ms } = decided;
        stepped.notes.extend(notes);
        stepped.wake_at_ms = stepped.wake_at_ms.into_iter().chain(wake_at_ms).min();
        if !go.is_empty() {
            self.audit.tell(&taken.who, &passes::links(&go, now_ms))?;
            stepped.actions.extend(self.transfers.take(&self.store, go, now_ms)?);
            self.watcher.list_again();
        }
        Ok(())
    }

    /// Carries out what operators asked for. Returns the requests to remove once
    /// the state is durable.
    fn orders(
        &self,
        file: &mut RolloutFile,
        now_ms: u64,
        stepped: &mut Stepped,
    ) -> Result<Vec<String>, RolloutError> {
        let names = request::names(&self.store)?;
        if names.is_empty() {
            return Ok(names);
        }
        file.taken_requests.retain(|name| names.contains(name));
        for name in &names {
            if !file.taken_requests.insert(name.clone()) {
                continue;
            }
            if let Some(request) = request::read(&self.store, name)? {
                carry_out(&request, file, now_ms, stepped);
            }
        }
        Ok(names)
    }

    fn views(
        &self,
        composition: &CompositionName,
        rings: &BTreeMap<RingKey, GenerationId>,
        policy: &RolloutPolicy,
    ) -> Result<BTreeMap<RingName, RingView>, RolloutError> {
        let mut views = BTreeMap::new();
        for ring in &policy.rings {
            let key = (composition.clone(), ring.name.clone());
            let linked = rings.get(&key).copied();
            let known = self.file.compositions.contains_key(composition);
            // Only a state that is made anew needs the link's age.
            let linked_at_ms = match linked {
                Some(_) if !known => self.store.ring_moved_at(composition, &ring.name)?,
                _ => None,
            };
            let view = RingView {
                linked,
                linked_at_ms: linked_at_ms.map(crate::state::milliseconds),
                staged: rings.contains_key(&(composition.clone(), staged_ring(&ring.name))),
                health: self.watcher.health(&key),
            };
            views.insert(ring.name.clone(), view);
        }
        Ok(views)
    }

    /// Tells the watcher which rings are waited for.
    fn want(&mut self, taken: &Taken) -> Result<(), RolloutError> {
        let mut wanted = BTreeMap::new();
        for (composition, state) in &self.file.compositions {
            let waits = state.is_active() && state.halted.is_none() && state.paused.is_none();
            if !waits {
                continue;
            }
            for ring in taken.policy.rings.iter() {
                let moved = state.rings.get(&ring.name).is_some_and(|at| at.at == state.target);
                let (gated, batch) = (ring.gate.is_some(), ring.swapping);
                if gated && (moved || batch.is_some()) {
                    let batch = batch.unwrap_or(0) as usize;
                    let wish = Wanted { target: state.target, batch };
                    wanted.insert((composition.clone(), ring.name.clone()), wish);
                }
            }
        }
        for (key, wish) in self.transfers.wanted(&self.file.compositions, &taken.policy) {
            wanted.entry(key).or_insert(wish);
        }
        self.watcher.want(&wanted)
    }

    /// The state of a composition's rollout.
    pub fn state(&self, composition: &CompositionName) -> Option<&RolloutState> {
        self.file.compositions.get(composition)
    }
}

fn records(events: &mut Vec<Event>, now_ms: u64) -> Vec<EventRecord> {
    events.drain(..).map(|event| EventRecord::new(now_ms, event)).collect()
}

fn carry_out(request: &Request, file: &mut RolloutFile, now_ms: u64, stepped: &mut Stepped) {
    let Request { by, reason, .. } = request;
    let why = if reason.is_empty() { format!("by {by}") } else { format!("{reason} (by {by})") };
    match &request.ask {
        Ask::Rollout { composition, order } => {
            let command = Command { order: order.clone(), reason: why };
            for (name, state) in &mut file.compositions {
                if composition.as_ref().is_some_and(|composition| composition != name) {
                    continue;
                }
                match apply_command(name, state, &command, now_ms) {
                    Ok((next, events)) => {
                        *state = next;
                        let record = |event| EventRecord::new(now_ms, event).by(by);
                        stepped.events.extend(events.into_iter().map(record));
                    }
                    Err(error) if composition.is_some() => {
                        tracing::warn!(%error, by, "an order was refused");
                    }
                    // An order to all is for those that it makes sense for.
                    Err(_) => {}
                }
            }
        }
        Ask::ConfirmRemovals { token } => file.confirmed_removals = Some(token.clone()),
    }
}

/// The ring of a link, whether its VAs move in batches or not.
pub fn ring_of(ring: &RingName) -> RingName {
    base_ring(ring).0
}

/// Writes an event to the log.
pub fn log(record: &EventRecord) {
    use strata_core::event::Importance;
    let event = &record.event;
    let kind = event.kind();
    match event.importance() {
        Importance::Info => tracing::info!(kind, "{event}"),
        Importance::Warning => tracing::warn!(kind, "{event}"),
        Importance::Error => tracing::error!(kind, "{event}"),
    }
}

/// Whether the event says that an operator's order changed something.
pub fn is_order(event: &Event) -> bool {
    matches!(event, Event::Paused { .. } | Event::Resumed { .. } | Event::Promoted { .. })
}
