//! Links of VAs that a commit gives to another template or ring. When they may be moved
//! is decided in `strata_core::rollout::transfer`; here is known who waits.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use strata_core::links::VaTarget;
use strata_core::plan::{Action, Desired, Note};
use strata_core::rollout::policy::RolloutPolicy;
use strata_core::rollout::transfer::{Destination, Hold, TransferInput, transfers};
use strata_core::rollout::{RingHealth, RolloutState};
use strata_core::{CompositionName, GenerationId, MacAddr, RingName};
use strata_store::{Store, StoreError};

use super::watcher::{RingKey, Wanted};

/// Who waits to be moved, since the last pass.
#[derive(Debug, Default)]
pub struct Pending {
    /// Actions that move links, by where these lead then.
    moves: BTreeMap<RingKey, BTreeMap<MacAddr, Action>>,
    last_moved: BTreeMap<RingKey, u64>,
    /// Templates to which nobody can go, however the VAs do.
    closed: BTreeSet<CompositionName>,
}

/// Links of VAs that go to a template, and not yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaitingMoves {
    pub composition: CompositionName,
    /// The first ring that they wait for.
    pub ring: RingName,
    pub vas: u64,
    pub why: String,
}

impl WaitingMoves {
    /// For the report of a pass, and for people.
    pub fn note(&self) -> Note {
        let WaitingMoves { composition, ring, vas, why } = self.clone();
        Note::MovesWait { composition, ring, vas, why }
    }
}

/// What a look at those who wait came to.
#[derive(Debug, Default)]
pub struct Decided {
    pub go: Vec<Action>,
    pub waiting: Vec<WaitingMoves>,
    pub wake_at_ms: Option<u64>,
}

impl Pending {
    /// What the plan of a commit says.
    ///
    /// # Errors
    /// Links cannot be looked at.
    pub fn new(store: &Store, moves: Vec<Action>, desired: &Desired) -> Result<Self, StoreError> {
        let mut pending = Pending::default();
        for action in moves {
            let Action::LinkVa { mac, to: VaTarget::Ring { composition, ring }, .. } = &action
            else {
                continue;
            };
            let (mac, key) = (*mac, (composition.clone(), ring.clone()));
            pending.moves.entry(key).or_default().insert(mac, action);
        }
        let compositions: BTreeSet<_> = pending.moves.keys().map(|(name, _)| name).collect();
        let mut last_moved = BTreeMap::new();
        for (mac, va) in &desired.appliances {
            if !compositions.contains(&va.composition) {
                continue;
            }
            let key = (va.composition.clone(), va.ring.clone());
            let waits = pending.moves.get(&key).is_some_and(|waiting| waiting.contains_key(mac));
            if let (false, Some(at)) = (waits, store.va_moved_at(*mac)?) {
                let at_ms = crate::state::milliseconds(at);
                let last = last_moved.entry(key).or_insert(at_ms);
                *last = at_ms.max(*last);
            }
        }
        pending.last_moved = last_moved;
        Ok(pending)
    }

    /// Says whose pin has ended: what was said before counts no more.
    pub fn set_unpinned(&mut self, unpinned: Vec<Action>) {
        let is_pinned = |action: &Action| {
            matches!(action, Action::LinkVa { from: Some(VaTarget::Pinned { .. }), .. })
        };
        self.moves.retain(|_, waiting| {
            waiting.retain(|_, action| !is_pinned(action));
            !waiting.is_empty()
        });
        for action in unpinned {
            if let Action::LinkVa { mac, to: VaTarget::Ring { composition, ring }, .. } = &action {
                let (mac, key) = (*mac, (composition.clone(), ring.clone()));
                self.moves.entry(key).or_default().insert(mac, action);
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.moves.is_empty()
    }

    /// The rings whose VAs must be looked at before others may go.
    pub fn wanted(
        &self,
        states: &BTreeMap<CompositionName, RolloutState>,
        policy: &RolloutPolicy,
    ) -> BTreeMap<RingKey, Wanted> {
        let mut wanted = BTreeMap::new();
        let compositions: BTreeSet<_> = self.moves.keys().map(|(name, _)| name).collect();
        for composition in compositions.into_iter().filter(|name| !self.closed.contains(*name)) {
            let Some(state) = states.get(composition) else { continue };
            let key = |ring: &RingName| (composition.clone(), ring.clone());
            let waits = |ring: &RingName| self.moves.contains_key(&key(ring));
            for (index, ring) in policy.rings.iter().enumerate() {
                let before = policy.rings[index + 1..].iter().any(|later| waits(&later.name));
                let looked_at = (ring.gate.is_some() && before)
                    || (ring.swapping.is_some() && waits(&ring.name));
                let at = state.rings.get(&ring.name).map(|ring| ring.at);
                if looked_at && at == Some(state.target) {
                    let deadline_ms = ring.gate.unwrap_or_default().deadline_ms;
                    let target = state.target;
                    let wish = Wanted { target, batch: 0, deadline_ms, since_ms: None };
                    wanted.insert(key(&ring.name), wish);
                }
            }
        }
        wanted
    }

    /// Decides who goes now.
    pub fn decide(
        &mut self,
        store: &Store,
        states: &BTreeMap<CompositionName, RolloutState>,
        policy: &RolloutPolicy,
        health: impl Fn(&RingKey) -> Option<RingHealth>,
        now_ms: u64,
    ) -> Decided {
        let mut decided = Decided::default();
        let mut served = Served { store, rings: BTreeMap::new() };
        self.closed.clear();
        let compositions: BTreeSet<_> = self.moves.keys().map(|(name, _)| name.clone()).collect();
        for composition in &compositions {
            let mut rings: BTreeMap<RingName, Destination> = BTreeMap::new();
            let (mut go, mut left) = (BTreeSet::new(), None);
            for policy in &policy.rings {
                let key = (composition.clone(), policy.name.clone());
                let (health, last_moved_at_ms) = (health(&key), self.last_moved.get(&key).copied());
                let destination =
                    Destination { health, last_moved_at_ms, ..Destination::default() };
                rings.insert(policy.name.clone(), destination);
            }
            for ((_, ring), moves) in self.moves.iter().filter(|((name, _), _)| name == composition)
            {
                for (mac, action) in moves {
                    match rings.get_mut(ring).filter(|_| served.swaps(action)) {
                        Some(destination) => match paused(states, action, composition) {
                            Some(hold) => {
                                left.get_or_insert_with(|| (ring.clone(), hold));
                            }
                            None => destination.waiting.push(*mac),
                        },
                        // Nothing in the VA changes, or the ring has no order.
                        None => {
                            go.insert(*mac);
                        }
                    }
                }
            }
            let state = states.get(composition);
            let input = TransferInput { composition, policy, state, rings: &rings, now_ms };
            let found = transfers(&input);
            go.extend(found.go);
            let wake = decided.wake_at_ms.into_iter().chain(found.wake_at_ms);
            decided.wake_at_ms = wake.min();
            if found.hold.as_ref().is_some_and(|(_, hold)| hold.is_of_template()) {
                self.closed.insert(composition.clone());
            }
            if let Some((ring, hold)) = found.hold.or(left) {
                let moves = self.moves.iter().filter(|((name, _), _)| name == composition);
                let all = moves.map(|(_, moves)| moves.len()).sum::<usize>();
                let (vas, why) = ((all - go.len()) as u64, hold.to_string());
                let composition = composition.clone();
                decided.waiting.push(WaitingMoves { composition, ring, vas, why });
            }
            let moves = self.moves.iter().filter(|((name, _), _)| name == composition);
            let actions = moves.flat_map(|(_, moves)| moves.iter());
            let gone = actions.filter(|(mac, _)| go.contains(*mac));
            decided.go.extend(gone.map(|(_, action)| action.clone()));
        }
        decided
    }

    /// Moves links. Whoever was moved, pinned or destroyed meanwhile is left alone. Returns
    /// the moves that were taken.
    ///
    /// # Errors
    /// The first link that cannot be moved; those before it are.
    pub fn take(
        &mut self,
        store: &Store,
        go: Vec<Action>,
        now_ms: u64,
    ) -> Result<Vec<Action>, StoreError> {
        let mut taken = Vec::new();
        for action in go {
            let Action::LinkVa { name, mac, from: Some(from), to } = &action else { continue };
            let found = match store.va_target(*mac) {
                Err(error) if error.is_foreign_link() => None,
                found => found?,
            };
            let is_there = found.as_ref() == Some(from);
            if is_there {
                store.move_va(*mac, to)?;
                tracing::info!(va = %name, %mac, composition = %to.composition(), "VA moved");
            }
            if let VaTarget::Ring { composition, ring } = to {
                let key = (composition.clone(), ring.clone());
                if let Some(waiting) = self.moves.get_mut(&key) {
                    waiting.remove(mac);
                    if waiting.is_empty() {
                        self.moves.remove(&key);
                    }
                }
                self.last_moved.insert(key, now_ms);
            }
            if is_there {
                taken.push(action);
            }
        }
        Ok(taken)
    }
}

/// Why nobody leaves the template that an action takes a VA from: somebody paused it.
fn paused(
    states: &BTreeMap<CompositionName, RolloutState>,
    action: &Action,
    to: &CompositionName,
) -> Option<Hold> {
    let Action::LinkVa { from: Some(VaTarget::Ring { composition, .. }), .. } = action else {
        return None;
    };
    let state = states.get(composition).filter(|_| composition != to)?;
    Hold::of_pause(composition, state)
}

/// The generations of rings, each looked up once.
struct Served<'s> {
    store: &'s Store,
    rings: BTreeMap<RingKey, Option<GenerationId>>,
}

impl Served<'_> {
    /// Whether a VA that runs changes what it serves by this.
    fn swaps(&mut self, action: &Action) -> bool {
        let Action::LinkVa { from: Some(from), to, .. } = action else { return false };
        match self.generation(from) {
            // Nothing runs in a ring without a generation.
            None => false,
            before => before != self.generation(to),
        }
    }

    fn generation(&mut self, target: &VaTarget) -> Option<GenerationId> {
        match target {
            VaTarget::Pinned { generation, .. } => Some(*generation),
            VaTarget::Ring { composition, ring } => {
                let key = (composition.clone(), ring.clone());
                let store = self.store;
                let look = || store.ring(composition, ring).ok().flatten();
                *self.rings.entry(key).or_insert_with(look)
            }
        }
    }
}
