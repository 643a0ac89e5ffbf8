//! What operators ask a reconciler for: files in `state/requests/`
//! (`docs/formats.md`, "Requests").
//!
//! A command writes one, whole, and the reconciler removes it once what it asks for
//! is durable in the rollout state. So a request survives whatever dies, is carried
//! out once, and waits where no reconciler runs.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use strata_core::CompositionName;
use strata_core::rollout::Order;
use strata_store::{Store, StoreError};

const VERSION: u32 = 1;
const REQUEST_BYTES: usize = 64 << 10;
/// Requests that are read at a time; the others follow.
const REQUESTS: usize = 1_000;
const DIRECTORY: &str = "requests";
/// The beginning of what a directory is called that was in the way.
const ASIDE: &str = ".aside-";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ask {
    /// An order to one rollout, or to all.
    Rollout { composition: Option<CompositionName>, order: Order },
    /// The removals that have this token may go on.
    ConfirmRemovals { token: String },
    /// A pin with an expiry was made: to be looked at now, so that its end is known.
    LookAfterPins,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    pub version: u32,
    pub at_ms: u64,
    /// Who asks, as the command line knows.
    pub by: String,
    pub reason: String,
    pub ask: Ask,
}

impl Request {
    pub fn new(by: String, reason: String, ask: Ask) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        Request { version: VERSION, at_ms, by, reason, ask }
    }

    /// Puts the request where the reconciler finds it. Returns its name.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn submit(&self, store: &Store) -> Result<String, StoreError> {
        store.disk().create_directory(&store.state(DIRECTORY))?;
        let name = format!("{:015}-{}.json", self.at_ms, std::process::id());
        let mut text = serde_json::to_vec(self).expect("plain fields serialise");
        text.push(b'\n');
        store.write_state(&format!("{DIRECTORY}/{name}"), &text)?;
        Ok(name)
    }
}

/// Whether a request still waits.
pub fn is_waiting(store: &Store, name: &str) -> bool {
    store.state(DIRECTORY).join(name).exists()
}

/// The names of all requests, oldest first.
///
/// # Errors
/// The directory cannot be listed.
pub fn names(store: &Store) -> Result<Vec<String>, StoreError> {
    let mut names = store.state_names(DIRECTORY)?;
    names.retain(|name| name.ends_with(".json"));
    names.truncate(REQUESTS);
    Ok(names)
}

/// Reads one request. What is none is told and counts as `None`: whatever stands there, it
/// keeps no other from being read.
///
/// # Errors
/// The store cannot be read.
pub fn read(store: &Store, name: &str) -> Result<Option<Request>, StoreError> {
    let read = store.read_state(&format!("{DIRECTORY}/{name}"), REQUEST_BYTES);
    let text = match read {
        Err(StoreError::TooLarge { .. } | StoreError::NotRegular(_)) => None,
        read => read?,
    };
    let request = text.and_then(|text| serde_json::from_slice::<Request>(&text).ok());
    let request = request.filter(|request| request.version == VERSION);
    if request.is_none() {
        tracing::warn!(name, "what is no request is taken out of state/requests");
    }
    Ok(request)
}

/// Removes a request that was carried out. A directory, which is none, gets a name that
/// nobody reads.
///
/// # Errors
/// It cannot be removed.
pub fn remove(store: &Store, name: &str) -> Result<(), StoreError> {
    let path = store.state(DIRECTORY).join(name);
    if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
        let aside = |number| path.with_file_name(format!("{ASIDE}{number}-{name}"));
        let free = (0_u64..).map(aside).find(|aside| aside.symlink_metadata().is_err());
        let free = free.expect("numbers do not end");
        tracing::warn!(name, "a directory in state/requests is set aside");
        return store.disk().set_aside(&path, &free);
    }
    store.disk().remove_file(&path)
}
