//! One connection to the kernel: what was agreed, and what a request is taken apart to.
//!
//! The threads that take requests are in `worker.rs`, what each is answered is in
//! `answers.rs`.

use std::sync::{Arc, Mutex, OnceLock};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::answers::{Answer, Answered};
use super::device::Device;
use super::gate::Gate;
use super::latency::IdleLatency;
use super::requests::Requests;
use super::root::{self, RootNumber};
use super::turn::Turn;
use super::wire::{Reader, Writer};
use super::worker::{MOST_WORKERS, Means, WORKERS};
use crate::gauges::Longest;
use crate::interrupt::Interrupts;
use crate::vfs::{Caller, Vfs};

/// Bytes of file data in one request.
pub(super) const MAX_WRITE: u32 = 1 << 20;
const HEADER: usize = 40;
const MAJOR: u32 = 7;
const MINOR: u32 = 45;
/// Oldest minor version that has all we rely on (`FUSE_EXPLICIT_INVAL_DATA` and before).
const OLDEST_MINOR: u32 = 31;

/// Bits of INIT's flags (`include/uapi/linux/fuse.h`).
mod init {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const EXPORT_SUPPORT: u64 = 1 << 4;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const HAS_EXPIRE_ONLY: u64 = 1 << 35;
    pub const PASSTHROUGH: u64 = 1 << 37;
    pub const HAS_RESEND: u64 = 1 << 39;
    pub const WANTED: u64 = ASYNC_READ
        | ATOMIC_O_TRUNC
        | EXPORT_SUPPORT
        | BIG_WRITES
        | DONT_MASK
        | DO_READDIRPLUS
        | READDIRPLUS_AUTO
        | ASYNC_DIO
        | PARALLEL_DIROPS
        | POSIX_ACL
        | MAX_PAGES
        | CACHE_SYMLINKS
        | EXPLICIT_INVAL_DATA
        | HANDLE_KILLPRIV_V2
        | SETXATTR_EXT
        | INIT_EXT
        | HAS_EXPIRE_ONLY;
}

/// What the kernel agreed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agreed {
    pub minor: u32,
    pub passthrough: bool,
    pub expire_only: bool,
    /// The kernel can send unanswered requests again.
    pub resend: bool,
    pub(super) setxattr_ext: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("the kernel speaks FUSE {major}.{minor}; {MAJOR}.{OLDEST_MINOR} or later is needed")]
    Version { major: u32, minor: u32 },
    #[error("/dev/fuse: {0}")]
    Device(Errno),
}

/// Called once the kernel has been answered for the first time.
pub type Ready = Box<dyn FnOnce() + Send>;

/// One mounted file system and its connection. Shared by all worker threads.
pub struct Session {
    pub vfs: Arc<Vfs>,
    pub(super) device: Arc<Device>,
    /// Closed while a successor takes over.
    pub gate: Gate,
    agreed: OnceLock<Agreed>,
    want_passthrough: bool,
    /// Whichever thread gets the kernel's first request calls it.
    ready: Mutex<Option<Ready>>,
    pub requests: Requests,
    pub interrupts: Interrupts,
    pub turn: Turn,
    pub latency: IdleLatency,
    /// Of those while a swap was under way.
    pub longest_answer: Longest,
    /// Tells file handles of this mount from those of an earlier one.
    pub(super) ino_gen: u64,
    /// Which number the kernel is given for the root.
    pub root: RootNumber,
}

pub(super) struct Request<'a> {
    pub opcode: u32,
    unique: u64,
    pub node: u64,
    pub caller: Caller,
    pub body: Reader<'a>,
}

/// An answer, and to what.
pub(super) struct Reply {
    opcode: u32,
    unique: u64,
    answer: Answered,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("agreed", &self.agreed).finish_non_exhaustive()
    }
}

impl Session {
    pub fn new(
        vfs: Arc<Vfs>,
        device: Arc<Device>,
        want_passthrough: bool,
        latency: IdleLatency,
        ino_gen: u64,
    ) -> Session {
        Session {
            vfs,
            device,
            gate: Gate::default(),
            agreed: OnceLock::new(),
            want_passthrough,
            ready: Mutex::new(None),
            requests: Requests::default(),
            interrupts: Interrupts::new(MOST_WORKERS),
            turn: Turn::new(WORKERS, MOST_WORKERS),
            latency,
            longest_answer: Longest::default(),
            ino_gen,
            root: RootNumber::default(),
        }
    }

    pub fn agreed(&self) -> Option<Agreed> {
        self.agreed.get().copied()
    }

    /// Goes on with what the kernel agreed to with a predecessor.
    pub fn resume(&self, agreed: Agreed) {
        if agreed.passthrough {
            self.vfs.set_passthrough(self.device.clone());
        }
        let _first_time = self.agreed.set(agreed);
    }

    pub fn on_ready(&self, ready: Ready) {
        *self.ready.lock().expect("no panic while held") = Some(ready);
    }

    /// Answers one request, as the kernel writes it. Whatever it holds, the
    /// answer is an error at worst.
    ///
    /// # Errors
    /// It is the first, and the kernel is too old.
    pub fn handle(&self, message: &[u8]) -> Result<(), SessionError> {
        let mut data = Vec::new();
        let mut means = Means { data: &mut data, before_waiting: &|| {} };
        let reply = self.answer(message, &mut means)?;
        self.send(reply, &data);
        Ok(())
    }

    pub(super) fn answer(
        &self,
        message: &[u8],
        means: &mut Means<'_>,
    ) -> Result<Option<Reply>, SessionError> {
        let Ok(mut request) = parse(message) else {
            tracing::warn!(length = message.len(), "a request was cut short");
            return Ok(None);
        };
        if request.opcode == 26 {
            return self.initialise(&mut request).map(|()| None);
        }
        self.requests.count(request.opcode);
        let answer = self.dispatch(&mut request, means);
        tracing::trace!(
            opcode = request.opcode,
            node = request.node,
            error = answer.as_ref().err().map(|errno| errno.raw_os_error()),
            "request"
        );
        if matches!(answer, Ok(Answer::Silent)) {
            return Ok(None);
        }
        Ok(Some(Reply { opcode: request.opcode, unique: request.unique, answer }))
    }

    pub(super) fn send(&self, reply: Option<Reply>, data: &[u8]) {
        let Some(Reply { opcode, unique, answer }) = reply else { return };
        let sent = match &answer {
            Ok(Answer::Silent | Answer::Empty) => self.device.send(unique, 0, &[]),
            Ok(Answer::Body(body)) => self.device.send(unique, 0, body.as_bytes()),
            Ok(Answer::Data(length)) => self.device.send(unique, 0, &data[..*length]),
            Err(errno) => self.device.send(unique, -errno.raw_os_error(), &[]),
        };
        match sent {
            // The caller was killed meanwhile, or the mount is going away.
            Ok(()) | Err(Errno::NOENT | Errno::NODEV) => {}
            Err(error) => tracing::error!(opcode, %error, "the kernel refused an answer"),
        }
    }

    fn initialise(&self, request: &mut Request<'_>) -> Result<(), SessionError> {
        let body = &mut request.body;
        let mut next = || body.u32().unwrap_or(0);
        let (major, minor, readahead, low) = (next(), next(), next(), next());
        if major != MAJOR || minor < OLDEST_MINOR {
            let refused = -Errno::PROTO.raw_os_error();
            let _unmounted_anyway = self.device.send(request.unique, refused, &[]);
            return Err(SessionError::Version { major, minor });
        }
        let high = if u64::from(low) & init::INIT_EXT != 0 { next() } else { 0 };
        let offered = u64::from(low) | u64::from(high) << 32;
        let mut flags = offered & init::WANTED;
        let passthrough = self.want_passthrough && offered & init::PASSTHROUGH != 0;
        if passthrough {
            flags |= init::PASSTHROUGH;
            self.vfs.set_passthrough(self.device.clone());
        }
        let agreed = Agreed {
            minor,
            passthrough,
            expire_only: flags & init::HAS_EXPIRE_ONLY != 0,
            resend: offered & init::HAS_RESEND != 0,
            setxattr_ext: flags & init::SETXATTR_EXT != 0,
        };
        let (low, high) = (flags as u32, (flags >> 32) as u32);
        let mut out = Writer::with_capacity(64);
        out.u32(MAJOR).u32(MINOR).u32(readahead).u32(low).u16(64).u16(48).u32(MAX_WRITE).u32(1);
        out.u16(u16::try_from(MAX_WRITE / 4096).unwrap_or(256)).u16(0).u32(high);
        // Two levels: backing files may be on a stacked file system themselves.
        out.u32(if passthrough { 2 } else { 0 }).bytes(&[0; 24]);
        self.device.send(request.unique, 0, out.as_bytes()).map_err(SessionError::Device)?;
        let _first_time = self.agreed.set(agreed);
        tracing::info!(
            minor,
            passthrough,
            expire_only = agreed.expire_only,
            "the kernel is connected"
        );
        let ready = self.ready.lock().expect("no panic while held").take();
        if let Some(ready) = ready {
            ready();
        }
        Ok(())
    }
}

fn parse(message: &[u8]) -> Result<Request<'_>, Errno> {
    let mut header = Reader::new(message);
    let (length, opcode) = (header.u32()?, header.u32()?);
    let (unique, node) = (header.u64()?, root::node(header.u64()?));
    let (uid, gid, _pid, extensions) = (header.u32()?, header.u32()?, header.u32()?, header.u32()?);
    let end =
        (length as usize).checked_sub((extensions as usize & 0xffff) * 8).ok_or(Errno::INVAL)?;
    let body = message.get(HEADER..end).ok_or(Errno::INVAL)?;
    let caller = Caller { uid, gid, umask: 0 };
    Ok(Request { opcode, unique, node, caller, body: Reader::new(body) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_request_is_refused() {
        assert!(parse(&[0; 39]).is_err());
        let mut header = Writer::default();
        header.u32(400).u32(1).u64(2).u64(1).u32(0).u32(0).u32(0).u32(0);
        assert!(parse(header.as_bytes()).is_err());
    }
}
