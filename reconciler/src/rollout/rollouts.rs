//! All rollouts of a store: one owner for their state, their links and what is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use strata_core::audit::Who;
use strata_core::event::{Event, EventRecord};
use strata_core::links::VaTarget;
use strata_core::plan::{Action, Note};
use strata_core::rollout::policy::{RolloutPolicy, base_ring, staged_ring};
use strata_core::rollout::{
    Advance, Command, Input, RingView, RolloutState, Waiting, advance, apply_command,
};
use strata_core::{CompositionName, GenerationId, MacAddr, RingName};
use strata_machine::MachineError;
use strata_store::{RingLinks, Store, StoreError};
use tracing::Span;

use super::file::{self, RolloutFile, RolloutFileError};
use super::moves::{self, MoveError};
use super::pins;
use super::prune;
use super::rebuild::{self, Told};
use super::request::{self, Ask, Request};
use super::taken::{Taken, Wish, wishes};
use super::transfers::{self, Pending, WaitingMoves};
use super::watcher::{Checks, Looks, RingKey, Wanted, Watcher};
use crate::audit::{AuditError, AuditLog, passes};
use crate::pass::tampered;
use crate::traces::spans::{self, Origin};

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
    /// Where the moves are in a trace.
    pub trace: Origin,
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
    /// Rings in the place of whose links something stands, of which was told, and whether it
    /// was said that it is set aside.
    foreign: BTreeSet<(RingKey, bool)>,
    /// Whether this process ends after one pass.
    once: bool,
    /// What rollouts go by while no commit can be taken.
    policy: Arc<RolloutPolicy>,
}

impl Rollouts {
    /// Reads what is remembered. Where that is gone, the next step makes it anew.
    ///
    /// # Errors
    /// The state is damaged.
    pub fn open(store: Arc<Store>, audit: Arc<AuditLog>, once: bool) -> Result<Self, RolloutError> {
        let found = RolloutFile::find(&store)?;
        let lost = match found.is_none() && !store.rings()?.is_empty() {
            true => Some(rebuild::replay(&store)?),
            false => None,
        };
        let file = found.unwrap_or_default();
        audit.expect(file.audited);
        let watcher = Watcher::new(store.clone());
        let (transfers, policy) = (Pending::default(), Arc::new(file.remembered_policy()));
        let (unreadable_pins, foreign) = (BTreeSet::new(), BTreeSet::new());
        Ok(Rollouts {
            store,
            file,
            watcher,
            transfers,
            audit,
            lost,
            unreadable_pins,
            foreign,
            once,
            policy,
        })
    }

    /// Says which VAs a commit gives to another template or ring: they go with the next
    /// steps, each when it may.
    pub fn set_transfers(&mut self, transfers: Pending) {
        self.transfers = transfers;
    }

    /// Takes the next step of every rollout: orders, then what the links and the
    /// VAs ask for. In a process that ends after it, health checks are waited for.
    ///
    /// Without a commit (it cannot be judged any more, or not yet) what was wanted last
    /// stays wanted: orders, pins, links and rings that fail are looked after, and no
    /// ring moves to its target, as nobody knows the checks of its template.
    ///
    /// # Errors
    /// The store cannot be used. One composition whose links cannot be moved does
    /// not keep the others from theirs; it is in [`Stepped::failed`].
    pub fn step(
        &mut self,
        taken: Option<&Taken>,
        whole: bool,
        checks: &mut dyn Checks,
        (now_ms, cancelled): (u64, &AtomicBool),
    ) -> Result<Stepped, RolloutError> {
        let mut stepped = Stepped::default();
        let mut file = self.file.clone();
        match taken {
            Some(taken) => self.recover(taken, &mut file, now_ms, &mut stepped)?,
            // What was wanted is not known: whatever was asked for waits.
            None if self.lost.is_some() => return Ok(stepped),
            None => {}
        }
        let requests = self.orders(&mut file, now_ms, &mut stepped)?;
        // A process that has just started knows nothing yet of what is waited for.
        let policy = match taken {
            Some(taken) => Arc::new(taken.policy.clone()),
            None => self.policy.clone(),
        };
        self.want(&policy, now_ms)?;
        let looks = match (self.once, whole) {
            (true, _) => Looks::Last { cancelled },
            (false, true) => Looks::Whole,
            (false, false) => Looks::Some,
        };
        self.watcher.tick(looks, checks, now_ms)?;
        let RingLinks { rings, foreign } = self.store.ring_links()?;
        let who = taken.map(|taken| taken.who.clone()).unwrap_or_default();
        let told = self.set_aside(foreign, &file, (&who, now_ms))?;
        let mut moves = Vec::new();
        if let Some(taken) = taken {
            file.drift = Some(taken.policy.drift.clone());
            file.silent_days = Some(taken.policy.silent_days);
            if file.policy.as_ref() != Some(&taken.policy_text) {
                file.policy = Some(taken.policy_text.clone());
            }
            file.compositions.retain(|name, _| taken.desired.compositions.contains_key(name));
        }
        for Wish { composition, target, commit, checks } in wishes(taken, &file) {
            let composition = &composition;
            let views = self.views(composition, &rings, &policy, now_ms)?;
            let input = Input {
                composition,
                policy: &policy,
                target,
                commit: &commit,
                checks,
                forward: taken.is_some(),
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
        let removals = match taken {
            Some(Taken { desired, policy, .. }) => {
                let limit = policy.prune;
                prune::decide(&self.store, &mut file, desired, &rings, limit, &mut events)?
            }
            None => prune::Decided::default(),
        };
        events.extend(removals.events());
        stepped.events.extend(records(&mut events, now_ms));
        let span = match moves.len() {
            0 => Span::none(),
            many => {
                let commit = taken.map(|taken| taken.commit.as_str());
                // Between passes it is a trace of its own.
                let after = taken.map(|taken| &taken.origin).filter(|_| !whole);
                spans::rollout(commit, many, after)
            }
        };
        stepped.trace = Origin::of(&span);
        let _moves = span.entered();
        // What is decided is told before it is done: a crash may tell it twice.
        self.audit.tell(&who, &stepped.events)?;
        stepped.events.extend(told);
        self.keep(file)?;
        self.lost = None;
        for name in &requests {
            request::remove(&self.store, name)?;
        }
        self.take(&moves, &mut stepped)?;
        self.look_after_pins(taken, &policy, now_ms, &mut stepped)?;
        if let Some(taken) = taken {
            self.transfer(taken, now_ms, &mut stepped)?;
        }
        prune::take(&self.store, removals)?;
        self.want(&policy, now_ms)?;
        self.policy = policy;
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
            let views = self.views(composition, &rings, &taken.policy, now_ms)?;
            let input = Input {
                composition,
                policy: &taken.policy,
                target: *target,
                commit: &taken.commit,
                checks: Some(taken.checks_of(composition)),
                forward: true,
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
    fn keep(&mut self, mut file: RolloutFile) -> Result<(), RolloutError> {
        if file != self.file {
            file.audited = self.audit.mark().or(file.audited);
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
        for (number, (composition, moves)) in moves.iter().enumerate() {
            let span = spans::template(number, composition, moves.len());
            match spans::step(&span, || moves::take(&self.store, composition, moves)) {
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

    /// Sets aside what somebody put in the place of rings' links; as one without a link no VA
    /// can start, they come back in this step. What cannot be set aside is told once, and tried
    /// again by the next step. Returns what was told of it.
    fn set_aside(
        &mut self,
        foreign: Vec<(CompositionName, RingName, StoreError)>,
        file: &RolloutFile,
        (who, now_ms): (&Who, u64),
    ) -> Result<Vec<EventRecord>, RolloutError> {
        let mut told = Vec::new();
        let known = std::mem::take(&mut self.foreign);
        for (composition, ring, found) in foreign {
            let state = file.compositions.get(&composition);
            if !state.is_some_and(|state| state.rings.contains_key(&ring)) {
                let key = ((composition, ring), false);
                if !known.contains(&key) {
                    tracing::warn!(error = %found, "a ring's link is passed over");
                }
                self.foreign.insert(key);
                continue;
            }
            let aside = self.store.aside(&format!("ring-{composition}-{ring}"), now_ms);
            let key = ((composition, ring), aside.is_ok());
            let (composition, ring) = &key.0;
            let is_news = !known.contains(&key);
            if is_news {
                let path = format!("rings/{composition}/{ring}");
                let event = tampered(&self.store, &path, &found, aside.as_deref().ok());
                let record = EventRecord::new(now_ms, event);
                self.audit.tell(who, std::slice::from_ref(&record))?;
                told.push(record);
            }
            let done = aside.and_then(|aside| self.store.set_ring_aside(composition, ring, &aside));
            if let Err(error) = done {
                if is_news {
                    tracing::error!(%error, "what stands in the place of a ring's link stays");
                }
                self.foreign.insert(key);
            }
        }
        Ok(told)
    }

    /// Ends pins that have expired, and finishes those that were cut short.
    fn look_after_pins(
        &mut self,
        taken: Option<&Taken>,
        policy: &RolloutPolicy,
        now_ms: u64,
        stepped: &mut Stepped,
    ) -> Result<(), RolloutError> {
        let who = taken.map(|taken| taken.who.clone()).unwrap_or_default();
        let rules = pins::Rules { desired: taken.map(|taken| &taken.desired), policy, now_ms };
        let unreadable = &mut self.unreadable_pins;
        let (declared, adopted) = (&self.file.declared, &self.file.adopted);
        let wanted = |mac: &MacAddr| declared.contains_key(mac) || adopted.contains_key(mac);
        let looked = pins::look_after(&self.store, rules, unreadable, wanted, |events| {
            self.audit.tell(&who, &events)?;
            stepped.events.extend(events);
            Ok(())
        })?;
        let pins::LookedAfter { moves, notes, wake_at_ms } = looked;
        stepped.notes.extend(notes);
        stepped.wake_at_ms = stepped.wake_at_ms.into_iter().chain(wake_at_ms).min();
        self.transfers.set_unpinned(moves);
        Ok(())
    }

    /// Moves the VAs whose turn it is to their other template or ring.
    fn transfer(
        &mut self,
        taken: &Taken,
        now_ms: u64,
        stepped: &mut Stepped,
    ) -> Result<(), RolloutError> {
        if self.transfers.is_empty() {
            return self.keep_waiting(Vec::new());
        }
        let (states, watcher) = (&self.file.compositions, &self.watcher);
        let health = |key: &RingKey| watcher.health(key, now_ms);
        let decided = self.transfers.decide(&self.store, states, &taken.policy, health, now_ms);
        let transfers::Decided { go, waiting, wake_at_ms } = decided;
        stepped.notes.extend(waiting.iter().map(WaitingMoves::note));
        stepped.wake_at_ms = stepped.wake_at_ms.into_iter().chain(wake_at_ms).min();
        if !go.is_empty() {
            self.audit.tell(&taken.who, &passes::links(&go, now_ms))?;
            stepped.actions.extend(self.transfers.take(&self.store, go, now_ms)?);
            self.watcher.list_again();
            let is_pin = |target: &VaTarget| matches!(target, VaTarget::Pinned { .. });
            let was_pinned = |action: &Action| match action {
                Action::LinkVa { from, .. } => from.as_ref().is_some_and(is_pin),
                _ => false,
            };
            if stepped.actions.iter().any(was_pinned) {
                // What is left of their pins goes with the next step.
                stepped.wake_at_ms = Some(now_ms);
            }
        }
        self.keep_waiting(waiting)
    }

    /// Remembers, for commands, which links are to be moved and wait.
    fn keep_waiting(&mut self, waiting: Vec<WaitingMoves>) -> Result<(), RolloutError> {
        if waiting == self.file.moves_waiting {
            return Ok(());
        }
        self.keep(RolloutFile { moves_waiting: waiting, ..self.file.clone() })
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
        now_ms: u64,
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
                health: self.watcher.health(&key, now_ms),
            };
            views.insert(ring.name.clone(), view);
        }
        Ok(views)
    }

    /// Tells the watcher which rings are waited for.
    fn want(&mut self, policy: &RolloutPolicy, now_ms: u64) -> Result<(), RolloutError> {
        let up_since_ms = up_since_ms(now_ms);
        let mut wanted = BTreeMap::new();
        for (composition, state) in &self.file.compositions {
            let waits = state.is_active() && state.halted.is_none() && state.paused.is_none();
            if !waits {
                continue;
            }
            for ring in &policy.rings {
                let at = state.rings.get(&ring.name);
                let moved = at.is_some_and(|at| at.at == state.target);
                let (gated, batch) = (ring.gate.is_some(), ring.swapping);
                if gated && (moved || batch.is_some()) {
                    let batch = batch.unwrap_or(0) as usize;
                    let deadline_ms = ring.gate.unwrap_or_default().deadline_ms;
                    // One process after the other looks: what the last ones waited for
                    // is waited for on. Where the whole host was off, VAs were too.
                    let since_ms = at.and_then(|at| at.short_since_ms).filter(|_| self.once);
                    let since_ms = since_ms.map(|since_ms| since_ms.max(up_since_ms));
                    let wish = Wanted { target: state.target, batch, deadline_ms, since_ms };
                    wanted.insert((composition.clone(), ring.name.clone()), wish);
                }
            }
        }
        for (key, wish) in self.transfers.wanted(&self.file.compositions, policy) {
            wanted.entry(key).or_insert(wish);
        }
        self.watcher.want(&wanted)
    }

    /// The state of a composition's rollout.
    pub fn state(&self, composition: &CompositionName) -> Option<&RolloutState> {
        self.file.compositions.get(composition)
    }
}

/// Since when this host has been up.
fn up_since_ms(now_ms: u64) -> u64 {
    let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let up_ms = u64::try_from(up.tv_sec).unwrap_or(0).saturating_mul(1000);
    now_ms.saturating_sub(up_ms)
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
        // Every step does.
        Ask::LookAfterPins => {}
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
