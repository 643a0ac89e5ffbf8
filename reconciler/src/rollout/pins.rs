//! Pins: VAs that an operator holds at one generation, with a reason and until when
//! (`docs/formats.md`, "Pins").
//!
//! The record is the wish and comes first, the link follows; a pin that was cut short
//! is finished by the reconciler, and one that has expired is taken back by it: first
//! the link, then the record. Who changes the two, changes them under one lock: commands
//! and the reconciler are different processes.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use strata_core::event::Event;
use strata_core::links::VaTarget;
use strata_core::rollout::policy::base_ring;
use strata_core::{CompositionName, GenerationId, MacAddr, RingName};
use strata_machine::{MachineError, Machines};
use strata_store::{Store, StoreError, StoreLock};

use super::rollouts::RolloutError;

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
    let (composition, ring) = match store.va_target(mac)?.ok_or(PinError::NoLink)? {
        VaTarget::Ring { composition, ring } => (composition, base_ring(&ring).0),
        VaTarget::Pinned { .. } => {
            let pin = read(store, mac)?.ok_or_else(|| PinError::Lost(store.state(&file(mac))))?;
            (pin.composition, pin.ring)
        }
    };
    let found = store.generation(&generation)?.composition().clone();
    if found != composition {
        let (generation, expected) = (generation.short(), composition);
        return Err(PinError::Other { generation, found, expected });
    }
    let since_ms = now_ms;
    let version = VERSION;
    let pin =
        Pin { version, mac, composition, generation, ring, reason, by, since_ms, expires_at_ms };
    store.disk().create_directory(&store.state(DIRECTORY))?;
    let mut text = serde_json::to_vec(&pin).expect("plain fields serialise");
    text.push(b'\n');
    store.write_state(&file(mac), &text)?;
    store.move_va(mac, &pin.target())?;
    Ok(pin)
}

/// Lets a VA follow its ring again: `ring`, where the record that says which is gone.
///
/// # Errors
/// It is not pinned, nothing says which ring it belongs to, or the store cannot be
/// written.
pub fn unpin(store: &Store, mac: MacAddr, ring: Option<&RingName>) -> Result<Pin, PinError> {
    let _lock = store.lock_within(LOCK, PATIENCE)?;
    let pin = match read(store, mac)? {
        Some(pin) => pin,
        None => lost_pin(store, mac, ring)?,
    };
    release(store, &pin)?;
    Ok(pin)
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
    let (reason, by) = (String::new(), String::new());
    let (version, since_ms, expires_at_ms) = (VERSION, 0, None);
    Ok(Pin { version, mac, composition, generation, ring, reason, by, since_ms, expires_at_ms })
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
    /// Where its VA's link leads.
    pub fn target(&self) -> VaTarget {
        VaTarget::Pinned { composition: self.composition.clone(), generation: self.generation }
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

/// Ends what has expired or whose VA is gone, and finishes what was cut short; `tell` hears
/// of it before it is done. A VA is gone that has neither a link nor a machine and is not
/// `wanted`. Records that cannot be read are told once and added to `unreadable`. Returns when
/// to look again.
///
/// # Errors
/// The store cannot be used, or `tell` fails: then nothing is done.
pub fn look_after(
    store: &Store,
    now_ms: u64,
    unreadable: &mut BTreeSet<MacAddr>,
    wanted: impl Fn(&MacAddr) -> bool,
    tell: impl FnOnce(Vec<Event>) -> Result<(), RolloutError>,
) -> Result<Option<u64>, RolloutError> {
    if store.state_names(DIRECTORY)?.is_empty() {
        return Ok(None);
    }
    let _lock = match store.lock_within(LOCK, SHORT_PATIENCE) {
        Err(StoreError::Locked(_)) => {
            tracing::debug!("a command changes pins");
            return Ok(Some(now_ms.saturating_add(LOOK_AGAIN_MS)));
        }
        lock => lock?,
    };
    let mut next = None;
    let (mut ended, mut cut_short) = (Vec::new(), Vec::new());
    for (mac, pin) in records(store)? {
        let Some(pin) = pin else {
            if unreadable.insert(mac) {
                let path = store.state(&file(mac));
                tracing::error!(
                    path = %path.display(),
                    "a pin cannot be read; its VA stays where it is, until: strata va unpin NAME --ring RING"
                );
            }
            continue;
        };
        match pin.expires_at_ms {
            Some(at_ms) if at_ms <= now_ms => {
                ended.push((pin, true));
                continue;
            }
            at_ms => next = next.into_iter().chain(at_ms).min(),
        }
        let target = match store.va_target(pin.mac) {
            Err(error) if error.is_foreign_link() => continue,
            target => target?,
        };
        match target {
            Some(VaTarget::Ring { .. }) => cut_short.push(pin),
            Some(VaTarget::Pinned { .. }) => {}
            None if wanted(&pin.mac) || has_machine(store, pin.mac)? => {}
            None => ended.push((pin, false)),
        }
    }
    let told =
        ended.iter().map(|(pin, expired)| Event::VaUnpinned { mac: pin.mac, expired: *expired });
    let finished = cut_short.iter().map(|pin| {
        let Pin { mac, generation, ref reason, expires_at_ms, .. } = *pin;
        Event::VaPinned { mac, generation, reason: reason.clone(), expires_at_ms }
    });
    tell(told.chain(finished).collect())?;
    for (pin, _) in &ended {
        release(store, pin)?;
    }
    for pin in &cut_short {
        store.move_va(pin.mac, &pin.target())?;
    }
    Ok(next)
}

/// Whether a VA of this address is on some host. One whose record cannot be read may be it.
fn has_machine(store: &Store, mac: MacAddr) -> Result<bool, MachineError> {
    let records = Machines::open(store)?.records()?;
    Ok(records.into_iter().any(|record| record.map_or(true, |record| record.mac == mac)))
}
