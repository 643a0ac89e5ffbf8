//! `strata va clone`.

use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use strata_core::{MacAddr, RingName, VaName};
use strata_machine::CloneRequest;

use super::provision::print;
use super::{machines_beside_declared, provision_failure};
use crate::cli::{Failure, Outcome, OutputArgs, StoreArgs};

/// Make another VA like one that exists, with or without what it wrote
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata va clone web-01 web-02                         # of the same template and ring
  strata va clone --private sql-01 sql-test             # with a copy of all that it wrote
  strata va clone --private --ring canary sql-01 sql-02 sql-03

With --private the VA that is copied must be stopped. The copy has everything that is the appliance's
own, its host keys and passwords among them; only its address is new. What resets put aside is not copied.
A copy that is interrupted leaves nothing. A machine is cloned without its disk.")]
pub struct CloneArgs {
    /// The VA that is copied
    source: VaName,
    /// The new VAs
    #[arg(required = true, value_name = "NAME")]
    names: Vec<VaName>,
    /// With a copy of the private layer and of the data directories
    #[arg(long)]
    private: bool,
    /// The rollout cohort [default: that of the VA that is copied]
    #[arg(long)]
    ring: Option<RingName>,
    /// The new VA's MAC address; only for one [default: a random local one]
    #[arg(long)]
    mac: Option<MacAddr>,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: &CloneArgs) -> Result<Outcome, Failure> {
    if args.mac.is_some() && args.names.len() > 1 {
        return Err(Failure::new("several VAs cannot have one MAC address")
            .hint("leave --mac out, or clone them one by one"));
    }
    let store = args.store.open()?;
    let machines = machines_beside_declared(&store)?;
    let mut made = Vec::new();
    let mut failed = None;
    for name in &args.names {
        let request = CloneRequest {
            source: args.source.clone(),
            name: name.clone(),
            ring: args.ring.clone(),
            mac: args.mac,
            private: args.private,
        };
        let bar = ProgressBar::new_spinner().with_message(format!("copying {}", args.source));
        bar.enable_steady_tick(Duration::from_millis(200));
        let result = machines.clone_va(&request);
        bar.finish_and_clear();
        match result {
            Ok(va) => made.push(va),
            Err(error) => {
                failed = Some(provision_failure(error));
                break;
            }
        }
    }
    print(&made, args.output.output)?;
    failed.map_or(Ok(Outcome::Done), Err)
}
