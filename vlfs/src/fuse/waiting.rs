//! How a worker waits for the next request: where, and asleep or not.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::latency::IdleLatency;
use super::placement::{Placement, Side, involuntary_switches};
use super::watch::{Came, LOOK, Watch};

/// Looks at a processor's clock and at the device alternate with so many pauses,
/// so that looking does not keep the kernel from queueing.
const PAUSES: u32 = 8;

/// Belongs to one worker's thread.
#[derive(Debug)]
pub struct Waiting {
    placement: Placement,
    watch: Watch,
}

impl Waiting {
    pub fn new() -> Waiting {
        Waiting { placement: Placement::new(), watch: Watch::new() }
    }

    /// Reads one request from a device that does not block.
    ///
    /// # Errors
    /// What the device answers.
    pub fn read(
        &mut self,
        device: BorrowedFd<'_>,
        buffer: &mut [u8],
        latency: &IdleLatency,
    ) -> Result<usize, Errno> {
        let mut came = Came::AtOnce;
        let read = loop {
            match rustix::io::read(device, &mut *buffer) {
                Err(Errno::AGAIN) => {}
                other => break other,
            }
            if came == Came::AtOnce && self.watch.looks() {
                came = Came::InTime;
                match look(device, buffer) {
                    Err(Errno::AGAIN) => {}
                    other => break other,
                }
            }
            came = Came::Late;
            let mut ready = [PollFd::from_borrowed_fd(device, PollFlags::IN)];
            match rustix::event::poll(&mut ready, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => break Err(error),
            }
        };
        let may = latency.is_held() && self.placement.has_choice();
        self.watch.came(came, may, involuntary_switches);
        read
    }

    /// Told the thread that asked.
    pub fn follow(&mut self, client: u32) {
        let side = if self.watch.looks() { Side::Other } else { Side::Same };
        self.placement.follow(client, side);
    }

    /// Another worker reads now.
    pub fn leave(&mut self) {
        self.placement.leave();
    }
}

/// Looks for a request for a while. `EAGAIN`: none came.
fn look(device: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    let begin = Instant::now();
    loop {
        (0..PAUSES).for_each(|_| std::hint::spin_loop());
        match rustix::io::read(device, &mut *buffer) {
            Err(Errno::AGAIN) if begin.elapsed() < LOOK => {}
            other => return other,
        }
    }
}
