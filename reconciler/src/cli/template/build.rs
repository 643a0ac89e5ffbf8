//! `strata template build`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use strata_core::desired::Definition;
use strata_core::ldf::LayerLine;
use strata_core::printable::printable_lines;
use strata_core::{CompositionName, Digest, LayerName, LayerVersion, RepositoryName};
use strata_store::refuse_reserved;

use super::composition::{composition, name_layer};
use crate::cli::output::print_bytes;
use crate::cli::va::programs;
use crate::cli::{Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_json, quantity};
use crate::template::{self, BuildError, Inputs, Options};

/// Run the scripts of a template's packages once, and keep what they write as a layer
///
/// Composes the template's layers in a build VA (without network, with nothing of the
/// host, limited in time and memory), has dpkg set the packages up as though it had just
/// unpacked them, or runs the scriptlets of RPM packages in rpm's order, and publishes what
/// the scripts changed as a configuration layer. VAs of the template then start with no
/// script left to run. The same layers give the same layer on every machine; one that is
/// there is not built again.
///
/// When the template has such a layer already, the build goes on from it: packages that
/// have another version by now are upgraded, with the scripts that dpkg or rpm runs for that.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  strata template build . web-server --repo main --write\n  strata template build . web-server --check      # is the layer that the LDF names up to date?\n\nThe layer is NAME-configuration; the LDF names it with a held line, as no other version\nof it fits. Not in it: host keys, the machine's id, logs, caches, and whatever lies in the\ntemplate's data directories. Commit what --write wrote.\n\nExit status: 0 done (with --check: up to date), 1 with --check: a build is due, 2 it failed."
)]
pub struct BuildArgs {
    /// The directory that holds strata.toml
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// The template, or an appliance with an LDF of its own
    name: CompositionName,
    /// The repository of the layer [default: that of the former one]
    #[arg(long, value_name = "REPOSITORY")]
    repo: Option<RepositoryName>,
    /// The layer's name [default: NAME-configuration]
    #[arg(long, value_name = "NAME")]
    layer: Option<LayerName>,
    /// Name the layer in the LDF
    #[arg(long, conflicts_with = "check")]
    write: bool,
    /// Build nothing; say whether a build is due
    #[arg(long)]
    check: bool,
    /// Set all packages up anew, whatever a former build left
    #[arg(long)]
    afresh: bool,
    /// Seconds that the scripts may take together
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    timeout: u64,
    /// MiB of memory that they may use together
    #[arg(long, value_name = "MIB", default_value_t = 2048, value_parser = clap::value_parser!(u64).range(16..=1 << 24))]
    memory: u64,
    /// Where the build VA keeps its files while it lives
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    scratch: PathBuf,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Status {
    Built,
    /// Another build of the same layers had made it.
    Present,
    /// The LDF names it already.
    UpToDate,
    /// A build is due.
    Outdated,
}

#[derive(Debug, Serialize)]
struct Report {
    status: Status,
    composition: CompositionName,
    repository: RepositoryName,
    layer: LayerName,
    version: LayerVersion,
    digest: Option<Digest>,
    entries: Option<usize>,
    content_bytes: Option<u64>,
    /// Scriptlets of RPM packages; maintainer scripts that were run beside `dpkg --configure`.
    scripts: usize,
    /// Packages that were set up.
    configured: usize,
    /// Scriptlets of RPM packages that failed where rpm only warns, and the like.
    warnings: Vec<String>,
    took_ms: u64,
    /// Whether the LDF was changed.
    written: bool,
}

/// # Errors
/// The composition has faults, a script failed, or something cannot be read or written.
pub fn run(args: &BuildArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let (definition, generation) = composition(&store, &args.directory, &args.name)?;
    let layer = match &args.layer {
        Some(layer) => layer.clone(),
        None => LayerName::new(format!("{}-configuration", args.name)).map_err(Failure::new)?,
    };
    let repository = repository(args, &definition, &layer)?;
    let mut inputs = Inputs::of(&generation, &repository, &layer);
    let current = inputs.former_is_current(&store).map_err(failure)?;
    if current && !args.afresh {
        let former = inputs.former.as_ref().map(|former| former.version.clone());
        let version = former.map_or_else(|| inputs.version().map_err(failure), Ok)?;
        let report = report(args, repository, layer, version, Status::UpToDate);
        return print(args, &report).map(|()| Outcome::Done);
    }
    if args.afresh {
        inputs.former = None;
    }
    let version = inputs.version().map_err(failure)?;
    if args.check {
        let report = report(args, repository, layer, version, Status::Outdated);
        return print(args, &report).map(|()| Outcome::Difference);
    }
    let options = Options {
        repository: repository.clone(),
        layer: layer.clone(),
        scratch: args.scratch.clone(),
        deadline: Duration::from_secs(args.timeout),
        memory_bytes: args.memory << 20,
    };
    let bar = progress();
    let built = template::build(&store, &programs()?, &inputs, &options, &|doing| {
        bar.set_message(doing.to_owned());
        bar.tick();
    });
    bar.finish_and_clear();
    let built = built.map_err(failure)?;
    let status = if built.unit.new { Status::Built } else { Status::Present };
    let mut warnings = built.warnings;
    if let Some(reason) = &built.unit.withdrawn {
        let unit = format!("{repository}/{} {}", built.unit.layer, built.unit.version);
        warnings.push(format!(
            "{unit} is withdrawn, nothing new may use it: {reason}; where that no longer holds: strata layer restore {unit}"
        ));
    }
    let line = LayerLine {
        hold: true,
        repository: repository.clone(),
        layer: built.unit.layer.clone(),
        version: Some(built.unit.version.clone()),
    };
    let written = args.write && name_layer(&args.directory, &definition, line)?.is_some();
    let report = Report {
        digest: Some(built.unit.digest),
        entries: Some(built.unit.entries),
        content_bytes: Some(built.unit.content_bytes),
        scripts: built.scripts,
        configured: built.configured,
        warnings,
        took_ms: u64::try_from(built.took.as_millis()).unwrap_or(u64::MAX),
        written,
        ..report(args, repository, layer, version, status)
    };
    print(args, &report).map(|()| Outcome::Done)
}

fn report(
    args: &BuildArgs,
    repository: RepositoryName,
    layer: LayerName,
    version: LayerVersion,
    status: Status,
) -> Report {
    Report {
        status,
        composition: args.name.clone(),
        repository,
        layer,
        version,
        digest: None,
        entries: None,
        content_bytes: None,
        scripts: 0,
        configured: 0,
        warnings: Vec::new(),
        took_ms: 0,
        written: false,
    }
}

/// The repository that was asked for, or that of the former layer.
fn repository(
    args: &BuildArgs,
    definition: &Definition,
    layer: &LayerName,
) -> Result<RepositoryName, Failure> {
    let former = definition.ldf.explicit().find(|(_, line)| line.layer == *layer);
    let repository = args.repo.clone().or_else(|| Some(former?.1.repository.clone()));
    let repository = repository.ok_or_else(|| {
        Failure::new(format!("{} names no layer {layer} yet", definition.file))
            .hint("say which repository is to have it: --repo REPOSITORY")
    })?;
    refuse_reserved(&repository)?;
    Ok(repository)
}

fn progress() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn print(args: &BuildArgs, report: &Report) -> Result<(), Failure> {
    for warning in &report.warnings {
        eprintln!("warning: {}", printable_lines(warning));
    }
    if args.output.output == OutputFormat::Json {
        return print_json(report);
    }
    let Report { repository, layer, version, .. } = report;
    let unit = format!("{repository}/{layer} {version}");
    let mut text = match report.status {
        Status::UpToDate => format!("{unit} is up to date\n"),
        Status::Outdated => format!("a build is due: {unit}\n"),
        Status::Present => format!("present already {unit}: no script was run\n"),
        Status::Built => format!(
            "built {unit} ({}, {}; {} configured, {} run; {:.1} s)\n",
            quantity(report.entries.unwrap_or(0), "path"),
            indicatif::HumanBytes(report.content_bytes.unwrap_or(0)),
            quantity(report.configured, "package"),
            quantity(report.scripts, "script"),
            report.took_ms as f64 / 1000.0
        ),
    };
    if report.written {
        text.push_str("the LDF names it now: commit that\n");
    }
    print_bytes(text.as_bytes())?;
    let unnamed = matches!(report.status, Status::Built | Status::Present) && !args.write;
    if unnamed {
        eprintln!("hint: --write puts this line into the LDF: ={unit}");
    }
    Ok(())
}

fn failure(error: BuildError) -> Failure {
    let hint = match &error {
        BuildError::NoPackages(_) => {
            Some("import packages: strata layer import --repo main FILE.deb FILE.rpm …")
        }
        BuildError::Lua { .. } => Some("add the layer that was made from the package rpm"),
        BuildError::Failed { .. } => Some(
            "the scripts run without network and services; what they need must be among the layers",
        ),
        BuildError::Deadline(..) => Some("give it longer with --timeout"),
        BuildError::Io { .. } | BuildError::View(_) => Some(
            "--scratch must be on a disk with room and trusted extended attributes; root is needed",
        ),
        BuildError::Machine(_) | BuildError::Provision(_) => {
            Some("it needs root, /dev/fuse and cgroups of version 2")
        }
        _ => None,
    };
    let failure = Failure::new(&error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
