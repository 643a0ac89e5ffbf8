//! A thread that answers requests: takes its turn, reads, has the session answer, sends.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::session::{MAX_WRITE, Session, SessionError};
use super::turn::Next;
use super::waiting::Waiting;
use super::wire::Reader;
use crate::sys::schedule;

/// Threads that answer requests from the start. One at a time reads them (`turn`); the
/// others are there for while it copies, flushes or waits.
pub const WORKERS: usize = 8;
/// How long a worker asks to run at a stretch: requests are short, and clients wait for
/// them, so it should not wait for the end of somebody's longer stretch.
const STRETCH: Duration = Duration::from_micros(100);
/// So many at most while all are busy.
pub const MOST_WORKERS: usize = 64;

/// What a worker answers with.
pub struct Means<'a> {
    /// File data that is sent.
    pub data: &'a mut Vec<u8>,
    /// Called where answering takes long from here on: others read requests meanwhile.
    pub before_waiting: &'a dyn Fn(),
}

impl Session {
    /// Answers requests until the file system is unmounted, or until this worker is
    /// not needed any more. For as many threads as [`super::turn::Turn`] counts.
    ///
    /// # Errors
    /// The kernel is too old, or the device fails.
    pub fn serve(&self, worker: usize) -> Result<(), SessionError> {
        self.interrupts.watch(Some(worker));
        match self.take_turns(worker) {
            Ok(Next::Spare) => Ok(()),
            over => {
                self.interrupts.end();
                self.turn.end();
                over.map(drop)
            }
        }
    }

    fn take_turns(&self, worker: usize) -> Result<Next, SessionError> {
        let turn = &self.turn;
        if let Err(error) = schedule::run_in_stretches(STRETCH) {
            tracing::debug!(%error, "this worker waits for who has its processor");
        }
        let mut buffer = vec![0_u8; MAX_WRITE as usize + 4096];
        let mut waiting = Waiting::new();
        let mut data = Vec::new();
        loop {
            match turn.take(worker) {
                Next::Read => {}
                other => return Ok(other),
            }
            let length = match waiting.read(self.device.as_fd(), &mut buffer, &self.latency) {
                Ok(length) => length,
                Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => continue,
                Err(Errno::NODEV) => return Ok(Next::Over),
                Err(error) => return Err(SessionError::Device(error)),
            };
            let _in_hand = self.gate.enter();
            let message = &buffer[..length];
            self.interrupts.begin(worker, unique(message), client(message));
            turn.begin(worker);
            let mut means = Means { data: &mut data, before_waiting: &|| turn.give_up(worker) };
            if waits_for_disk(message) {
                turn.give_up(worker);
            } else {
                waiting.follow(client(message));
            }
            let begun = (!self.vfs.is_settled()).then(Instant::now);
            let reply = self.answer(message, &mut means)?;
            if let Some(begun) = begun {
                self.longest_answer.note(begun.elapsed());
            }
            // Before it is sent: that wakes the client, which may take this processor.
            turn.finish(worker);
            self.send(reply, &data);
            if !turn.is_of(worker) {
                waiting.leave();
            }
        }
    }

    /// Lets requests be answered by more workers when all are busy, until the end.
    /// `start` starts the worker of a number. For a thread of its own.
    pub fn oversee(&self, start: impl FnMut(usize) -> bool) {
        self.turn.oversee(&self.latency, start);
    }
}

/// Whether a request flushes or copies: it may take long, surely.
fn waits_for_disk(message: &[u8]) -> bool {
    let opcode = Reader::new(message.get(4..).unwrap_or_default()).u32();
    matches!(opcode, Ok(20 | 30 | 43 | 47))
}

fn unique(message: &[u8]) -> u64 {
    Reader::new(message.get(8..).unwrap_or_default()).u64().unwrap_or(0)
}

/// The thread that asks; 0 for the kernel itself and for other process namespaces.
fn client(message: &[u8]) -> u32 {
    Reader::new(message.get(32..).unwrap_or_default()).u32().unwrap_or(0)
}
