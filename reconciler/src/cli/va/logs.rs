//! `strata va logs`.

use std::io::Read;
use std::time::Duration;

use clap::Args;
use strata_core::VaName;
use strata_core::status::RunState;
use strata_machine::Machines;

use super::machine_failure;
use crate::cli::output::print_live;
use crate::cli::{Failure, Outcome, StoreArgs};

/// How often to look for more.
const LOOK: Duration = Duration::from_millis(200);

/// Show what a VA's console has shown since its last start
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata va logs web-03
  strata va logs --follow vm-01        # until it has stopped

The run before is in console.log.1 in the VA's directory.")]
pub struct LogsArgs {
    name: VaName,
    /// Go on with what comes, until the VA has stopped
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    store: StoreArgs,
}

pub fn run(args: &LogsArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let machines = Machines::open(&store).map_err(machine_failure)?;
    let record = machines.record(&args.name).map_err(machine_failure)?;
    let Some(mut console) = machines.console(&args.name).map_err(machine_failure)? else {
        return Ok(Outcome::Done);
    };
    let mut buffer = vec![0; 64 << 10];
    loop {
        // Asked before what there is is read: nothing comes after the end.
        let ended = args.follow
            && machines.run_state(&record).map_err(machine_failure)? == RunState::Stopped;
        loop {
            match console.read(&mut buffer).map_err(Failure::new)? {
                0 => break,
                length if !print_live(&buffer[..length])? => return Ok(Outcome::Done),
                _ => {}
            }
        }
        if ended || !args.follow {
            return Ok(Outcome::Done);
        }
        std::thread::sleep(LOOK);
    }
}
