//! The daemon of one mount: its threads, from the mount to the last answer.
//!
//! It never touches its own mount, holds everything it needs open from the
//! start, and ends when the file system is unmounted.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, anyhow};
use rustix::process::{Resource, Rlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use strata_core::{GenerationId, MacAddr};
use strata_store::Store;

use crate::control::{self, Server};
use crate::follow::{Follower, Progress};
use crate::fuse::device::{self, Device};
use crate::fuse::session::Session;
use crate::layer::Layer;
use crate::private::{Owner, Private};
use crate::status::StatusSource;
use crate::stop::Stop;
use crate::vfs::{SetInfo, Vfs};
use crate::{notify, proc, set};

/// Threads that answer requests. More make single requests slower (measured on
/// two processors); a slow copy occupies one, so there are some to spare.
const WORKERS: usize = 4;

/// Where the layers come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Directories, topmost first.
    Directories(Vec<PathBuf>),
    /// The link of a VA in a store.
    Va { store: PathBuf, mac: MacAddr, reports: Option<PathBuf> },
    /// A private directory of the past over layers, read-only: files are salvaged
    /// from it (§4.5). It is a layer here, and nothing in it is changed.
    Former { former: PathBuf, layers: FormerLayers },
}

/// What lies below a former private layer.
#[derive(Debug, Clone)]
pub enum FormerLayers {
    Directories(Vec<PathBuf>),
    Generation { store: PathBuf, id: GenerationId },
}

/// All paths absolute.
#[derive(Debug, Clone)]
pub struct Options {
    pub source: Source,
    pub private: PathBuf,
    pub mount_point: PathBuf,
    pub passthrough: bool,
    pub read_only: bool,
    /// Check each layer file's content at its first open.
    pub verify_open: bool,
    pub poll: Duration,
    pub report_interval: Duration,
}

/// Mounts and serves until the file system is unmounted. `ready` is called once
/// the file system answers.
///
/// # Errors
/// It cannot be mounted; nothing is mounted then.
pub fn run(options: &Options, ready: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    raise_file_limit();
    rustix::process::umask(rustix::fs::Mode::empty());
    let started = SystemTime::now();
    let progress = Arc::new(Mutex::new(Progress::default()));
    let follower = follower(options, started, &progress)?;
    let mounted = mount(options, follower.as_ref());
    if let (Err(error), Some(follower)) = (&mounted, &follower) {
        follower.report_failure(&format!("{error:#}"));
    }
    let (vfs, device) = mounted?;
    let ino_gen = started.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let ino_gen = u64::try_from(ino_gen).unwrap_or(0) & u64::from(u32::MAX);
    let session = Arc::new(Session::new(vfs.clone(), device.clone(), options.passthrough, ino_gen));
    let source = Arc::new(StatusSource {
        vfs: vfs.clone(),
        session: session.clone(),
        mount_point: options.mount_point.clone(),
        mac: follower.as_ref().map(|follower| follower.mac),
        store: follower.as_ref().map(|follower| follower.store.root().to_owned()),
        wanted_passthrough: options.passthrough,
        started,
        since: Instant::now(),
        progress,
    });
    let served = serve(options, &vfs, &device, &session, &source, follower, ready);
    if served.is_err() {
        // Nothing answers any more: leave no dead mount behind.
        if let Err(error) = device::unmount(&options.mount_point, true) {
            tracing::debug!(%error, "the mount was gone already");
        }
    }
    if let Err(error) = vfs.private().sync() {
        tracing::error!(%error, "the private layer could not be flushed");
    }
    served
}

fn follower(
    options: &Options,
    started: SystemTime,
    progress: &Arc<Mutex<Progress>>,
) -> anyhow::Result<Option<Follower>> {
    let Source::Va { store, mac, reports } = &options.source else { return Ok(None) };
    let store = Store::open(store)?;
    Ok(Some(Follower {
        reports: reports.clone().unwrap_or_else(|| store.reports()),
        store,
        mac: *mac,
        mount_point: options.mount_point.clone(),
        report_interval: options.report_interval,
        started,
        progress: progress.clone(),
    }))
}

fn mount(
    options: &Options,
    follower: Option<&Follower>,
) -> anyhow::Result<(Arc<Vfs>, Arc<Device>)> {
    let owner = follower.map_or(Owner::AdHoc, |follower| Owner::Va(follower.mac));
    // The layers first: a mount that is refused for them takes no private directory.
    let (layers, info) = layers(options, follower)?;
    let private = Private::open(&options.private, &owner)?;
    // After the last path of the caller's: from now on names are descriptors.
    proc::pin().context("/proc must be mounted")?;
    let vfs = Arc::new(Vfs::new(private, layers, info)?);
    if options.verify_open {
        vfs.set_first_open();
    }
    let device = Device::mount(&options.mount_point, "strata", options.read_only)?;
    Ok((vfs, device))
}

fn layers(
    options: &Options,
    follower: Option<&Follower>,
) -> anyhow::Result<(Vec<Arc<Layer>>, SetInfo)> {
    match (&options.source, follower) {
        (Source::Directories(directories), _) => {
            Ok((set::open_directories(directories, &[])?, SetInfo::default()))
        }
        (Source::Va { mac, .. }, Some(follower)) => {
            let desired = follower.store.desired(*mac)?;
            let desired =
                desired.ok_or_else(|| anyhow!("the store has no generation for the VA {mac}"))?;
            follower.progress.lock().expect("no panic while held").desired = Some(desired);
            Ok(set::open_generation(&follower.store, &desired, &[])?)
        }
        (Source::Former { former, layers }, _) => {
            let mut all = vec![Arc::new(Layer::scan(former)?)];
            all.extend(match layers {
                FormerLayers::Directories(directories) => set::open_directories(directories, &[])?,
                FormerLayers::Generation { store, id } => {
                    set::open_generation(&Store::open(store)?, id, &[])?.0
                }
            });
            Ok((all, SetInfo::default()))
        }
        (Source::Va { .. }, None) => Err(anyhow!("the store is not open")),
    }
}

fn serve(
    options: &Options,
    vfs: &Arc<Vfs>,
    device: &Arc<Device>,
    session: &Arc<Session>,
    source: &Arc<StatusSource>,
    follower: Option<Follower>,
    ready: impl FnOnce() + Send + 'static,
) -> anyhow::Result<()> {
    let stop = Arc::new(Stop::default());
    let (notify, queue) = notify::queue();
    vfs.set_notify(notify);
    let number = device::device_number(&options.mount_point)
        .ok_or_else(|| anyhow!("{} is not in the mount table", options.mount_point.display()))?;
    let server = Server::bind(control::socket_path(number))?;
    let waker = server.waker();
    vfs.set_control(server.path().to_owned());
    let mut helpers = Vec::new();
    {
        let (session, vfs, device, stop) =
            (session.clone(), vfs.clone(), device.clone(), stop.clone());
        helpers.push(spawn("notify", move || {
            notify::run(&session, &vfs, &device, &queue, || stop.is_stopped());
        })?);
    }
    {
        let (source, stop) = (source.clone(), stop.clone());
        helpers.push(spawn("accept", move || server.run(&source, &stop))?);
    }
    if let Some(follower) = follower {
        let (vfs, stop, poll) = (vfs.clone(), stop.clone(), options.poll);
        helpers.push(spawn("follow", move || follower.run(&vfs, poll, &stop))?);
    }
    let signals = unmount_on_signal(options.mount_point.clone())?;
    session.on_ready(Box::new(ready));
    let mut workers = Vec::new();
    for index in 0..WORKERS {
        let session = session.clone();
        workers.push(spawn(&format!("fuse-{index}"), move || session.serve())?);
    }
    let mut result = Ok(());
    for worker in workers {
        let served = worker.join().map_err(|_| anyhow!("a thread that answers requests panicked"));
        result = result.and(served.and_then(|served| Ok(served?)));
    }
    stop.stop();
    signals.close();
    waker.wake();
    for helper in helpers {
        if helper.join().is_err() {
            tracing::error!("a helper thread panicked");
        }
    }
    tracing::info!("unmounted");
    result
}

fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<std::thread::JoinHandle<T>> {
    Ok(std::thread::Builder::new().name(name.to_owned()).spawn(body)?)
}

/// SIGTERM and SIGINT unmount; what is still open is served to its end.
fn unmount_on_signal(mount_point: PathBuf) -> anyhow::Result<signal_hook::iterator::Handle> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])?;
    let handle = signals.handle();
    spawn("signals", move || {
        for signal in &mut signals {
            tracing::info!(signal, "unmounting");
            let unmounted = match device::unmount(&mount_point, false) {
                Err(rustix::io::Errno::BUSY) => device::unmount(&mount_point, true),
                other => other,
            };
            if let Err(error) = unmounted {
                tracing::error!(%error, "cannot unmount");
            }
        }
    })?;
    Ok(handle)
}

/// Each private directory and open file takes a descriptor.
fn raise_file_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, wanted) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
