//! File events of a local repository's references, as hints.
//!
//! An event only says "look now"; what has changed is found by comparing commit
//! ids, and a poll floor finds what no event told (network file systems, queues
//! that ran over, directories made and filled before they were watched).
//!
//! Directories are watched, not files: a push renames `main.lock` onto
//! `refs/heads/main`, `pack-refs` replaces `packed-refs`, and the reftable format
//! touches `reftable/tables.list` alone.

use std::path::{Path, PathBuf};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::{Receiver, Sender, channel, error::TrySendError};

/// Watches until dropped.
#[derive(Debug)]
pub struct RefWatch {
    _watcher: RecommendedWatcher,
    hints: Receiver<()>,
}

impl RefWatch {
    /// Starts to watch the references of the repository at `repository`.
    ///
    /// # Errors
    /// It is no repository, or the kernel refuses to watch it.
    pub fn start(repository: &Path) -> Result<Self, notify::Error> {
        let directory = git_directory(repository);
        let (sender, hints) = channel(1);
        let watched = directory.clone();
        let mut watcher = notify::recommended_watcher(move |event| {
            if is_hint(&watched, &event) {
                send(&sender);
            }
        })?;
        watcher.watch(&directory, RecursiveMode::NonRecursive)?;
        for (name, mode) in
            [("refs", RecursiveMode::Recursive), ("reftable", RecursiveMode::NonRecursive)]
        {
            let path = directory.join(name);
            if path.is_dir() {
                watcher.watch(&path, mode)?;
            }
        }
        Ok(RefWatch { _watcher: watcher, hints })
    }

    /// Waits for the next hint. Hints that came meanwhile are one.
    pub async fn hint(&mut self) {
        if self.hints.recv().await.is_none() {
            // The watcher's thread is gone: the poll floor is left.
            std::future::pending::<()>().await;
        }
    }
}

/// One waiting hint is as good as many.
fn send(sender: &Sender<()>) {
    match sender.try_send(()) {
        Ok(()) | Err(TrySendError::Full(())) => {}
        Err(TrySendError::Closed(())) => tracing::debug!("a hint came after the end"),
    }
}

/// Where the references are: of a linked work tree, in the main repository.
fn git_directory(repository: &Path) -> PathBuf {
    match git2::Repository::open(repository) {
        Ok(opened) => opened.commondir().to_owned(),
        // A format that git2 does not read, such as reftable.
        Err(_) if repository.join(".git").is_dir() => repository.join(".git"),
        Err(_) => repository.to_owned(),
    }
}

/// Whether an event can mean a new commit. Reading must not count: the pass that
/// a hint starts reads these very files.
fn is_hint(directory: &Path, event: &Result<notify::Event, notify::Error>) -> bool {
    let event = match event {
        Ok(event) => event,
        Err(error) => {
            tracing::warn!(%error, "file events may have been lost");
            return true;
        }
    };
    if event.need_rescan() {
        return true;
    }
    let read = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
        EventKind::Access(_) => true,
        _ => false,
    };
    let concerns = |path: &PathBuf| match path.strip_prefix(directory) {
        Ok(relative) => ["refs", "reftable", "packed-refs", "HEAD"]
            .iter()
            .any(|name| relative.starts_with(name)),
        Err(_) => true,
    };
    !read && event.paths.iter().any(concerns)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    type Step<'s> = (&'static str, Box<dyn Fn() + 's>);

    fn repository() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        git2::Repository::init_bare(directory.path()).expect("a repository");
        directory
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
    }

    fn hinted(watch: &mut RefWatch, limit: Duration) -> bool {
        runtime().block_on(async { tokio::time::timeout(limit, watch.hint()).await.is_ok() })
    }

    /// Takes the hints that earlier steps of a test caused.
    fn drain(watch: &mut RefWatch) {
        while hinted(watch, Duration::from_millis(100)) {}
    }

    #[test]
    fn every_way_to_move_a_branch_gives_a_hint() {
        let directory = repository();
        let root = directory.path();
        let mut watch = RefWatch::start(root).expect("watches");
        let id = "0123456789012345678901234567890123456789\n";
        let heads = root.join("refs/heads");
        let steps: [Step<'_>; 4] = [
            (
                "a push",
                Box::new(|| {
                    fs::write(heads.join("main.lock"), id).expect("written");
                    fs::rename(heads.join("main.lock"), heads.join("main")).expect("renamed");
                }),
            ),
            ("packing", Box::new(|| fs::write(root.join("packed-refs"), id).expect("written"))),
            ("a deletion", Box::new(|| fs::remove_file(heads.join("main")).expect("removed"))),
            ("a new directory", Box::new(|| fs::create_dir(heads.join("team")).expect("made"))),
        ];
        for (what, step) in &steps {
            drain(&mut watch);
            step();
            assert!(hinted(&mut watch, Duration::from_secs(10)), "{what}");
        }
        drain(&mut watch);
        fs::write(heads.join("team/main"), id).expect("written");
        assert!(hinted(&mut watch, Duration::from_secs(10)), "below a directory made meanwhile");
    }

    #[test]
    fn reading_gives_no_hint() {
        let directory = repository();
        fs::write(directory.path().join("refs/heads/main"), "x").expect("written");
        let mut watch = RefWatch::start(directory.path()).expect("watches");
        drain(&mut watch);
        for _ in 0..20 {
            fs::read(directory.path().join("refs/heads/main")).expect("read");
            fs::read_dir(directory.path().join("refs/heads")).expect("listed").count();
        }
        assert!(!hinted(&mut watch, Duration::from_millis(300)));
    }
}
