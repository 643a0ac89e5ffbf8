//! `strata-vlfs mount`: in the foreground, or as a daemon of its own.
//!
//! The daemon is this program started again with `--foreground` in a new
//! session. It says `ready` or the failure on its standard output, a pipe.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::Args;
use rustix::fs::OFlags;
use strata_core::data_paths::{DataPath, DataPaths};
use strata_core::{GenerationId, MacAddr};
use strata_store::Store;
use strata_vlfs::daemon::{self, FormerLayers, Options, Source};
use strata_vlfs::fuse::device;
use strata_vlfs::index::cache;
use strata_vlfs::private::{self, Private};
use strata_vlfs::scripts::place::Place;
use strata_vlfs::{control, reset};

use super::{hinted, say};

/// What the daemon says on its pipe once the file system answers.
const READY: &str = "ready";

#[derive(Debug, Args)]
pub struct Layers {
    /// A directory that is a layer; the first is the topmost. A former private
    /// directory brings its white-outs.
    #[arg(long = "layer", value_name = "DIR")]
    layers: Vec<PathBuf>,
    /// A file with one layer directory a line, topmost first, after those of --layer.
    #[arg(long, value_name = "FILE")]
    layers_file: Option<PathBuf>,
}

impl Layers {
    /// All layer directories as absolute paths, topmost first.
    pub fn directories(&self) -> anyhow::Result<Vec<PathBuf>> {
        use std::os::unix::ffi::OsStringExt as _;
        let mut directories = self.layers.clone();
        if let Some(file) = &self.layers_file {
            let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
            let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
            directories.extend(
                lines.map(|line| PathBuf::from(std::ffi::OsString::from_vec(line.to_vec()))),
            );
        }
        let directory = |path: &PathBuf| match speakable(canonical(path)?)? {
            path if path.is_dir() => Ok(path),
            path => {
                let message = format!("the layer {} is not a directory", path.display());
                Err(hinted(message, "name the directory that holds the layer's files"))
            }
        };
        directories.iter().map(directory).collect()
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Either --va with a store, or layers. The command returns once the file
system answers; `umount MOUNTPOINT` ends the daemon (`umount -R` where data
directories are mounted in it), which writes for a moment longer: until then the
private disk is busy.

Examples:
  strata-vlfs mount --store /srv/strata --va 52:54:00:12:34:56 --private /var/lib/va /mnt
  strata-vlfs mount --layer /layers/upper --layer /layers/lower --private /tmp/private /mnt")]
pub struct Mount {
    /// MAC address of the VA whose link in the store is followed.
    #[arg(long, conflicts_with_all = ["layers", "layers_file"])]
    va: Option<MacAddr>,
    /// The store.
    #[arg(long, env = "STRATA_STORE")]
    store: Option<PathBuf>,
    /// Where reports are written, instead of the store's `reports`.
    #[arg(long, value_name = "DIR", requires = "va")]
    reports: Option<PathBuf>,
    #[command(flatten)]
    layers: Layers,
    /// The private layer: made when absent, never shared between VAs.
    #[arg(long, value_name = "DIR", required_unless_present = "former")]
    private: Option<PathBuf>,
    /// Mount a former private layer, or another machine's, over the layers: read-only, not
    /// followed, not reported, and nothing in it is changed. For salvaging files.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["private", "reports", "attach"])]
    former: Option<PathBuf>,
    /// With --former: the layers of this generation [default: what the link of --va names].
    #[arg(long, value_name = "ID", requires = "former", conflicts_with = "va")]
    generation: Option<GenerationId>,
    /// Also mount what `reset` put aside, at DIR (below the mount point unless absolute; made
    /// when absent): the latest, or the one of this NAME. At a DIR elsewhere it is unmounted
    /// by itself.
    #[arg(long, value_name = "DIR[=NAME]")]
    attach: Option<String>,
    /// A directory of the mounted file system that lives on the private disk, past the
    /// layers, beside those that the VA's generation declares. May be given again.
    #[arg(long, value_name = "PATH", conflicts_with = "former")]
    data: Vec<DataPath>,
    /// Stay in the foreground, log to standard error.
    #[arg(long)]
    foreground: bool,
    /// Let file data pass through the daemon even where the kernel could take it.
    #[arg(long)]
    no_passthrough: bool,
    #[arg(long)]
    read_only: bool,
    /// Compare each layer file's content with its manifest when it is first opened;
    /// one that differs gives EIO and shows in `status`.
    #[arg(long)]
    verify_open: bool,
    /// Log file of the daemon [default: vlfs.log in the private directory].
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// How often the VA's link is looked at, in milliseconds.
    #[arg(long, default_value_t = 100, value_name = "MS", value_parser = clap::value_parser!(u64).range(10..))]
    poll_ms: u64,
    /// How often the report is written at least, in seconds.
    #[arg(long, default_value_t = 10, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    report_interval: u64,
    /// Where the host keeps the indexes of generations, shared by all its VAs: a
    /// directory of root's alone, made when absent, that can be emptied at any time.
    #[arg(long, value_name = "DIR", default_value = cache::DEFAULT)]
    index_cache: PathBuf,
    /// Run the scripts of layers in the VA whose processes are in this control group (v2):
    /// `strata va start` gives it. Without it none are run.
    #[arg(long, value_name = "CGROUP", requires_all = ["va", "init"])]
    scripts_in: Option<PathBuf>,
    /// The program that enters that VA: `strata-init`.
    #[arg(long, value_name = "PROGRAM", requires = "scripts_in")]
    init: Option<PathBuf>,
    /// How long waking an idle processor may take while requests flow, in microseconds (with
    /// 0 it polls instead of halting), or `off`.
    #[arg(long, value_name = "US|off", default_value = "0", value_parser = idle_latency)]
    idle_latency: IdleLatency,
    /// Started by `mount` itself: say on standard output when ready.
    #[arg(long, hide = true)]
    daemon: bool,
    mount_point: PathBuf,
}

/// What `--idle-latency` says.
#[derive(Debug, Clone, Copy)]
struct IdleLatency(Option<u32>);

fn idle_latency(text: &str) -> Result<IdleLatency, String> {
    match text {
        "off" => Ok(IdleLatency(None)),
        number => number
            .parse()
            .map(|number| IdleLatency(Some(number)))
            .map_err(|_| "a number of microseconds, or `off`".to_owned()),
    }
}

fn canonical(path: &Path) -> anyhow::Result<PathBuf> {
    std::fs::canonicalize(path).map_err(|error| {
        hinted(format!("{}: {error}", path.display()), "name a directory that is there")
    })
}

/// Status, control and upgrade carry paths as text.
fn speakable(path: PathBuf) -> anyhow::Result<PathBuf> {
    match path.to_str() {
        Some(_) => Ok(path),
        None => Err(hinted(
            format!("{}: the path is no UTF-8", path.display()),
            "rename the directory; below it names may have any bytes",
        )),
    }
}

/// What a private directory must be.
const WRITABLE: &str = "give --private a directory on a disk that can be written and has room";

/// What the system says of a full disk.
const NO_SPACE: &str = "No space left on device";

/// The path that a directory has, or will have once it is made.
fn to_be(path: &Path) -> anyhow::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let existing = path.ancestors().find(|above| above.exists()).unwrap_or(Path::new("/"));
    let rest = path.strip_prefix(existing).unwrap_or(Path::new(""));
    Ok(canonical(existing)?.join(rest))
}

/// The private directory, the layers and the mount point must not hold each other.
fn check_places(source: &Source, private: &Path, mount_point: &Path) -> anyhow::Result<()> {
    let shown = private.display();
    if private.starts_with(mount_point) {
        let message = format!(
            "the private directory {shown} is in the mount point {}",
            mount_point.display()
        );
        return Err(hinted(message, "the mount would cover it: give another --private"));
    }
    match source {
        Source::Directories(layers) => check_layers(layers, private),
        Source::Va { .. } | Source::Former { .. } => Ok(()),
    }
}

/// No layer holds the private directory, or is in it.
pub(super) fn check_layers(layers: &[PathBuf], private: &Path) -> anyhow::Result<()> {
    let shown = private.display();
    for layer in layers {
        let name = layer.display();
        if private.starts_with(layer) {
            let message = format!("the private directory {shown} is in the layer {name}");
            return Err(hinted(message, "a layer must not change: give another --private"));
        }
        // What a reset put aside is a layer like any other.
        if layer.starts_with(private) && !layer.starts_with(private.join("former")) {
            let message = format!("the layer {name} is in the private directory {shown}");
            return Err(hinted(message, "a layer must not change: give another --private"));
        }
    }
    Ok(())
}

impl Mount {
    pub fn run(&self) -> anyhow::Result<u8> {
        if !rustix::process::geteuid().is_root() {
            return Err(hinted("only root can mount", "run it with sudo"));
        }
        if self.foreground {
            return self.serve();
        }
        let attachment = self.attachment()?;
        let done = self.start_daemon()?;
        match attachment {
            Some(attachment) => attachment.mount(self, done),
            None => Ok(done),
        }
    }

    /// What `--attach` asks for, looked for before anything is mounted.
    fn attachment(&self) -> anyhow::Result<Option<Attachment>> {
        let (Some(attach), Some(private)) = (&self.attach, &self.private) else { return Ok(None) };
        let (directory, name) = match attach.rsplit_once('=') {
            Some((directory, name)) => (directory, Some(name)),
            None => (attach.as_str(), None),
        };
        let former = reset::find(private, name).map_err(|error| {
            hinted(error.to_string(), "`strata-vlfs reset --list PRIVATE` lists them")
        })?;
        let directory = canonical(&self.mount_point)?.join(directory);
        Ok(Some(Attachment { former: former.path, directory }))
    }

    /// Where scripts run.
    fn place(&self) -> anyhow::Result<Option<Place>> {
        let (Some(cgroup), Some(program)) = (&self.scripts_in, &self.init) else { return Ok(None) };
        let (cgroup, program) = (canonical(cgroup)?, canonical(program)?);
        Ok(Some(Place { cgroup, program }))
    }

    fn source(&self) -> anyhow::Result<Source> {
        let Some(former) = &self.former else { return self.living_source() };
        let former = canonical(former)?;
        let directory = File::open(&former).with_context(|| former.display().to_string())?;
        if !private::is_private_directory(&directory.into())? {
            let message = format!("{} is no private directory of Strata", former.display());
            return Err(hinted(
                message,
                "`strata-vlfs reset --list PRIVATE` lists what it put aside",
            ));
        }
        let store = || {
            let store = self.store.as_ref();
            let store = store.ok_or_else(|| hinted("no store is given", "give --store DIR"))?;
            canonical(store)
        };
        let layers = match (self.generation, self.va) {
            (Some(id), _) => FormerLayers::Generation { store: store()?, id },
            (None, Some(mac)) => {
                let store = store()?;
                let id = Store::open(&store)?.desired(mac)?;
                let id = id.ok_or_else(|| anyhow!("the store has no generation for {mac}"))?;
                FormerLayers::Generation { store, id }
            }
            (None, None) => FormerLayers::Directories(self.layers.directories()?),
        };
        Ok(Source::Former { former, layers })
    }

    fn living_source(&self) -> anyhow::Result<Source> {
        Ok(match self.va {
            Some(mac) => {
                let store = self.store.as_ref().ok_or_else(|| {
                    hinted("--va needs a store", "give --store DIR or set STRATA_STORE")
                })?;
                let reports = self.reports.as_deref().map(canonical).transpose()?;
                Source::Va { store: canonical(store)?, mac, reports }
            }
            None => {
                let directories = self.layers.directories()?;
                if directories.is_empty() {
                    return Err(hinted(
                        "nothing to mount",
                        "give --va MAC with a store, or --layer DIR once or more",
                    ));
                }
                Source::Directories(directories)
            }
        })
    }

    fn options(&self) -> anyhow::Result<Options> {
        let source = self.source()?;
        let private = match &self.private {
            Some(private) => private.clone(),
            // Of a former layer nothing is written: this one stays empty.
            None => scratch(),
        };
        let data = DataPaths::new(self.data.iter().cloned().collect())
            .map_err(|error| hinted(error.to_string(), "name the outer directory alone"))?;
        let mount_point = speakable(canonical(&self.mount_point)?)?;
        if !mount_point.is_dir() {
            let message = format!("{}: not a directory", mount_point.display());
            return Err(hinted(message, "mount on a directory"));
        }
        check_places(&source, &to_be(&private)?, &mount_point)?;
        std::fs::create_dir_all(&private)
            .map_err(|error| hinted(format!("{}: {error}", private.display()), WRITABLE))?;
        let private = speakable(canonical(&private)?)?;
        // Before a log is made in it.
        Private::check_foreign(&private).map_err(|error| hinted_failure(&error.to_string()))?;
        Ok(Options {
            source,
            private,
            mount_point,
            passthrough: !self.no_passthrough,
            read_only: self.read_only || self.former.is_some(),
            verify_open: self.verify_open,
            data,
            poll: Duration::from_millis(self.poll_ms),
            report_interval: Duration::from_secs(self.report_interval),
            index_cache: std::path::absolute(&self.index_cache)?,
            scripts: self.place()?,
            idle_latency_us: self.idle_latency.0,
        })
    }

    fn serve(&self) -> anyhow::Result<u8> {
        init_log();
        if self.daemon {
            // Already a leader only when started by hand: then there is nothing to leave.
            if let Err(error) = rustix::process::setsid() {
                tracing::debug!(%error, "no new session");
            }
        }
        let told = self.daemon;
        let mounted = self.options().and_then(|options| {
            let served = daemon::run(&options, move || {
                if told {
                    tell(READY);
                }
            });
            if self.former.is_some()
                && let Err(error) = std::fs::remove_dir_all(&options.private)
            {
                tracing::warn!(%error, "the empty private layer stays");
            }
            served
        });
        if let Err(error) = &mounted {
            let failure = daemon::told(error);
            tracing::error!("{failure}");
            if told {
                tell(&failure);
            }
        }
        mounted.map(|()| 0)
    }

    fn start_daemon(&self) -> anyhow::Result<u8> {
        // What can be refused at once is refused here, with its hint.
        let options = self.options()?;
        let log_path = match (&self.log, &self.former) {
            (Some(log), _) => log.clone(),
            (None, None) => options.private.join("vlfs.log"),
            // Nothing of it is worth keeping: what goes wrong at the start is told.
            (None, Some(_)) => PathBuf::from("/dev/null"),
        };
        if self.former.is_some() {
            std::fs::remove_dir(&options.private)?;
        }
        let mut log = OpenOptions::new();
        log.create(true).append(true).read(true);
        if self.log.is_none() && self.former.is_none() {
            // Whoever rules a private directory must not choose what root writes to.
            log.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
        }
        let mut log = log
            .open(&log_path)
            .map_err(|error| hinted(format!("{}: {error}", log_path.display()), WRITABLE))?;
        let start = log.seek(SeekFrom::End(0))?;
        let program = std::env::current_exe().context("where is this program?")?;
        let mut child = Command::new(program)
            .args(std::env::args_os().skip(1))
            .args(["--foreground", "--daemon"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.try_clone()?)
            .spawn()?;
        let pipe = child.stdout.take().ok_or_else(|| anyhow!("the daemon has no pipe"))?;
        let mut line = String::new();
        BufReader::new(pipe).read_line(&mut line)?;
        match line.trim_end() {
            READY => Ok(0),
            "" => Err(anyhow!("the daemon ended: {}", tail(&mut log, start, &log_path))),
            failure => Err(hinted_failure(failure)),
        }
    }
}

/// A former private layer to mount beside the new one.
struct Attachment {
    former: PathBuf,
    directory: PathBuf,
}

impl Attachment {
    /// Mounts it; where that fails the mount that is up already goes too.
    fn mount(&self, main: &Mount, done: u8) -> anyhow::Result<u8> {
        let attached = self.start(main);
        if attached.is_err()
            && let Err(error) = device::unmount(&canonical(&main.mount_point)?, true)
        {
            tracing::debug!(%error, "the mount was gone already");
        }
        attached.map(|()| done)
    }

    fn start(&self, main: &Mount) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.directory)
            .with_context(|| self.directory.display().to_string())?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("mount").arg("--former").arg(&self.former);
        if let (Some(mac), Some(store)) = (main.va, &main.store) {
            command.args(["--va", &mac.to_string()]).arg("--store").arg(store);
        }
        for layer in main.layers.directories()? {
            command.arg("--layer").arg(layer);
        }
        if main.no_passthrough {
            command.arg("--no-passthrough");
        }
        let attached = command.arg(&self.directory).output()?;
        if attached.status.success() {
            return Ok(());
        }
        let error = String::from_utf8_lossy(&attached.stderr).into_owned();
        Err(anyhow!("the former private layer cannot be attached: {}", error.trim_end()))
    }
}

/// A private directory for a mount that writes nothing.
fn scratch() -> PathBuf {
    Path::new(control::DIRECTORY).join(format!("former-{}", std::process::id()))
}

/// A failure that the daemon told, with a hint where there is one.
fn hinted_failure(failure: &str) -> anyhow::Error {
    let hint = if failure.contains("in use by another mount") {
        "unmount it first; `findmnt -t fuse.strata` lists mounts"
    } else if failure.contains("belongs to") {
        "each VA has a private directory of its own: give another --private"
    } else if failure.contains("no generation for the VA") {
        "provision it first: strata va provision --template T --mac MAC NAME"
    } else if failure.contains("holds other files") {
        "give --private a directory that is empty or does not exist"
    } else if failure.contains("has the format") {
        "a newer strata-vlfs made it: mount it with that one"
    } else if failure.contains("cannot hold trusted extended attributes") {
        "give --private a directory on ext4, xfs, btrfs or tmpfs"
    } else if failure.contains(NO_SPACE) {
        WRITABLE
    } else if failure.contains("/dev/fuse cannot be opened") {
        "modprobe fuse; in a container, let it use the device /dev/fuse"
    } else if failure.contains("the private directory") {
        "look at it with `strata-vlfs diff PRIVATE`; another --private starts afresh"
    } else if failure.contains("the generation") {
        "`strata-vlfs verify --store STORE --generation ID` names all that is missing or damaged"
    } else {
        return anyhow!("{failure}");
    };
    hinted(failure, hint)
}

fn tell(line: &str) {
    let mut out = std::io::stdout();
    let line = line.replace('\n', " ");
    if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush()) {
        tracing::debug!(%error, "nobody waits for the mount");
    }
    // The other end waits for one line only; the pipe must not stay.
    if let Ok(null) = File::open("/dev/null")
        && let Err(error) = rustix::stdio::dup2_stdout(&null)
    {
        tracing::debug!(%error, "the pipe stays open");
    }
}

fn tail(log: &mut File, start: u64, path: &Path) -> String {
    let mut text = String::new();
    let read = log.seek(SeekFrom::Start(start)).and_then(|_| log.read_to_string(&mut text));
    match read {
        Ok(_) if !text.trim().is_empty() => text.trim_end().to_owned(),
        _ => format!("see {}", path.display()),
    }
}

pub(super) fn init_log() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("STRATA_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let set = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        // It would end the thread: the log is often on the private disk, which may be full.
        .log_internal_errors(false)
        .try_init();
    if let Err(error) = set {
        say(&format!("warning: no log: {error}"));
    }
}
