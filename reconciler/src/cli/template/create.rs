//! `strata template create`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use strata_core::check::check_desired;
use strata_core::desired::DesiredState;
use strata_core::resolver::edit::{self, Wanted};
use strata_core::resolver::{Upgrade, resolve};
use strata_core::source::SourceContent;
use strata_core::{CompositionName, Diagnostic, RepositoryName, Severity};
use strata_store::durable::Disk;

use crate::cli::known::defined;
use crate::cli::resolve::edit_failure;
use crate::cli::{
    Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_bytes, print_json, quantity,
    refuse_faulty_configuration,
};
use crate::directory::read_directory;
use crate::repositories::{StoreManifests, load_universe};
use crate::revision::WorkRepository;

/// Define a template by the layers it is about, the templates it builds on, or both
///
/// Writes templates/NAME.ldf with the layers that are named, and with all that they need. What
/// cannot go together, layers that conflict or that have files of the same path, is told, and
/// nothing is written then.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata template create . web-server --layer apache2 --layer 'main/php8.2 8.2.29-1'
  strata template create . shop --from sql-server --from web-server --commit

Then start a VA of it, configure it by hand, and keep that: strata template commit --help")]
pub struct CreateArgs {
    /// The directory that holds strata.toml
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// The new template's name
    name: CompositionName,
    /// A layer, as in vim, main/vim or 'main/vim 2:9.0'; may be given again
    #[arg(long = "layer", value_name = "LAYER")]
    layers: Vec<Wanted>,
    /// A template all of whose layers it has; may be given again, later ones obscure earlier ones
    #[arg(long = "from", value_name = "TEMPLATE")]
    from: Vec<CompositionName>,
    /// Where layers are from that are named without a repository [default: by priority]
    #[arg(long, value_name = "REPOSITORY")]
    repository: Option<RepositoryName>,
    /// Commit the file on the branch that is checked out
    #[arg(long)]
    commit: bool,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    composition: &'a CompositionName,
    file: &'a str,
    explicit_layers: usize,
    implicit_layers: usize,
    commit: Option<String>,
    /// Warnings about the new file.
    diagnostics: &'a [Diagnostic],
}

/// # Errors
/// The name is taken, the layers cannot be had together, or the file cannot be written.
pub fn run(args: &CreateArgs) -> Result<Outcome, Failure> {
    if args.layers.is_empty() && args.from.is_empty() {
        return Err(Failure::new("a template has a layer, or builds on another template")
            .hint("name what it is about with --layer, what it builds on with --from"));
    }
    let store = args.store.open()?;
    let repository = match args.commit {
        true => Some(WorkRepository::open_to_commit(&args.directory)?),
        false => None,
    };
    let file = format!("templates/{}.ldf", args.name);
    let (mut tree, _) = read_directory(&args.directory)?;
    let (before, _) = DesiredState::read(&tree);
    refuse_names(args, &before)?;

    let bytes: String = args.from.iter().map(|name| format!("@{name}\n")).collect();
    let content = SourceContent::Regular { bytes: bytes.into_bytes(), executable: false };
    tree.insert(file.as_bytes(), content).map_err(Failure::new)?;
    let (mut desired, mut diagnostics) = DesiredState::read(&tree);
    refuse_faulty_configuration(&diagnostics, &args.directory)?;
    let (universe, faults) = load_universe(&store, &desired.configuration);
    diagnostics.extend(faults);
    let Some(definition) = desired.definitions.get_mut(&args.name) else {
        return Err(faulty(args, &file, diagnostics));
    };
    for layer in &args.layers {
        let repository = layer.repository.clone().or_else(|| args.repository.clone());
        let wanted = Wanted { repository, ..layer.clone() };
        edit::add(definition, &universe, &wanted).map_err(edit_failure)?;
    }
    let mut resolution = resolve(&desired, &universe, &Upgrade::Nothing);
    diagnostics.append(&mut resolution.diagnostics);
    let resolved = resolution.resolved.remove(&args.name);
    let (Some(resolved), Some(definition)) = (resolved, desired.definitions.get_mut(&args.name))
    else {
        return Err(faulty(args, &file, diagnostics));
    };
    definition.ldf = resolved.ldf.clone();
    let checked = check_desired(desired, diagnostics, &universe, &StoreManifests::new(&store));
    let mut own: Vec<_> =
        checked.diagnostics.into_iter().filter(|found| found.file == file).collect();
    if own.iter().any(|found| found.severity == Severity::Error)
        || !checked.compositions.contains_key(&args.name)
    {
        return Err(faulty(args, &file, own));
    }
    own.sort();
    own.dedup();

    let text = resolved.ldf.print();
    let path = args.directory.join(&file);
    fs::create_dir_all(args.directory.join("templates"))
        .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    Disk::default().write_file(&path, text.as_bytes(), 0o644)?;
    let commit = match repository {
        Some(repository) => {
            let files = BTreeMap::from([(file.clone(), text)]);
            Some(repository.commit_to_head(&files, &message(args))?.to_string())
        }
        None => None,
    };
    let report = Report {
        composition: &args.name,
        file: &file,
        explicit_layers: resolved.ldf.explicit().count(),
        implicit_layers: resolved.ldf.implicit().count(),
        commit,
        diagnostics: &own,
    };
    print(args, &report).map(|()| Outcome::Done)
}

fn refuse_names(args: &CreateArgs, desired: &DesiredState) -> Result<(), Failure> {
    if let Some(taken) = desired.definitions.get(&args.name) {
        let name = &args.name;
        return Err(Failure::new(format!("there is a {name} already: {}", taken.file))
            .hint(format!("change it: strata resolve DIR --ldf {name} --add LAYER")));
    }
    match args.from.iter().find(|name| !desired.definitions.contains_key(name)) {
        None => Ok(()),
        Some(name) => {
            let known = desired.definitions.keys().cloned().collect();
            Err(Failure::new(format!("there is no template {name}")).hint(defined(&known)))
        }
    }
}

/// What stands against the template.
fn faulty(args: &CreateArgs, file: &str, found: Vec<Diagnostic>) -> Failure {
    let mut lines: Vec<_> = found
        .into_iter()
        .filter(|found| found.severity == Severity::Error)
        .filter(|found| found.file == file || found.file == "strata.toml")
        .map(|found| found.to_string())
        .collect();
    lines.sort();
    lines.dedup();
    let message = format!("{} was not made:\n{}", args.name, lines.join("\n"));
    Failure::new(message).hint("nothing was written")
}

fn message(args: &CreateArgs) -> String {
    let mut text = format!("Define the template {}\n", args.name);
    if !args.from.is_empty() {
        let names: Vec<_> = args.from.iter().map(ToString::to_string).collect();
        text.push_str(&format!("\nBuilds on: {}\n", names.join(", ")));
    }
    if !args.layers.is_empty() {
        let names: Vec<_> = args.layers.iter().map(ToString::to_string).collect();
        text.push_str(&format!("\nLayers: {}\n", names.join(", ")));
    }
    text
}

fn print(args: &CreateArgs, report: &Report<'_>) -> Result<(), Failure> {
    if args.output.output == OutputFormat::Json {
        return print_json(report);
    }
    let Report { file, explicit_layers, implicit_layers, commit, diagnostics, .. } = report;
    let named = quantity(*explicit_layers, "layer");
    let mut text = format!("{file}: {named} named, {implicit_layers} needed by others\n");
    for diagnostic in *diagnostics {
        text.push_str(&format!("{diagnostic}\n"));
    }
    match commit {
        Some(commit) => text.push_str(&format!("committed as {}\n", &commit[..8])),
        None => text.push_str("commit it, and `strata reconcile` rolls it out\n"),
    }
    print_bytes(text.as_bytes())
}
