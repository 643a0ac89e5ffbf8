//! Giving up what takes long: a request whose process was killed, or all of them once
//! the mount is gone.
//!
//! The kernel tells of every signal that comes while a process waits. As on a disk, only
//! one that ends the process counts: programs do not expect `EINTR` of `open` or
//! `truncate`. What copies data asks [`check`] between its steps; the thread knows
//! which request it is at.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use rustix::io::Errno;

use crate::proc;

/// Bytes that are copied between two looks at whether to go on.
pub const STEP: usize = 16 << 20;
/// Bit of SIGKILL in the masks of `/proc/<pid>/status`. The kernel gives it to every
/// thread of a process that another deadly signal ends, too.
const KILLED: u64 = 1 << 8;

/// What one thread is at.
#[derive(Debug, Default)]
struct Work {
    /// The kernel's number of the request; 0 for none.
    unique: AtomicU64,
    /// The thread that waits for it; 0 where it is in another process namespace.
    client: AtomicU32,
    signalled: AtomicBool,
}

/// The requests under way of one mount.
#[derive(Debug, Default)]
pub struct Interrupts {
    workers: Vec<Arc<Work>>,
    ended: Arc<AtomicBool>,
}

thread_local! {
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
}

struct Current {
    work: Arc<Work>,
    ended: Arc<AtomicBool>,
}

impl Interrupts {
    pub fn new(workers: usize) -> Interrupts {
        let workers = std::iter::repeat_with(Arc::default).take(workers).collect();
        Interrupts { workers, ended: Arc::default() }
    }

    /// From now on [`check`] in this thread is about the requests of `worker`; a thread
    /// that answers none gives up once the mount is gone.
    pub fn watch(&self, worker: Option<usize>) {
        let work = worker.and_then(|worker| self.workers.get(worker)).cloned();
        let current = Current { work: work.unwrap_or_default(), ended: self.ended.clone() };
        CURRENT.with(|here| *here.borrow_mut() = Some(current));
    }

    /// A worker begins with a request. Before any other is read.
    pub fn begin(&self, worker: usize, unique: u64, client: u32) {
        let Some(work) = self.workers.get(worker) else { return };
        work.signalled.store(false, Ordering::Relaxed);
        work.client.store(client, Ordering::Relaxed);
        work.unique.store(unique, Ordering::Release);
    }

    /// A signal came to who waits for a request. One that is answered already is no error.
    pub fn signal(&self, unique: u64) {
        for work in self.workers.iter().filter(|work| work.unique.load(Ordering::Acquire) == unique)
        {
            work.signalled.store(true, Ordering::Release);
        }
    }

    /// The mount is gone: nobody waits for anything.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }
}

/// Whether to go on.
///
/// # Errors
/// `EINTR`: whoever waits for it is being ended, or the mount is gone.
pub fn check() -> Result<(), Errno> {
    CURRENT.with(|here| {
        let here = here.borrow();
        let Some(Current { work, ended }) = here.as_ref() else { return Ok(()) };
        let signalled = work.signalled.load(Ordering::Acquire);
        let given_up = ended.load(Ordering::Acquire)
            || (signalled && is_ending(work.client.load(Ordering::Relaxed)));
        if given_up { Err(Errno::INTR) } else { Ok(()) }
    })
}

/// Whether a thread was killed and only has to notice.
fn is_ending(thread: u32) -> bool {
    let Ok(thread @ 1..) = i32::try_from(thread) else { return false };
    match std::fs::read_to_string(proc::process(thread).join("status")) {
        Ok(status) => is_killed(&status),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

fn is_killed(status: &str) -> bool {
    let mask = |line: &str| {
        let mask = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    };
    status.lines().filter_map(mask).any(|mask| mask & KILLED != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_deadly_signal_counts() {
        let status =
            |own, all| format!("Name:\tx\nSigPnd:\t{own}\nShdPnd:\t{all}\nSigBlk:\t0100\n");
        assert!(!is_killed(&status("0000000000000000", "0000000000004002")));
        assert!(is_killed(&status("0000000000000100", "0000000000000000")));
        assert!(is_killed(&status("0000000000000000", "0000000000000102")));
        assert!(!is_killed("no status"));
    }

    #[test]
    fn a_signal_concerns_one_request_and_the_end_all() {
        let interrupts = Interrupts::new(2);
        let own = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
        interrupts.watch(Some(1));
        interrupts.begin(1, 40, own);
        interrupts.signal(41);
        interrupts.signal(40);
        assert_eq!(check(), Ok(()), "this thread has no deadly signal");
        // A thread that is gone waits for nothing.
        interrupts.begin(1, 42, i32::MAX.cast_unsigned());
        assert_eq!(check(), Ok(()), "nobody sent a signal");
        interrupts.signal(42);
        assert_eq!(check(), Err(Errno::INTR));
        interrupts.begin(1, 44, own);
        assert_eq!(check(), Ok(()));
        interrupts.end();
        assert_eq!(check(), Err(Errno::INTR));
        std::thread::spawn(|| assert_eq!(check(), Ok(()), "another thread's affair"))
            .join()
            .expect("it holds");
    }
}
