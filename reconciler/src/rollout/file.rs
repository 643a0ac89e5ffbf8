//! `state/rollout.json`: what is remembered of all rollouts (`docs/formats.md`,
//! "Rollout state"). It is written only where it changes, before links are moved
//! and after.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use strata_core::configuration::Configuration;
use strata_core::rollout::policy::{DriftPolicy, RolloutPolicy};
use strata_core::rollout::{RolloutState, STATE_VERSION};
use strata_core::{CompositionName, MacAddr, VaName};
use strata_store::{Store, StoreError};

use super::prune::WaitingRemovals;
use super::transfers::WaitingMoves;
use crate::audit::Mark;

const FILE: &str = "rollout.json";
/// The file's path in the store.
pub const PATH: &str = "state/rollout.json";
const FILE_BYTES: usize = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum RolloutFileError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("state/{FILE} cannot be read: {0}")]
    Damaged(serde_json::Error),
    #[error("state/{FILE} is of version {0}, this program reads version {STATE_VERSION}")]
    Version(u32),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutFile {
    pub version: u32,
    pub compositions: BTreeMap<CompositionName, RolloutState>,
    /// What the last commit that was taken says of drift and of silent VAs, for
    /// commands that do not read git.
    pub drift: Option<DriftPolicy>,
    pub silent_days: Option<u32>,
    /// Its `strata.toml`, for a process that cannot judge that commit any more.
    #[serde(default)]
    pub policy: Option<String>,
    /// VAs that a commit declared, and whose links are still there.
    pub declared: BTreeMap<MacAddr, VaName>,
    /// VAs that a commit declares and that people had provisioned before.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub adopted: BTreeMap<MacAddr, VaName>,
    /// Links of VAs that are to be moved, and are not yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moves_waiting: Vec<WaitingMoves>,
    pub removals_waiting: Option<WaitingRemovals>,
    /// The removals that an operator confirmed.
    pub confirmed_removals: Option<String>,
    /// Requests that were carried out and whose files may still be there.
    pub taken_requests: BTreeSet<String>,
    /// The end of the audit log when this was written: that log is not to be lost in silence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audited: Option<Mark>,
}

impl Default for RolloutFile {
    fn default() -> Self {
        RolloutFile {
            version: STATE_VERSION,
            compositions: BTreeMap::new(),
            drift: None,
            silent_days: None,
            policy: None,
            declared: BTreeMap::new(),
            adopted: BTreeMap::new(),
            moves_waiting: Vec::new(),
            removals_waiting: None,
            confirmed_removals: None,
            taken_requests: BTreeSet::new(),
            audited: None,
        }
    }
}

impl RolloutFile {
    /// Reads the file; empty where there is none.
    ///
    /// # Errors
    /// It is damaged or of another version.
    pub fn read(store: &Store) -> Result<Self, RolloutFileError> {
        Ok(Self::find(store)?.unwrap_or_default())
    }

    /// Reads the file, where there is one.
    ///
    /// # Errors
    /// It is damaged or of another version.
    pub fn find(store: &Store) -> Result<Option<Self>, RolloutFileError> {
        let Some(text) = store.read_state(FILE, FILE_BYTES)? else { return Ok(None) };
        let file: RolloutFile = serde_json::from_slice(&text).map_err(RolloutFileError::Damaged)?;
        match file.version {
            STATE_VERSION => Ok(Some(file)),
            version => Err(RolloutFileError::Version(version)),
        }
    }

    /// The policy of the last commit that was taken. In a file that does not tell, rings
    /// have no gates: without a commit none moves to its target anyway.
    pub fn remembered_policy(&self) -> RolloutPolicy {
        if let Some(text) = &self.policy {
            let (configuration, _) = Configuration::read(text.as_bytes());
            return configuration.rollout;
        }
        let rings = self.compositions.values().flat_map(|state| state.rings.keys().cloned());
        let rings: BTreeSet<_> = rings.collect();
        let mut policy = RolloutPolicy::plain(rings);
        if let Some(drift) = &self.drift {
            policy.drift = drift.clone();
        }
        policy
    }

    /// Writes the file.
    ///
    /// # Errors
    /// It cannot be written; the old one stands.
    pub fn write(&self, store: &Store) -> Result<(), RolloutFileError> {
        let mut text = serde_json::to_vec_pretty(self).map_err(RolloutFileError::Damaged)?;
        text.push(b'\n');
        Ok(store.write_state(FILE, &text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = include_str!("../../golden/rollout.json");

    #[test]
    fn golden() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::init(directory.path()).expect("a store");
        assert_eq!(RolloutFile::read(&store).expect("none yet"), RolloutFile::default());
        store.write_state(FILE, GOLDEN.as_bytes()).expect("written");
        let file = RolloutFile::read(&store).expect("the golden file");
        assert_eq!(file.compositions.len(), 1);
        file.write(&store).expect("written");
        let text = store.read_state(FILE, FILE_BYTES).expect("read").expect("there");
        assert_eq!(String::from_utf8(text).expect("UTF-8"), GOLDEN);
        let newer = GOLDEN.replacen("\"version\": 1", "\"version\": 2", 1);
        store.write_state(FILE, newer.as_bytes()).expect("written");
        assert!(matches!(RolloutFile::read(&store), Err(RolloutFileError::Version(2))));
    }
}
