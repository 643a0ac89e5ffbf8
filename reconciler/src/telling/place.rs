//! How far a receiver is: `state/telling/<receiver>.json` (`docs/formats.md`, "Telling").

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use strata_core::Digest;
use strata_store::{Store, StoreError};

use crate::audit::Position;

const DIRECTORY: &str = "telling";
const VERSION: u32 = 1;
const PLACE_BYTES: usize = 1 << 20;
/// Messages that are remembered so that they are not told again.
const RECENT: usize = 500;
/// Statuses of commits that are remembered.
const POSTED: usize = 200;

/// Why deliveries fail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failing {
    pub message: String,
    pub since_ms: u64,
    pub attempts: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recent {
    pub key: Digest,
    pub at_ms: u64,
}

/// The status that a commit was last given in a context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Posted {
    pub commit: String,
    pub context: String,
    pub state: super::commit_status::State,
    pub description: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    pub version: u32,
    /// What stands before it was told, or was not to be told.
    pub position: Position,
    pub delivered: u64,
    /// Told before, and not told again.
    pub repeated: u64,
    /// Refused by the receiver, or too old when it was within reach again.
    pub dropped: u64,
    /// Why the last one was dropped.
    pub dropped_why: Option<String>,
    pub delivered_at_ms: Option<u64>,
    pub failing: Option<Failing>,
    pub recent: Vec<Recent>,
    pub posted: Vec<Posted>,
}

impl Place {
    pub fn at(position: Position) -> Self {
        Place {
            version: VERSION,
            position,
            delivered: 0,
            repeated: 0,
            dropped: 0,
            dropped_why: None,
            delivered_at_ms: None,
            failing: None,
            recent: Vec::new(),
            posted: Vec::new(),
        }
    }

    /// Whether the same was told at or after a time.
    pub fn told_since(&self, key: &Digest, since_ms: u64) -> bool {
        self.recent.iter().any(|recent| recent.key == *key && recent.at_ms >= since_ms)
    }

    /// Lets what was told be told again.
    pub fn forget(&mut self, key: &Digest) {
        self.recent.retain(|recent| recent.key != *key);
    }

    pub fn delivered(&mut self, key: Option<Digest>, at_ms: u64) {
        self.delivered += 1;
        self.delivered_at_ms = Some(at_ms);
        self.failing = None;
        if let Some(key) = key {
            self.recent.retain(|recent| recent.key != key);
            self.recent.push(Recent { key, at_ms });
            let old = self.recent.len().saturating_sub(RECENT);
            self.recent.drain(..old);
        }
    }

    pub fn dropped(&mut self, why: String) {
        self.dropped += 1;
        self.dropped_why = Some(why);
        self.failing = None;
    }

    pub fn failed(&mut self, message: String, at_ms: u64) -> u32 {
        let before = self.failing.take();
        let since_ms = before.as_ref().map_or(at_ms, |failing| failing.since_ms);
        let attempts = before.map_or(0, |failing| failing.attempts).saturating_add(1);
        self.failing = Some(Failing { message, since_ms, attempts });
        attempts
    }

    pub fn posted(&mut self, posted: Posted) {
        let same =
            |known: &Posted| (&known.commit, &known.context) == (&posted.commit, &posted.context);
        self.posted.retain(|known| !same(known));
        self.posted.push(posted);
        let old = self.posted.len().saturating_sub(POSTED);
        self.posted.drain(..old);
    }

    /// Reads a receiver's place; `None` for a new one, and for one that cannot be read:
    /// then it is told what comes.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn read(store: &Store, receiver: &str) -> Result<Option<Self>, StoreError> {
        let Some(text) = store.read_state(&file(receiver), PLACE_BYTES)? else { return Ok(None) };
        match serde_json::from_slice::<Place>(&text) {
            Ok(place) if place.version == VERSION => Ok(Some(place)),
            Ok(Place { version, .. }) => {
                tracing::warn!(receiver, version, "the place of a receiver is of another version");
                Ok(None)
            }
            Err(error) => {
                tracing::warn!(receiver, %error, "the place of a receiver cannot be read");
                Ok(None)
            }
        }
    }

    /// # Errors
    /// It cannot be written; the old one stands.
    pub fn write(&self, store: &Store, receiver: &str) -> Result<(), StoreError> {
        store.disk().create_directory(&store.state(DIRECTORY))?;
        let mut text = serde_json::to_vec(self).expect("plain fields serialise");
        text.push(b'\n');
        store.write_state(&file(receiver), &text)
    }
}

fn file(receiver: &str) -> String {
    format!("{DIRECTORY}/{receiver}.json")
}

/// Who makes branches that revert what was rolled back.
pub const REVERT: &str = "revert";

/// The receiver of notifications of this name.
pub fn notify(name: &str) -> String {
    format!("notify-{name}")
}

/// The receiver of statuses of this name.
pub fn commit_status(name: &str) -> String {
    format!("commit-status-{name}")
}

/// The places of all receivers.
///
/// # Errors
/// The store cannot be read.
pub fn all(store: &Store) -> Result<BTreeMap<String, Place>, StoreError> {
    let mut places = BTreeMap::new();
    for name in store.state_names(DIRECTORY)? {
        if let Some(receiver) = name.strip_suffix(".json")
            && let Some(place) = Place::read(store, receiver)?
        {
            places.insert(receiver.to_owned(), place);
        }
    }
    Ok(places)
}

/// Removes the places of receivers that the configuration no longer has.
///
/// # Errors
/// The store cannot be written.
pub fn forget_others(store: &Store, receivers: &[String]) -> Result<(), StoreError> {
    for name in store.state_names(DIRECTORY)? {
        let known = name.strip_suffix(".json").is_some_and(|n| receivers.iter().any(|r| r == n));
        if !known {
            store.disk().remove_file(&store.state(DIRECTORY).join(&name))?;
        }
    }
    Ok(())
}
