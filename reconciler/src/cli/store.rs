//! `strata store`: the store as a whole.

mod gc;
mod sharing;

use super::{Failure, Outcome};

/// Look after the store as a whole
#[derive(Debug, clap::Args)]
pub struct StoreCommandArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Debug, clap::Subcommand)]
enum StoreCommand {
    Dedup(sharing::DedupArgs),
    Gc(gc::GcArgs),
    Stats(sharing::StatsArgs),
}

pub fn run(args: &StoreCommandArgs) -> Result<Outcome, Failure> {
    match &args.command {
        StoreCommand::Dedup(args) => sharing::run_dedup(args),
        StoreCommand::Gc(args) => gc::run(args),
        StoreCommand::Stats(args) => sharing::run_stats(args),
    }
}
