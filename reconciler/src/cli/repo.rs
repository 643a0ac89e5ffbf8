//! `strata repo`: whole repositories of layers.

mod key;
mod mirror;
mod serve;
mod verify;

use serde::Serialize;
use strata_core::names::RepositoryName;
use strata_store::StoreError;

use super::{
    Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_bytes, print_json, quantity,
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
    #[command(after_help = "Example:\n  strata repo list --store /srv/strata")]
    List(ListArgs),
    /// Build a repository's database anew from its layer units
    ///
    /// Needed after units were copied into the repository by other means, or
    /// after an import was killed. Every unit's metadata, manifest and scripts
    /// are read; marks of withdrawal stay.
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
    let mut repositories = Vec::new();
    for repository in store.repositories()? {
        let database = match store.database(&repository) {
            Ok(database) => database,
            // One that this user may not read does not hide the others.
            Err(error @ StoreError::NoAccess { .. }) => {
                let error = Some(error.to_string());
                let (units, withdrawn, content_bytes) = (0, 0, 0);
                repositories.push(Repository {
                    repository,
                    units,
                    withdrawn,
                    content_bytes,
                    error,
                });
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        repositories.push(Repository {
            repository,
            error: None,
            units: database.len(),
            withdrawn: database.units().filter(|unit| unit.withdrawn.is_some()).count(),
            content_bytes: database.units().map(|unit| unit.content_bytes).sum(),
        });
    }
    if args.output.output == OutputFormat::Json {
        print_json(&repositories)?;
        return Ok(Outcome::Done);
    }
    let mut text = String::new();
    for Repository { repository, units, withdrawn, content_bytes, error } in &repositories {
        if let Some(error) = error {
            text.push_str(&format!("{repository:<20} {error}\n"));
            continue;
        }
        let size = indicatif::HumanBytes(*content_bytes);
        text.push_str(&format!(
            "{repository:<20} {:>12}, {withdrawn} withdrawn, {size}\n",
            quantity(*units, "unit")
        ));
    }
    print_bytes(text.as_bytes())?;
    Ok(Outcome::Done)
}

fn index(args: &IndexArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let repository = args.repository.clone();
    // Refuses a repository that is not there: writing would make it.
    store.database(&repository).map_err(|error| match error {
        StoreError::Database { .. } => Failure::new(error).hint(
            "move the damaged database away and index again; marks of withdrawal are lost with it",
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
