//! On which processor the worker that reads requests runs: on its client's.
//!
//! A client waits for its answer, so the two never need a processor at the same
//! time; on the same one they hand over by a switch of context. On two, each
//! request wakes the other processor twice, which in a virtual machine costs
//! several times the request itself. The kernel cannot know: it wakes a worker
//! where it ran last. So the worker asks now and then where its client runs and
//! goes there; when clients are on several processors it goes anywhere.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::CpuSet;

use crate::proc;

/// Requests between two looks.
const INTERVAL: u32 = 64;

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
    /// The processor that the worker went to.
    bound: Option<usize>,
}

impl Placement {
    pub fn new() -> Placement {
        let anywhere = rustix::thread::sched_getaffinity(None).ok();
        Placement { anywhere, requests: 0, last: None, bound: None }
    }

    /// Called with the thread id of each request's client.
    pub fn follow(&mut self, client: u32) {
        self.requests += 1;
        if self.requests < INTERVAL {
            return;
        }
        self.requests = 0;
        let Some(processor) = self.processor_of(client) else { return };
        let agreed = self.last.replace(processor) == Some(processor);
        let wanted = agreed.then_some(processor);
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

    fn bind(&self, processor: Option<usize>) -> Result<(), Errno> {
        let anywhere = self.anywhere.as_ref().ok_or(Errno::NOTSUP)?;
        match processor.filter(|processor| anywhere.is_set(*processor)) {
            None => rustix::thread::sched_setaffinity(None, anywhere),
            Some(processor) => {
                let mut one = CpuSet::new();
                one.set(processor);
                rustix::thread::sched_setaffinity(None, &one)
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
            placement.follow(own);
        }
        if placement.bound.is_some() {
            assert_eq!(rustix::thread::sched_getaffinity(None).expect("known").count(), 1);
        }
        placement.leave();
        assert_eq!(rustix::thread::sched_getaffinity(None).expect("known"), before);
        // A thread that is gone has no processor, and that is no error.
        (0..=INTERVAL).for_each(|_| placement.follow(u32::MAX));
    }
}
