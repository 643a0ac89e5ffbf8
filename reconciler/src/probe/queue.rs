//! The line of checks that wait for a thread.
//!
//! Each template has a line of its own and a share of the threads, so that one whose
//! checks hang keeps no other from its turn. Threads are started as they are needed
//! and end when nothing has come for a while.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use strata_core::CompositionName;

/// Checks that run at a time.
const THREADS: usize = 64;
/// And those of one template.
const SHARE: usize = 8;
/// VAs of one template that may wait for a thread.
const LENGTH: usize = 4_096;
/// A thread without work ends after this time.
const IDLE: Duration = Duration::from_secs(10);

/// Something to do, known by its number.
pub struct Job {
    pub ticket: u64,
    pub composition: CompositionName,
    pub work: Box<dyn FnOnce() -> Result<(), String> + Send>,
}

/// What a thread tells of a job.
#[derive(Debug)]
pub enum Told {
    Begun(u64),
    Answered(u64, Result<(), String>),
}

#[derive(Default)]
struct Line {
    jobs: VecDeque<Job>,
    running: usize,
}

impl Line {
    /// Jobs that could begin if there were threads.
    fn ready(&self) -> usize {
        self.jobs.len().min(SHARE - self.running.min(SHARE))
    }
}

#[derive(Default)]
struct Lines {
    lines: BTreeMap<CompositionName, Line>,
    /// Whose turn it was last.
    last: Option<CompositionName>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Lines {
    /// The next job: of the template of which the fewest run, in turn.
    fn take(&mut self) -> Option<Job> {
        let last = self.last.as_ref();
        let waiting = self.lines.iter_mut().filter(|(_, line)| line.ready() > 0);
        let (name, line) = waiting
            .min_by_key(|(name, line)| (line.running, last.is_some_and(|last| *name <= last)))?;
        line.running += 1;
        self.last = Some(name.clone());
        line.jobs.pop_front()
    }

    fn done(&mut self, composition: &CompositionName) {
        let Some(line) = self.lines.get_mut(composition) else { return };
        line.running -= 1;
        if line.running == 0 && line.jobs.is_empty() {
            self.lines.remove(composition);
        }
    }
}

#[derive(Default)]
struct Shared {
    lines: Mutex<Lines>,
    ready: Condvar,
}

impl Shared {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().expect("no panic while held")
    }
}

pub struct Queue {
    shared: Arc<Shared>,
    told: Sender<Told>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.shared.lines().closed = true;
        self.shared.ready.notify_all();
    }
}

impl Queue {
    pub fn new(told: Sender<Told>) -> Self {
        Queue { shared: Arc::default(), told }
    }

    /// Puts a job in the line of its template; false where that is full.
    pub fn submit(&self, job: Job) -> bool {
        let mut lines = self.shared.lines();
        let line = lines.lines.entry(job.composition.clone()).or_default();
        if line.jobs.len() >= LENGTH {
            return false;
        }
        line.jobs.push_back(job);
        let ready: usize = lines.lines.values().map(Line::ready).sum();
        if ready > lines.idle && lines.threads < THREADS {
            let (shared, told) = (self.shared.clone(), self.told.clone());
            let thread = std::thread::Builder::new().name("probe".to_owned());
            match thread.spawn(move || work(&shared, &told)) {
                Ok(_) => lines.threads += 1,
                Err(error) => tracing::error!(%error, "no thread for health checks"),
            }
        }
        drop(lines);
        self.shared.ready.notify_one();
        true
    }

    /// Takes jobs out of the lines that nobody waits for any more.
    pub fn keep(&self, wanted: &BTreeSet<u64>) {
        for line in self.shared.lines().lines.values_mut() {
            line.jobs.retain(|job| wanted.contains(&job.ticket));
        }
    }
}

/// Ends when the queue is gone, or nothing comes.
fn work(shared: &Shared, told: &Sender<Told>) {
    let mut lines = shared.lines();
    loop {
        if lines.closed {
            return;
        }
        if let Some(Job { ticket, composition, work }) = lines.take() {
            drop(lines);
            // A prober that is gone hears nothing, and the queue is closed.
            let _gone = told.send(Told::Begun(ticket));
            let _gone = told.send(Told::Answered(ticket, work()));
            lines = shared.lines();
            lines.done(&composition);
            continue;
        }
        lines.idle += 1;
        let (woken, waited) = shared.ready.wait_timeout(lines, IDLE).expect("no panic while held");
        lines = woken;
        lines.idle -= 1;
        if waited.timed_out() && lines.lines.values().all(|line| line.ready() == 0) {
            lines.threads -= 1;
            return;
        }
    }
}
