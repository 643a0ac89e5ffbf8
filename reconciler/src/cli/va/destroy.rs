//! `strata va destroy`.

use std::io::{IsTerminal, Write};
use std::sync::Arc;

use clap::Args;
use strata_core::VaName;
use strata_core::event::Event;

use super::pin::tell;
use super::{each, machine_failure, provision_failure};
use crate::cli::{Failure, Outcome, StoreArgs, print_bytes};
use crate::rollout::pins;

/// Destroy stopped VAs: link, record and private layer
#[derive(Debug, Args)]
#[command(after_help = "Example: strata va destroy --yes web-03 web-04

What a VA wrote is in its private layer and is lost with it. A pin ends with its VA.")]
pub struct DestroyArgs {
    #[arg(required = true, value_name = "NAME")]
    names: Vec<VaName>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    store: StoreArgs,
}

pub fn run(args: &DestroyArgs) -> Result<Outcome, Failure> {
    if !args.yes && !confirmed(&args.names)? {
        return Err(Failure::new("nothing was destroyed"));
    }
    let store = Arc::new(args.store.open()?);
    each(&args.names, &args.store, |machines, name| {
        let mac = machines.record(name).map_err(machine_failure)?.mac;
        // Held until the VA is gone, so that nobody finishes the pin meanwhile.
        let pin = pins::hold(machines.store(), mac)?;
        let kept = machines.destroy(name).map_err(provision_failure)?;
        if let Some(pin) = pin {
            pin.forget()?;
            tell(store.clone(), Event::VaUnpinned { mac, expired: false })?;
        }
        print_bytes(format!("{name} destroyed\n").as_bytes())?;
        if let Some(private) = kept {
            eprintln!("note: {} was left: it is no private layer of Strata", private.display());
        }
        Ok(())
    })
}

fn confirmed(names: &[VaName]) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        let message = "destroying VAs needs a confirmation, and nobody can be asked here";
        return Err(Failure::new(message).hint("give --yes"));
    }
    let names: Vec<&str> = names.iter().map(VaName::as_str).collect();
    eprint!("Destroy {} with all that was written in it? [y/N] ", names.join(", "));
    std::io::stderr().flush().map_err(Failure::new)?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(Failure::new)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
