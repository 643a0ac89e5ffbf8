//! `strata layer build`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use strata_core::metadata::{LayerKind, Metadata};
use strata_core::names::{LayerName, RepositoryName};
use strata_core::relation::{self, Dependency, Relation};
use strata_core::version::LayerVersion;
use strata_import::build::BuildError;
use strata_import::{TreeLimits, build, tree};
use strata_store::{StoreError, refuse_reserved};

use super::import::{Line, Status};
use super::infer::{self, FromArgs};
use super::installed::Installed;
use crate::cli::{Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_json, print_text};

/// Make a layer from a directory of files, or of what a command installs
///
/// The directory is taken as the layer's root, with owners, modes, times, links,
/// devices and extended attributes as they are. A command after `--` is run with
/// DESTDIR set to an empty directory, which is taken, and removed whatever happens; what
/// the command prints goes to stderr. A layer never changes; another content needs another
/// version.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  strata layer build --name nginx --version 1.24.0-1 --infer-depends -- make install\n  strata layer build --repo local --name motd --version 1 --root /tmp/motd"
)]
pub struct BuildArgs {
    /// The repository; made where it does not exist
    #[arg(long, value_name = "REPOSITORY", default_value = "main")]
    repo: RepositoryName,
    /// The layer's name
    #[arg(long)]
    name: LayerName,
    /// Its version, [epoch:]upstream[-revision]
    #[arg(long)]
    version: LayerVersion,
    /// The directory that becomes the layer's root
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present = "command",
        conflicts_with = "command"
    )]
    root: Option<PathBuf>,
    /// A command that installs the layer's files below $DESTDIR, as `make install` does
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    /// Software layers never share a path; configuration layers may obscure others
    #[arg(long, default_value = "software", value_parser = ["software", "configuration"])]
    kind: String,
    /// Layers it needs: `a (>= 1), b | c`
    #[arg(long, value_name = "LAYERS")]
    depends: Vec<Dependencies>,
    /// Depend on the layers that have the libraries and interpreters that its files need, too
    #[arg(long)]
    infer_depends: bool,
    /// A library or interpreter that may be missing, as in libhpc.so.1; may be given again
    #[arg(long, value_name = "NAME", requires = "infer_depends")]
    ignore_missing: Vec<String>,
    #[command(flatten)]
    from: FromArgs,
    /// Layers that must be integrated before it
    #[arg(long, value_name = "LAYERS")]
    pre_depends: Vec<Dependencies>,
    /// Layers that cannot stand beside it
    #[arg(long, value_name = "LAYERS")]
    conflicts: Vec<Relations>,
    /// Virtual layers that it stands for
    #[arg(long, value_name = "LAYERS")]
    provides: Vec<Relations>,
    /// Part of every composition that draws on its repository
    #[arg(long)]
    essential: bool,
    /// The architecture of its files, as in amd64, or `all`
    #[arg(long, value_name = "NAME")]
    architecture: Option<String>,
    /// One line that says what it is
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// A directory with any of pre-install, post-install, pre-remove, post-remove
    #[arg(long, value_name = "DIR")]
    scripts: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Clone)]
struct Dependencies(Vec<Dependency>);

impl FromStr for Dependencies {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let fault = |(at, error): (usize, _)| format!("at column {}: {error}", at + 1);
        relation::parse_written_dependencies(text).map(Dependencies).map_err(fault)
    }
}

#[derive(Debug, Clone)]
struct Relations(Vec<Relation>);

impl FromStr for Relations {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let fault = |(at, error): (usize, _)| format!("at column {}: {error}", at + 1);
        relation::parse_written_relations(text).map(Relations).map_err(fault)
    }
}

fn one_line(text: String, option: &str) -> Result<String, Failure> {
    match text.chars().any(char::is_control) {
        true => Err(Failure::new(format!("--{option} must be one line"))),
        false => Ok(text),
    }
}

pub fn run(args: BuildArgs) -> Result<Outcome, Failure> {
    refuse_reserved(&args.repo)?;
    let store = args.store.open()?;
    let kind: LayerKind = args.kind.parse().map_err(Failure::new)?;
    let mut metadata = Metadata::new(args.name, args.version, kind);
    metadata.depends = args.depends.into_iter().flat_map(|list| list.0).collect();
    metadata.pre_depends = args.pre_depends.into_iter().flat_map(|list| list.0).collect();
    metadata.conflicts = args.conflicts.into_iter().flat_map(|list| list.0).collect();
    metadata.provides = args.provides.into_iter().flat_map(|list| list.0).collect();
    metadata.essential = args.essential;
    let named = |name: String| match LayerName::new(name.as_str()) {
        Ok(name) => Ok(String::from(name)),
        Err(_) => Err(Failure::new(format!("--architecture: {name:?} is no name of one"))
            .hint("write amd64, arm64 or the like, or `all`")),
    };
    metadata.architecture = args.architecture.map(named).transpose()?;
    metadata.description =
        args.description.map(|text| one_line(text, "description")).transpose()?;
    let installed = match &args.root {
        Some(_) => None,
        None => Some(Installed::by(&args.command)?),
    };
    let root = match (&args.root, &installed) {
        (Some(root), _) => root.as_path(),
        (None, Some(installed)) => installed.root(),
        (None, None) => return Err(Failure::new("neither --root nor a command was given")),
    };
    let limits = TreeLimits::default();
    if args.infer_depends {
        let manifest = tree::scan(root, limits).map_err(|error| {
            Failure::new(format!("{}: {error}", root.display()))
                .hint("name a directory that is there with --root")
        })?;
        let own = Some((&args.repo, &metadata.layer));
        let findings = infer::findings(&store, &args.from, own, root, &manifest)?;
        infer::add(&mut metadata.depends, &findings, &args.ignore_missing)?;
    }
    let scripts = args.scripts.as_deref();
    let built = build(&store, &args.repo, metadata, root, scripts, limits);
    let imported =
        built.map_err(|error| match error {
            BuildError::Store(StoreError::UnitDiffers { .. }) => Failure::new(error)
                .hint("raise --version; `strata layer list` prints what is there"),
            BuildError::Io { .. } => Failure::new(error)
                .hint("name directories that are there with --root and --scripts"),
            _ => Failure::new(error),
        })?;
    let line = Line::of(&args.repo, imported, Status::Built);
    match args.output.output {
        OutputFormat::Text => print_text(&line.to_string())?,
        OutputFormat::Json => print_json(&line)?,
    }
    line.tell_withdrawn();
    Ok(Outcome::Done)
}
