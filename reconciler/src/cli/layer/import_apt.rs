//! `strata layer import --from apt`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar};
use reqwest::StatusCode;
use serde::Serialize;
use strata_core::RepositoryName;
use strata_core::database::{Database, Unit};
use strata_import::apt::closure::{ClosureError, Request};
use strata_import::{ImportOptions, Package, import_packages};
use strata_store::{Store, StoreError};

use super::import::{FailedPackage, ImportArgs, Line, Status, Summary, explain, with_progress};
use crate::apt::fetch::{FetchError, FetchLimits, Fetcher};
use crate::apt::{self, AptError, Cache, Configuration, Plan, Planned};
use crate::cli::{Failure, Outcome, OutputFormat, print_bytes, print_json, quantity};

/// How `--from apt` fetches.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of --from apt")]
pub struct AptArgs {
    /// Only the packages that are named, without what they depend on
    #[arg(long, requires = "from")]
    no_depends: bool,
    /// Say what would be imported, and import nothing
    #[arg(long, requires = "from")]
    dry_run: bool,
    /// Where indexes and packages on their way are kept; many imports may use it at once
    #[arg(long, value_name = "DIR", requires = "from", default_value = "/var/cache/strata/apt")]
    cache: PathBuf,
    /// Keep packages in the cache when they are imported
    #[arg(long, requires = "from")]
    keep_downloads: bool,
    /// Files fetched at once
    #[arg(long, value_name = "N", requires = "from", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    connections: u8,
    /// Bytes fetched a second, all together
    #[arg(long, value_name = "N", requires = "from", value_parser = clap::value_parser!(u64).range(1..))]
    limit_rate: Option<u64>,
    /// Refuse to fetch more bytes than this
    #[arg(long, value_name = "N", requires = "from")]
    max_download: Option<u64>,
    /// Give a file up that is not there after so many seconds
    #[arg(long, value_name = "S", requires = "from", default_value_t = 1_800, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

/// What an argument asks for.
pub fn request(argument: &Path) -> Result<Request, Failure> {
    let text = argument.to_string_lossy();
    text.parse().map_err(|error| {
        Failure::new(format!("{text:?}: {error}")).hint("write a package's name, or name=version")
    })
}

/// A package of a dry run.
#[derive(Debug, Serialize)]
struct WouldImport<'a> {
    layer: &'a strata_core::LayerName,
    version: &'a strata_core::LayerVersion,
    bytes: u64,
    present: bool,
}

pub fn run(args: &ImportArgs, apt: &AptArgs, requests: &[Request]) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("start: {error}")))?;
    let configuration = Configuration::ask().map_err(failure)?;
    let cache = Cache::open(&apt.cache).map_err(failure)?;
    let fetched = Arc::new(AtomicU64::new(0));
    let fetcher = fetcher(apt, &configuration, &fetched).map_err(failure)?;
    let preferences = configuration.preferences().map_err(failure)?;
    if !preferences.is_empty() {
        eprintln!(
            "note: {} would give packages other priorities, which is not looked at\nhint: NAME=VERSION takes any version that a source has",
            preferences.join(", ")
        );
    }
    let plan = with_progress(0, "{spinner} reading the sources, {elapsed}", |_| {
        runtime.block_on(apt::plan(&configuration, &fetcher, &cache, requests, !apt.no_depends))
    });
    let Plan { packages, available, passed_over } = plan.map_err(failure)?;
    tracing::info!(available, passed_over, chosen = packages.len(), "the sources were read");
    let database = match store.database(&args.repo) {
        Ok(database) => database,
        Err(StoreError::NoRepository(_)) => Database::default(),
        Err(error) => return Err(error.into()),
    };
    let is_present = |planned: &Planned| database.get(&planned.layer, &planned.version).is_some();
    if apt.dry_run {
        return dry_run(args, &packages, is_present);
    }
    let total = packages.len();
    let (present, missing): (Vec<_>, Vec<_>) = packages.into_iter().partition(is_present);
    let bytes = missing.iter().map(|planned| planned.bytes).sum();
    if let Some(limit) = apt.max_download.filter(|limit| bytes > *limit) {
        let error =
            format!("{} are to be fetched, the limit is {}", HumanBytes(bytes), HumanBytes(limit));
        return Err(Failure::new(error).hint("raise --max-download, or name fewer packages"));
    }
    let mut summary = Summary::default();
    for planned in present {
        let Some(unit) = database.get(&planned.layer, &planned.version) else { continue };
        let line = line_of_present(&args.repo, &planned, unit);
        line.tell_withdrawn();
        summary.layers.push(line);
    }
    if args.output.output == OutputFormat::Text && !summary.layers.is_empty() {
        let units = quantity(summary.layers.len(), "layer");
        print_bytes(format!("present already: {units}\n").as_bytes())?;
    }
    let template = "{wide_bar} {pos}/{len} packages, {msg}, {elapsed}";
    fetched.store(0, Ordering::Relaxed);
    let import = Import {
        args,
        apt,
        store: &store,
        cache: &cache,
        fetcher: &fetcher,
        runtime: &runtime,
        options: args.options()?,
    };
    let progress = Progress { fetched: &fetched, bytes };
    with_progress(missing.len() as u64, template, |bar| {
        import.run(&missing, bar, progress, &mut summary)
    })?;
    summary.finish(total, args.output.output)
}

/// What is said of a package that is a layer already.
fn line_of_present(repository: &RepositoryName, planned: &Planned, unit: &Unit) -> Line {
    Line {
        status: Status::Present,
        repository: repository.clone(),
        layer: planned.layer.clone(),
        version: planned.version.clone(),
        digest: unit.digest,
        entries: None,
        content_bytes: unit.content_bytes,
        withdrawn: unit.withdrawn.clone(),
    }
}

fn fetcher(
    apt: &AptArgs,
    configuration: &Configuration,
    fetched: &Arc<AtomicU64>,
) -> Result<Fetcher, AptError> {
    let limits = FetchLimits {
        connections: apt.connections.into(),
        rate: apt.limit_rate,
        deadline: Duration::from_secs(apt.timeout),
    };
    let fetched = fetched.clone();
    let observer = Arc::new(move |bytes| {
        fetched.fetch_add(bytes, Ordering::Relaxed);
    });
    Ok(Fetcher::new(configuration, configuration.logins()?, limits, observer)?)
}

fn dry_run(
    args: &ImportArgs,
    packages: &[Planned],
    is_present: impl Fn(&Planned) -> bool,
) -> Result<Outcome, Failure> {
    let mut all = Vec::new();
    for planned in packages {
        let Planned { layer, version, bytes, .. } = planned;
        let present = is_present(planned);
        all.push(WouldImport { layer, version, bytes: *bytes, present });
    }
    if args.output.output == OutputFormat::Json {
        print_json(&serde_json::json!({ "would_import": all }))?;
        return Ok(Outcome::Done);
    }
    let mut text = String::new();
    for WouldImport { layer, version, bytes, present } in &all {
        let status = if *present { "present already" } else { "would import" };
        let repository = &args.repo;
        text.push_str(&format!(
            "{status} {repository}/{layer} {version} ({})\n",
            HumanBytes(*bytes)
        ));
    }
    let missing = all.iter().filter(|it| !it.present);
    let (count, bytes) = missing.fold((0_u64, 0), |(n, sum), it| (n + 1, sum + it.bytes));
    text.push_str(&format!(
        "{} to import, {} to fetch\n",
        quantity(count, "package"),
        HumanBytes(bytes)
    ));
    print_bytes(text.as_bytes())?;
    Ok(Outcome::Done)
}

/// What has come, of how much.
#[derive(Clone, Copy)]
struct Progress<'a> {
    fetched: &'a AtomicU64,
    bytes: u64,
}

impl Progress<'_> {
    fn show(self, bar: &ProgressBar) {
        let fetched = self.fetched.load(Ordering::Relaxed).min(self.bytes);
        bar.set_message(format!("{} of {}", HumanBytes(fetched), HumanBytes(self.bytes)));
    }
}

struct Import<'a> {
    args: &'a ImportArgs,
    apt: &'a AptArgs,
    store: &'a Store,
    cache: &'a Cache,
    fetcher: &'a Fetcher,
    runtime: &'a tokio::runtime::Runtime,
    options: ImportOptions,
}

/// Packages as they arrive, with the numbers that they have in the plan.
struct Arrivals<'a> {
    receiver: Receiver<(usize, Package)>,
    order: &'a Mutex<Vec<usize>>,
}

impl Iterator for Arrivals<'_> {
    type Item = Package;
    fn next(&mut self) -> Option<Package> {
        let (number, package) = self.receiver.recv().ok()?;
        self.order.lock().unwrap_or_else(PoisonError::into_inner).push(number);
        Some(package)
    }
}

impl Import<'_> {
    /// Fetches on one thread and converts on others what has come.
    fn run(
        &self,
        packages: &[Planned],
        bar: &ProgressBar,
        progress: Progress<'_>,
        summary: &mut Summary,
    ) -> Result<(), Failure> {
        let order = Mutex::new(Vec::new());
        let (sender, receiver) = channel();
        let failed = Mutex::new(Vec::new());
        let mut printed = Ok(());
        std::thread::scope(|scope| {
            let failed = &failed;
            scope.spawn(move || {
                let deliver = |number: usize, result: Result<Package, FetchError>| {
                    progress.show(bar);
                    match result {
                        // The receiver is gone only when the import has failed.
                        Ok(package) => drop(sender.send((number, package))),
                        Err(error) => {
                            let package = packages[number].layer.to_string();
                            let reason = error.to_string();
                            bar.suspend(|| failure(error.into()).print());
                            let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                            failed.push(FailedPackage { package, error: reason });
                        }
                    }
                };
                let fetched = apt::download(self.fetcher, self.cache, packages, deliver);
                self.runtime.block_on(fetched);
            });
            let arrivals = Arrivals { receiver, order: &order };
            let options = &self.options;
            import_packages(self.store, &self.args.repo, arrivals, options, &mut |index, result| {
                bar.inc(1);
                progress.show(bar);
                let number = order.lock().unwrap_or_else(PoisonError::into_inner)[index];
                match result {
                    Ok(imported) => {
                        let line = Line::of(&self.args.repo, imported, Status::Imported);
                        if self.args.output.output == OutputFormat::Text && printed.is_ok() {
                            printed = bar.suspend(|| print_bytes(line.to_string().as_bytes()));
                        }
                        bar.suspend(|| line.tell_withdrawn());
                        summary.layers.push(line);
                        self.cache.forget(packages[number].archive(), self.apt.keep_downloads);
                    }
                    Err(error) => {
                        let error = error.known_as(packages[number].archive());
                        let package = packages[number].layer.to_string();
                        let reason = error.to_string();
                        summary.failed.push(FailedPackage { package, error: reason });
                        bar.suspend(|| explain(error).print());
                    }
                }
            })
        })?;
        summary.failed.extend(failed.into_inner().unwrap_or_else(PoisonError::into_inner));
        printed
    }
}

fn failure(error: AptError) -> Failure {
    let hint = match &error {
        AptError::Run { program: "apt-get" | "apt-config", .. } => {
            Some("apt is needed: import .deb files instead, or do this on a Debian machine")
        }
        AptError::NoSources { .. } | AptError::Targets { .. } | AptError::Address(_) => {
            Some("look at what `apt-get indextargets` prints, and at sources.list(5)")
        }
        AptError::Gpgv { .. } => Some("gpgv is needed: apt-get install gpgv"),
        AptError::NotSigned { .. } | AptError::NoKeys { .. } => {
            Some("name the archive's keyring with Signed-By in its source, see sources.list(5)")
        }
        AptError::Unsigned { .. } => {
            Some("nothing is taken from it: sign it, or name another source in sources.list(5)")
        }
        AptError::Auth { .. } => Some("see apt_auth.conf(5)"),
        AptError::Fetch(FetchError::Status {
            status: StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN,
            ..
        }) => Some("put a name and password into /etc/apt/auth.conf.d/, see apt_auth.conf(5)"),
        AptError::Expired { .. } => Some(
            "wait for the mirror to catch up, or use another; `Check-Valid-Until: no` in the source takes old states",
        ),
        AptError::Future { .. } => Some("set this machine's clock"),
        AptError::Closure(ClosureError::Unknown(_) | ClosureError::UnknownVersion { .. }) => {
            Some("`apt-cache policy NAME` shows what the sources have; spelling matters")
        }
        AptError::Fetch(FetchError::Network { .. } | FetchError::Deadline { .. }) => {
            Some("run the command again: it goes on where it was")
        }
        AptError::Fetch(FetchError::Digest { .. } | FetchError::Length { .. }) => {
            Some("the mirror is being updated, or damaged: run it again later, or use another")
        }
        _ => None,
    };
    let failure = Failure::new(error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
