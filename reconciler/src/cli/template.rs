//! `strata template`: what templates are made of.

mod build;
mod commit;
mod composition;
mod create;

use super::{Failure, Outcome};

/// Make templates, and the configuration layers that they have
#[derive(Debug, clap::Args)]
pub struct TemplateArgs {
    #[command(subcommand)]
    command: TemplateCommand,
}

#[derive(Debug, clap::Subcommand)]
enum TemplateCommand {
    Create(create::CreateArgs),
    Build(build::BuildArgs),
    Commit(commit::CommitArgs),
}

/// # Errors
/// What the command wanted does not hold.
pub fn run(args: &TemplateArgs) -> Result<Outcome, Failure> {
    match &args.command {
        TemplateCommand::Create(args) => create::run(args),
        TemplateCommand::Build(args) => build::run(args),
        TemplateCommand::Commit(args) => commit::run(args),
    }
}
