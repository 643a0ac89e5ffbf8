//! `strata template commit`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use strata_core::desired::Definition;
use strata_core::generation::Generation;
use strata_core::ldf::LayerLine;
use strata_core::links::VaTarget;
use strata_core::metadata::{LayerKind, Metadata};
use strata_core::printable::printable;
use strata_core::{CompositionName, LayerName, LayerVersion, RepositoryName, VaName};
use strata_machine::Machines;
use strata_store::{Store, refuse_reserved};

use super::composition::{composition, name_layer};
use crate::cli::layer::from_private::{Pattern, matches, view};
use crate::cli::va::machine_failure;
use crate::cli::{
    Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_json, print_text, quantity,
};
use crate::revision::WorkRepository;
use crate::template::Inputs;
use crate::template::handmade::{self, Handmade};

/// Keep what was configured by hand in a VA of a template as a layer of the template
///
/// Makes a configuration layer of what the VA has changed and removed, names it in the LDF
/// and commits that on the branch that is checked out. Given again, the layer gets a new version, with
/// what it had and what was changed since. The VA must be suspended or stopped.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata template commit . web-server web-draft --repo main --dry-run
  strata template commit . web-server web-draft --repo main --select '/etc/**'

The layer is NAME-changes, and its versions are 1, 2, 3 and so on. Not in it, as no two VAs share them: host keys, the
machine's id, logs, caches, temporary files, data directories; what programs expect of it is there, empty. All else is taken as it is: look with --dry-run
before you share passwords or histories of shells. Once the commit is rolled out, destroy or reset the VA.")]
pub struct CommitArgs {
    /// The directory that holds strata.toml, the root of the git repository
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// The template
    name: CompositionName,
    /// The VA that was configured
    va: VaName,
    /// Take only these paths; may be given again
    #[arg(long, value_name = "GLOB")]
    select: Vec<Pattern>,
    /// The repository of the layer [default: that of its former version]
    #[arg(long, value_name = "REPOSITORY")]
    repo: Option<RepositoryName>,
    /// The layer's name [default: NAME-changes]
    #[arg(long, value_name = "NAME")]
    layer: Option<LayerName>,
    /// The message of the commit [default: what was done]
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
    /// Leave the commit to git, which may sign it; the LDF is written
    #[arg(long, conflicts_with = "message")]
    no_commit: bool,
    /// Write nothing; list what the layer would have
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    composition: CompositionName,
    va: VaName,
    repository: RepositoryName,
    layer: LayerName,
    version: LayerVersion,
    /// Paths that it has, those that it hides, and those that are every VA's own.
    paths: Vec<String>,
    /// Of the paths, those that it has without what is in them.
    emptied: Vec<String>,
    hidden: Vec<String>,
    left_out: Vec<String>,
    /// Whether the layer was made and the LDF names it.
    written: bool,
    commit: Option<String>,
}

/// # Errors
/// The VA runs or is none of the template, nothing was changed, or the layer or the commit
/// cannot be made.
pub fn run(args: &CommitArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let (definition, generation) = composition(&store, &args.directory, &args.name)?;
    let work = match args.dry_run || args.no_commit {
        true => None,
        false => Some(open_work(args, &definition)?),
    };
    let layer = match &args.layer {
        Some(layer) => layer.clone(),
        None => LayerName::new(format!("{}-changes", args.name)).map_err(Failure::new)?,
    };
    let repository = repository(args, &definition, &layer)?;
    refuse_other_template(&store, args)?;
    let scratch = tempfile::tempdir().map_err(|error| {
        Failure::new(format!("a directory for the view: {error}")).hint("set TMPDIR")
    })?;
    let seen = view(&store, &args.va, None, scratch.path())?;
    let Inputs { former, data, .. } = Inputs::of(&generation, &repository, &layer);
    let wanted = |path: &[u8]| args.select.is_empty() || matches(&args.select, path);
    let changes =
        Handmade::of(&store, &seen, former.as_ref(), &data, wanted).map_err(Failure::new)?;
    if changes.is_empty() {
        let message = format!("{} has changed nothing that a template keeps", args.va);
        return Err(Failure::new(message).hint("host keys, logs and data are every VA's own"));
    }
    let version = handmade::next_version(&store, &repository, &layer).map_err(Failure::new)?;
    let emptied = changes.selected.iter().filter(|selected| selected.emptied);
    let mut report = Report {
        composition: args.name.clone(),
        va: args.va.clone(),
        repository: repository.clone(),
        layer: layer.clone(),
        version: version.clone(),
        paths: changes.selected.iter().map(|selected| shown(&selected.path)).collect(),
        emptied: emptied.map(|selected| shown(&selected.path)).collect(),
        hidden: changes.hidden.iter().map(shown).collect(),
        left_out: changes.left_out.iter().map(|path| shown(path)).collect(),
        written: !args.dry_run,
        commit: None,
    };
    if !args.dry_run {
        let description = Some(format!("what was configured by hand in {}", args.va));
        let metadata = Metadata {
            description,
            ..Metadata::new(layer.clone(), version.clone(), LayerKind::Configuration)
        };
        changes.publish(&store, &repository, metadata, &seen).map_err(Failure::new)?;
        let line = LayerLine { hold: false, repository, layer, version: Some(version) };
        let text = name_layer(&args.directory, &definition, line)?;
        if let (Some(work), Some(text)) = (work, text) {
            let files = BTreeMap::from([(definition.file.clone(), text)]);
            let message = args.message.clone().unwrap_or_else(|| message(&report));
            report.commit = Some(work.commit_to_head(&files, &message)?.to_string());
        }
    }
    drop(seen);
    warn_of_difference(&store, args, &generation)?;
    print(args, &report).map(|()| Outcome::Done)
}

/// The work tree, if a commit there would be of this command's changes alone.
fn open_work(args: &CommitArgs, definition: &Definition) -> Result<WorkRepository, Failure> {
    let work = WorkRepository::open_to_commit(&args.directory)?;
    if work.text_at_head(&definition.file)?.as_deref() != Some(definition.ldf.print().as_bytes()) {
        let message = format!("{} has changes that are not committed", definition.file);
        return Err(Failure::new(message).hint("commit or undo them first"));
    }
    Ok(work)
}

/// The repository that was asked for, or that of the former version.
fn repository(
    args: &CommitArgs,
    definition: &Definition,
    layer: &LayerName,
) -> Result<RepositoryName, Failure> {
    let former = definition.ldf.explicit().find(|(_, line)| line.layer == *layer);
    let former = former.map(|(_, line)| line.repository.clone());
    if let (Some(wanted), Some(former)) = (&args.repo, &former)
        && wanted != former
    {
        let message = format!("{} has {former}/{layer} already", definition.file);
        return Err(
            Failure::new(message).hint(format!("leave --repo out, or take --repo {former}"))
        );
    }
    let repository = args.repo.clone().or(former).ok_or_else(|| {
        Failure::new(format!("{} names no layer {layer} yet", definition.file))
            .hint("say which repository is to have it: --repo REPOSITORY")
    })?;
    refuse_reserved(&repository)?;
    Ok(repository)
}

fn refuse_other_template(store: &Store, args: &CommitArgs) -> Result<(), Failure> {
    let machines = Machines::open(store).map_err(machine_failure)?;
    let record = machines.record(&args.va).map_err(machine_failure)?;
    let found = match store.va_target(record.mac)? {
        Some(VaTarget::Ring { composition, .. } | VaTarget::Pinned { composition, .. }) => {
            composition
        }
        None => record.composition,
    };
    if found == args.name {
        return Ok(());
    }
    Err(Failure::new(format!("{} is a VA of {found}, not of {}", args.va, args.name))
        .hint(format!("make one: strata va provision --template {} NAME", args.name)))
}

/// The changes were made over what the VA serves, and go onto what the directory defines.
fn warn_of_difference(
    store: &Store,
    args: &CommitArgs,
    defined: &Generation,
) -> Result<(), Failure> {
    let machines = Machines::open(store).map_err(machine_failure)?;
    let record = machines.record(&args.va).map_err(machine_failure)?;
    let Some(served) = store.desired(record.mac)? else { return Ok(()) };
    if store.generation(&served)?.layers() != defined.layers() {
        eprintln!(
            "note: {} has other layers than the directory defines: check that its changes fit",
            args.va
        );
    }
    Ok(())
}

fn shown(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

fn message(report: &Report) -> String {
    let Report { composition, va, repository, layer, version, paths, hidden, .. } = report;
    let mut text = format!("Keep what was configured by hand in {va} for {composition}\n\n");
    text.push_str(&format!("{repository}/{layer} {version}"));
    text.push_str(&format!(": {}", quantity(paths.len(), "path")));
    if !hidden.is_empty() {
        text.push_str(&format!(", {} removed", hidden.len()));
    }
    text.push('\n');
    text
}

fn print(args: &CommitArgs, report: &Report) -> Result<(), Failure> {
    if args.output.output == OutputFormat::Json {
        return print_json(report);
    }
    let Report { repository, layer, version, paths, emptied, hidden, left_out, .. } = report;
    let unit = format!("{repository}/{layer} {version}");
    let (has, hides, leaves) = (quantity(paths.len(), "path"), hidden.len(), left_out.len());
    let mut text = String::new();
    if report.written {
        let told = match &report.commit {
            Some(commit) => format!("committed as {}", &commit[..8]),
            None => "the LDF names it now: commit that".to_owned(),
        };
        text.push_str(&format!("{unit} has {has}, hides {hides}, leaves out {leaves}; {told}\n"));
    } else {
        for (mark, paths) in [('+', paths), ('-', hidden), ('!', left_out)] {
            // A VA names its files as it likes.
            text.extend(paths.iter().map(|path| match emptied.contains(path) {
                true => format!("0 {}\n", printable(path)),
                false => format!("{mark} {}\n", printable(path)),
            }));
        }
        let empty = match emptied.len() {
            0 => String::new(),
            count => format!(", {count} of them empty (0)"),
        };
        text.push_str(&format!(
            "{unit} would have {has} (+){empty}, hide {hides} (-), leave out {leaves} (!)\n"
        ));
    }
    print_text(&text)
}
