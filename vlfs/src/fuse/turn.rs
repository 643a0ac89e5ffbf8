//! Who reads the next request: one worker at a time, as long as it is quick.
//!
//! A worker that answers at once reads the next request itself: nobody is woken
//! for it, and single requests cost a third less processor time than with all
//! workers waiting in `read` (measured on two processors). What may take long
//! must not hold the others up: a worker gives its turn away before it waits for
//! the disk ([`Turn::give_up`]), and [`Turn::oversee`] takes it from one that is
//! at the same request for a whole tick, whatever the reason. When nobody is left
//! to take it, there is one worker more, up to a bound. Whoever waits for a while though
//! there are more than at first goes: as many stay as there were, whichever they are.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::latency::IdleLatency;

/// For so long at least a request may keep the turn.
const TICK: Duration = Duration::from_millis(1);
/// Ticks without a request after which nobody looks any more.
const IDLE_TICKS: u32 = 20;
/// How long a worker waits for a turn before it goes, where there are more than at first.
const SPARE: Duration = Duration::from_secs(10);
/// Nobody's turn.
const NOBODY: usize = usize::MAX;

/// What a worker is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Read: it is its turn.
    Read,
    /// Go: it was not needed for a while. Its number may be given out again.
    Spare,
    /// Go: all is over.
    Over,
}

#[derive(Debug, Default)]
struct Pool {
    /// The workers that there are.
    workers: BTreeSet<usize>,
    /// How many of them wait for the turn.
    waiting: usize,
}

#[derive(Debug)]
pub struct Turn {
    reader: AtomicUsize,
    /// A count for each worker: odd while it answers, even while it waits for a request.
    /// Only the worker itself writes it.
    progress: Vec<AtomicU64>,
    /// Somebody looks whether the reader gets on.
    watched: AtomicBool,
    ended: AtomicBool,
    least: usize,
    spare: Duration,
    pool: Mutex<Pool>,
    /// The turn is free, somebody must watch, or all is over.
    free: Condvar,
    watch: Condvar,
}

impl Turn {
    /// For the workers `0..least`, and up to `most` when they are all busy.
    pub fn new(least: usize, most: usize) -> Turn {
        let pool = Pool { workers: (0..least).collect(), waiting: 0 };
        Turn {
            reader: AtomicUsize::new(NOBODY),
            progress: (0..most.max(least)).map(|_| AtomicU64::new(0)).collect(),
            watched: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            least,
            spare: SPARE,
            pool: Mutex::new(pool),
            free: Condvar::new(),
            watch: Condvar::new(),
        }
    }

    /// How many workers there are now.
    pub fn workers(&self) -> usize {
        self.lock().workers.len()
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().expect("no panic while held")
    }

    /// Waits until it is this worker's turn.
    pub fn take(&self, worker: usize) -> Next {
        if self.reader.load(Ordering::Acquire) == worker {
            return if self.ended.load(Ordering::Acquire) { Next::Over } else { Next::Read };
        }
        let mut pool = self.lock();
        pool.waiting += 1;
        let (mut pool, next) = self.wait_for_turn(worker, pool);
        pool.waiting -= 1;
        if next == Next::Spare {
            pool.workers.remove(&worker);
        }
        next
    }

    fn wait_for_turn<'a>(
        &self,
        worker: usize,
        mut pool: MutexGuard<'a, Pool>,
    ) -> (MutexGuard<'a, Pool>, Next) {
        loop {
            if self.ended.load(Ordering::Acquire) {
                return (pool, Next::Over);
            }
            let (order, failed) = (Ordering::AcqRel, Ordering::Acquire);
            if self.reader.compare_exchange(NOBODY, worker, order, failed).is_ok() {
                return (pool, Next::Read);
            }
            // There are more only once nobody waits, so who waits for ever here never is too many.
            if pool.workers.len() <= self.least {
                pool = self.free.wait(pool).expect("no panic while held");
                continue;
            }
            let waited = self.free.wait_timeout(pool, self.spare).expect("no panic while held");
            let late = waited.1.timed_out() && self.reader.load(Ordering::Acquire) != NOBODY;
            pool = waited.0;
            if late && pool.workers.len() > self.least {
                return (pool, Next::Spare);
            }
        }
    }

    pub fn is_of(&self, worker: usize) -> bool {
        self.reader.load(Ordering::Acquire) == worker
    }

    /// This worker, whose turn it is, has a request in hand.
    pub fn begin(&self, worker: usize) {
        self.progress[worker].fetch_add(1, Ordering::AcqRel);
        if !self.watched.load(Ordering::Acquire) {
            let _lock = self.lock();
            self.watched.store(true, Ordering::Release);
            self.watch.notify_one();
        }
    }

    /// This worker knows the answer, in its turn or not.
    pub fn finish(&self, worker: usize) {
        self.progress[worker].fetch_add(1, Ordering::AcqRel);
    }

    /// This worker is about to wait for something: another reads meanwhile.
    pub fn give_up(&self, worker: usize) {
        let (order, failed) = (Ordering::AcqRel, Ordering::Acquire);
        if self.reader.compare_exchange(worker, NOBODY, order, failed).is_ok() {
            let _lock = self.lock();
            self.free.notify_one();
        }
    }

    /// Everybody comes back from [`Turn::take`] and [`Turn::oversee`].
    pub fn end(&self) {
        let _lock = self.lock();
        self.ended.store(true, Ordering::Release);
        self.free.notify_all();
        self.watch.notify_all();
    }

    /// Takes the turn away from who keeps it for longer than a tick, until the
    /// end, and tells `latency` how many requests come. Where no worker is left to take
    /// the turn, `grow` starts one of the number that it is given; `false`: it cannot.
    /// For a thread of its own.
    pub fn oversee(&self, latency: &IdleLatency, mut grow: impl FnMut(usize) -> bool) {
        let mut before = None;
        let mut idle = 0;
        let mut requests = self.requests();
        while !self.ended.load(Ordering::Acquire) {
            let reader = self.reader.load(Ordering::Acquire);
            let progress = self.progress.get(reader).map(|count| count.load(Ordering::Acquire));
            let now = (reader, progress);
            let stays = before == Some(now);
            match progress {
                Some(progress) if stays && progress % 2 == 1 => self.give_up(reader),
                Some(_) if stays => idle += 1,
                None if stays => self.grow(&mut grow),
                _ => idle = 0,
            }
            before = Some(now);
            let so_far = self.requests();
            latency.tick(so_far.wrapping_sub(requests));
            requests = so_far;
            if idle < IDLE_TICKS {
                self.pause();
            } else {
                latency.rest();
                self.sleep();
                idle = 0;
            }
        }
        latency.rest();
    }

    /// Requests so far.
    fn requests(&self) -> u64 {
        let counts = self.progress.iter().map(|count| count.load(Ordering::Relaxed));
        counts.fold(0, u64::wrapping_add) / 2
    }

    /// Nobody had the turn for a tick: where no worker waits for it, one more is needed.
    fn grow(&self, start: &mut impl FnMut(usize) -> bool) {
        let mut pool = self.lock();
        if pool.waiting > 0 {
            self.free.notify_one();
            return;
        }
        let Some(worker) = (0..self.progress.len()).find(|worker| !pool.workers.contains(worker))
        else {
            return;
        };
        pool.workers.insert(worker);
        drop(pool);
        if !start(worker) {
            self.lock().workers.remove(&worker);
        }
    }

    fn pause(&self) {
        let over = |_: &mut Pool| !self.ended.load(Ordering::Acquire);
        drop(self.watch.wait_timeout_while(self.lock(), TICK, over).expect("no panic while held"));
    }

    /// Sleeps until a request comes. A request that began just now is seen one
    /// idle stretch later at worst: its worker found itself watched.
    fn sleep(&self) {
        let lock = self.lock();
        self.watched.store(false, Ordering::Release);
        let reader = self.reader.load(Ordering::Acquire);
        let counts = || self.progress.get(reader).map(|count| count.load(Ordering::Acquire));
        // Begun between the last look and now: stay awake.
        if counts().is_some_and(|progress| progress % 2 == 1) {
            self.watched.store(true, Ordering::Release);
            return;
        }
        let unwatched = |_: &mut Pool| {
            !self.watched.load(Ordering::Acquire) && !self.ended.load(Ordering::Acquire)
        };
        drop(self.watch.wait_while(lock, unwatched).expect("no panic while held"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_more(_: usize) -> bool {
        false
    }

    #[test]
    fn one_reads_until_it_gives_its_turn_away() {
        let turn = Turn::new(2, 2);
        assert_eq!([turn.take(0), turn.take(0)], [Next::Read; 2], "it stays its turn");
        std::thread::scope(|scope| {
            let other = scope.spawn(|| turn.take(1));
            turn.begin(0);
            turn.give_up(0);
            assert_eq!(other.join().expect("no panic"), Next::Read);
            turn.finish(0);
        });
        turn.end();
        assert_eq!([turn.take(0), turn.take(1)], [Next::Over; 2]);
    }

    #[test]
    fn a_request_that_takes_long_loses_its_turn() {
        let turn = Turn::new(2, 2);
        std::thread::scope(|scope| {
            scope.spawn(|| turn.oversee(&IdleLatency::open(None), no_more));
            assert_eq!(turn.take(0), Next::Read);
            turn.begin(0);
            // The other comes by its turn though the first never finishes.
            assert_eq!(turn.take(1), Next::Read);
            turn.begin(1);
            turn.finish(1);
            turn.end();
        });
    }

    #[test]
    fn who_sleeps_is_woken_by_a_request() {
        let turn = Turn::new(2, 2);
        std::thread::scope(|scope| {
            scope.spawn(|| turn.oversee(&IdleLatency::open(None), no_more));
            assert_eq!(turn.take(0), Next::Read);
            turn.begin(0);
            turn.finish(0);
            while turn.watched.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            turn.begin(0);
            assert_eq!(turn.take(1), Next::Read);
            turn.end();
        });
    }

    #[test]
    fn there_are_more_workers_while_all_are_busy_up_to_a_bound() {
        let turn = Turn::new(1, 3);
        let (started, workers) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                turn.oversee(&IdleLatency::open(None), |worker| started.send(worker).is_ok());
            });
            assert_eq!(turn.take(0), Next::Read);
            turn.begin(0);
            for expected in [1, 2] {
                let worker = workers.recv().expect("it grows");
                assert_eq!(worker, expected);
                assert_eq!(turn.take(worker), Next::Read);
                turn.begin(worker);
            }
            assert_eq!(turn.workers(), 3);
            // All are busy: the first that is done reads on.
            turn.finish(1);
            assert_eq!(turn.take(1), Next::Read);
            turn.end();
        });
        assert!(workers.try_recv().is_err(), "the bound holds");
    }

    #[test]
    fn as_many_stay_as_there_were_at_first_whoever_reads() {
        let mut turn = Turn::new(2, 4);
        turn.spare = Duration::from_millis(1);
        // All four are there, and the last of them reads.
        turn.lock().workers.extend([2, 3]);
        assert_eq!(turn.take(3), Next::Read);
        std::thread::scope(|scope| {
            let (go, gone) = std::sync::mpsc::channel();
            for worker in 0..3 {
                let (turn, go) = (&turn, go.clone());
                scope.spawn(move || go.send(turn.take(worker)).expect("somebody listens"));
            }
            assert_eq!([gone.recv(), gone.recv()], [Ok(Next::Spare); 2]);
            assert_eq!(turn.workers(), 2, "one reads, one waits");
            assert!(turn.lock().workers.contains(&3));
            turn.end();
            assert_eq!(gone.recv(), Ok(Next::Over));
        });
    }

    #[test]
    fn who_cannot_be_started_does_not_count() {
        let turn = Turn::new(1, 2);
        let (tried, tries) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                turn.oversee(&IdleLatency::open(None), |worker| {
                    tried.send(worker).expect("somebody listens");
                    false
                });
            });
            assert_eq!(turn.take(0), Next::Read);
            turn.begin(0);
            assert_eq!([tries.recv(), tries.recv()], [Ok(1); 2], "it is tried again");
            turn.end();
        });
        assert_eq!(turn.workers(), 1);
    }
}
