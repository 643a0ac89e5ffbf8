//! `strata va drift`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use clap::Args;
use serde::Serialize;
use strata_core::VaName;
use strata_machine::Machines;

use super::{machine_failure, programs};
use crate::cli::{Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_json, print_text};
use crate::drift::{DriftError, PrivateDrift, is_inside, private_drift};
use crate::rollout::RolloutFile;

/// The version of the JSON form.
const VERSION: u32 = 1;

/// Show what changed in VAs' private layers that should not have
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata va drift
  strata va drift web-03 --watch 'etc/**' --watch setuid --ignore etc/mtab

Patterns are those of [drift] in strata.toml, as of the last commit that was taken, unless some are given
here. `setuid` stands for new setuid and setgid files.
Exit status: 0 nothing, 1 drift was found, 2 an error.")]
pub struct DriftArgs {
    /// The VAs; all of this store without a name.
    names: Vec<VaName>,
    /// Paths that are watched.
    #[arg(long, value_name = "PATTERN")]
    watch: Vec<String>,
    /// Paths that are never drift.
    #[arg(long, value_name = "PATTERN")]
    ignore: Vec<String>,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Specified in `docs/formats.md`, "Drift".
#[derive(Serialize)]
struct Report {
    version: u32,
    vas: BTreeMap<VaName, PrivateDrift>,
}

pub fn run(args: &DriftArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let mut policy = RolloutFile::read(&store)?.drift.unwrap_or_default();
    if !args.watch.is_empty() {
        policy.watch.clone_from(&args.watch);
    }
    if !args.ignore.is_empty() {
        policy.ignore.clone_from(&args.ignore);
    }
    if policy.watch.is_empty() {
        return Err(Failure::new("nothing is watched for")
            .hint("set `watch` below [drift] in strata.toml, or give --watch 'etc/**'"));
    }
    let machines = Machines::open(&store).map_err(machine_failure)?;
    let names = if args.names.is_empty() {
        machines.names().map_err(machine_failure)?
    } else {
        args.names.clone()
    };
    let vlfs = programs()?.vlfs;
    let mut vas = BTreeMap::new();
    for name in names {
        let record = machines.record(&name).map_err(machine_failure)?;
        if args.names.is_empty() && is_inside(&record) {
            eprintln!("note: {name} is a machine, whose private layer is on its disk");
            continue;
        }
        let drift = private_drift(&store, &machines, &record, &vlfs, &policy)?;
        vas.insert(name, drift);
    }
    let drifted = vas.values().any(|drift| !drift.changes.is_empty());
    let report = Report { version: VERSION, vas };
    match args.output.output {
        OutputFormat::Json => print_json(&report)?,
        OutputFormat::Text => print_text(&text(&report))?,
    }
    Ok(if drifted { Outcome::Difference } else { Outcome::Done })
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for (name, drift) in &report.vas {
        for change in &drift.changes {
            let setuid = if change.setuid { "  setuid" } else { "" };
            let (kind, path) = (&change.change, &change.path);
            let path = path.escape_debug();
            let _infallible = writeln!(text, "{name}  {kind:<10}  /{path}{setuid}");
        }
        if drift.more > 0 {
            let _infallible = writeln!(text, "{name}  and {} more", drift.more);
        }
    }
    text
}

impl From<DriftError> for Failure {
    fn from(error: DriftError) -> Self {
        let by_hand = match &error {
            DriftError::Inside(name) => format!(
                "stop it and look at its disk: mount -o ro,noload,loop machines/{name}/disk.img /mnt; strata-vlfs diff --store STORE /mnt/private"
            ),
            _ => "try by hand: strata-vlfs diff PRIVATE-DIRECTORY".to_owned(),
        };
        Failure::new(error).hint(by_hand)
    }
}
