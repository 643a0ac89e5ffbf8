//! `strata layer withdraw` and `strata layer restore`.

use strata_core::collect::UnitKey;
use strata_core::version::LayerVersion;

use super::{LayerReference, users};
use crate::cli::{Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_json, print_text};
use crate::repositories::users::{Users, users as users_of};

/// Withdraw a layer unit: nothing new may use it
///
/// The unit stays where it is, and whoever uses it keeps it; resolution never
/// chooses it again, and a commit that names it is refused with the reason. Who still
/// uses it is listed. That holds for good: where garbage collection took the unit, one
/// that is imported again is withdrawn still.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  strata layer withdraw main/openssl 3.0.15-1 --reason CVE-2024-13176"
)]
pub struct WithdrawArgs {
    #[command(flatten)]
    unit: UnitArgs,
    /// Why; shown wherever the unit would have been used
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

/// Take back that a layer unit is withdrawn
///
/// Of one that garbage collection took as well: imported again, it may be used.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  strata layer restore main/openssl 3.0.15-1")]
pub struct RestoreArgs {
    #[command(flatten)]
    unit: UnitArgs,
}

#[derive(Debug, clap::Args)]
struct UnitArgs {
    /// The layer, as in main/openssl
    #[arg(value_name = "REPOSITORY/LAYER")]
    layer: LayerReference,
    /// Its version
    version: LayerVersion,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(serde::Serialize)]
struct Marked<'a> {
    repository: &'a str,
    layer: &'a str,
    version: &'a str,
    withdrawn: Option<&'a str>,
    changed: bool,
    /// Whether the repository has it; else garbage collection took it.
    present: bool,
    users: &'a Users,
}

pub fn withdraw(args: &WithdrawArgs) -> Result<Outcome, Failure> {
    if args.reason.trim().is_empty() {
        return Err(
            Failure::new("the reason is empty").hint("say why, as in --reason CVE-2024-13176")
        );
    }
    if args.reason.chars().any(|c| c.is_control() && !c.is_whitespace()) {
        return Err(Failure::new("the reason has control characters")
            .hint("it is shown on terminals: plain text only"));
    }
    let reason = args.reason.split_whitespace().collect::<Vec<_>>().join(" ");
    mark(&args.unit, Some(&reason))
}

pub fn restore(args: &RestoreArgs) -> Result<Outcome, Failure> {
    mark(&args.unit, None)
}

fn mark(args: &UnitArgs, reason: Option<&str>) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let LayerReference { repository, layer } = &args.layer;
    // Refuses a repository that is not there: writing would make it.
    store.database(repository)?;
    let mut writer = store.write_repository(repository)?;
    let changed =
        writer.set_withdrawn(layer, &args.version, reason.map(str::to_owned)).map_err(|error| {
            Failure::from(error).hint(format!(
                "`strata layer list --repo {repository} {layer}` prints its versions"
            ))
        })?;
    let present = writer.database().get(layer, &args.version).is_some();
    writer.commit()?;
    let version = &args.version;
    let key =
        UnitKey { repository: repository.clone(), layer: layer.clone(), version: version.clone() };
    let users = users_of(&store, &key)?;
    if args.output.output == OutputFormat::Json {
        let (repository, layer) = (repository.as_str(), layer.as_str());
        let version = version.as_str();
        print_json(&Marked {
            repository,
            layer,
            version,
            withdrawn: reason,
            changed,
            present,
            users: &users,
        })?;
        return Ok(Outcome::Done);
    }
    let mut text = match (reason, changed) {
        (Some(reason), true) => format!("withdrew {repository}/{layer} {version}: {reason}\n"),
        (Some(_), false) => format!("withdrawn already {repository}/{layer} {version}\n"),
        (None, true) => format!("restored {repository}/{layer} {version}\n"),
        (None, false) => format!("{repository}/{layer} {version} is not withdrawn\n"),
    };
    if !present {
        text.push_str("garbage collection took it: it is not in the repository\n");
    }
    if reason.is_some() {
        text.push_str(&users::text(&users));
    }
    print_text(&text)?;
    Ok(Outcome::Done)
}
