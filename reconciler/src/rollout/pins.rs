//! Pins: VAs that an operator holds at one generation, with a reason and until when
//! (`docs/formats.md`, "Pins").
//!
//! The record is the wish and comes first, the link follows; a pin that was cut short
//! is finished by the reconciler, and one that has expired is taken back by it: first
//! the link, then the record.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use strata_core::event::Event;
use strata_core::links::VaTarget;
use strata_core::rollout::policy::base_ring;
use strata_core::{CompositionName, GenerationId, MacAddr, RingName};
use strata_store::{Store, StoreError};

const VERSION: u32 = 1;
const DIRECTORY: &str = "pins";
const PIN_BYTES: usize = 64 << 10;

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

fn release(store: &Store, pin: &Pin) -> Result<(), StoreError> {
    let ring = VaTarget::Ring { composition: pin.composition.clone(), ring: pin.ring.clone() };
    // A VA that was destroyed or moved meanwhile is not brought back.
    if matches!(store.va_target(pin.mac), Ok(Some(VaTarget::Pinned { .. }))) {
        store.move_va(pin.mac, &ring)?;
    }
    store.disk().remove_file(&store.state(&file(pin.mac)))
}

impl Pin {
    fn target(&self) -> VaTarget {
        VaTarget::Pinned { composition: self.composition.clone(), generation: self.generation }
    }
}

/// The pin of a VA; `None` where it has none, and where its record is damaged: then the
/// VA's link tells that it is pinned.
///
/// # Errors
/// The store cannot be read.
pub fn read(store: &Store, mac: MacAddr) -> Result<Option<Pin>, StoreError> {
    let Some(text) = store.read_state(&file(mac), PIN_BYTES)? else { return Ok(None) };
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

/// Ends what has expired, and finishes what was cut short. Records that cannot be read
/// are told once and added to `unreadable`. Returns when the next pin expires.
///
/// # Errors
/// The store cannot be used.
pub fn look_after(
    store: &Store,
    now_ms: u64,
    unreadable: &mut BTreeSet<MacAddr>,
    events: &mut Vec<Event>,
) -> Result<Option<u64>, StoreError> {
    let mut next = None;
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
                release(store, &pin)?;
                events.push(Event::VaUnpinned { mac, expired: true });
                continue;
            }
            at_ms => next = next.into_iter().chain(at_ms).min(),
        }
        let target = match store.va_target(mac) {
            Err(error) if error.is_foreign_link() => continue,
            target => target?,
        };
        if matches!(target, Some(VaTarget::Ring { .. })) {
            store.move_va(mac, &pin.target())?;
            let Pin { generation, reason, expires_at_ms, .. } = pin;
            events.push(Event::VaPinned { mac, generation, reason, expires_at_ms });
        }
    }
    Ok(next)
}
