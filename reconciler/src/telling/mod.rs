//! Telling others: notifications and the statuses of commits.
//!
//! The audit log is the queue. Each receiver has a place in it (`state/telling/`), reads
//! on from there in a task of its own, and moves the place on when something was
//! delivered: nothing is lost by a restart, and a receiver that is out of reach delays no pass
//! and no other receiver. Delivery is at least once; most receivers are told a key by which
//! they know a repetition.

mod channels;
pub mod commit_status;
mod http;
pub mod message;
mod notifier;
pub mod place;

use std::sync::Arc;
use std::time::Duration;

use strata_store::Store;
use tokio::task::JoinSet;

use crate::settings::Settings;

pub(crate) use http::{cause, client as http_client};

/// How often receivers look for something to tell.
pub(crate) const LOOK: Duration = Duration::from_millis(500);
/// What is older when the receiver is within reach again is not told any more.
pub(crate) const OLDEST: Duration = Duration::from_secs(24 * 3_600);
/// The wait after the first failed delivery; doubled after each further one.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(300);

/// What came of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    Done {
        /// Ask for nothing more for so long.
        pause: Option<Duration>,
    },
    /// It may work later.
    Later { why: String, after: Option<Duration> },
    /// It will never work.
    Refused { why: String },
}

/// All receivers. They end when it is dropped.
#[derive(Debug, Default)]
pub struct Telling {
    tasks: JoinSet<()>,
}

impl Telling {
    /// Starts to tell all receivers of a configuration; those of the one before end.
    pub fn restart(&mut self, store: &Arc<Store>, settings: &Settings) {
        self.tasks = JoinSet::new();
        let names = settings.notify.iter().map(|notify| place::notify(&notify.name));
        let statuses = settings.commit_status.iter().map(|s| place::commit_status(&s.name));
        let revert = settings.revert.as_ref().map(|_| place::REVERT.to_owned());
        let names: Vec<_> = names.chain(statuses).chain(revert).collect();
        if let Err(error) = place::forget_others(store, &names) {
            tracing::warn!(%error, "the places of former receivers stay");
        }
        for notify in &settings.notify {
            self.tasks.spawn(notifier::run(store.clone(), notify.clone()));
        }
        for status in &settings.commit_status {
            self.tasks.spawn(commit_status::run(store.clone(), status.clone()));
        }
    }
}

/// The wait after so many failures, unless the receiver asked for a longer one.
pub(crate) fn pause(failures: u32, asked: Option<Duration>) -> Duration {
    let own =
        FIRST_RETRY.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_RETRY);
    asked.map_or(own, |asked| asked.max(own))
}
