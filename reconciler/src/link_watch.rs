//! File events of the links of rings and VAs, as hints.
//!
//! Somebody's hand takes a link away or leads it elsewhere, and VAs start with the wrong
//! generation or not at all. An event only says "look now": what is wrong is found by
//! comparing, and what no event told (network file systems, queues that ran over) by a look
//! every minute.

use notify::{Config, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use strata_store::Store;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Watches until dropped.
#[derive(Debug)]
pub struct LinkWatch {
    _watcher: RecommendedWatcher,
    hints: Receiver<()>,
}

impl LinkWatch {
    /// Starts to watch the links of a store.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn start(store: &Store) -> Result<Self, notify::Error> {
        let (sender, hints) = channel(1);
        // The links lead to generations, which are no concern of this.
        let config = Config::default().with_follow_symlinks(false);
        let mut watcher = RecommendedWatcher::new(move |event| note(&sender, &event), config)?;
        watcher.watch(&store.root().join("rings"), RecursiveMode::Recursive)?;
        watcher.watch(&store.root().join("va"), RecursiveMode::NonRecursive)?;
        Ok(LinkWatch { _watcher: watcher, hints })
    }

    /// Waits for the next hint. Hints that came meanwhile are one. May be cancelled.
    pub async fn hint(&mut self) {
        if self.hints.recv().await.is_none() {
            // The watcher's thread is gone: the look every minute is left.
            std::future::pending::<()>().await;
        }
    }
}

/// Reading is no hint: the look that a hint starts reads these very links.
fn note(sender: &Sender<()>, event: &Result<notify::Event, notify::Error>) {
    match event {
        Ok(event) if matches!(event.kind, EventKind::Access(_)) && !event.need_rescan() => return,
        Ok(_) => {}
        Err(error) => tracing::debug!(%error, "events of links were lost"),
    }
    match sender.try_send(()) {
        Ok(()) | Err(TrySendError::Full(())) => {}
        Err(TrySendError::Closed(())) => tracing::debug!("a hint came after the end"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::*;

    #[test]
    fn links_that_are_made_moved_or_removed_are_hints_and_reading_is_none() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::init(directory.path()).expect("a store");
        let root = store.root().to_owned();
        let mut watch = LinkWatch::start(&store).expect("watches");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let mut hinted = |limit: u64| {
            let limit = Duration::from_millis(limit);
            runtime.block_on(async { tokio::time::timeout(limit, watch.hint()).await.is_ok() })
        };
        let (ring, va) = (root.join("rings/web/everyone"), root.join("va/52:54:00:00:00:01"));
        let step = |number: usize| match number {
            0 => fs::create_dir(root.join("rings/web")),
            1 => symlink("../../generations/x", &ring),
            2 => fs::rename(&ring, root.join("rings/web/canary")),
            3 => symlink("../rings/web/everyone/web.ldf", &va),
            _ => fs::remove_file(&va),
        };
        for number in 0..5 {
            step(number).expect("a change");
            assert!(hinted(10_000), "step {number}");
            while hinted(100) {}
        }
        for _ in 0..20 {
            fs::read_link(root.join("rings/web/canary")).expect("read");
            fs::read_dir(root.join("va")).expect("listed").count();
        }
        assert!(!hinted(300));
    }
}
