//! `strata template`: what templates are made of.

mod build;

use super::{Failure, Outcome};

/// Build the configuration layers of templates
#[derive(Debug, clap::Args)]
pub struct TemplateArgs {
    #[command(subcommand)]
    command: TemplateCommand,
}

#[derive(Debug, clap::Subcommand)]
enum TemplateCommand {
    Build(build::BuildArgs),
}

/// # Errors
/// What the command wanted does not hold.
pub fn run(args: &TemplateArgs) -> Result<Outcome, Failure> {
    match &args.command {
        TemplateCommand::Build(args) => build::run(args),
    }
}
