//! `strata resolve`: writes versions and the implicit part of every LDF.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{ArgGroup, Args};
use serde::Serialize;
use strata_core::check::check_desired;
use strata_core::desired::DesiredState;
use strata_core::generation::LayerSetEntry;
use strata_core::manifest::Manifest;
use strata_core::names::CompositionName;
use strata_core::resolver::edit::{self, EditError, Wanted};
use strata_core::resolver::{Change, KeptBack, Resolution, Upgrade, resolve};
use strata_core::shared_paths::ManifestSource;
use strata_core::universe::Universe;
use strata_core::{Diagnostic, LayerName, Severity};
use strata_store::Store;
use strata_store::durable::Disk;

use super::known::defined;
use super::resolve_question as question;
use super::{
    Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, is_of_configuration, print_json,
    print_text, refuse_faulty_configuration,
};
use crate::directory::read_directory;
use crate::repositories::{StoreManifests, load_universe};

/// Choose versions and write the implicit part of every LDF of a GitOps repository.
///
/// What stands in an LDF is kept wherever possible; a version edited by hand is
/// respected and the rest follows. Commit what it writes.
#[derive(Debug, Args)]
#[command(group(
    ArgGroup::new("about_one").args(["add", "remove", "why", "why_not"]).multiple(true)
))]
#[command(
    after_help = "Examples:\n  strata resolve . --store /srv/strata\n  strata resolve . --upgrade libssl3 openssl\n  strata resolve . --add vim 'main/git 1:2.39.5-0' --ldf web-server\n  strata resolve . --remove vim --ldf web-server\n  strata resolve . --why libssl3\n  strata resolve . --why-not 'libssl3 3.0.17-1'\n  strata resolve . --check\n\nExit status: 0 done (with --check: nothing to do), 1 something could not be resolved\nor does not go together, or strata.toml has faults, and then nothing is written (with --check: or is\nnot up to date; with --why: no LDF has it; with --why-not: something stands against it), 2 the command could not do its work."
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
    /// Add explicit layers, as in vim, main/vim or 'main/vim 2:9.0'.
    #[arg(long, value_name = "LAYER", num_args = 1..)]
    add: Vec<Wanted>,
    /// Remove explicit layers; what nothing else needs goes with them.
    #[arg(long, value_name = "LAYER", num_args = 1..)]
    remove: Vec<LayerName>,
    /// The LDF that --add and --remove change, by name; needed where there are several.
    /// With --why and --why-not: answer for this one alone.
    #[arg(long, value_name = "NAME", requires = "about_one")]
    ldf: Option<CompositionName>,
    /// Write nothing; show the shortest way that leads to a layer.
    #[arg(long, value_name = "LAYER", conflicts_with_all = ["upgrade", "add", "remove", "check"])]
    why: Option<LayerName>,
    /// Write nothing; show what stands against a layer, or what it would change.
    #[arg(long, value_name = "LAYER VERSION", conflicts_with_all = ["upgrade", "add", "remove", "check", "why"])]
    why_not: Option<Wanted>,
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
    /// By file: what an upgrade left behind.
    kept_back: BTreeMap<&'a str, &'a [KeptBack]>,
    diagnostics: &'a [Diagnostic],
}

/// # Errors
/// The directory or the store cannot be read, or an LDF cannot be written.
pub fn run(args: &ResolveArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let (tree, unreadable) = read_directory(&args.directory)?;
    let (mut desired, mut diagnostics) = DesiredState::read(&tree);
    let is_faulty = diagnostics.iter().any(is_of_configuration);
    if args.why.is_some() || args.why_not.is_some() {
        refuse_faulty_configuration(&diagnostics, &args.directory)?;
    }
    let (universe, faults) = load_universe(&store, &desired.configuration);
    // The process ends soon: giving a distribution's index back piece by piece
    // would take longer than resolving.
    let universe = std::mem::ManuallyDrop::new(universe);
    diagnostics.extend(unreadable);
    diagnostics.extend(faults);
    if let Some(name) = &args.ldf {
        known_definition(&desired, name)?;
    }
    if let Some(layer) = &args.why {
        return question::why(&desired, &universe, layer, args.ldf.as_ref(), args.output.output);
    }
    if let Some(wanted) = &args.why_not {
        let ldf = args.ldf.as_ref();
        return question::why_not(&desired, &universe, wanted, ldf, args.output.output);
    }
    let upgrade = match &args.upgrade {
        None => Upgrade::Nothing,
        Some(names) if names.is_empty() => Upgrade::Everything,
        Some(names) => Upgrade::Layers(names.iter().cloned().collect()),
    };
    if let Upgrade::Layers(names) = &upgrade {
        refuse_unknown(&desired, names)?;
    }
    let before = desired.clone();
    let mut resolution = Resolution::default();
    // Nobody knows what a filter or a pin would have kept out that could not be read.
    if !is_faulty {
        edit_definition(args, &mut desired, &universe)?;
        resolution = resolve(&desired, &universe, &upgrade);
        resolution.count_edits(&before);
        diagnostics.extend(cannot_run(&store, desired, &universe, &resolution));
    }
    resolution.diagnostics.extend(diagnostics);
    resolution.diagnostics.sort();
    resolution.diagnostics.dedup();
    if !args.check {
        write(&args.directory, &resolution)?;
    }
    let changed = resolution.resolved.values().any(|resolved| resolved.rewritten);
    print(args, &resolution, before.definitions.len())?;
    if is_faulty {
        eprintln!("note: nothing was resolved: strata.toml has faults");
    }
    let failed = resolution.diagnostics.iter().any(|d| d.severity == Severity::Error);
    let outdated = args.check && changed;
    Ok(if failed || outdated { Outcome::Difference } else { Outcome::Done })
}

/// Faults that no choice of versions mends, of what was resolved: `strata check` would refuse it.
fn cannot_run(
    store: &Store,
    mut desired: DesiredState,
    universe: &Universe,
    resolution: &Resolution,
) -> Vec<Diagnostic> {
    for (name, resolved) in &resolution.resolved {
        if let Some(definition) = desired.definitions.get_mut(name) {
            definition.ldf = resolved.ldf.clone();
        }
    }
    // Not given back either, for the same reason as the universe.
    let manifests = std::mem::ManuallyDrop::new(Here(StoreManifests::new(store), store));
    let checked = check_desired(desired, Vec::new(), universe, &*manifests);
    let is_told = |found: &Diagnostic| matches!(found.code, "shared-path" | "two-systems");
    checked.diagnostics.into_iter().filter(is_told).collect()
}

/// The manifests of the units that are here; those of a mirror may not have come yet.
struct Here<'s>(StoreManifests<'s>, &'s Store);

impl Here<'_> {
    fn has(&self, entry: &LayerSetEntry) -> bool {
        self.1.unit_path(&entry.repository, &entry.layer, &entry.version).is_dir()
    }
}

impl ManifestSource for Here<'_> {
    fn manifest(&self, entry: &LayerSetEntry) -> Option<Arc<Manifest>> {
        if self.has(entry) { self.0.manifest(entry) } else { None }
    }

    fn prepare(&self, entries: &[LayerSetEntry]) {
        let here: Vec<_> = entries.iter().filter(|entry| self.has(entry)).cloned().collect();
        self.0.prepare(&here);
    }
}

/// Adds and removes what the arguments name.
fn edit_definition(
    args: &ResolveArgs,
    desired: &mut DesiredState,
    universe: &Universe,
) -> Result<(), Failure> {
    if args.add.is_empty() && args.remove.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = desired.definitions.keys().cloned().collect();
    let name = match (&args.ldf, names.as_slice()) {
        (Some(name), _) => name.clone(),
        (None, [only]) => only.clone(),
        (None, _) => {
            let some: Vec<_> = names.iter().take(5).map(ToString::to_string).collect();
            return Err(Failure::new("--add and --remove change one LDF, and there are several")
                .hint(format!("name it with --ldf, as in --ldf {}", some.join(" or --ldf "))));
        }
    };
    let Some(definition) = desired.definitions.get_mut(&name) else { return Ok(()) };
    if definition.partial {
        let message = format!("{} has faults", definition.file);
        return Err(Failure::new(message).hint("run `strata check` and correct them first"));
    }
    for wanted in &args.add {
        edit::add(definition, universe, wanted).map_err(edit_failure)?;
    }
    for layer in &args.remove {
        edit::remove(definition, layer).map_err(edit_failure)?;
    }
    Ok(())
}

pub(super) fn edit_failure(error: EditError) -> Failure {
    let hint = match &error {
        EditError::Unknown { .. } => {
            "name layers as `strata layer list` does, or import the layer first".to_owned()
        }
        EditError::NoSuchUnit { .. } => "name one of these versions".to_owned(),
        EditError::Virtual { .. } => "name one of these layers".to_owned(),
        EditError::Barred { .. } => "name another version".to_owned(),
        EditError::NotThere { .. } => "name the LDF that has it with --ldf".to_owned(),
        EditError::Implicit { layer, .. } => {
            format!("`strata resolve DIR --why {layer}` shows what needs it")
        }
        EditError::Last { .. } => "remove the file instead".to_owned(),
    };
    Failure::new(error.to_string()).hint(hint)
}

fn known_definition(desired: &DesiredState, name: &CompositionName) -> Result<(), Failure> {
    if desired.definitions.contains_key(name) {
        return Ok(());
    }
    let known = desired.definitions.keys().cloned().collect();
    Err(Failure::new(format!("there is no LDF {name}")).hint(defined(&known)))
}

/// A misspelt layer must not look like one that is up to date.
fn refuse_unknown(desired: &DesiredState, names: &BTreeSet<LayerName>) -> Result<(), Failure> {
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
    for resolved in resolution.resolved.values().filter(|resolved| resolved.rewritten) {
        let path = directory.join(&resolved.file);
        let mode = std::fs::symlink_metadata(&path)
            .map(|metadata| metadata.permissions().mode() & 0o777)
            .map_err(|error| Failure::new(format!("read {}: {error}", path.display())))?;
        Disk::default().write_file(&path, resolved.ldf.print().as_bytes(), mode)?;
    }
    Ok(())
}

/// `definitions` is how many LDFs there are, those with faults too.
fn print(args: &ResolveArgs, resolution: &Resolution, definitions: usize) -> Result<(), Failure> {
    let changed = || resolution.resolved.values().filter(|resolved| resolved.rewritten);
    let kept_back = || resolution.resolved.values().filter(|r| !r.kept_back.is_empty());
    if args.output.output == OutputFormat::Json {
        return print_json(&Report {
            written: !args.check && changed().next().is_some(),
            changes: changed().map(|r| (r.file.as_str(), r.changes.as_slice())).collect(),
            kept_back: kept_back().map(|r| (r.file.as_str(), r.kept_back.as_slice())).collect(),
            diagnostics: &resolution.diagnostics,
        });
    }
    let mut text = String::new();
    for resolved in changed() {
        let _infallible = writeln!(text, "{}", resolved.file);
        for change in &resolved.changes {
            let _infallible = writeln!(text, "  {}", show_change(change));
        }
    }
    for resolved in kept_back() {
        let _infallible = writeln!(text, "{}: kept back", resolved.file);
        for KeptBack { at, best, reason, .. } in &resolved.kept_back {
            let _infallible = writeln!(text, "  {at}, not {best}: {reason}");
        }
    }
    for diagnostic in &resolution.diagnostics {
        let _infallible = writeln!(text, "{diagnostic}");
    }
    let _infallible = writeln!(
        text,
        "{} of {} LDFs {}",
        changed().count(),
        definitions,
        if args.check { "would change" } else { "changed" }
    );
    print_text(&text)
}

pub(super) fn show_change(change: &Change) -> String {
    match (&change.before, &change.after) {
        (None, Some(after)) => format!("+ {after}"),
        (Some(before), None) => format!("- {before}"),
        (Some(before), Some(after)) => format!("{before} → {after}"),
        (None, None) => String::new(),
    }
}
