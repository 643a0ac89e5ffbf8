//! `strata repo`: whole repositories of layers.

mod key;
mod mirror;
mod serve;
mod verify;

use serde::Serialize;
use strata_core::names::RepositoryName;
use strata_store::{Store, StoreError};

use crate::repositories::remote::units::is_there;

use super::{
    Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_bytes, print_json, print_text,
    quantity,
};

/// Manage the repositories of layers in a store
#[derive(Debug, clap::Args)]
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
    /// are read; what is withdrawn stays so.
    #[command(after_help = "Example:\n  strata repo index main --store /srv/strata")]
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
        StoreError::Database { .. } => Failure::new(error).hint(
            "move the damaged database away and index again; which of the units that are here are withdrawn is lost with it",
        ),
        _ => Failure::new(error).hint("`strata repo list` prints the repositories"),
    })?;
    let mut writer = store.write_repository(&repository)?;
    let units = writer.index()?;
    let changed = writer.commit()?;
    if args.output.output == OutputFormat::Json {
        print_json(&Indexed { repository, units, changed })?;
    } else {
        let change = if changed { "the database was written anew" } else { "nothing changed" };
        print_bytes(format!("{repository}: {}, {change}\n", quantity(units, "unit")).as_bytes())?;
    }
    Ok(Outcome::Done)
}
