//! On which processor the worker that reads requests runs: on its client's, or on
//! any but that.
//!
//! A client waits for its answer, so the two never need a processor at the same
//! time; on the same one they hand over by a switch of context. On two, each
//! request wakes the other processor twice, which in a virtual machine costs
//! several times the request itself. The kernel cannot know: it wakes a worker
//! where it ran last. So the worker asks now and then where its client runs and
//! goes there; when clients are on several processors it goes anywhere. A
//! worker that looks for requests without sleeping (`watch`) stays away from it.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::CpuSet;

use crate::proc;

/// Requests between two looks.
const INTERVAL: u32 = 64;

/// Where a worker should run, seen from its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// On the same processor.
    Same,
    /// On another one.
    Other,
}

/// Where a worker runs. Belongs to its thread.
///
/// A client in another process namespace than the mount's has no number here:
/// then the worker stays where it is.
#[derive(Debug)]
pub struct Placement {
    /// The processors that it may use; none where that cannot be changed.
    anywhere: Option<CpuSet>,
    requests: u32,
    /// The processor of the client that was looked at last.
    last: Option<usize>,
    /// Where the worker is kept, for the client of which processor.
    bound: Option<(usize, Side)>,
}

impl Placement {
    pub fn new() -> Placement {
        let anywhere = rustix::thread::sched_getaffinity(None).ok();
        Placement { anywhere, requests: 0, last: None, bound: None }
    }

    /// Whether there is another processor to go to.
    pub fn has_choice(&self) -> bool {
        self.anywhere.as_ref().is_some_and(|anywhere| anywhere.count() > 1)
    }

    /// Called with the thread id of each request's client.
    pub fn follow(&mut self, client: u32, side: Side) {
        self.requests += 1;
        if self.requests < INTERVAL {
            return;
        }
        self.requests = 0;
        let Some(processor) = self.processor_of(client) else { return };
        let agreed = self.last.replace(processor) == Some(processor);
        let wanted = agreed.then_some((processor, side));
        if wanted == self.bound {
            return;
        }
        match self.bind(wanted) {
            Ok(()) => self.bound = wanted,
            Err(error) => {
                tracing::debug!(%error, "a worker stays where it is");
                self.anywhere = None;
            }
        }
    }

    /// The worker waits for something else now: it needs no processor in particular.
    pub fn leave(&mut self) {
        if self.bound.is_some() && self.bind(None).is_ok() {
            self.bound = None;
        }
    }

    fn bind(&self, place: Option<(usize, Side)>) -> Result<(), Errno> {
        let anywhere = self.anywhere.as_ref().ok_or(Errno::NOTSUP)?;
        match place.filter(|(processor, _)| anywhere.is_set(*processor)) {
            None => rustix::thread::sched_setaffinity(None, anywhere),
            Some((processor, Side::Same)) => {
                let mut one = CpuSet::new();
                one.set(processor);
                rustix::thread::sched_setaffinity(None, &one)
            }
            Some((processor, Side::Other)) => {
                let mut others = *anywhere;
                others.unset(processor);
                let others = if others.count() == 0 { anywhere } else { &others };
                rustix::thread::sched_setaffinity(None, others)
            }
        }
    }

    /// Where a thread ran last: field 39 of its `stat` (`proc_pid_stat(5)`).
    fn processor_of(&self, thread: u32) -> Option<usize> {
        self.anywhere.as_ref()?;
        let path = proc::process(i32::try_from(thread).ok()?).join("stat");
        let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut buffer = [0; 1024];
        let length = rustix::io::read(&file, &mut buffer).ok()?;
        processor_in(&buffer[..length])
    }
}

/// The name, field 2, may hold anything, also spaces and brackets.
fn processor_in(stat: &[u8]) -> Option<usize> {
    let after = stat.iter().rposition(|byte| *byte == b')')? + 2;
    let field = stat.get(after..)?.split(|byte| *byte == b' ').nth(36)?;
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// How often the calling thread lost its processor to another so far
/// (`nonvoluntary_ctxt_switches` of `proc_pid_status(5)`).
pub fn involuntary_switches() -> Option<u64> {
    let thread = rustix::thread::gettid().as_raw_nonzero().get();
    let path = proc::own("task").join(thread.to_string()).join("status");
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut buffer = [0; 4096];
    let length = rustix::io::read(&file, &mut buffer).ok()?;
    let text = std::str::from_utf8(&buffer[..length]).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_found_behind_any_name() {
        let numbers: Vec<_> = (4..=52).map(|field| field.to_string()).collect();
        let stat = format!("17 (a) b) R {}\n", numbers.join(" "));
        assert_eq!(processor_in(stat.as_bytes()), Some(39));
        assert_eq!(processor_in(b"17 (a) R 1"), None);
        assert_eq!(processor_in(b""), None);
    }

    #[test]
    fn a_worker_goes_where_its_client_is_and_anywhere_else_again() {
        let mut placement = Placement::new();
        let before = rustix::thread::sched_getaffinity(None).expect("known");
        let own = u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).expect("positive");
        for _ in 0..20 * INTERVAL {
            placement.follow(own, Side::Same);
        }
        if placement.bound.is_some() {
            assert_eq!(rustix::thread::sched_getaffinity(None).expect("known").count(), 1);
        }
        placement.leave();
        assert_eq!(rustix::thread::sched_getaffinity(None).expect("known"), before);
        // A thread that is gone has no processor, and that is no error.
        (0..=INTERVAL).for_each(|_| placement.follow(u32::MAX, Side::Same));
    }

    #[test]
    fn a_worker_keeps_off_its_clients_processor() {
        let mut placement = Placement::new();
        let before = rustix::thread::sched_getaffinity(None).expect("known");
        let own = u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).expect("positive");
        for _ in 0..20 * INTERVAL {
            placement.follow(own, Side::Other);
        }
        if let Some((processor, Side::Other)) = placement.bound
            && placement.has_choice()
        {
            let now = rustix::thread::sched_getaffinity(None).expect("known");
            assert!(!now.is_set(processor));
            assert_eq!(now.count() + 1, before.count());
        }
        placement.leave();
        assert_eq!(rustix::thread::sched_getaffinity(None).expect("known"), before);
    }
}
