//! The control socket of a running reconciler, `state/reconcile.sock` in its store
//! (`docs/formats.md`, "The control socket").
//!
//! Who may write to the directory may ask for a pass, and hear how it went. One line of
//! JSON asks; one says that the pass will come, and one, after a pass that began later
//! than that, what it found.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use strata_store::Store;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader as AsyncBufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::Sender;
use tokio::sync::{Semaphore, oneshot};

const VERSION: u32 = 1;
const SOCKET: &str = "reconcile.sock";
const REQUEST_BYTES: u64 = 4 << 10;
const REQUEST_TIME: Duration = Duration::from_secs(5);
const ANSWER_BYTES: u64 = 64 << 20;
/// A running reconciler accepts within this time, whatever it does.
const ACCEPT_TIME: Duration = Duration::from_secs(30);
const CONNECTIONS: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("no reconciler runs on the store {0}")]
    NotRunning(PathBuf),
    #[error("the reconciler's socket {path}: {source}")]
    Socket { path: PathBuf, source: io::Error },
    #[error("the reconciler answered what is not understood: {0}")]
    Answer(String),
    #[error("the pass failed: {0}")]
    Failed(String),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    version: u32,
    ask: Ask,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Ask {
    Reconcile,
}

/// What a reconciler says to who asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// A pass will come.
    Accepted,
    /// The report of the pass, in its JSON form.
    Passed {
        report: serde_json::Value,
    },
    Failed {
        message: String,
    },
}

/// Somebody who asked for a pass, and waits.
pub type Waiter = oneshot::Sender<Answer>;

/// The path of the socket below the file descriptor of its directory: the store's path
/// may be longer than an address can be.
fn address(store: &Store) -> io::Result<(File, PathBuf)> {
    let directory = File::open(store.state(""))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()));
    Ok((directory, path))
}

/// Makes the socket. Only the holder of the reconciler's lock comes here, so one that
/// is there was left by a program that is gone.
///
/// # Errors
/// The store's disk has no sockets.
pub fn listen(store: &Store) -> Result<UnixListener, ControlError> {
    let socket = |source| ControlError::Socket { path: store.state(SOCKET), source };
    let (_directory, path) = address(store).map_err(socket)?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(socket(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(socket)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(socket)?;
    Ok(listener)
}

/// Serves until it is dropped.
pub async fn serve(listener: UnixListener, waiters: Sender<Waiter>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = permits.clone().acquire_owned().await.expect("never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let waiters = waiters.clone();
                tokio::spawn(async move {
                    if let Err(error) = connection(stream, &waiters).await {
                        tracing::debug!(%error, "a request to the control socket broke off");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a request to the control socket could not be accepted");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn connection(stream: UnixStream, waiters: &Sender<Waiter>) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = AsyncBufReader::new(reader.take(REQUEST_BYTES));
    let mut line = String::new();
    tokio::time::timeout(REQUEST_TIME, reader.read_line(&mut line)).await??;
    let request = serde_json::from_str::<Request>(&line);
    let understood =
        request.is_ok_and(|Request { version, ask: Ask::Reconcile }| version == VERSION);
    if !understood {
        let message = "the request is not understood".to_owned();
        return say(&mut writer, &Answer::Failed { message }).await;
    }
    let (waiter, answer) = oneshot::channel();
    if waiters.try_send(waiter).is_err() {
        let message = "too many wait already".to_owned();
        return say(&mut writer, &Answer::Failed { message }).await;
    }
    say(&mut writer, &Answer::Accepted).await?;
    let mut end = [0];
    tokio::select! {
        answer = answer => {
            let ending = |_| Answer::Failed { message: "the reconciler ended".to_owned() };
            say(&mut writer, &answer.unwrap_or_else(ending)).await
        }
        // Nobody listens any more.
        _ = reader.read(&mut end) => Ok(()),
    }
}

async fn say(writer: &mut (impl AsyncWriteExt + Unpin), answer: &Answer) -> io::Result<()> {
    let mut text = serde_json::to_vec(answer)?;
    text.push(b'\n');
    writer.write_all(&text).await
}

/// Asks the reconciler of a store for a pass now. With `wait`, returns the report of
/// the pass.
///
/// # Errors
/// None runs, or the pass failed.
pub fn reconcile_now(store: &Store, wait: bool) -> Result<Option<serde_json::Value>, ControlError> {
    let socket = |source| ControlError::Socket { path: store.state(SOCKET), source };
    let (_directory, path) = address(store).map_err(socket)?;
    let mut stream = StdStream::connect(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ControlError::NotRunning(store.root().to_owned())
        }
        _ => socket(error),
    })?;
    stream.set_read_timeout(Some(ACCEPT_TIME)).map_err(socket)?;
    let request = Request { version: VERSION, ask: Ask::Reconcile };
    let mut text = serde_json::to_vec(&request).expect("plain fields serialise");
    text.push(b'\n');
    stream.write_all(&text).map_err(socket)?;
    let mut reader =
        BufReader::new(io::Read::take(stream.try_clone().map_err(socket)?, ANSWER_BYTES));
    match hear(&mut reader, socket)? {
        Answer::Accepted => {}
        Answer::Failed { message } => return Err(ControlError::Failed(message)),
        Answer::Passed { .. } => return Err(ControlError::Answer("a report too early".to_owned())),
    }
    if !wait {
        return Ok(None);
    }
    // A fetch has a deadline of its own, which the reconciler knows.
    stream.set_read_timeout(None).map_err(socket)?;
    match hear(&mut reader, socket)? {
        Answer::Passed { report } => Ok(Some(report)),
        Answer::Failed { message } => Err(ControlError::Failed(message)),
        Answer::Accepted => Err(ControlError::Answer("accepted twice".to_owned())),
    }
}

fn hear(
    reader: &mut impl BufRead,
    socket: impl Fn(io::Error) -> ControlError,
) -> Result<Answer, ControlError> {
    let mut line = String::new();
    if reader.read_line(&mut line).map_err(socket)? == 0 {
        return Err(ControlError::Failed("the reconciler ended".to_owned()));
    }
    serde_json::from_str(&line).map_err(|error| ControlError::Answer(error.to_string()))
}
