//! Pins: VAs that an operator holds at one generation, with a reason and until when
//! (`docs/formats.md`, "Pins").
//!
//! The record is the wish and comes first, the link follows; a pin that was cut short
//! is finished by the reconciler, and one that has expired is taken back by it: first
//! the link, then the record. Who changes the two, changes them under one lock: commands
//! and the reconciler are different processes.
//!
//! A pin that ends swaps its VA, so it ends by the rules that hold for others: a VA that a
//! commit gave to another template or ring meanwhile goes there as those do that a commit
//! moves ([`super::transfers`]), and none swaps while its ring is frozen or its window is
//! closed. The record stays until then.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use strata_core::event::{Event, EventRecord};
use strata_core::links::VaTarget;
use strata_core::plan::{Action, Desired, Note};
use strata_core::rollout::policy::{RolloutPolicy, base_ring};
use strata_core::rollout::schedule::Opening;
use strata_core::rollout::transfer::Hold;
use strata_core::{CompositionName, GenerationId, MacAddr, RingName};
use strata_machine::{MachineError, Machines};
use strata_store::{Store, StoreError, StoreLock};

use super::file::{RolloutFile, RolloutFileError};
use super::rollouts::RolloutError;
use crate::state::milliseconds;

const VERSION: u32 = 1;
const DIRECTORY: &str = "pins";
const PIN_BYTES: usize = 64 << 10;
const LOCK: &str = "pins";
/// How long a command waits for the others, and the reconciler, which has more to do.
const PATIENCE: Duration = Duration::from_secs(10);
const SHORT_PATIENCE: Duration = Duration::from_millis(100);
/// When the reconciler looks again where a command held it up.
const LOOK_AGAIN_MS: u64 = 500;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    pub version: u32,
    pub mac: MacAddr,
    pub composition: CompositionName,
    pub generation: GenerationId,
    /// Where the VA belongs when the pin ends.
    pub ring: RingName,
    pub reason: String,
    pub by: String,
    pub since_ms: u64,
    pub expires_at_ms: Option<u64>,
    /// Where the last commit that was taken wants the VA, if that is elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follows: Option<Place>,
    /// Who ended it, while the VA waits to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_by: Option<String>,
}

/// A ring of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    pub composition: CompositionName,
    pub ring: RingName,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.composition, self.ring)
    }
}

/// What came of ending a pin.
#[derive(Debug)]
pub struct Unpinned {
    /// Where the VA goes.
    pub to: Place,
    /// Whether it has gone there; else the reconciler lets it when it may.
    pub gone: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the VA has no link in the store")]
    NoLink,
    #[error("the VA is pinned, and {}, which would say where it belongs, is gone or damaged", .0.display())]
    Lost(PathBuf),
    #[error("{composition} has no ring {ring}")]
    NoRing { composition: CompositionName, ring: RingName },
    #[error("the VA is not pinned")]
    NotPinned,
    #[error(transparent)]
    Rollouts(#[from] RolloutFileError),
    #[error("{generation} is a generation of {found}, the VA runs {expected}")]
    Other { generation: String, found: CompositionName, expected: CompositionName },
}

fn file(mac: MacAddr) -> String {
    format!("{DIRECTORY}/{mac}.json")
}

/// Pins a VA, or pins it otherwise.
///
/// # Errors
/// The generation is not there or of another composition, or the store cannot be
/// written.
pub fn pin(
    store: &Store,
    mac: MacAddr,
    generation: GenerationId,
    expires_at_ms: Option<u64>,
    (reason, by, now_ms): (String, String, u64),
) -> Result<Pin, PinError> {
    let _lock = store.lock_within(LOCK, PATIENCE)?;
    let (composition, ring, follows) = match store.va_target(mac)?.ok_or(PinError::NoLink)? {
        VaTarget::Ring { composition, ring } => (composition, base_ring(&ring).0, None),
        VaTarget::Pinned { .. } => {
            let pin = read(store, mac)?.ok_or_else(|| PinError::Lost(store.state(&file(mac))))?;
            (pin.composition, pin.ring, pin.follows)
        }
    };
    let found = store.generation(&generation)?.composition().clone();
    if found != composition {
        let (generation, expected) = (generation.short(), composition);
        return Err(PinError::Other { generation, found, expected });
    }
    let place = Place { composition, ring };
    let pin = Pin {
        reason,
        by,
        since_ms: now_ms,
        expires_at_ms,
        follows,
        ..Pin::new(mac, generation, place)
    };
    write(store, &pin)?;
    store.move_va(mac, &pin.target())?;
    Ok(pin)
}

fn write(store: &Store, pin: &Pin) -> Result<(), StoreError> {
    store.disk().create_directory(&store.state(DIRECTORY))?;
    let mut text = serde_json::to_vec(pin).expect("plain fields serialise");
    text.push(b'\n');
    store.write_state(&file(pin.mac), &text)
}

/// Lets a VA follow its ring again: `ring`, where the record that says which is gone. One
/// that may not go now is left to the reconciler.
///
/// # Errors
/// It is not pinned, nothing says which ring it belongs to, or the store cannot be
/// written.
pub fn unpin(
    store: &Store,
    mac: MacAddr,
    ring: Option<&RingName>,
    by: &str,
) -> Result<Unpinned, PinError> {
    let _lock = store.lock_within(LOCK, PATIENCE)?;
    let pin = match read(store, mac)? {
        Some(pin) => pin,
        None => lost_pin(store, mac, ring)?,
    };
    let (policy, now_ms) =
        (RolloutFile::read(store)?.remembered_policy(), milliseconds(SystemTime::now()));
    let to = pin.follows.clone().unwrap_or_else(|| pin.place());
    let gone = pin.follows.is_none() && closed(store, &pin, &policy, now_ms)?.is_none();
    match gone {
        true => release(store, &pin)?,
        false => {
            let (expires_at_ms, released_by) = (Some(now_ms), Some(by.to_owned()));
            write(store, &Pin { expires_at_ms, released_by, ..pin })?;
        }
    }
    Ok(Unpinned { to, gone })
}

/// Why a VA may not go back to its own ring now, and when that ends. One that goes on with
/// the same generation may always.
fn closed(
    store: &Store,
    pin: &Pin,
    policy: &RolloutPolicy,
    now_ms: u64,
) -> Result<Option<(Hold, Option<u64>)>, StoreError> {
    let linked = match store.ring(&pin.composition, &pin.ring) {
        Err(error) if error.is_foreign_link() => None,
        linked => linked?,
    };
    if linked.is_none_or(|linked| linked == pin.generation) {
        return Ok(None);
    }
    Ok(match policy.schedule.opening(&pin.composition, &pin.ring, now_ms) {
        Opening::Open => None,
        Opening::Closed { until_ms, freeze } => {
            Some((freeze.map_or(Hold::Window, |reason| Hold::Freeze { reason }), until_ms))
        }
    })
}

/// The pin of a VA whose record is gone, as far as it takes to end it.
fn lost_pin(store: &Store, mac: MacAddr, ring: Option<&RingName>) -> Result<Pin, PinError> {
    let Some(VaTarget::Pinned { composition, generation }) = store.va_target(mac)? else {
        return Err(PinError::NotPinned);
    };
    let ring = ring.ok_or_else(|| PinError::Lost(store.state(&file(mac))))?.clone();
    if store.ring(&composition, &ring)?.is_none() {
        return Err(PinError::NoRing { composition, ring });
    }
    Ok(Pin::new(mac, generation, Place { composition, ring }))
}

/// The record of a VA's pin, which nobody else changes while it is held.
#[derive(Debug)]
pub struct Held<'s> {
    store: &'s Store,
    mac: MacAddr,
    _lock: StoreLock,
}

/// Holds the record of a VA's pin, readable or not, where there is one.
///
/// # Errors
/// Others hold pins for too long, or the store cannot be used.
pub fn hold(store: &Store, mac: MacAddr) -> Result<Option<Held<'_>>, StoreError> {
    let lock = store.lock_within(LOCK, PATIENCE)?;
    let is_there = store.state(&file(mac)).symlink_metadata().is_ok();
    Ok(is_there.then_some(Held { store, mac, _lock: lock }))
}

impl Held<'_> {
    /// Removes it: its VA is gone, and whoever has its address next is not pinned.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn forget(self) -> Result<(), StoreError> {
        self.store.disk().remove_file(&self.store.state(&file(self.mac)))
    }
}

fn release(store: &Store, pin: &Pin) -> Result<(), StoreError> {
    let ring = VaTarget::Ring { composition: pin.composition.clone(), ring: pin.ring.clone() };
    // A VA that was destroyed or moved meanwhile is not brought back.
    if matches!(store.va_target(pin.mac), Ok(Some(VaTarget::Pinned { .. }))) {
        store.move_va(pin.mac, &ring)?;
    }
    store.disk().remove_file(&store.state(&file(pin.mac)))
}

impl Pin {
    /// That of a VA of this ring, for no reason that is known and for ever.
    fn new(mac: MacAddr, generation: GenerationId, place: Place) -> Self {
        let Place { composition, ring } = place;
        Pin {
            version: VERSION,
            mac,
            composition,
            generation,
            ring,
            reason: String::new(),
            by: String::new(),
            since_ms: 0,
            expires_at_ms: None,
            follows: None,
            released_by: None,
        }
    }

    /// Where its VA's link leads.
    pub fn target(&self) -> VaTarget {
        VaTarget::Pinned { composition: self.composition.clone(), generation: self.generation }
    }

    fn place(&self) -> Place {
        Place { composition: self.composition.clone(), ring: self.ring.clone() }
    }

    fn has_ended(&self, now_ms: u64) -> bool {
        self.expires_at_ms.is_some_and(|at_ms| at_ms <= now_ms)
    }

    /// Where a commit wants the VA, if that is not where it was pinned.
    fn elsewhere(&self, desired: &Desired) -> Option<Place> {
        let va = desired.appliances.get(&self.mac)?;
        let place = Place { composition: va.composition.clone(), ring: va.ring.clone() };
        Some(place).filter(|place| *place != self.place())
    }
}

/// The pin of a VA; `None` where it has none, and where its record is damaged: then the
/// VA's link tells that it is pinned.
///
/// # Errors
/// The store cannot be read.
pub fn read(store: &Store, mac: MacAddr) -> Result<Option<Pin>, StoreError> {
    let text = match store.read_state(&file(mac), PIN_BYTES) {
        Err(StoreError::TooLarge { .. } | StoreError::NotRegular(_)) => Vec::new(),
        Ok(None) => return Ok(None),
        text => text?.unwrap_or_default(),
    };
    let pin = serde_json::from_slice::<Pin>(&text).ok();
    Ok(pin.filter(|pin| pin.version == VERSION && pin.mac == mac))
}

/// All pins.
///
/// # Errors
/// The directory cannot be listed or a pin cannot be read.
pub fn all(store: &Store) -> Result<Vec<Pin>, StoreError> {
    Ok(records(store)?.into_iter().filter_map(|(_, pin)| pin).collect())
}

/// All VAs that have a record, and the pin, where it can be read.
fn records(store: &Store) -> Result<Vec<(MacAddr, Option<Pin>)>, StoreError> {
    let mut records = Vec::new();
    for name in store.state_names(DIRECTORY)? {
        let mac = name.strip_suffix(".json").and_then(|mac| mac.parse().ok());
        if let Some(mac) = mac {
            records.push((mac, read(store, mac)?));
        }
    }
    Ok(records)
}

/// What pins are looked after by.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'r> {
    /// What the commit wants that was taken, where one can be.
    pub desired: Option<&'r Desired>,
    pub policy: &'r RolloutPolicy,
    pub now_ms: u64,
}

/// What looking after pins came to.
#[derive(Debug, Default)]
pub struct LookedAfter {
    /// VAs whose pin has ended and that a commit wants elsewhere.
    pub moves: Vec<Action>,
    /// VAs whose pin has ended and that wait for their own ring.
    pub notes: Vec<Note>,
    /// When to look again.
    pub wake_at_ms: Option<u64>,
}

/// Ends what has expired or whose VA is gone, and finishes what was cut short; `tell` hears
/// of it before it is done. A VA is gone that has neither a link nor a machine and is not
/// `wanted`. Records that cannot be read are told once and added to `unreadable`.
///
/// # Errors
/// The store cannot be used, or `tell` fails: then nothing is done.
pub fn look_after(
    store: &Store,
    rules: Rules<'_>,
    unreadable: &mut BTreeSet<MacAddr>,
    wanted: impl Fn(&MacAddr) -> bool,
    tell: impl FnOnce(Vec<EventRecord>) -> Result<(), RolloutError>,
) -> Result<LookedAfter, RolloutError> {
    let mut looked = LookedAfter::default();
    if store.state_names(DIRECTORY)?.is_empty() {
        return Ok(looked);
    }
    let now_ms = rules.now_ms;
    let _lock = match store.lock_within(LOCK, SHORT_PATIENCE) {
        Err(StoreError::Locked(_)) => {
            tracing::debug!("a command changes pins");
            looked.wake_at_ms = Some(now_ms.saturating_add(LOOK_AGAIN_MS));
            return Ok(looked);
        }
        lock => lock?,
    };
    let mut waiting: BTreeMap<(CompositionName, RingName), (u64, String)> = BTreeMap::new();
    let (mut ended, mut cut_short) = (Vec::new(), Vec::new());
    for (mac, pin) in records(store)? {
        let Some(mut pin) = pin else {
            if unreadable.insert(mac) {
                let path = store.state(&file(mac));
                tracing::error!(
                    path = %path.display(),
                    "a pin cannot be read; its VA stays where it is, until: strata va unpin NAME --ring RING"
                );
            }
            continue;
        };
        if let Some(follows) = rules.desired.map(|desired| pin.elsewhere(desired))
            && pin.follows != follows
        {
            pin.follows = follows;
            write(store, &pin)?;
        }
        let (target, is_foreign) = match store.va_target(mac) {
            Err(error) if error.is_foreign_link() => (None, true),
            target => (target?, false),
        };
        let is_pinned = matches!(target, Some(VaTarget::Pinned { .. }));
        if !pin.has_ended(now_ms) {
            looked.wake_at_ms = looked.wake_at_ms.into_iter().chain(pin.expires_at_ms).min();
            match target {
                Some(VaTarget::Ring { .. }) => cut_short.push(pin),
                Some(VaTarget::Pinned { .. }) => {}
                None if is_foreign || wanted(&mac) || has_machine(store, mac)? => {}
                None => ended.push((pin, false)),
            }
        } else if let (true, Some(Place { composition, ring })) = (is_pinned, pin.follows.clone()) {
            let va = rules.desired.and_then(|desired| desired.appliances.get(&mac));
            let to = VaTarget::Ring { composition, ring };
            let action = |name| Action::LinkVa { name, mac, from: target, to };
            looked.moves.extend(va.map(|va| va.name.clone()).map(action));
        } else if is_pinned
            && let Some((hold, until_ms)) = closed(store, &pin, rules.policy, now_ms)?
        {
            looked.wake_at_ms = looked.wake_at_ms.into_iter().chain(until_ms).min();
            let key = (pin.composition, pin.ring);
            waiting.entry(key).or_insert_with(|| (0, hold.to_string())).0 += 1;
        } else {
            let expired = pin.released_by.is_none();
            ended.push((pin, expired));
        }
    }
    let note = |((composition, ring), (vas, why))| Note::MovesWait { composition, ring, vas, why };
    looked.notes.extend(waiting.into_iter().map(note));
    let unpinned = ended.iter().map(|(pin, expired)| {
        let event = Event::VaUnpinned { mac: pin.mac, expired: *expired };
        let record = EventRecord::new(now_ms, event);
        EventRecord { by: pin.released_by.clone(), ..record }
    });
    let finished = cut_short.iter().map(|pin| {
        let Pin { mac, generation, ref reason, expires_at_ms, .. } = *pin;
        let event = Event::VaPinned { mac, generation, reason: reason.clone(), expires_at_ms };
        EventRecord::new(now_ms, event)
    });
    tell(unpinned.chain(finished).collect())?;
    for (pin, _) in &ended {
        release(store, pin)?;
    }
    for pin in &cut_short {
        store.move_va(pin.mac, &pin.target())?;
    }
    Ok(looked)
}

/// Whether a VA of this address is on some host. One whose record cannot be read may be it.
fn has_machine(store: &Store, mac: MacAddr) -> Result<bool, MachineError> {
    let records = Machines::open(store)?.records()?;
    Ok(records.into_iter().any(|record| record.map_or(true, |record| record.mac == mac)))
}
