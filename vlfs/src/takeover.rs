//! Upgrading the daemon of a mount without unmounting: another program takes over.
//!
//! The old program finishes the requests in hand, holds back the rest, writes
//! what it holds in memory into a sealed memory file, and runs the new program in
//! its own place (`execve`): same process, same `/dev/fuse`, same lock, same open
//! files. The kernel then sends again what was not answered
//! (`FUSE_NOTIFY_RESEND`, Linux 6.9), so no operation fails; those that come
//! meanwhile wait. The new program is copied into memory before: it may lie on
//! this very mount. It is asked whether it knows the format of the state; one
//! that does not is refused, and the old program goes on. So it does where anything
//! that the new one will open is not there: the store, a unit, a plain directory.
//! If the new one fails after that, `/dev/fuse` closes with the process: the mount
//! gives errors (`ENOTCONN`), it does not hang.
//!
//! Not passed on: counters since the start but swaps, what `--verify-open` has
//! seen, and single `FORGET`s read at the last moment, whose nodes stay until the
//! unmount. Plain directories are read anew.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::{Errno, FdFlags};
use serde::{Deserialize, Serialize};
use strata_core::GenerationId;
use strata_core::data_paths::DataPaths;

use crate::daemon::{self, Options};
use crate::fuse::device::Device;
use crate::fuse::session::Agreed;
use crate::notify::Message;
use crate::private::UnitKey;
use crate::status::StatusSource;
use crate::vfs::{Notice, handover};

/// Version of the state's format.
pub const VERSION: u32 = 6;
/// Bytes of a program that is copied into memory.
const PROGRAM_BYTES: u64 = 256 << 20;
/// Bytes of a state.
const STATE_BYTES: u64 = 4 << 30;
/// How long the new program may think about whether it knows the state.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests in hand are waited for, with all others held back.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a moment without a slow request or a swap is looked for.
const ATTEMPTS: usize = 20;
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    #[error("the program {path} cannot be read: {source}")]
    Program { path: PathBuf, source: std::io::Error },
    #[error("{path} does not take over: {why}")]
    Refused { path: PathBuf, why: String },
    #[error("this kernel cannot send requests again; Linux 6.9 or later is needed")]
    NoResend,
    #[error("requests or swaps under way did not end in time: try again")]
    Busy,
    #[error("a script of a layer runs: try again when it has ended")]
    Scripts,
    #[error("the layer {0} is no longer at its path: it could not be opened again")]
    Layer(PathBuf),
    #[error("what is to be taken over is not there: {0}")]
    Missing(String),
    #[error("the state cannot be passed on: {0}")]
    State(Errno),
    #[error("the state cannot be written: {0}")]
    Write(#[from] std::io::Error),
    #[error("the state cannot be told: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the state is of version {0}, this program knows version {VERSION}")]
    Version(u32),
}

/// What `strata-vlfs take-over --check` prints.
pub fn promise() -> String {
    format!("strata-vlfs takes over state {VERSION}")
}

/// All that a daemon hands over. Descriptors by number.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    pub version: u32,
    pub options: Options,
    pub started_ms: u64,
    pub ino_gen: u64,
    pub agreed: Agreed,
    /// The mounted directory has the root's second number (`fuse::root`).
    pub second_root: bool,
    /// The mount's number, which names the control socket.
    pub number: (u32, u32),
    pub generation: Option<GenerationId>,
    /// The data directories that are mounted.
    pub data: DataPaths,
    /// The layers of a mount of plain directories.
    pub directories: Vec<PathBuf>,
    pub device: i32,
    /// The private directory.
    pub private: i32,
    pub lock: i32,
    pub listener: i32,
    /// Inode number of the socket's name.
    pub listener_inode: u64,
    /// Who asked for the upgrade, and is told that it is done.
    pub client: i32,
    /// What the kernel is still to be told.
    pub notices: Vec<Notice>,
    pub vfs: handover::State,
}

/// A program that is to take over.
#[derive(Debug)]
pub struct Program<'a> {
    /// As who asks for it calls it.
    pub asked: &'a Path,
    /// Where this process finds it.
    pub place: PathBuf,
}

/// What a daemon needs to be succeeded, besides what it tells in its status.
#[derive(Debug)]
pub struct Predecessor {
    pub options: Options,
    pub device: Arc<Device>,
    pub listener: Arc<UnixListener>,
    pub listener_inode: u64,
    pub notices: Sender<Message>,
    pub ino_gen: u64,
    pub number: (u32, u32),
}

impl Predecessor {
    /// Runs `program` in this process's place. Returns only where that failed:
    /// then everything goes on as before.
    pub fn hand_over(
        &self,
        source: &StatusSource,
        program: &Program<'_>,
        client: &UnixStream,
    ) -> TakeOverError {
        match self.try_hand_over(source, program, client) {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    fn try_hand_over(
        &self,
        source: &StatusSource,
        program: &Program<'_>,
        client: &UnixStream,
    ) -> Result<std::convert::Infallible, TakeOverError> {
        if let Err(error) = crate::proc::keep_root() {
            tracing::debug!(%error, "the root directory cannot be looked at");
        }
        self.layers_are_there(source)?;
        daemon::rehearse(&self.options, &source.vfs)
            .map_err(|error| TakeOverError::Missing(daemon::told(&error)))?;
        let path = || program.asked.to_owned();
        let image = load(&program.place)
            .map_err(|source| TakeOverError::Program { path: path(), source })?;
        ask(&image).map_err(|why| TakeOverError::Refused { path: path(), why })?;
        let agreed = source.session.agreed().filter(|agreed| agreed.resend);
        let agreed = agreed.ok_or(TakeOverError::NoResend)?;
        let mut waits = TakeOverError::Busy;
        for _ in 0..ATTEMPTS {
            // A script is this process's child, and its end is to be noted.
            let scripts = source.scripts.as_ref().map(|scripts| scripts.hold());
            if let Some(None) = scripts {
                waits = TakeOverError::Scripts;
                std::thread::sleep(PAUSE);
                continue;
            }
            waits = TakeOverError::Busy;
            let Some(_swaps) = source.vfs.hold_swaps() else {
                std::thread::sleep(PAUSE);
                continue;
            };
            if !source.session.gate.close(DRAIN_TIMEOUT) {
                std::thread::sleep(PAUSE);
                continue;
            }
            let failed = self.replace(source, agreed, &image, client);
            source.session.gate.open();
            match failed {
                Err(TakeOverError::Busy) => {}
                Err(error) => return Err(error),
                Ok(never) => match never {},
            }
        }
        Err(waits)
    }

    /// Plain directories are opened again by their paths: what is elsewhere now
    /// would stop the successor.
    fn layers_are_there(&self, source: &StatusSource) -> Result<(), TakeOverError> {
        for layer in &source.vfs.active().layers {
            let path = Path::new(&layer.name);
            if layer.digest.is_none()
                && !rustix::fs::stat(path)
                    .is_ok_and(|stat| UnitKey::plain(path, stat.st_dev, stat.st_ino) == layer.unit)
            {
                return Err(TakeOverError::Layer(path.to_owned()));
            }
        }
        Ok(())
    }

    /// With no request in hand and no swap under way.
    fn replace(
        &self,
        source: &StatusSource,
        agreed: Agreed,
        image: &OwnedFd,
        client: &UnixStream,
    ) -> Result<std::convert::Infallible, TakeOverError> {
        let (answer, wait) = channel();
        if self.notices.send(Message::HandOver(answer)).is_err() {
            return Err(TakeOverError::Busy);
        }
        // It may wait for the kernel, which may wait for a request held back.
        let Ok(notices) = wait.recv_timeout(DRAIN_TIMEOUT) else {
            return Err(TakeOverError::Busy);
        };
        let kept = notices.clone();
        let error = match self.run(source, agreed, image, client, notices) {
            Ok(never) => match never {},
            Err(error) => error,
        };
        if let Err(errno) = self.device.set_waiting(false) {
            tracing::error!(%errno, "one worker waits where it should look");
        }
        if let Err(errno) = source.vfs.export(FdFlags::CLOEXEC).map(drop) {
            tracing::warn!(%errno, "descriptors stay open for programs that are run");
        }
        for descriptor in self.descriptors(source, client) {
            if let Err(errno) = rustix::io::fcntl_setfd(descriptor, FdFlags::CLOEXEC) {
                tracing::warn!(%errno, "a descriptor stays open for programs that are run");
            }
        }
        if self.notices.send(Message::Notices(kept)).is_err() {
            tracing::debug!("nobody is left to notify: the mount is going away");
        }
        Err(error)
    }

    fn descriptors<'a>(
        &'a self,
        source: &'a StatusSource,
        client: &'a UnixStream,
    ) -> [std::os::fd::BorrowedFd<'a>; 5] {
        let [private, lock] = source.vfs.private().descriptors();
        [self.device.as_fd(), private, lock, self.listener.as_fd(), client.as_fd()]
    }

    fn run(
        &self,
        source: &StatusSource,
        agreed: Agreed,
        image: &OwnedFd,
        client: &UnixStream,
        notices: Vec<Notice>,
    ) -> Result<std::convert::Infallible, TakeOverError> {
        let descriptors = self.descriptors(source, client);
        for descriptor in descriptors {
            rustix::io::fcntl_setfd(descriptor, FdFlags::empty()).map_err(TakeOverError::State)?;
        }
        self.device.set_waiting(true).map_err(TakeOverError::State)?;
        let [device, private, lock, listener, client] =
            descriptors.map(|descriptor| descriptor.as_raw_fd());
        let active = source.vfs.active();
        let state = State {
            version: VERSION,
            options: self.options.clone(),
            started_ms: source.started_ms(),
            ino_gen: self.ino_gen,
            agreed,
            second_root: source.session.root.is_taken(),
            number: self.number,
            generation: active.info.generation,
            data: source.mounted_data.clone(),
            directories: active.directories(),
            device,
            private,
            lock,
            listener,
            listener_inode: self.listener_inode,
            client,
            notices,
            vfs: source.vfs.export(FdFlags::empty()).map_err(TakeOverError::State)?,
        };
        let text = serde_json::to_vec(&state)?;
        let memory = sealed("strata-state", &text[..], STATE_BYTES)?;
        rustix::io::fcntl_setfd(&memory, FdFlags::empty()).map_err(TakeOverError::State)?;
        tracing::info!(nodes_bytes = text.len(), "another program takes over");
        let error = Command::new(program_path(image))
            .arg0("strata-vlfs")
            .args(["take-over", "--state"])
            .arg(memory.as_raw_fd().to_string())
            .arg(&self.options.mount_point)
            .exec();
        Err(TakeOverError::Write(error))
    }
}

/// The name of a program that is held open: `/proc/self/fd` is the working directory.
pub(crate) fn program_path(image: &OwnedFd) -> String {
    format!("./{}", image.as_raw_fd())
}

/// A copy of a program in memory that nobody can change any more.
fn load(program: &Path) -> std::io::Result<OwnedFd> {
    let file = File::open(program)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    sealed("strata-vlfs", file, PROGRAM_BYTES)
}

pub(crate) fn sealed(name: &str, content: impl Read, limit: u64) -> std::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut memory = File::from(rustix::fs::memfd_create(name, flags)?);
    let copied = std::io::copy(&mut content.take(limit + 1), &mut memory)?;
    if copied > limit {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    memory.seek(SeekFrom::Start(0))?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&memory, seals)?;
    Ok(memory.into())
}

/// Asks a program whether it knows the state. The error says why not.
fn ask(image: &OwnedFd) -> Result<(), String> {
    // Not `/dev/null`: this process may see no `/dev` any more.
    let nothing = || rustix::fs::memfd_create("nothing", MemfdFlags::CLOEXEC).map(Stdio::from);
    let spawned = nothing().and_then(|input| Ok((input, nothing()?))).map_err(Into::into).and_then(
        |(input, errors)| {
            Command::new(program_path(image))
                .arg0("strata-vlfs")
                .args(["take-over", "--check"])
                .stdin(input)
                .stdout(Stdio::piped())
                .stderr(errors)
                .spawn()
        },
    );
    let mut child =
        spawned.map_err(|error: std::io::Error| format!("it cannot be run: {error}"))?;
    let start = Instant::now();
    let ended = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Ok(status),
            Ok(None) if start.elapsed() < ANSWER_TIMEOUT => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(None) => break Err("it does not answer".to_owned()),
            Err(error) => break Err(error.to_string()),
        }
    };
    if ended.is_err()
        && let Err(error) = child.kill().and_then(|()| child.wait().map(drop))
    {
        tracing::warn!(%error, "a program that was asked to take over goes on");
    }
    let status = ended?;
    let mut said = Vec::new();
    if let Some(out) = child.stdout.take() {
        out.take(1024).read_to_end(&mut said).map_err(|error| error.to_string())?;
    }
    let said = String::from_utf8_lossy(&said);
    if status.success() && said.trim_end() == promise() {
        return Ok(());
    }
    Err(format!("it does not say that it knows the state of version {VERSION}"))
}

impl State {
    /// Reads what a predecessor wrote.
    ///
    /// # Errors
    /// It is of another version, or damaged.
    pub fn read(memory: OwnedFd) -> Result<State, TakeOverError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let mut text = Vec::new();
        File::from(memory).take(STATE_BYTES).read_to_end(&mut text)?;
        let Versioned { version } = serde_json::from_slice(&text)?;
        if version != VERSION {
            return Err(TakeOverError::Version(version));
        }
        Ok(serde_json::from_slice(&text)?)
    }
}

/// Tells who asked for the upgrade that it is done.
pub fn tell(client: OwnedFd, line: &[u8]) {
    let mut client = UnixStream::from(client);
    if let Err(error) = client.write_all(line) {
        tracing::debug!(%error, "nobody waits for the upgrade");
    }
}
