//! `strata layer import`: from files, and from apt's sources ([`super::import_apt`]).

use std::fmt;
use std::io::IsTerminal;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use strata_core::digest::Digest;
use strata_core::limits;
use strata_core::names::{LayerName, RepositoryName};
use strata_core::printable::printable;
use strata_core::version::LayerVersion;
use strata_import::{ImportError, ImportOptions, Imported, Package, import_packages};
use strata_store::{StoreError, read_limited, refuse_reserved};

use super::import_apt::{self, AptArgs};
use crate::cli::{Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_bytes, print_json};

/// A progress bar appears when the work takes longer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of a file of users or groups.
const OWNERS_BYTES: usize = 16 << 20;

/// Make layers from Debian and RPM packages
///
/// Each package becomes the layer of its name and version. Its files are taken
/// as dpkg or rpm would unpack them on a system with a merged /usr; its scripts
/// are kept for the distribution's own tools. A package that cannot be
/// converted leaves nothing behind and does not stop the others. One that was withdrawn
/// once is so again, and that is said.
///
/// With `--from apt` packages are named, and come with everything that they
/// depend on from the sources that apt is configured to use on this machine:
/// signatures are checked, and what is in the repository already is not fetched.
/// An import that was interrupted goes on where it was.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  apt-get download openssh-server libc6 &&\n  strata layer import --repo main *.deb\n  strata layer import --from apt openssh-server mariadb-server=1:10.11.6-0+deb12u1\n  strata layer import --from apt --dry-run apache2\n  strata layer import --repo fedora --passwd fedora/passwd --group fedora/group ./rpms\n\nExit status: 0 all are layers now, 2 some are not; the others are."
)]
pub struct ImportArgs {
    /// The repository; made where it does not exist
    #[arg(long, value_name = "REPOSITORY", default_value = "main")]
    pub repo: RepositoryName,
    /// Where named packages come from: `apt`, the sources of this machine's apt
    #[arg(long, value_name = "SOURCE", value_parser = ["apt"])]
    from: Option<String>,
    /// Packages (.deb, .rpm); a directory stands for the packages in it. With --from: names, or name=version
    #[arg(required = true, value_name = "FILE|NAME")]
    packages: Vec<PathBuf>,
    /// Packages converted at once [default: one a processor]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Refuse a package that unpacks to more bytes [default and most: 64 GiB]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=limits::LAYER_BYTES))]
    max_bytes: Option<u64>,
    /// Numbers of the users that RPM packages name, as passwd(5) [default: only root is known]
    #[arg(long, value_name = "FILE")]
    passwd: Option<PathBuf>,
    /// Numbers of the groups that RPM packages name, as group(5) [default: only root is known]
    #[arg(long, value_name = "FILE")]
    group: Option<PathBuf>,
    #[command(flatten)]
    apt: AptArgs,
    #[command(flatten)]
    pub store: StoreArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

impl ImportArgs {
    /// # Errors
    /// A file of owners cannot be read.
    pub fn options(&self) -> Result<ImportOptions, Failure> {
        let mut options = ImportOptions::default();
        options.threads = self.jobs.unwrap_or(options.threads);
        options.limits.bytes = self.max_bytes.unwrap_or(options.limits.bytes);
        let read = |file: &Option<PathBuf>| match file {
            None => Ok(Vec::new()),
            Some(file) => read_limited(file, OWNERS_BYTES).map_err(Failure::from),
        };
        options.owners.add(&read(&self.passwd)?, &read(&self.group)?);
        Ok(options)
    }
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
    pub status: Status,
    pub repository: RepositoryName,
    pub layer: LayerName,
    pub version: LayerVersion,
    pub digest: Digest,
    /// Left out where the unit was there and not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries: Option<usize>,
    pub content_bytes: u64,
    /// Why nothing new may use it, where that is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub withdrawn: Option<String>,
}

impl Line {
    /// `made` is how a unit that is new came to be.
    pub fn of(repository: &RepositoryName, imported: Imported, made: Status) -> Self {
        let Imported { layer, version, digest, new, entries, content_bytes, withdrawn } = imported;
        let status = if new { made } else { Status::Present };
        let (repository, entries) = (repository.clone(), Some(entries));
        Line { status, repository, layer, version, digest, entries, content_bytes, withdrawn }
    }

    /// Tells people where the unit is here and may not be used: it was withdrawn, perhaps long
    /// before it came again.
    pub fn tell_withdrawn(&self) {
        let Line { repository, layer, version, .. } = self;
        if let Some(reason) = &self.withdrawn {
            let reason = printable(reason);
            eprintln!(
                "note: {repository}/{layer} {version} is withdrawn, nothing new may use it: {reason}\nhint: where that no longer holds: strata layer restore {repository}/{layer} {version}"
            );
        }
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
        let entries = entries.unwrap_or_default();
        writeln!(f, "{repository}/{layer} {version} ({entries} entries, {size})")
    }
}

/// What `--output json` prints.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    pub layers: Vec<Line>,
    pub failed: Vec<FailedPackage>,
}

#[derive(Debug, Serialize)]
pub struct FailedPackage {
    pub package: String,
    pub error: String,
}

impl Summary {
    /// Prints what is to be printed at the end and says how the command ends.
    /// `total` packages were to be imported.
    pub fn finish(mut self, total: usize, output: OutputFormat) -> Result<Outcome, Failure> {
        let failed = self.failed.len();
        if output == OutputFormat::Json {
            self.layers.sort_by(|a, b| (&a.layer, &a.version).cmp(&(&b.layer, &b.version)));
            print_json(&self)?;
        }
        match failed {
            0 => Ok(Outcome::Done),
            failed => {
                let error = format!("{failed} of {total} packages were not imported");
                let others = if failed < total { "; the others are layers now" } else { "" };
                Err(Failure::new(error).hint(format!("the reasons stand above{others}")))
            }
        }
    }
}

pub fn run(args: ImportArgs) -> Result<Outcome, Failure> {
    refuse_reserved(&args.repo)?;
    if args.from.is_some() {
        let requests = args.packages.iter().map(|name| import_apt::request(name));
        let requests = requests.collect::<Result<Vec<_>, _>>()?;
        return import_apt::run(&args, &args.apt, &requests);
    }
    let store = args.store.open()?;
    let options = args.options()?;
    let packages = packages(&args.packages)?;
    let mut summary = Summary::default();
    let mut printed = Ok(());
    let work = |bar: &ProgressBar| {
        let all = packages.iter().cloned().map(Package::from);
        import_packages(&store, &args.repo, all, &options, &mut |index, result| {
            bar.inc(1);
            match result {
                Ok(imported) => {
                    let line = Line::of(&args.repo, imported, Status::Imported);
                    if args.output.output == OutputFormat::Text && printed.is_ok() {
                        printed = bar.suspend(|| print_bytes(line.to_string().as_bytes()));
                    }
                    bar.suspend(|| line.tell_withdrawn());
                    summary.layers.push(line);
                }
                Err(error) => {
                    let package = packages[index].display().to_string();
                    summary.failed.push(FailedPackage { package, error: error.to_string() });
                    bar.suspend(|| explain(error).print());
                }
            }
        })
    };
    with_progress(packages.len() as u64, "{wide_bar} {pos}/{len} packages, {elapsed}", work)?;
    printed?;
    summary.finish(packages.len(), args.output.output)
}

pub fn explain(error: ImportError) -> Failure {
    match &error {
        ImportError::Store { source: StoreError::UnitDiffers { .. }, .. } => Failure::new(error)
            .hint("a rebuilt package needs a new version; or import it into another repository"),
        ImportError::Open { .. } => Failure::new(error).hint(
            "name .deb or .rpm files, or a directory of them; with --from apt, packages by name",
        ),
        ImportError::Convert { package, .. } => {
            let rpm = package.extension().is_some_and(|extension| extension == "rpm");
            let tools =
                if rpm { "rpm -qilvp" } else { "dpkg-deb -f (its fields) or -c (its files)" };
            let hint = format!("look at it with {tools} {}, or fetch it again", package.display());
            Failure::new(error).hint(hint)
        }
        ImportError::Store { .. } | ImportError::Other { .. } | ImportError::Group { .. } => {
            Failure::new(error)
        }
    }
}

/// Names the packages: directories stand for the `.deb` and `.rpm` files in them, sorted.
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
            if path.extension().is_some_and(|extension| extension == "deb" || extension == "rpm") {
                packages.push(path);
            }
        }
        if packages.len() == before {
            let error = format!("{}: no .deb or .rpm file in this directory", argument.display());
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
pub fn with_progress<T>(length: u64, template: &str, work: impl FnOnce(&ProgressBar) -> T) -> T {
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::hidden());
    let style = ProgressStyle::with_template(template);
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
