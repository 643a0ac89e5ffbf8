//! `strata va rename`.

use clap::Args;
use strata_core::VaName;

use super::{machines_beside_declared, provision_failure};
use crate::cli::{Failure, Outcome, StoreArgs, print_bytes};

/// Give a stopped VA another name
#[derive(Debug, Args)]
#[command(after_help = "Example: strata va rename web-03 shop-01

Its address, its link, what it wrote, its pin and its history stay. A VA that a commit declares is
declared by its address; change the name in `appliances.toml`, too.
A rename that was interrupted is finished when it is given again.")]
pub struct RenameArgs {
    /// Its name now
    #[arg(value_name = "NAME")]
    old: VaName,
    /// Its name from then on
    #[arg(value_name = "NEW")]
    new: VaName,
    #[command(flatten)]
    store: StoreArgs,
}

pub fn run(args: &RenameArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let machines = machines_beside_declared(&store)?;
    let record = machines.rename(&args.old, &args.new).map_err(provision_failure)?;
    print_bytes(format!("{} is {} now\n", args.old, record.name).as_bytes())?;
    Ok(Outcome::Done)
}
