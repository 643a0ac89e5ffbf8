//! The daemon of one mount: its threads, from the mount to the last answer.
//!
//! It never touches its own mount, holds everything it needs open from the
//! start, and ends when the file system is unmounted.

mod options;
mod workers;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, anyhow};
use rustix::process::{Resource, Rlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use strata_core::GenerationId;
use strata_core::data_paths::DataPaths;
use strata_store::Store;

use crate::control::{self, Server};
use crate::data::{self, binding::Binding};
use crate::follow::{Follower, Progress};
use crate::fuse::device::{self, Device, UnmountError};
use crate::fuse::latency::IdleLatency;
use crate::fuse::root;
use crate::fuse::session::{Ready, Session};
use crate::index::cache::Cache;
use crate::layer::{LayerSet, find_lenders};
use crate::notify::Message;
use crate::private::{Owner, Private};
use crate::scripts::{self, Scripts};
use crate::status::StatusSource;
use crate::stop::Stop;
use crate::sys::ioctl;
use crate::takeover::{self, Predecessor};
use crate::vfs::{Notice, SetInfo, Vfs};
use crate::{notify, proc, set};
pub use options::{FormerLayers, IDLE_LATENCY_US, Options, Source};
use workers::Workers;

/// Descriptors that the daemon asks for: two for each open or lately opened file, and
/// one for each private directory that was used lately.
const DESCRIPTORS: u64 = 1 << 17;

/// An error with its causes, each said once: many name their cause themselves.
pub fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Mounts and serves until the file system is unmounted. `ready` is called once
/// the file system answers.
///
/// # Errors
/// It cannot be mounted; nothing is mounted then.
pub fn run(options: &Options, ready: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    raise_file_limit();
    withstand_memory_pressure();
    rustix::process::umask(rustix::fs::Mode::empty());
    let started = SystemTime::now();
    let progress = Arc::new(Mutex::new(Progress::default()));
    let _held = match &options.source {
        Source::Former { former, .. } => Some(crate::reset::hold(former)?),
        Source::Va { .. } | Source::Directories(_) => None,
    };
    let mut follower = follower(options, started, &progress)?;
    let mounted = mount(options, follower.as_ref());
    if let (Err(error), Some(follower)) = (&mounted, &follower) {
        follower.report_failure(&told(error));
    }
    let (vfs, device, data) = mounted?;
    let number = device::device_number(&options.mount_point)
        .ok_or_else(|| anyhow!("{} is not in the mount table", options.mount_point.display()))?;
    if let Err(error) = open_scripts(options, &vfs, follower.as_mut()) {
        unmount_dead(options, number);
        return Err(error);
    }
    let ino_gen = started.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let ino_gen = u64::try_from(ino_gen).unwrap_or(0) & u64::from(u32::MAX);
    let latency = IdleLatency::open(options.idle_latency_us);
    let (files, kernel) = (vfs.clone(), device.clone());
    let session = Session::new(files, kernel, options.passthrough, latency, ino_gen);
    let session = Arc::new(session);
    let common = Common { number, ino_gen, started, progress, data };
    let service = service(options, vfs, device, session, follower.as_ref(), common);
    let served = serve(&service, follower, Start::Mounted(Box::new(ready)));
    if served.is_err() {
        unmount_dead(options, number);
    }
    service.end();
    served
}

/// Nothing answers any more: leaves no dead mount behind.
fn unmount_dead(options: &Options, number: (u32, u32)) {
    if let Err(error) = device::unmount_own(&options.mount_point, number, true) {
        tracing::debug!(%error, "the mount was gone already");
    }
}

/// Goes on with a mount that another program in this process's place served.
/// Returns once the file system is unmounted.
///
/// # Errors
/// The state makes no sense, or something in it is gone. The mount then gives errors.
pub fn take_over(state: i32) -> anyhow::Result<()> {
    let state = takeover::State::read(ioctl::adopt(state))?;
    let device = Device::adopt(ioctl::adopt(state.device)).context("/dev/fuse")?;
    let client = ioctl::adopt(state.client);
    let listener = ioctl::adopt(state.listener);
    let (root, lock) = (ioctl::adopt(state.private), ioctl::adopt(state.lock));
    raise_file_limit();
    withstand_memory_pressure();
    rustix::process::umask(rustix::fs::Mode::empty());
    proc::pin_again().context("/proc must be mounted")?;
    let started = UNIX_EPOCH + Duration::from_millis(state.started_ms);
    let progress = Arc::new(Mutex::new(Progress::default()));
    let options = &state.options;
    let mut follower = follower(options, started, &progress)?;
    let (set, info) =
        layers_again(options, follower.as_ref(), state.generation.as_ref(), &state.directories)?;
    let private = Private::adopt(&options.private, &owner(follower.as_ref()), root, lock)?;
    let vfs = Arc::new(Vfs::new(private, set, info)?);
    open_scripts(options, &vfs, follower.as_mut())?;
    if options.verify_open {
        vfs.set_first_open();
    }
    let latency = IdleLatency::open(options.idle_latency_us);
    let (files, kernel) = (vfs.clone(), device.clone());
    let session = Session::new(files, kernel, options.passthrough, latency, state.ino_gen);
    session.resume(state.agreed);
    session.root.resume(state.second_root);
    vfs.import(&state.vfs, &ioctl::adopt)?;
    let session = Arc::new(session);
    let server = Server::adopt(listener, control::socket_path(state.number), state.listener_inode);
    let (number, ino_gen, data) = (state.number, state.ino_gen, state.data);
    let common = Common { number, ino_gen, started, progress, data };
    let service = service(options, vfs, device, session, follower.as_ref(), common);
    let start = Start::TakenOver { server, notices: state.notices, client };
    let served = serve(&service, follower, start);
    service.end();
    served
}

/// Opens what [`take_over`] will open by its path, and lets go of it: whatever fails
/// there leaves a mount without a daemon.
///
/// # Errors
/// Something is not where it was.
pub fn rehearse(options: &Options, vfs: &Vfs) -> anyhow::Result<()> {
    let follower = follower(options, SystemTime::now(), &Arc::default())?;
    let active = vfs.active();
    let (generation, directories) = (active.info.generation, active.directories());
    layers_again(options, follower.as_ref(), generation.as_ref(), &directories)?;
    vfs.private().check_adoptable(&owner(follower.as_ref()))?;
    Ok(())
}

/// The layers that are served, for a successor.
fn layers_again(
    options: &Options,
    follower: Option<&Follower>,
    generation: Option<&GenerationId>,
    directories: &[PathBuf],
) -> anyhow::Result<(LayerSet, SetInfo)> {
    match (follower, generation, &options.source) {
        (Some(follower), Some(id), _) => {
            Ok(set::open_generation(&follower.store, id, None, Some(&follower.cache))?)
        }
        (_, _, Source::Directories(_)) => {
            Ok((set::open_directories(directories, None)?, SetInfo::default()))
        }
        (follower, ..) => layers(options, follower),
    }
}

/// Whose private directory the mount has.
fn owner(follower: Option<&Follower>) -> Owner {
    follower.map_or(Owner::AdHoc, |follower| Owner::Va(follower.mac))
}

/// What all threads of a daemon share.
struct Service<'a> {
    options: &'a Options,
    vfs: Arc<Vfs>,
    device: Arc<Device>,
    session: Arc<Session>,
    source: Arc<StatusSource>,
    ino_gen: u64,
}

impl Service<'_> {
    /// After the last answer.
    fn end(&self) {
        if let Err(error) = self.vfs.private().sync() {
            tracing::error!(%error, "the private layer could not be flushed");
        }
    }
}

/// How a daemon begins to serve.
enum Start {
    /// Calls back once the kernel was answered.
    Mounted(Ready),
    TakenOver {
        server: Server,
        notices: Vec<Notice>,
        client: OwnedFd,
    },
}

/// What a mount has from its beginning, whichever program serves it.
struct Common {
    number: (u32, u32),
    ino_gen: u64,
    started: SystemTime,
    progress: Arc<Mutex<Progress>>,
    data: DataPaths,
}

fn service<'a>(
    options: &'a Options,
    vfs: Arc<Vfs>,
    device: Arc<Device>,
    session: Arc<Session>,
    follower: Option<&Follower>,
    common: Common,
) -> Service<'a> {
    let Common { number, ino_gen, started, progress, data } = common;
    vfs.set_number(number);
    let source = Arc::new(StatusSource {
        vfs: vfs.clone(),
        session: session.clone(),
        mount_point: options.mount_point.clone(),
        mac: follower.map(|follower| follower.mac),
        store: follower.map(|follower| follower.store.root().to_owned()),
        number,
        wanted_passthrough: options.passthrough,
        mounted_data: data,
        further_data: options.data.clone(),
        started,
        progress,
        scripts: follower.and_then(|follower| follower.scripts.clone()),
    });
    Service { options, vfs, device, session, source, ino_gen }
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
        cache: Cache::new(options.index_cache.clone()),
        scripts: None,
    }))
}

/// Lets the follower run scripts, where the mount is a VA's that runs.
fn open_scripts(
    options: &Options,
    vfs: &Vfs,
    follower: Option<&mut Follower>,
) -> anyhow::Result<()> {
    if let (Some(place), Some(follower)) = (&options.scripts, follower) {
        let store = Store::open(follower.store.root())?;
        let cache = Cache::new(options.index_cache.clone());
        let scripts = Scripts::open(Box::new(place.clone()), store, cache, vfs.private());
        follower.scripts = Some(Arc::new(scripts));
    }
    Ok(())
}

fn mount(
    options: &Options,
    follower: Option<&Follower>,
) -> anyhow::Result<(Arc<Vfs>, Arc<Device>, DataPaths)> {
    // The layers first: a mount that is refused for them takes no private directory.
    let (set, info) = layers(options, follower)?;
    let private = Private::open(&options.private, &owner(follower))?;
    // After the last path of the caller's: from now on names are descriptors.
    proc::pin().context("/proc must be mounted")?;
    let vfs = Arc::new(Vfs::new(private, set, info)?);
    // Private files keep what they had, also when the set was changed meanwhile.
    let settled = vfs.settle_absent(|unit| set::unit_root(&follower?.store, unit));
    if let Err(error) = settled {
        tracing::error!(%error, "data of layers that are gone could not be copied");
    }
    if options.verify_open {
        vfs.set_first_open();
    }
    let data = data::together(&vfs.active().info.data, &options.data)?;
    data::prepare(&vfs, &data)?;
    let device = Device::mount(&options.mount_point, "strata", options.read_only)?;
    Ok((vfs, device, data))
}

fn layers(options: &Options, follower: Option<&Follower>) -> anyhow::Result<(LayerSet, SetInfo)> {
    match (&options.source, follower) {
        (Source::Directories(directories), _) => {
            Ok((set::open_directories(directories, None)?, SetInfo::default()))
        }
        (Source::Va { mac, .. }, Some(follower)) => {
            let desired = follower.store.desired(*mac)?;
            let desired =
                desired.ok_or_else(|| anyhow!("the store has no generation for the VA {mac}"))?;
            follower.progress.lock().expect("no panic while held").desired = Some(desired);
            // A generation that the VA went back from is not served again by itself.
            let back = options.scripts.as_ref().and_then(|_| {
                let back = scripts::served_instead(&options.private, desired)?;
                set::open_generation(&follower.store, &back, None, Some(&follower.cache))
                    .inspect_err(
                        |error| tracing::error!(%error, "the layers of before are not there"),
                    )
                    .ok()
            });
            if let Some(back) = back {
                return Ok(back);
            }
            Ok(set::open_generation(&follower.store, &desired, None, Some(&follower.cache))?)
        }
        (Source::Former { former, layers }, _) => {
            let below = match layers {
                FormerLayers::Directories(directories) => set::open_directories(directories, None)?,
                FormerLayers::Generation { store, id } => {
                    set::open_generation(&Store::open(store)?, id, None, None)?.0
                }
            };
            let set = set::open_former(former, &below)?;
            // What can be salvaged is shown: the rest gives EIO.
            if let Err(error) = find_lenders(&set.layers) {
                tracing::warn!(%error, "some files of the former private layer cannot be read");
            }
            Ok((set, SetInfo::default()))
        }
        (Source::Va { .. }, None) => Err(anyhow!("the store is not open")),
    }
}

fn serve(service: &Service<'_>, follower: Option<Follower>, start: Start) -> anyhow::Result<()> {
    let Service { options, vfs, device, session, source, ino_gen } = service;
    let stop = Arc::new(Stop::default());
    let (notify, notices, queue) = notify::queue();
    vfs.set_notify(notify);
    // Why data directories are not mounted.
    let unbound = Arc::new(Mutex::new(None));
    let number = source.number;
    let (server, taken_over) = match start {
        Start::TakenOver { server, notices, client } => (server, Some((notices, client))),
        Start::Mounted(ready) => {
            session.root.offer();
            session.on_ready(when_bound(options, source, unbound.clone(), ready));
            (Server::bind(control::socket_path(number))?, None)
        }
    };
    let waker = server.waker();
    vfs.set_control(server.path().to_owned());
    let predecessor = Predecessor {
        options: (*options).clone(),
        device: device.clone(),
        listener: server.listener(),
        listener_inode: server.inode(),
        notices: notices.clone(),
        ino_gen: *ino_gen,
        number,
    };
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
        let predecessor = Arc::new(predecessor);
        helpers.push(spawn("accept", move || server.run(&source, &predecessor, &stop))?);
    }
    if let Some(follower) = follower {
        let (vfs, stop, poll) = (vfs.clone(), stop.clone(), options.poll);
        let session = session.clone();
        helpers.push(spawn("follow", move || {
            session.interrupts.watch(None);
            follower.run(&vfs, poll, &stop);
        })?);
    }
    let signals = unmount_on_signal(options.mount_point.clone(), number)?;
    if taken_over.is_some() {
        // Before anybody reads: what a worker has in hand already would come twice.
        device.resend().context("the kernel sends nothing again")?;
    }
    let workers = Workers::start(session)?;
    if let Some((pending, client)) = taken_over {
        notices.send(Message::Notices(pending)).context("the thread that notifies ended")?;
        tracing::info!("took over");
        takeover::tell(client, &control::upgraded()?);
    }
    let result = workers.join();
    stop.stop();
    signals.close();
    waker.wake();
    for helper in helpers {
        if helper.join().is_err() {
            tracing::error!("a helper thread panicked");
        }
    }
    tracing::info!("unmounted");
    let unbound = unbound.lock().expect("no panic while held").take();
    unbound.map_or(result, Err)
}

/// Mounts the root in its own place (`fuse::root`) and the data directories once the file system answers,
/// and only then calls `ready`. Where that fails the whole mount goes: an appliance must not write its
/// data elsewhere.
fn when_bound(
    options: &Options,
    source: &StatusSource,
    unbound: Arc<Mutex<Option<anyhow::Error>>>,
    ready: Ready,
) -> Ready {
    let (private, mount_point) = (options.private.clone(), options.mount_point.clone());
    let (paths, read_only) = (source.mounted_data.clone(), options.read_only);
    let number = source.number;
    let binding = Binding { private, mount_point, paths, read_only };
    let (vfs, session) = (source.vfs.clone(), source.session.clone());
    vfs.set_unfinished(true);
    Box::new(move || {
        // The caller answers requests, which the mounting waits for.
        let failed = unbound.clone();
        let mount_point = binding.mount_point.clone();
        let fail = move |error: anyhow::Error| {
            *failed.lock().expect("no panic while held") = Some(error);
            if let Err(error) = device::unmount_own(&mount_point, number, true) {
                tracing::error!(%error, "cannot unmount");
            }
        };
        let give_up = fail.clone();
        let bind = move || {
            let bound = mount_root(&binding.mount_point, &session)
                .and_then(|()| binding.run().map_err(anyhow::Error::from));
            vfs.set_unfinished(false);
            match bound {
                Ok(()) => ready(),
                Err(error) => fail(error),
            }
        };
        if let Err(error) = spawn("bind", bind) {
            give_up(error);
        }
    })
}

fn mount_root(mount_point: &Path, session: &Session) -> anyhow::Result<()> {
    match root::mount(mount_point) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            session.root.withdraw();
            tracing::info!(%error, "the root keeps the kernel's own number: paths cost users other than root more");
            Ok(())
        }
        Err(error) => Err(error).context("the mount cannot be put in its place"),
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<JoinHandle<T>> {
    Ok(std::thread::Builder::new().name(name.to_owned()).spawn(body)?)
}

/// SIGTERM and SIGINT unmount; what is still open is served to its end. Where another
/// file system is mounted over this one, that stays, and so does this one.
fn unmount_on_signal(
    mount_point: PathBuf,
    number: (u32, u32),
) -> anyhow::Result<signal_hook::iterator::Handle> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])?;
    let handle = signals.handle();
    spawn("signals", move || {
        for signal in &mut signals {
            tracing::info!(signal, "unmounting");
            let unmounted = match device::unmount_own(&mount_point, number, false) {
                Err(UnmountError::Refused(rustix::io::Errno::BUSY)) => {
                    device::unmount_own(&mount_point, number, true)
                }
                other => other,
            };
            if let Err(error) = unmounted {
                tracing::error!(%error, "cannot unmount: this mount goes on");
            }
        }
    })?;
    Ok(handle)
}

/// Keeps the daemon alive and moving when memory is short: the kernel neither
/// ends it to get memory, nor makes it wait for writes that only it can finish.
/// Both need privileges, and it works without.
fn withstand_memory_pressure() {
    if let Err(error) = std::fs::write(proc::own("oom_score_adj"), "-1000") {
        tracing::debug!(%error, "the kernel may end this process when memory is short");
    }
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        tracing::debug!(%error, "allocations may wait for writes of this file system");
    }
}

/// Each open file takes a descriptor, and private directories do while they are in use.
fn raise_file_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    // Only the privileged may have more than the limit they were started with.
    let more = limit.maximum.map(|limit| limit.max(DESCRIPTORS));
    if rustix::process::setrlimit(Resource::Nofile, Rlimit { current: more, maximum: more }).is_ok()
    {
        return;
    }
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, wanted) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_is_named_already_is_not_said_twice() {
        let inner = std::io::Error::from_raw_os_error(2);
        let path = PathBuf::from("/x");
        let error = strata_store::StoreError::Io { action: "open", path, source: inner };
        let error = anyhow::Error::from(error).context("the mount");
        assert_eq!(told(&error), "the mount: open /x: No such file or directory (os error 2)");
    }
}
