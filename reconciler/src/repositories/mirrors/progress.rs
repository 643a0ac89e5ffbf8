//! How far mirroring is, for commands: `state/mirroring.json` (`docs/formats.md`).
//!
//! The file is there while something takes long or fails, and gone otherwise. Nothing is
//! decided by it, so what cannot be written or read is told in the log alone.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use strata_core::RepositoryName;
use strata_core::status::Age;
use strata_store::{Store, StoreError};

use crate::state::milliseconds;

const VERSION: u32 = 1;
const FILE: &str = "mirroring.json";
const FILE_BYTES: usize = 1 << 20;
/// Who fetches says so more often.
const SILENT_MS: u64 = 60_000;

/// What a repository is waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirroring {
    pub repository: RepositoryName,
    /// Since when it is fetched from, or fails.
    pub since_ms: u64,
    pub state: MirroringState,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum MirroringState {
    /// Bytes come, or are waited for.
    Fetching {
        /// Layers that were missing; 0 where its database alone is asked for.
        units: u64,
        units_there: u64,
        /// All of those layers, unpacked; `None` until its database says it.
        bytes: Option<u64>,
        /// As they are sent.
        bytes_came: u64,
        as_of_ms: u64,
    },
    /// It is tried again.
    Failing { failures: u32, message: String, retry_at_ms: u64 },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    mirrors: Vec<Mirroring>,
}

/// What mirroring is at, by repository. Empty where nothing takes long.
///
/// # Errors
/// The store cannot be read.
pub fn read(store: &Store) -> Result<Vec<Mirroring>, StoreError> {
    let Some(text) = store.read_state(FILE, FILE_BYTES)? else { return Ok(Vec::new()) };
    match serde_json::from_slice::<File>(&text) {
        Ok(File { version: VERSION, mirrors }) => Ok(mirrors),
        Ok(File { version, .. }) => {
            tracing::warn!(version, "what is mirrored is told in a form that is not known");
            Ok(Vec::new())
        }
        Err(error) => {
            tracing::warn!(%error, "it cannot be read what is mirrored");
            Ok(Vec::new())
        }
    }
}

impl Mirroring {
    /// For people, at a time.
    pub fn text(&self, now_ms: u64) -> String {
        let Mirroring { repository, since_ms, state } = self;
        let took = Age(now_ms.saturating_sub(*since_ms));
        match state {
            MirroringState::Fetching { units, units_there, bytes, bytes_came, as_of_ms } => {
                let what = match units {
                    0 => "its database is asked for".to_owned(),
                    units => format!("{units_there} of {units} missing layers are there"),
                };
                let of = bytes.map(|bytes| format!(" (unpacked {})", megabytes(bytes)));
                let came = format!("{} came{}", megabytes(*bytes_came), of.unwrap_or_default());
                let age_ms = now_ms.saturating_sub(*as_of_ms);
                let silent = match age_ms > SILENT_MS {
                    true => format!(", as of {} ago", Age(age_ms)),
                    false => String::new(),
                };
                format!("{repository}: {what}, {came}, for {took}{silent}")
            }
            MirroringState::Failing { failures, message, retry_at_ms } => {
                let times = match failures {
                    1 => "once".to_owned(),
                    times => format!("{times} times"),
                };
                let wait = Age(retry_at_ms.saturating_sub(now_ms));
                format!("{repository}: failed {times} for {took}, next try in {wait}: {message}")
            }
        }
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// What is to be told, and whether it may be on disk.
#[derive(Debug)]
pub struct Progress {
    mirrors: BTreeMap<RepositoryName, Mirroring>,
    /// A process of before may have left a file.
    is_written: bool,
    changed: bool,
}

impl Default for Progress {
    fn default() -> Self {
        Progress { mirrors: BTreeMap::new(), is_written: true, changed: true }
    }
}

impl Progress {
    pub fn set(&mut self, repository: &RepositoryName, state: MirroringState) {
        let now_ms = milliseconds(SystemTime::now());
        let same = |known: &&Mirroring| {
            std::mem::discriminant(&known.state) == std::mem::discriminant(&state)
        };
        let known = self.mirrors.get(repository).filter(same);
        let since_ms = known.map_or(now_ms, |known| known.since_ms);
        let mirroring = Mirroring { repository: repository.clone(), since_ms, state };
        self.changed |=
            self.mirrors.insert(repository.clone(), mirroring.clone()) != Some(mirroring);
    }

    /// Nothing is waited for any more.
    pub fn clear(&mut self, repository: &RepositoryName) {
        self.changed |= self.mirrors.remove(repository).is_some();
    }

    /// Forgets repositories that are no longer mirrored.
    pub fn retain(&mut self, is_mirrored: impl Fn(&RepositoryName) -> bool) {
        let before = self.mirrors.len();
        self.mirrors.retain(|name, _| is_mirrored(name));
        self.changed |= self.mirrors.len() != before;
    }

    /// Writes what is other than before.
    pub fn write(&mut self, store: &Store) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let written = match self.mirrors.is_empty() {
            true if !self.is_written => Ok(()),
            true => {
                let path = store.state(FILE);
                match path.symlink_metadata() {
                    Ok(_) => store.disk().remove_file(&path),
                    Err(_) => Ok(()),
                }
            }
            false => {
                let mirrors = self.mirrors.values().cloned().collect();
                let file = File { version: VERSION, mirrors };
                let mut text = serde_json::to_vec(&file).expect("plain fields serialise");
                text.push(b'\n');
                store.write_state(FILE, &text)
            }
        };
        match written {
            Ok(()) => self.is_written = !self.mirrors.is_empty(),
            Err(error) => {
                tracing::warn!(%error, "it cannot be told how far mirroring is");
                self.changed = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_is_one_line() {
        let line = |state| {
            let repository = "main".parse().expect("valid");
            Mirroring { repository, since_ms: 1_000, state }.text(241_000)
        };
        let fetching = |units, bytes, as_of_ms| MirroringState::Fetching {
            units,
            units_there: 3,
            bytes,
            bytes_came: 1_240_000,
            as_of_ms,
        };
        assert_eq!(
            line(fetching(12, Some(34_000_000), 240_000)),
            "main: 3 of 12 missing layers are there, 1.2 MB came (unpacked 34.0 MB), for 4 min"
        );
        assert_eq!(
            line(fetching(0, None, 1_000)),
            "main: its database is asked for, 1.2 MB came, for 4 min, as of 4 min ago"
        );
        let message = "no route".to_owned();
        assert_eq!(
            line(MirroringState::Failing { failures: 2, message, retry_at_ms: 251_000 }),
            "main: failed 2 times for 4 min, next try in 10 s: no route"
        );
    }

    /// A mirror that answers leaves no trace, and what it left goes.
    #[test]
    fn the_file_is_there_while_there_is_something_to_tell() {
        let directory = tempfile::TempDir::new().expect("a directory");
        let store = Store::init(&directory.path().join("store")).expect("a store");
        let main: RepositoryName = "main".parse().expect("valid");
        let failing = |failures| {
            let message = "no route".to_owned();
            MirroringState::Failing { failures, message, retry_at_ms: 9 }
        };
        let mut progress = Progress::default();
        let writes = store.writes();
        progress.write(&store);
        assert_eq!(store.writes(), writes);
        progress.set(&main, failing(1));
        progress.write(&store);
        let first = read(&store).expect("readable");
        assert_eq!(first[0].state, failing(1));
        progress.set(&main, failing(2));
        progress.write(&store);
        let second = read(&store).expect("readable");
        assert_eq!((second[0].since_ms, &second[0].state), (first[0].since_ms, &failing(2)));
        // Another process takes over.
        let mut next = Progress::default();
        next.write(&store);
        assert_eq!(read(&store).expect("readable"), []);
        assert!(!store.state(FILE).exists());
        std::fs::write(store.state(FILE), "{").expect("written");
        assert_eq!(read(&store).expect("readable"), [], "it is told, and keeps nobody");
    }
}
