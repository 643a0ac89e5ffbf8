//! The thread that tells the kernel what changed.
//!
//! The kernel takes a notification only when no request on that directory is
//! under way, so telling it from a request would deadlock: requests put notices
//! into a queue, and this thread, which holds no lock, sends them. After a swap
//! it sends them once more when everything that was being answered has been, and
//! then lets the file system settle.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::fuse::device::Device;
use crate::fuse::session::Session;
use crate::vfs::{GRACE, Notice, Notify, Vfs};

/// How often the queue is looked after while something is unsettled.
const TICK: Duration = Duration::from_millis(50);

/// How long somebody waits for the kernel to take what is queued. It takes a
/// notice once no request on that directory is under way.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// What the thread is sent.
#[derive(Debug)]
pub enum Message {
    Notices(Vec<Notice>),
    /// Answered once all before it was sent.
    Flush(Sender<()>),
    /// Answered with all that the kernel is still to be told again.
    HandOver(Sender<Vec<Notice>>),
}

struct Queue(Sender<Message>);

impl Notify for Queue {
    fn send(&self, notices: Vec<Notice>) {
        if self.0.send(Message::Notices(notices)).is_err() {
            tracing::debug!("nobody is left to notify: the mount is going away");
        }
    }

    fn flush(&self) {
        let (done, wait) = channel();
        if self.0.send(Message::Flush(done)).is_err() {
            return;
        }
        if let Err(RecvTimeoutError::Timeout) = wait.recv_timeout(FLUSH_TIMEOUT) {
            tracing::warn!("the kernel is slow to take notices");
        }
    }
}

/// A queue for notices, to hand to [`Vfs::set_notify`], and both its ends.
pub fn queue() -> (Box<dyn Notify>, Sender<Message>, Receiver<Message>) {
    let (sender, receiver) = channel();
    (Box::new(Queue(sender.clone())), sender, receiver)
}

/// Sends notices until the queue's other end is dropped or `stop` says so.
pub fn run(
    session: &Session,
    vfs: &Arc<Vfs>,
    device: &Device,
    queue: &Receiver<Message>,
    stop: impl Fn() -> bool,
) {
    let mut again: VecDeque<(Instant, Vec<Notice>)> = VecDeque::new();
    while !stop() {
        let received = queue.recv_timeout(TICK);
        // Only now: a first notice may come right after the kernel has agreed.
        let expire_only = session.agreed().is_some_and(|agreed| agreed.expire_only);
        match received {
            Ok(Message::Flush(done)) => {
                if done.send(()).is_err() {
                    tracing::debug!("who waited for the notices is gone");
                }
            }
            Ok(Message::HandOver(answer)) => {
                let rest = again.drain(..).flat_map(|(_, notices)| notices).collect();
                if answer.send(rest).is_err() {
                    tracing::debug!("who takes over is late");
                }
            }
            Ok(Message::Notices(notices)) => {
                send(device, &notices, expire_only);
                if !vfs.is_settled() {
                    again.push_back((Instant::now(), notices));
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        // All that began before the last swap has been answered: what was told since needs
        // saying once more, and nothing that is told from now on, however much that is.
        let over = !vfs.is_settled() && vfs.is_grace_over();
        while again.front().is_some_and(|(sent, _)| over || sent.elapsed() >= GRACE) {
            if let Some((_, notices)) = again.pop_front() {
                send(device, &notices, expire_only);
            }
        }
        if over {
            vfs.settle();
        }
    }
}

fn send(device: &Device, notices: &[Notice], expire_only: bool) {
    for notice in notices {
        if let Err(error) = device.notify(notice, expire_only) {
            tracing::debug!(?notice, %error, "the kernel did not take a notice");
        }
    }
}
