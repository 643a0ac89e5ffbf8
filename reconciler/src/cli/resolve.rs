//! `strata resolve`: writes versions and the implicit part of every LDF.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use strata_core::desired::DesiredState;
use strata_core::resolver::{Change, Resolution, Upgrade, resolve};
use strata_core::{Diagnostic, LayerName, Severity};
use strata_store::durable::Disk;

use super::output::print_bytes;
use super::{Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_json};
use crate::directory::read_directory;
use crate::repositories::load_universe;

/// Choose versions and write the implicit part of every LDF of a GitOps repository.
///
/// What stands in an LDF is kept wherever possible; a version edited by hand is
/// respected and the rest follows. Commit what it writes.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  strata resolve . --store /srv/strata\n  strata resolve . --upgrade libssl3 openssl\n  strata resolve . --check\n\nExit status: 0 done (with --check: nothing to do), 1 something could not be resolved\n(with --check: or is not up to date), 2 the command could not do its work."
)]
pub struct ResolveArgs {
    /// The directory that holds strata.toml.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    #[command(flatten)]
    store: StoreArgs,
    /// Bring these layers, or all that are not held, to their best version.
    #[arg(long, value_name = "LAYER", num_args = 0..)]
    upgrade: Option<Vec<LayerName>>,
    /// Write nothing; say what would change.
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Report<'a> {
    written: bool,
    /// By file.
    changes: BTreeMap<&'a str, &'a [Change]>,
    diagnostics: &'a [Diagnostic],
}

/// # Errors
/// The directory or the store cannot be read, or an LDF cannot be written.
pub fn run(args: &ResolveArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let (tree, unreadable) = read_directory(&args.directory)?;
    let (desired, mut diagnostics) = DesiredState::read(&tree);
    let (universe, faults) = load_universe(&store, &desired.configuration);
    diagnostics.extend(unreadable);
    diagnostics.extend(faults);
    let upgrade = match &args.upgrade {
        None => Upgrade::Nothing,
        Some(names) if names.is_empty() => Upgrade::Everything,
        Some(names) => Upgrade::Layers(names.iter().cloned().collect()),
    };
    if let Upgrade::Layers(names) = &upgrade {
        refuse_unknown(&desired, names)?;
    }
    let mut resolution = resolve(&desired, &universe, &upgrade);
    resolution.diagnostics.extend(diagnostics);
    resolution.diagnostics.sort();
    resolution.diagnostics.dedup();
    if !args.check {
        write(&args.directory, &resolution)?;
    }
    let changed = resolution.resolved.values().any(|resolved| !resolved.changes.is_empty());
    print(args, &resolution)?;
    let failed = resolution.diagnostics.iter().any(|d| d.severity == Severity::Error);
    let outdated = args.check && changed;
    Ok(if failed || outdated { Outcome::Difference } else { Outcome::Done })
}

/// A misspelt layer must not look like one that is up to date.
fn refuse_unknown(
    desired: &DesiredState,
    names: &std::collections::BTreeSet<LayerName>,
) -> Result<(), Failure> {
    let stands = |name: &LayerName| {
        desired.definitions.values().any(|definition| {
            let ldf = &definition.ldf;
            ldf.explicit().chain(ldf.implicit()).any(|(_, line)| line.layer == *name)
        })
    };
    match names.iter().find(|name| !stands(name)) {
        None => Ok(()),
        Some(name) => Err(Failure::new(format!("no LDF has a layer {name} to upgrade")).hint(
            "name the directory before --upgrade, and layers without their repository: strata resolve DIR --upgrade LAYER",
        )),
    }
}

fn write(directory: &Path, resolution: &Resolution) -> Result<(), Failure> {
    for resolved in resolution.resolved.values().filter(|resolved| !resolved.changes.is_empty()) {
        let path = directory.join(&resolved.file);
        let mode = std::fs::symlink_metadata(&path)
            .map(|metadata| metadata.permissions().mode() & 0o777)
            .map_err(|error| Failure::new(format!("read {}: {error}", path.display())))?;
        Disk::default().write_file(&path, resolved.ldf.print().as_bytes(), mode)?;
    }
    Ok(())
}

fn print(args: &ResolveArgs, resolution: &Resolution) -> Result<(), Failure> {
    let changed = || resolution.resolved.values().filter(|resolved| !resolved.changes.is_empty());
    if args.output.output == OutputFormat::Json {
        return print_json(&Report {
            written: !args.check && changed().next().is_some(),
            changes: changed().map(|r| (r.file.as_str(), r.changes.as_slice())).collect(),
            diagnostics: &resolution.diagnostics,
        });
    }
    let mut text = String::new();
    for resolved in changed() {
        let _infallible = writeln!(text, "{}", resolved.file);
        for change in &resolved.changes {
            let _infallible = match (&change.before, &change.after) {
                (None, Some(after)) => writeln!(text, "  + {after}"),
                (Some(before), None) => writeln!(text, "  - {before}"),
                (Some(before), Some(after)) => writeln!(text, "  {before} → {after}"),
                (None, None) => Ok(()),
            };
        }
    }
    for diagnostic in &resolution.diagnostics {
        let _infallible = writeln!(text, "{diagnostic}");
    }
    let _infallible = writeln!(
        text,
        "{} of {} LDFs {}",
        changed().count(),
        resolution.resolved.len(),
        if args.check { "would change" } else { "changed" }
    );
    print_bytes(text.as_bytes())
}
