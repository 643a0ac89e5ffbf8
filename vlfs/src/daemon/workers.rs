//! The threads that answer requests, and the one that starts more of them.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::anyhow;

use super::spawn;
use crate::fuse::session::{Session, SessionError};

/// A thread that answers requests.
type Worker = JoinHandle<Result<(), SessionError>>;

/// The threads that answer requests, and the one that starts more of them.
pub(super) struct Workers {
    started: Arc<Mutex<Vec<Worker>>>,
    overseer: JoinHandle<()>,
}

impl Workers {
    pub(super) fn start(session: &Arc<Session>) -> anyhow::Result<Workers> {
        let started = Arc::new(Mutex::new(Vec::new()));
        for worker in 0..session.turn.workers() {
            started.lock().expect("no panic while held").push(start_worker(session, worker)?);
        }
        let (session, more) = (session.clone(), started.clone());
        // Told once: it is tried again every millisecond.
        let mut told = false;
        let overseer = spawn("fuse-turns", move || {
            session.oversee(|worker| match start_worker(&session, worker) {
                Ok(thread) => {
                    let mut started = more.lock().expect("no panic while held");
                    // Those that went meanwhile have nothing to say.
                    started.retain(|thread: &Worker| !thread.is_finished());
                    started.push(thread);
                    true
                }
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, worker, "no further thread to answer requests");
                    }
                    false
                }
            });
        })?;
        Ok(Workers { started, overseer })
    }

    pub(super) fn join(self) -> anyhow::Result<()> {
        let mut result =
            self.overseer.join().map_err(|_| anyhow!("the thread that gives turns panicked"));
        for worker in std::mem::take(&mut *self.started.lock().expect("no panic while held")) {
            let served = worker.join();
            let served = served.map_err(|_| anyhow!("a thread that answers requests panicked"));
            result = result.and(served.and_then(|served| Ok(served?)));
        }
        result
    }
}

fn start_worker(session: &Arc<Session>, worker: usize) -> anyhow::Result<Worker> {
    let session = session.clone();
    spawn(&format!("fuse-{worker}"), move || session.serve(worker))
}
