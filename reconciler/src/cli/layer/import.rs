//! `strata layer import`.

use std::fmt;
use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use strata_core::digest::Digest;
use strata_core::names::{LayerName, RepositoryName};
use strata_core::version::LayerVersion;
use strata_import::{ImportError, ImportOptions, Imported, Package, import_packages};
use strata_store::{StoreError, refuse_reserved};

use crate::cli::{Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_bytes, print_json};

/// A progress bar appears when the work takes longer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Make layers from Debian packages
///
/// Each package becomes the layer of its name and version. Its files are taken
/// as dpkg would unpack them on a system with a merged /usr; its maintainer
/// scripts are kept for the distribution's own tools. A package that cannot be
/// converted leaves nothing behind and does not stop the others.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  apt-get download openssh-server libc6 &&\n  strata layer import --repo main *.deb"
)]
pub struct ImportArgs {
    /// The repository; made where it does not exist
    #[arg(long, value_name = "REPOSITORY")]
    repo: RepositoryName,
    /// Packages (.deb); a directory stands for the packages in it
    #[arg(required = true, value_name = "FILE")]
    packages: Vec<PathBuf>,
    /// Packages converted at once [default: one a processor]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Refuse a package that unpacks to more bytes [default: 64 GiB]
    #[arg(long, value_name = "N")]
    max_bytes: Option<u64>,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Built,
    Imported,
    Present,
}

/// What is printed for a layer unit.
#[derive(Debug, Serialize)]
pub struct Line {
    status: Status,
    repository: RepositoryName,
    layer: LayerName,
    version: LayerVersion,
    digest: Digest,
    entries: usize,
    content_bytes: u64,
}

impl Line {
    /// `made` is how a unit that is new came to be.
    pub fn of(repository: &RepositoryName, imported: Imported, made: Status) -> Self {
        let Imported { layer, version, digest, new, entries, content_bytes } = imported;
        let status = if new { made } else { Status::Present };
        let repository = repository.clone();
        Line { status, repository, layer, version, digest, entries, content_bytes }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line { repository, layer, version, entries, content_bytes, .. } = self;
        match self.status {
            Status::Built => f.write_str("built ")?,
            Status::Imported => f.write_str("imported ")?,
            Status::Present => {
                return writeln!(f, "present already {repository}/{layer} {version}");
            }
        }
        let size = HumanBytes(*content_bytes);
        writeln!(f, "{repository}/{layer} {version} ({entries} entries, {size})")
    }
}

#[derive(Debug, Serialize)]
struct Summary {
    layers: Vec<Line>,
    failed: Vec<FailedPackage>,
}

#[derive(Debug, Serialize)]
struct FailedPackage {
    package: String,
    error: String,
}

pub fn run(args: ImportArgs) -> Result<Outcome, Failure> {
    refuse_reserved(&args.repo)?;
    let store = args.store.open()?;
    let packages = packages(&args.packages)?;
    let mut options = ImportOptions::default();
    options.threads = args.jobs.unwrap_or(options.threads);
    options.limits.bytes = args.max_bytes.unwrap_or(options.limits.bytes);
    let mut results: Vec<Option<Line>> = packages.iter().map(|_| None).collect();
    let mut failed = Vec::new();
    let mut printed = Ok(());
    let work = |bar: &ProgressBar| {
        let all = packages.iter().cloned().map(Package::from);
        import_packages(&store, &args.repo, all, options, &mut |index, result| {
            bar.inc(1);
            match result {
                Ok(imported) => {
                    let line = Line::of(&args.repo, imported, Status::Imported);
                    if args.output.output == OutputFormat::Text && printed.is_ok() {
                        printed = bar.suspend(|| print_bytes(line.to_string().as_bytes()));
                    }
                    results[index] = Some(line);
                }
                Err(error) => {
                    let package = packages[index].display().to_string();
                    failed.push(FailedPackage { package, error: error.to_string() });
                    bar.suspend(|| explain(error).print());
                }
            }
        })
    };
    with_progress(packages.len(), work)?;
    printed?;
    let outcome = match failed.len() {
        0 => Ok(Outcome::Done),
        failed => {
            let error = format!("{failed} of {} packages were not imported", packages.len());
            Err(Failure::new(error).hint("the reasons stand above; the others are layers now"))
        }
    };
    if args.output.output == OutputFormat::Json {
        print_json(&Summary { layers: results.into_iter().flatten().collect(), failed })?;
    }
    outcome
}

fn explain(error: ImportError) -> Failure {
    match &error {
        ImportError::Store { source: StoreError::UnitDiffers { .. }, .. } => Failure::new(error)
            .hint("a rebuilt package needs a new version; or import it into another repository"),
        ImportError::Open { .. } => {
            Failure::new(error).hint("name a .deb file, or a directory of them")
        }
        ImportError::Convert { package, .. } => {
            let hint =
                format!("look at it with dpkg-deb -c {}, or fetch it again", package.display());
            Failure::new(error).hint(hint)
        }
        ImportError::Store { .. } | ImportError::Other { .. } | ImportError::Group { .. } => {
            Failure::new(error)
        }
    }
}

/// Names the packages: directories stand for the `.deb` files in them, sorted.
fn packages(arguments: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut packages = Vec::new();
    for argument in arguments {
        if !argument.is_dir() {
            packages.push(argument.clone());
            continue;
        }
        let before = packages.len();
        for entry in std::fs::read_dir(argument).map_err(|error| at(argument, error))? {
            let path = entry.map_err(|error| at(argument, error))?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                packages.push(path);
            }
        }
        if packages.len() == before {
            let error = format!("{}: no .deb file in this directory", argument.display());
            return Err(Failure::new(error).hint("fetch some: apt-get download PACKAGE"));
        }
        packages[before..].sort();
    }
    Ok(packages)
}

fn at(path: &Path, error: std::io::Error) -> Failure {
    Failure::new(format!("{}: {error}", path.display()))
}

/// Runs `work` with a bar of `length` steps, which shows itself on a terminal
/// once the work has taken longer than [`PATIENCE`].
fn with_progress<T>(length: usize, work: impl FnOnce(&ProgressBar) -> T) -> T {
    let bar = ProgressBar::with_draw_target(Some(length as u64), ProgressDrawTarget::hidden());
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} packages, {elapsed}");
    bar.set_style(style.expect("the template is valid"));
    let (done, waiting) = channel::<()>();
    std::thread::scope(|scope| {
        if std::io::stderr().is_terminal() {
            let bar = bar.clone();
            scope.spawn(move || {
                if waiting.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                    bar.set_draw_target(ProgressDrawTarget::stderr());
                    bar.enable_steady_tick(PATIENCE / 4);
                }
            });
        }
        let result = work(&bar);
        drop(done);
        bar.finish_and_clear();
        result
    })
}
