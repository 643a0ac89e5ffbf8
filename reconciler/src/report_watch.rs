//! File events of the VAs' reports, as hints.
//!
//! An event only says whose report to read now. Where there are none (network
//! file systems, reports written on other hosts, queues that ran over) the rounds of
//! [`crate::verify`] find the same later.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use notify::event::{EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use strata_core::MacAddr;
use tokio::sync::Notify;

/// Hints that may wait; a fleet that is larger is found by the rounds.
const WAITING: usize = 200_000;

#[derive(Debug, Default)]
struct Hints {
    macs: Mutex<BTreeSet<MacAddr>>,
    come: Notify,
}

/// Watches until dropped.
#[derive(Debug)]
pub struct ReportWatch {
    _watcher: RecommendedWatcher,
    hints: Arc<Hints>,
}

impl ReportWatch {
    /// Starts to watch the directory of the reports.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn start(reports: &Path) -> Result<Self, notify::Error> {
        let hints = Arc::new(Hints::default());
        let theirs = hints.clone();
        let mut watcher = notify::recommended_watcher(move |event| theirs.note(&event))?;
        watcher.watch(reports, RecursiveMode::NonRecursive)?;
        Ok(ReportWatch { _watcher: watcher, hints })
    }

    /// Waits until there is a hint. Nothing is lost where the wait is given up.
    pub async fn hint(&self) {
        while self.hints.lock().is_empty() {
            self.hints.come.notified().await;
        }
    }

    /// The VAs whose reports were written since the last call.
    pub fn take(&self) -> BTreeSet<MacAddr> {
        std::mem::take(&mut *self.hints.lock())
    }
}

impl Hints {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<MacAddr>> {
        self.macs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A report is complete once it is renamed into place; nothing else is a hint.
    fn note(&self, event: &Result<notify::Event, notify::Error>) {
        let event = match event {
            Ok(event) => event,
            Err(error) => return tracing::debug!(%error, "events of reports were lost"),
        };
        if event.kind != EventKind::Modify(ModifyKind::Name(RenameMode::To)) {
            return;
        }
        let names = event.paths.iter().filter_map(|path| path.file_name()?.to_str());
        let written = names.filter_map(|name| name.parse::<MacAddr>().ok());
        let mut macs = self.lock();
        for mac in written {
            if macs.len() < WAITING {
                macs.insert(mac);
            }
        }
        if !macs.is_empty() {
            self.come.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_report_in_place_is_a_hint_and_nothing_else_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let reports = directory.path().join("reports");
        std::fs::create_dir(&reports).expect("made");
        let watch = ReportWatch::start(&reports).expect("watches");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let hinted = |limit| {
            runtime.block_on(async { tokio::time::timeout(limit, watch.hint()).await.is_ok() })
        };
        let mac = "52:54:00:00:00:01";
        let unfinished = reports.join(format!(".{mac}.new"));
        std::fs::write(&unfinished, "{}").expect("written");
        std::fs::write(reports.join("52:54:00:00:00:02"), "{}").expect("written in place");
        std::fs::rename(reports.join("52:54:00:00:00:02"), directory.path().join("away"))
            .expect("moved away");
        assert!(!hinted(Duration::from_millis(200)), "nothing was renamed into place");
        std::fs::rename(&unfinished, reports.join(mac)).expect("renamed");
        assert!(hinted(Duration::from_secs(10)));
        assert_eq!(watch.take(), BTreeSet::from([mac.parse().expect("valid")]));
        assert!(watch.take().is_empty(), "taken once");
    }
}
