//! The control socket: one JSON object a line asked, one a line answered.
//!
//! `/run/strata/vlfs/<major>-<minor>.sock`, named by the mount's `st_dev`, so
//! that whoever sees the mount finds it; only root may connect.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::set;
use crate::status::{Status, StatusSource};
use crate::stop::Stop;
use crate::takeover::{Predecessor, Program};
use crate::vfs::{Caller, Reverted, RevertedTree, SetInfo};

pub const DIRECTORY: &str = "/run/strata/vlfs";
/// Bytes of one answer.
const ANSWER_LIMIT: u64 = 64 << 20;
/// Bytes of one request: 4096 layer directories of the longest paths fit.
const REQUEST_LIMIT: usize = 20 << 20;
/// Connections at a time; more are told so and closed.
const CONNECTIONS: usize = 16;
/// A suspended daemon accepts a connection and never answers: for so long it is waited
/// for, and again after every word that it still works.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a daemon says that it still works: a swap copies data of any size.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// An upgrade waits for slow requests, and opens all layers anew.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(120);
/// From the start of a connection, or its last answer, to the end of a request.
const SERVER_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    Status,
    /// Directories, topmost first; for mounts without a store.
    Swap {
        layers: Vec<PathBuf>,
    },
    /// Another program takes over; the path as who asks sees it.
    Upgrade {
        binary: PathBuf,
    },
    /// A path relative to the mount's root, as bytes; with all below it where asked.
    Revert {
        path: Vec<u8>,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        recursive: bool,
    },
    /// What is to become of scripts that failed.
    Scripts {
        action: ScriptsAction,
    },
}

/// What an operator decides about scripts that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScriptsAction {
    /// Let them run again.
    Retry,
    /// Take it as it is.
    Accept,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It is under way: the answer is still to come.
    Working {
        seconds: u64,
    },
    Status(Box<Status>),
    Swapped {
        names: usize,
        directories: usize,
    },
    Reverted {
        what: String,
    },
    Scripts {
        what: String,
    },
    Upgraded {
        pid: u32,
        version: String,
    },
    Error {
        message: String,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("the control socket {path}: {source}")]
    Socket { path: PathBuf, source: std::io::Error },
    #[error("the daemon did not answer in time: it is suspended or hangs")]
    Silent,
    #[error("the daemon ended without an answer")]
    Ended,
    #[error("the daemon's answer makes no sense: {0}")]
    Answer(#[from] serde_json::Error),
    #[error("{0}")]
    Refused(String),
}

/// Path of the socket of a mount.
pub fn socket_path((major, minor): (u32, u32)) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{major}-{minor}.sock"))
}

/// Asks the daemon of a mount.
pub fn ask(path: &Path, request: &Request) -> Result<Answer, ControlError> {
    let error = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => ControlError::Silent,
        _ => ControlError::Socket { path: path.to_owned(), source },
    };
    let mut stream = UnixStream::connect(path).map_err(error)?;
    let timeout = match request {
        Request::Upgrade { .. } => UPGRADE_TIMEOUT,
        Request::Status
        | Request::Swap { .. }
        | Request::Revert { .. }
        | Request::Scripts { .. } => CLIENT_TIMEOUT,
    };
    stream.set_read_timeout(Some(timeout)).map_err(error)?;
    stream.set_write_timeout(Some(CLIENT_TIMEOUT)).map_err(error)?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).map_err(error)?;
    let mut lines = BufReader::new(stream.take(ANSWER_LIMIT));
    loop {
        let mut answer = String::new();
        lines.read_line(&mut answer).map_err(error)?;
        if answer.is_empty() {
            return Err(ControlError::Ended);
        }
        match serde_json::from_str(&answer)? {
            Answer::Working { .. } => {}
            Answer::Error { message } => return Err(ControlError::Refused(message)),
            answer => return Ok(answer),
        }
    }
}

/// The listening socket of a mount; its name goes with it, unless a newer mount
/// has taken the name: the kernel gives a mount's number again as soon as it is
/// unmounted, while its daemon still ends.
#[derive(Debug)]
pub struct Server {
    listener: Arc<UnixListener>,
    path: PathBuf,
    /// Inode number of the name when it was made.
    inode: u64,
}

/// Ends [`Server::run`] from another thread.
#[derive(Debug)]
pub struct Waker(Arc<UnixListener>);

impl Waker {
    /// Wakes [`Server::run`] after `stop`. Not by a connection: the name may
    /// lead to a newer mount by now.
    pub fn wake(&self) {
        if let Err(error) = rustix::net::shutdown(&*self.0, rustix::net::Shutdown::Both) {
            tracing::debug!(%error, "the control socket was gone already");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() != self.inode) {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "the control socket was gone already");
        }
    }
}

impl Server {
    /// # Errors
    /// The socket cannot be made.
    pub fn bind(path: PathBuf) -> Result<Server, ControlError> {
        let error = |source| ControlError::Socket { path: path.clone(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(DIRECTORY).map_err(error)?;
        // Of an earlier mount with this number, whose daemon was killed or still ends.
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(error(source));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(error)?;
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&path, mode).map_err(error)?;
        let inode = std::fs::symlink_metadata(&path).map_err(error)?.ino();
        Ok(Server { listener: Arc::new(listener), path, inode })
    }

    /// The socket of a predecessor in this process, with its name's inode number.
    pub fn adopt(listener: OwnedFd, path: PathBuf, inode: u64) -> Server {
        Server { listener: Arc::new(UnixListener::from(listener)), path, inode }
    }

    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// The socket itself, to hand to a successor.
    pub fn listener(&self) -> Arc<UnixListener> {
        self.listener.clone()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn waker(&self) -> Waker {
        Waker(self.listener.clone())
    }

    /// Serves until `stop`, one thread a connection, [`CONNECTIONS`] at most.
    pub fn run(
        &self,
        source: &Arc<StatusSource>,
        predecessor: &Arc<Predecessor>,
        stop: &Arc<Stop>,
    ) {
        let open = Arc::new(());
        loop {
            match self.listener.accept() {
                Ok((stream, _)) if !stop.is_stopped() => {
                    if Arc::strong_count(&open) > CONNECTIONS {
                        refuse(stream);
                        continue;
                    }
                    let (source, predecessor) = (source.clone(), predecessor.clone());
                    let counted = open.clone();
                    let serve = move || {
                        if let Err(error) = serve(stream, &source, &predecessor) {
                            tracing::debug!(%error, "a control connection ended");
                        }
                        drop(counted);
                    };
                    let spawned = std::thread::Builder::new().name("control".into()).spawn(serve);
                    if let Err(error) = spawned {
                        tracing::warn!(%error, "no thread for a control connection");
                    }
                }
                Ok(_) => return,
                Err(_) if stop.is_stopped() => return,
                Err(error) => {
                    tracing::warn!(%error, "the control socket failed");
                    if stop.wait(Duration::from_secs(1)) {
                        return;
                    }
                }
            }
        }
    }
}

fn refuse(mut stream: UnixStream) {
    let message = format!("{CONNECTIONS} connections are open already: try again");
    let sent = line(&Answer::Error { message })
        .map_err(std::io::Error::from)
        .and_then(|line| stream.set_nonblocking(true).and_then(|()| stream.write_all(&line)));
    if let Err(error) = sent {
        tracing::debug!(%error, "a control connection was refused unheard");
    }
}

fn line(answer: &Answer) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    Ok(line)
}

/// What a successor answers to who asked for it.
///
/// # Errors
/// None in practice: plain fields serialise.
pub fn upgraded() -> serde_json::Result<Vec<u8>> {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    line(&Answer::Upgraded { pid: std::process::id(), version })
}

/// One request, without its newline. `None` at the end of the connection.
fn read_request(stream: &mut UnixStream, rest: &mut Vec<u8>) -> std::io::Result<Option<Vec<u8>>> {
    let start = Instant::now();
    let mut buffer = vec![0; 64 << 10];
    let mut searched = 0;
    loop {
        if let Some(at) = rest[searched..].iter().position(|b| *b == b'\n') {
            let mut request: Vec<u8> = rest.drain(..=searched + at).collect();
            request.pop();
            return Ok(Some(request));
        }
        searched = rest.len();
        if searched > REQUEST_LIMIT {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        let left = SERVER_TIMEOUT.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(length) => rest.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn serve(
    mut stream: UnixStream,
    source: &StatusSource,
    predecessor: &Predecessor,
) -> std::io::Result<()> {
    stream.set_write_timeout(Some(SERVER_TIMEOUT))?;
    let mut rest = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut rest)? {
        if let Err(error) = crate::proc::keep_root() {
            tracing::debug!(%error, "the root directory cannot be looked at");
        }
        let answer = match serde_json::from_slice(&request) {
            Ok(Request::Upgrade { binary }) => upgrade(&stream, &binary, source, predecessor),
            Ok(request) => working(&stream, HEARTBEAT, || answer(request, source)),
            Err(error) => Answer::Error { message: format!("the request makes no sense: {error}") },
        };
        stream.write_all(&line(&answer)?)?;
    }
    Ok(())
}

/// Does what takes long, and says every `pause` that it is not done yet.
fn working<T>(stream: &UnixStream, pause: Duration, work: impl FnOnce() -> T) -> T {
    let (done, wait) = channel::<()>();
    let start = Instant::now();
    std::thread::scope(|scope| {
        let heart = std::thread::Builder::new().name("heartbeat".into());
        let beating = heart.spawn_scoped(scope, move || {
            let mut stream = stream;
            while wait.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let said = line(&Answer::Working { seconds: start.elapsed().as_secs() });
                let sent = said.map_err(Into::into).and_then(|line| stream.write_all(&line));
                if let Err(error) = sent {
                    tracing::debug!(%error, "who asked waits no longer");
                    return;
                }
            }
        });
        if let Err(error) = beating {
            tracing::warn!(%error, "who asked may take long work for a hang");
        }
        let result = work();
        drop(done);
        result
    })
}

/// Returns only where the upgrade failed; else the successor answers.
fn upgrade(
    stream: &UnixStream,
    binary: &Path,
    source: &StatusSource,
    predecessor: &Predecessor,
) -> Answer {
    // By the root directory of who asks: it may be in another mount namespace.
    let below = binary.strip_prefix("/").unwrap_or(binary);
    let message = match rustix::net::sockopt::socket_peercred(stream) {
        Ok(peer) => {
            let process = crate::proc::process(peer.pid.as_raw_nonzero().get());
            let program = Program { asked: binary, place: process.join("root").join(below) };
            tracing::info!(program = %binary.display(), "an upgrade is asked for");
            predecessor.hand_over(source, &program, stream).to_string()
        }
        Err(error) => format!("who asks cannot be told: {error}"),
    };
    tracing::warn!(message, "the upgrade failed: the old program goes on");
    Answer::Error { message }
}

fn answer(request: Request, source: &StatusSource) -> Answer {
    let refused = |message: String| Answer::Error { message };
    match request {
        Request::Upgrade { .. } => refused("it is answered elsewhere".to_owned()),
        Request::Status => Answer::Status(Box::new(source.status())),
        Request::Swap { .. } if source.follows_a_store() => {
            refused("this mount follows its link in the store: move the link instead".to_owned())
        }
        Request::Swap { layers } => {
            let known = source.vfs.active().set();
            let swapped = set::open_directories(&layers, Some(&known))
                .map_err(|error| error.to_string())
                .and_then(|set| {
                    let swapped = source.vfs.swap(set, SetInfo::default());
                    swapped.map_err(|errno| errno.to_string())
                });
            source.note_swap(swapped.as_ref().err().cloned());
            match swapped {
                Ok(done) => Answer::Swapped { names: done.names, directories: done.directories },
                Err(error) => refused(error),
            }
        }
        Request::Revert { path, recursive } => {
            let root = Caller { uid: 0, gid: 0, umask: 0 };
            let done = if recursive {
                source.vfs.revert_tree(&path, &root).map(reverted_tree)
            } else {
                source.vfs.revert(&path, &root).map(|what| reverted(what).to_owned())
            };
            match done {
                Ok(what) => Answer::Reverted { what },
                Err(errno) => refused(revert_error(errno)),
            }
        }
        Request::Scripts { action } => {
            let Some(scripts) = &source.scripts else {
                return refused("no VA runs on this mount, and no scripts are run".to_owned());
            };
            let done = match action {
                ScriptsAction::Retry => scripts.retry(source.vfs.private()),
                ScriptsAction::Accept => scripts.accept(source.vfs.private()),
            };
            match done {
                Ok(what) => Answer::Scripts { what },
                Err(error) => refused(error.to_string()),
            }
        }
    }
}

/// What a revert did, for people.
pub fn reverted(what: Reverted) -> &'static str {
    match what {
        Reverted::Copy => "the private copy was dropped",
        Reverted::Whiteout => "the white-out was dropped",
        Reverted::Both => "the private file and the white-out were dropped",
    }
}

/// What a revert of a tree did, for people.
pub fn reverted_tree(done: RevertedTree) -> String {
    let RevertedTree { copies, whiteouts, left } = done;
    let stays = if left == 0 { String::new() } else { format!("; {left} of its own stay") };
    format!("{copies} private copies and {whiteouts} white-outs were dropped{stays}")
}

/// Why a revert was refused, for people.
pub fn revert_error(errno: rustix::io::Errno) -> String {
    use rustix::io::Errno;
    match errno {
        Errno::NODATA => {
            "it is unchanged, or no layer has it: there is no original to show".to_owned()
        }
        Errno::ISDIR => {
            "a private directory stands there: `revert --recursive` takes all below it".to_owned()
        }
        Errno::PERM => "only root and the file's owner may revert it".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_takes_long_is_told_apart_from_a_hang() {
        let path = std::env::temp_dir().join(format!("strata-working-{}", std::process::id()));
        let _of_an_earlier_test = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("bound");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("asked");
            let mut rest = Vec::new();
            read_request(&mut stream, &mut rest).expect("read").expect("a request");
            let (heard, ours) = UnixStream::pair().expect("a pair");
            // The work ends once three words were heard.
            let answer = working(&ours, Duration::from_millis(1), || {
                let words: Vec<_> = BufReader::new(&heard).lines().take(3).collect();
                for word in words {
                    let word = word.expect("a word") + "\n";
                    assert!(word.contains("working"), "{word}");
                    stream.write_all(word.as_bytes()).expect("passed on");
                }
                Answer::Swapped { names: 1, directories: 2 }
            });
            stream.write_all(&line(&answer).expect("text")).expect("answered");
        });
        let answer = ask(&path, &Request::Swap { layers: Vec::new() }).expect("an answer");
        assert!(matches!(answer, Answer::Swapped { names: 1, directories: 2 }), "{answer:?}");
        server.join().expect("no panic");
        std::fs::remove_file(&path).expect("removed");
    }

    #[test]
    fn a_server_whose_name_was_taken_ends_and_leaves_the_name() {
        let path = socket_path((u32::MAX, std::process::id()));
        let old = Server::bind(path.clone()).expect("bound");
        let new = Server::bind(path.clone()).expect("bound in its place");
        old.waker().wake();
        let refused = old.listener.accept().expect_err("shut down");
        assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput);
        drop(old);
        UnixStream::connect(&path).expect("the newer server has its name");
        drop(new);
        assert!(!path.exists());
    }
}
