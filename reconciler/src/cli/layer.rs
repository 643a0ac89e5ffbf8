//! `strata layer`: making, judging, listing and withdrawing layer units.

pub(super) mod from_private;
mod import;
mod import_apt;
mod infer;
mod installed;
mod lint;
mod make;
mod seal;
mod show;
mod users;
mod withdraw;

use std::str::FromStr;

use strata_core::names::{LayerName, RepositoryName};

use super::{Failure, Outcome};

/// Make, judge, list, show and withdraw layers
#[derive(Debug, clap::Args)]
pub struct LayerArgs {
    #[command(subcommand)]
    command: LayerCommand,
}

#[derive(Debug, clap::Subcommand)]
enum LayerCommand {
    Build(Box<make::BuildArgs>),
    FromPrivate(Box<from_private::FromPrivateArgs>),
    Import(Box<import::ImportArgs>),
    Infer(infer::InferArgs),
    Lint(lint::LintArgs),
    List(show::ListArgs),
    Show(show::ShowArgs),
    Seal(seal::SealArgs),
    Users(users::UsersArgs),
    Withdraw(withdraw::WithdrawArgs),
    Restore(withdraw::RestoreArgs),
}

pub fn run(args: LayerArgs) -> Result<Outcome, Failure> {
    match args.command {
        LayerCommand::Build(args) => make::run(*args),
        LayerCommand::FromPrivate(args) => from_private::run(&args),
        LayerCommand::Import(args) => import::run(*args),
        LayerCommand::Infer(args) => infer::run(&args),
        LayerCommand::Lint(args) => lint::run(&args),
        LayerCommand::List(args) => show::list(&args),
        LayerCommand::Show(args) => show::show(&args),
        LayerCommand::Seal(args) => seal::seal(&args),
        LayerCommand::Users(args) => users::run(&args),
        LayerCommand::Withdraw(args) => withdraw::withdraw(&args),
        LayerCommand::Restore(args) => withdraw::restore(&args),
    }
}

/// `repository/layer`, as an LDF writes it.
#[derive(Debug, Clone)]
struct LayerReference {
    repository: RepositoryName,
    layer: LayerName,
}

impl FromStr for LayerReference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (repository, layer) = text
            .split_once('/')
            .ok_or_else(|| "write repository/layer, as in main/openssh-server".to_owned())?;
        let repository = repository.parse().map_err(|error| format!("{error}"))?;
        let layer = layer.parse().map_err(|error| format!("{error}"))?;
        Ok(LayerReference { repository, layer })
    }
}
