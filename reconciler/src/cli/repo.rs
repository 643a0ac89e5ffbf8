//! `strata repo`: whole repositories of layers.

mod key;
mod mirror;
mod serve;
mod verify;

use serde::Serialize;
use strata_core::Digest;
use strata_core::database::Database;
use strata_core::names::RepositoryName;
use strata_core::resolver::edit::Wanted;
use strata_store::{IndexOptions, Store, StoreError};

use crate::repositories::remote::units::is_there;
use crate::repositories::signing;

use super::{
    Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_bytes, print_json, print_text,
    quantity,
};

/// Manage the repositories of layers in a store
#[derive(Debug, clap::Args)]
#[command(
    after_help = "See also: `strata layer withdraw` and `restore` for single units, `strata store gc` for what nobody uses."
)]
pub struct RepoArgs {
    #[command(subcommand)]
    command: RepoCommand,
}

#[derive(Debug, clap::Subcommand)]
enum RepoCommand {
    /// List the repositories
    #[command(
        after_help = "Example:\n  strata repo list --store /srv/strata\n\nExit status: 0 done, 1 the database of one is damaged, 2 an error."
    )]
    List(ListArgs),
    /// Build a repository's database anew from its layer units
    ///
    /// Needed after units were copied into the repository by other means, or
    /// after an import was killed. Every unit's metadata, manifest and scripts
    /// are read; one that is another than the database says is refused. What is withdrawn
    /// stays so; where the database was moved away, that is what was so when it was signed last.
    #[command(
        after_help = "Examples:\n  strata repo index main --store /srv/strata\n  strata repo index main --accept 'motd 1'"
    )]
    Index(IndexArgs),
    Verify(verify::VerifyArgs),
    Key(key::KeyArgs),
    Sign(key::SignArgs),
    Cosign(key::CosignArgs),
    Sync(mirror::SyncArgs),
    Mirror(mirror::MirrorArgs),
    Publish(serve::PublishArgs),
    Serve(serve::ServeArgs),
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
struct IndexArgs {
    /// The repository
    #[arg(value_name = "REPOSITORY")]
    repository: RepositoryName,
    /// Take this unit as it is now, although it was changed; may be given again
    #[arg(long, value_name = "LAYER VERSION")]
    accept: Vec<Wanted>,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Serialize)]
struct Repository {
    repository: RepositoryName,
    units: usize,
    /// Of a mirror: those of its units that are here.
    #[serde(skip_serializing_if = "Option::is_none")]
    mirrored: Option<usize>,
    withdrawn: usize,
    content_bytes: u64,
    /// Why nothing is known of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct Indexed {
    repository: RepositoryName,
    units: usize,
    changed: bool,
    marks: Marks,
}

/// Where the marks of withdrawal are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Marks {
    /// The database of before.
    Kept,
    /// The signed one: there was no other.
    Signed,
    /// There was no database.
    Lost,
}

pub fn run(args: &RepoArgs) -> Result<Outcome, Failure> {
    match &args.command {
        RepoCommand::List(args) => list(args),
        RepoCommand::Index(args) => index(args),
        RepoCommand::Verify(args) => verify::run(args),
        RepoCommand::Key(args) => key::run(args),
        RepoCommand::Sign(args) => key::sign(args),
        RepoCommand::Cosign(args) => key::cosign(args),
        RepoCommand::Sync(args) => mirror::sync(args),
        RepoCommand::Mirror(args) => mirror::mirror(args),
        RepoCommand::Publish(args) => serve::publish(args),
        RepoCommand::Serve(args) => serve::serve(args),
    }
}

fn list(args: &ListArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let (mut repositories, mut outcome) = (Vec::new(), Outcome::Done);
    for repository in store.repositories()? {
        // One that this user may not read, or that is damaged, does not hide the others.
        let known = known(&store, &repository).unwrap_or_else(|error| {
            if !matches!(error, StoreError::NoAccess { .. }) {
                outcome = Outcome::Difference;
            }
            Repository {
                repository,
                units: 0,
                mirrored: None,
                withdrawn: 0,
                content_bytes: 0,
                error: Some(error.to_string()),
            }
        });
        repositories.push(known);
    }
    if args.output.output == OutputFormat::Json {
        print_json(&repositories)?;
        return Ok(outcome);
    }
    let mut text = String::new();
    for Repository { repository, units, mirrored, withdrawn, content_bytes, error } in &repositories
    {
        if let Some(error) = error {
            text.push_str(&format!("{repository:<20} {error}\n"));
            continue;
        }
        let size = indicatif::HumanBytes(*content_bytes);
        let mirrored = mirrored.map(|count| format!(", a mirror with {count} of them here"));
        text.push_str(&format!(
            "{repository:<20} {:>12}, {withdrawn} withdrawn, {size}{}\n",
            quantity(*units, "unit"),
            mirrored.unwrap_or_default()
        ));
    }
    print_text(&text)?;
    Ok(outcome)
}

/// What its database says of a repository.
fn known(store: &Store, repository: &RepositoryName) -> Result<Repository, StoreError> {
    let database = store.database(repository)?;
    let mirrored = match store.is_mirror(repository)? {
        true => Some(database.units().filter(|unit| is_there(store, repository, unit)).count()),
        false => None,
    };
    Ok(Repository {
        repository: repository.clone(),
        units: database.len(),
        mirrored,
        withdrawn: database.units().filter(|unit| unit.withdrawn.is_some()).count(),
        content_bytes: database.units().map(|unit| unit.content_bytes).sum(),
        error: None,
    })
}

fn index(args: &IndexArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let repository = args.repository.clone();
    // Refuses a repository that is not there: writing would make it.
    store.database(&repository).map_err(|error| match error {
        StoreError::Database { .. } | StoreError::Compression { .. } => Failure::new(error).hint(
            "move the damaged database away and index again; what was withdrawn since it was last signed is lost with it",
        ),
        _ => Failure::new(error).hint("`strata repo list` prints the repositories"),
    })?;
    let accepted = args.accept.iter().map(|unit| match &unit.version {
        Some(version) => Ok((unit.layer.clone(), version.clone())),
        None => Err(Failure::new(format!("--accept {unit} names no version"))
            .hint(format!("name one, as in --accept '{unit} 1'"))),
    });
    let accepted = accepted.collect::<Result<_, Failure>>()?;
    let is_there = store.database_file(&repository)?.is_some();
    let former = if is_there { None } else { signed_database(&store, &repository)? };
    let marks = match (is_there, &former) {
        (true, _) => Marks::Kept,
        (false, Some(_)) => Marks::Signed,
        (false, None) => Marks::Lost,
    };
    let mut writer = store.write_repository(&repository)?;
    let units = writer.index(&IndexOptions { accepted, former }).map_err(index_failure)?;
    let changed = writer.commit()?;
    match marks {
        Marks::Kept => {}
        Marks::Signed => eprintln!(
            "note: there was no database: what is withdrawn is what was so when it was last signed"
        ),
        Marks::Lost if units == 0 => {}
        Marks::Lost => eprintln!(
            "note: there was no database, and marks of withdrawal were in it: withdraw again what was withdrawn (strata layer withdraw)"
        ),
    }
    if args.output.output == OutputFormat::Json {
        print_json(&Indexed { repository, units, changed, marks })?;
    } else {
        let change = if changed { "the database was written anew" } else { "nothing changed" };
        print_bytes(format!("{repository}: {}, {change}\n", quantity(units, "unit")).as_bytes())?;
    }
    Ok(Outcome::Done)
}

/// The database that was signed last, where it is there still.
fn signed_database(
    store: &Store,
    repository: &RepositoryName,
) -> Result<Option<Database>, Failure> {
    let snapshot = signing::snapshot(store, repository).map_err(Failure::new)?;
    let Some((snapshot, _)) = snapshot else { return Ok(None) };
    let bytes = store.signed_database_file(repository, &snapshot.database)?;
    let bytes = bytes.filter(|bytes| Digest::of(bytes) == snapshot.database);
    Ok(bytes.map(|bytes| store.parse_whole_database(repository, bytes)).transpose()?)
}

fn index_failure(error: StoreError) -> Failure {
    match &error {
        StoreError::UnitsChanged { repository, units } => {
            let first = units.first().map(String::as_str).unwrap_or_default();
            let hint = format!(
                "restore them from their source; or take one as it is now: strata repo index {repository} --accept '{first}'"
            );
            Failure::new(&error).hint(hint)
        }
        StoreError::Io { .. }
        | StoreError::Metadata { .. }
        | StoreError::Manifest { .. }
        | StoreError::Misplaced { .. }
        | StoreError::NotRegular(_)
        | StoreError::TooLarge { .. } => Failure::new(&error).hint(
            "restore that unit, or move its directory out of the repository, and index again",
        ),
        _ => Failure::from(error),
    }
}
