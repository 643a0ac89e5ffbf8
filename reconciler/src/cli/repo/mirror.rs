//! `strata repo sync` and `strata repo mirror`: what remote repositories hold.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use strata_core::configuration::{Configuration, LayerPath, RepositoryConfiguration};
use strata_core::database::{Database, Unit};
use strata_core::desired::DesiredState;
use strata_core::ldf::LayerLine;
use strata_core::remote::Remote;
use strata_core::{Diagnostic, LayerName, LayerVersion, RepositoryName, Severity};
use strata_store::Store;

use super::super::{
    Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_json, print_text, progress,
    quantity, refuse_faulty_configuration,
};
use crate::directory::read_directory;
use crate::repositories::mirrors::{Wanted, wanted};
use crate::repositories::now;
use crate::repositories::remote::storage::Storage;
use crate::repositories::remote::sync::{SyncError, sync as sync_one};
use crate::repositories::remote::units::{self, Failed, Mirrored};
use crate::repositories::remote::{Options, run};
use crate::transfer::Pace;

/// Fetch what remote repositories hold, without their layers
///
/// The repositories are those of strata.toml that have a `url`. Signatures are checked
/// against its `keys` before anything is taken.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  strata repo sync /srv/fleet --store /srv/strata\n  strata repo sync /srv/fleet main --output json\n\nExit status: 0 done, 1 some repository could not be fetched or is refused, 2 an error."
)]
pub struct SyncArgs {
    /// The directory with strata.toml
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Only these repositories
    #[arg(value_name = "REPOSITORY")]
    repositories: Vec<RepositoryName>,
    #[command(flatten)]
    fetch: FetchArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Fetch layers of remote repositories
///
/// Without more, all layers that the LDFs of DIR name: the reconciler does the same by itself
/// before it takes a commit. What the repository does not have is a failure. Layers that are
/// there already are not fetched again; what was cut off is taken up.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  strata repo mirror /srv/fleet --store /srv/strata\n  strata repo mirror /srv/fleet main/apache2 main/openssl\n  strata repo mirror /srv/fleet --all main --limit-rate 5000000\n\nExit status: 0 all that is wanted is here, 1 some of it is not, 2 an error."
)]
pub struct MirrorArgs {
    /// The directory with strata.toml and the LDFs
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Only these layers, in all their versions
    #[arg(value_name = "REPOSITORY/LAYER")]
    layers: Vec<LayerPath>,
    /// Everything that a repository holds; several may be given
    #[arg(long, value_name = "REPOSITORY", conflicts_with = "layers")]
    all: Vec<RepositoryName>,
    /// Refuse to fetch layers of more bytes than this, unpacked, from one repository
    #[arg(long, value_name = "N")]
    max_bytes: Option<u64>,
    #[command(flatten)]
    fetch: FetchArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
struct FetchArgs {
    /// Files fetched at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=32))]
    connections: u8,
    /// Bytes fetched a second, all together
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit_rate: Option<u64>,
    /// Give a repository up after so many seconds
    #[arg(long, value_name = "S", default_value_t = 3600, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
}

impl FetchArgs {
    fn options(&self, most_bytes: Option<u64>, done: &Arc<AtomicU64>) -> Options {
        let done = done.clone();
        Options {
            connections: self.connections.into(),
            pace: Pace::new(self.limit_rate),
            most_bytes,
            deadline: Duration::from_secs(self.timeout),
            observer: Arc::new(move |bytes| {
                done.fetch_add(bytes, Ordering::Relaxed);
            }),
        }
    }
}

#[derive(Debug, Serialize)]
struct SyncedLine {
    repository: RepositoryName,
    url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    units: Option<usize>,
    changed: bool,
    /// The version of the snapshot, where it is signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

#[derive(Debug, Default, Serialize)]
struct MirroredReport {
    /// Layers that came.
    mirrored: Vec<UnitLine>,
    /// Layers that were wanted and there.
    present: usize,
    bytes_fetched: u64,
    failed: Vec<FailedLine>,
    /// Faults of LDFs: what their lines want is not known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    diagnostics: Vec<Diagnostic>,
}

#[derive(Debug, Serialize)]
struct UnitLine {
    repository: RepositoryName,
    layer: LayerName,
    version: LayerVersion,
}

#[derive(Debug, Serialize)]
struct FailedLine {
    repository: RepositoryName,
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<LayerName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<LayerVersion>,
    error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

pub fn sync(args: &SyncArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let (desired, _) = read(&args.directory)?;
    let remotes = remotes(&desired.configuration, &args.repositories)?;
    let done = Arc::new(AtomicU64::new(0));
    let options = args.fetch.options(None, &done);
    let total = AtomicU64::new(0);
    let lines: Vec<_> = progress::with_bytes(&total, &done, || {
        remotes
            .iter()
            .map(|(repository, remote)| sync_line(&store, repository, remote, &options))
            .collect()
    });
    let failed = lines.iter().any(|line| line.error.is_some());
    if args.output.output == OutputFormat::Json {
        print_json(&lines)?;
    } else {
        let mut text = String::new();
        for line in &lines {
            let (name, url) = (&line.repository, &line.url);
            let state = if line.changed { "new" } else { "as before" };
            match (&line.error, line.units) {
                (None, Some(units)) => {
                    let signed = match (line.snapshot, &line.expires) {
                        (Some(version), Some(at)) => format!(", snapshot {version}, until {at}"),
                        _ => ", unsigned".to_owned(),
                    };
                    let units = quantity(units, "unit");
                    text.push_str(&format!("{name}: {units}, {state}{signed} ({url})\n"));
                }
                (error, _) => {
                    let error = error.as_deref().unwrap_or_default();
                    text.push_str(&format!("{name}: {error}\n"));
                    if let Some(hint) = &line.hint {
                        text.push_str(&format!("  hint: {hint}\n"));
                    }
                }
            }
        }
        print_text(&text)?;
    }
    Ok(if failed { Outcome::Difference } else { Outcome::Done })
}

fn sync_line(
    store: &Store,
    repository: &RepositoryConfiguration,
    remote: &Remote,
    options: &Options,
) -> SyncedLine {
    let name = &repository.name;
    let mut line = SyncedLine {
        repository: name.clone(),
        url: remote.location.to_string(),
        units: None,
        changed: false,
        snapshot: None,
        expires: None,
        error: None,
        hint: None,
    };
    match sync_within(store, repository, remote, options) {
        Ok(synced) => {
            line.units = Some(synced.units);
            line.changed = synced.changed;
            let snapshot = synced.accepted.map(|accepted| accepted.snapshot);
            line.snapshot = snapshot.as_ref().map(|snapshot| snapshot.version);
            line.expires = snapshot.map(|snapshot| snapshot.expires.to_string());
        }
        Err(error) => {
            line.hint = error.hint(name);
            line.error = Some(error.to_string());
        }
    }
    line
}

fn sync_within(
    store: &Store,
    repository: &RepositoryConfiguration,
    remote: &Remote,
    options: &Options,
) -> Result<crate::repositories::remote::sync::Synced, SyncError> {
    let storage = Storage::open(remote, options.pace.clone(), options.observer.clone())?;
    let deadline = options.deadline;
    let synced = run(async {
        let synced = sync_one(store, repository, &storage, now());
        tokio::time::timeout(deadline, synced).await
    });
    synced.map_err(SyncError::Start)?.unwrap_or(Err(SyncError::Deadline(deadline.as_secs())))
}

pub fn mirror(args: &MirrorArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let (desired, faults) = read(&args.directory)?;
    let named: Vec<_> = match args.all.as_slice() {
        [] => args.layers.iter().map(|path| path.repository.clone()).collect(),
        all => all.to_vec(),
    };
    let remotes = remotes(&desired.configuration, &named)?;
    let done = Arc::new(AtomicU64::new(0));
    let options = args.fetch.options(args.max_bytes, &done);
    let total = AtomicU64::new(0);
    let wanted = wanted(&desired);
    let mut report = MirroredReport::default();
    let by_ldfs = args.all.is_empty() && args.layers.is_empty();
    if by_ldfs {
        report.diagnostics = faults;
    }
    // What has come is not collected before the rest is there.
    let _lease = store.lease()?;
    progress::with_bytes(&total, &done, || {
        for (repository, remote) in &remotes {
            let name = &repository.name;
            let fail = |error: String| FailedLine {
                repository: name.clone(),
                layer: None,
                version: None,
                error,
                hint: None,
            };
            if let Err(error) = sync_within(&store, repository, remote, &options) {
                let hint = error.hint(name);
                report.failed.push(FailedLine { hint, ..fail(error.to_string()) });
                continue;
            }
            let database = match store.database(name) {
                Ok(database) => database,
                Err(error) => {
                    report.failed.push(fail(error.to_string()));
                    continue;
                }
            };
            report.failed.extend(lacking(args, name, &database, &wanted));
            if by_ldfs {
                report.failed.extend(without_version(name, &desired));
            }
            let units = chosen(args, name, database, &wanted);
            let (present, missing): (Vec<_>, Vec<_>) =
                units.into_iter().partition(|unit| units::is_there(&store, name, unit));
            report.present += present.len();
            let add = |sum: u64, unit: &Unit| sum.saturating_add(unit.content_bytes);
            let bytes = missing.iter().fold(0, add);
            total.fetch_add(bytes, Ordering::Relaxed);
            match fetch(&store, name, remote, missing, &options) {
                Ok(mirrored) => report.take(name, mirrored),
                Err(error) => report.failed.push(fail(error)),
            }
        }
    });
    report.bytes_fetched = done.load(Ordering::Relaxed);
    let is_whole = report.failed.is_empty() && report.diagnostics.is_empty();
    let outcome = if is_whole { Outcome::Done } else { Outcome::Difference };
    if args.output.output == OutputFormat::Json {
        print_json(&report)?;
        return Ok(outcome);
    }
    let mut text = String::new();
    for UnitLine { repository, layer, version } in &report.mirrored {
        text.push_str(&format!("mirrored {repository}/{layer} {version}\n"));
    }
    for FailedLine { repository, layer, version, error, hint } in &report.failed {
        let unit = match (layer, version) {
            (Some(layer), Some(version)) => format!("{repository}/{layer} {version}"),
            (Some(layer), None) => format!("{repository}/{layer}"),
            (None, _) => repository.to_string(),
        };
        text.push_str(&format!("failed {unit}: {error}\n"));
        if let Some(hint) = hint {
            text.push_str(&format!("  hint: {hint}\n"));
        }
    }
    for fault in &report.diagnostics {
        text.push_str(&format!("{fault}\n"));
    }
    text.push_str(&format!(
        "{} mirrored ({} fetched), {} there already, {} failed\n",
        quantity(report.mirrored.len(), "layer"),
        indicatif::HumanBytes(report.bytes_fetched),
        report.present,
        report.failed.len()
    ));
    print_text(&text)?;
    Ok(outcome)
}

impl MirroredReport {
    fn take(&mut self, repository: &RepositoryName, mirrored: Mirrored) {
        let units = mirrored.units.into_iter().map(|(layer, version)| UnitLine {
            repository: repository.clone(),
            layer,
            version,
        });
        self.mirrored.extend(units);
        let failed =
            mirrored.failed.into_iter().map(|Failed { layer, version, error }| FailedLine {
                repository: repository.clone(),
                layer: Some(layer),
                version: Some(version),
                error: error.to_string(),
                hint: None,
            });
        self.failed.extend(failed);
    }
}

fn fetch(
    store: &Store,
    name: &RepositoryName,
    remote: &Remote,
    units: Vec<Unit>,
    options: &Options,
) -> Result<Mirrored, String> {
    let storage = Storage::open(remote, options.pace.clone(), options.observer.clone())
        .map_err(|error| error.to_string())?;
    run(units::fetch(store, name, units, &storage, options))
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())
}

/// Which units of a repository were asked for.
fn chosen(
    args: &MirrorArgs,
    repository: &RepositoryName,
    database: Database,
    wanted: &Wanted,
) -> Vec<Unit> {
    let is_chosen = |unit: &Unit| {
        let layer = &unit.metadata.layer;
        if !args.all.is_empty() {
            return unit.withdrawn.is_none();
        }
        if !args.layers.is_empty() {
            let is_it = |path: &LayerPath| path.repository == *repository && path.layer == *layer;
            return args.layers.iter().any(is_it) && unit.withdrawn.is_none();
        }
        let key = (layer.clone(), unit.metadata.version.clone());
        wanted.get(repository).is_some_and(|units| units.contains(&key))
    };
    database.into_units().filter(is_chosen).collect()
}

/// What was asked for and the repository does not have, or no longer lets anybody use.
fn lacking(
    args: &MirrorArgs,
    repository: &RepositoryName,
    database: &Database,
    wanted: &Wanted,
) -> Vec<FailedLine> {
    let mut lacking = Vec::new();
    let mut fail = |layer: &LayerName, version: Option<&LayerVersion>, error: &str| {
        let of_layer = database.units().filter(|unit| unit.metadata.layer == *layer);
        let has: Vec<_> =
            of_layer.rev().take(5).map(|unit| unit.metadata.version.to_string()).collect();
        let hint = match has.as_slice() {
            [] => format!("`strata layer list --repo {repository}` prints what it has"),
            has => format!("it has {}", has.join(", ")),
        };
        lacking.push(FailedLine {
            repository: repository.clone(),
            layer: Some(layer.clone()),
            version: version.cloned(),
            error: error.to_owned(),
            hint: Some(hint),
        });
    };
    for path in args.layers.iter().filter(|path| path.repository == *repository) {
        let mut units =
            database.units().filter(|unit| unit.metadata.layer == path.layer).peekable();
        if units.peek().is_none() {
            fail(&path.layer, None, "the repository has no such layer");
        } else if units.all(|unit| unit.withdrawn.is_some()) {
            fail(&path.layer, None, "all its versions are withdrawn");
        }
    }
    if args.all.is_empty() && args.layers.is_empty() {
        for (layer, version) in wanted.get(repository).into_iter().flatten() {
            if database.get(layer, version).is_none() {
                fail(layer, Some(version), "an LDF names it, and the repository does not have it");
            }
        }
    }
    lacking
}

/// The lines of LDFs that want something of a repository and do not say which version.
fn without_version(repository: &RepositoryName, desired: &DesiredState) -> Vec<FailedLine> {
    let mut found = Vec::new();
    for definition in desired.definitions.values() {
        let lines = definition.ldf.explicit().chain(definition.ldf.implicit());
        let open = |line: &LayerLine| line.repository == *repository && line.version.is_none();
        for (number, line) in lines.filter(|(_, line)| open(line)) {
            found.push(FailedLine {
                repository: repository.clone(),
                layer: Some(line.layer.clone()),
                version: None,
                error: format!("{}:{number} names no version", definition.file),
                hint: Some(
                    "run `strata resolve`, or name the layer to have all versions".to_owned(),
                ),
            });
        }
    }
    found
}

/// The desired state, and what is wrong with the LDFs.
fn read(directory: &std::path::Path) -> Result<(DesiredState, Vec<Diagnostic>), Failure> {
    let (tree, unreadable) = read_directory(directory)?;
    let (desired, mut diagnostics) = DesiredState::read(&tree);
    refuse_faulty_configuration(&diagnostics, directory)?;
    diagnostics.extend(unreadable);
    diagnostics.retain(|found| found.severity == Severity::Error);
    Ok((desired, diagnostics))
}

/// The remote repositories, all or those that are named.
fn remotes<'c>(
    configuration: &'c Configuration,
    named: &[RepositoryName],
) -> Result<Vec<(&'c RepositoryConfiguration, &'c Remote)>, Failure> {
    let remotes: Vec<_> = configuration
        .repositories
        .iter()
        .filter_map(|repository| Some((repository, repository.remote.as_ref()?)))
        .collect();
    let unknown = named.iter().find(|name| !remotes.iter().any(|(r, _)| r.name == **name));
    if let Some(name) = unknown {
        let names: Vec<_> = remotes.iter().map(|(r, _)| r.name.as_str()).collect();
        let hint = match names.as_slice() {
            [] => "give it one in strata.toml: url = \"https://…\"".to_owned(),
            names => format!("repositories with a `url` are {}", names.join(", ")),
        };
        let failure = Failure::new(format!("the repository {name} has no `url` in strata.toml"));
        return Err(failure.hint(hint));
    }
    if remotes.is_empty() {
        let failure = Failure::new("no repository of strata.toml has a `url`");
        return Err(failure.hint("give one a URL: url = \"https://layers.example.org/main\""));
    }
    let is_named = |name: &RepositoryName| named.is_empty() || named.contains(name);
    Ok(remotes.into_iter().filter(|(repository, _)| is_named(&repository.name)).collect())
}
