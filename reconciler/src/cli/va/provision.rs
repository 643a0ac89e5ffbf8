//! `strata va provision`.

use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use strata_core::{CompositionName, MacAddr, RingName, VaName};
use strata_machine::{Driver, ProvisionRequest, Provisioned};

use super::{machines_beside_declared, provision_failure};
use crate::cli::{Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_bytes, print_json};

/// From this many on, one line a VA is no help.
const LINES: usize = 20;

/// Provision VAs of a template: a name, an address and a link, nothing copied
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata va provision --template web-server web-03
  strata va provision --template web-server --ring canary --mac 52:54:00:12:34:56 web-04
  strata va provision --template web-server --count 50        # web-server-0001, …
  strata va provision --template web-server --driver qemu vm-01

A VA that a commit declares gets its record by its --mac, with the template and the ring declared.
What an interrupted command left by halves, the same command completes.")]
pub struct ProvisionArgs {
    /// The VA's name; with --count the beginning of the names [default with --count: the template]
    name: Option<VaName>,
    /// The template, or any other LDF that was rolled out
    #[arg(long, value_name = "NAME")]
    template: CompositionName,
    /// The rollout cohort [default: everyone, or the only one there is]
    #[arg(long)]
    ring: Option<RingName>,
    /// The VA's MAC address [default: a random local one]
    #[arg(long, conflicts_with = "count")]
    mac: Option<MacAddr>,
    /// How many VAs; their names are the next free ones: NAME-0001, NAME-0002, …
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// What the VA runs on: namespaces of this host, or a virtual machine
    #[arg(long, value_enum, default_value = "namespace", value_name = "DRIVER")]
    driver: DriverChoice,
    /// The directory of the private layer, or a machine's disk image [default: beside the VA's
    /// record]
    #[arg(long, value_name = "DIR", conflicts_with = "count")]
    private: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum DriverChoice {
    Namespace,
    Qemu,
}

impl From<DriverChoice> for Driver {
    fn from(choice: DriverChoice) -> Self {
        match choice {
            DriverChoice::Namespace => Driver::Namespace,
            DriverChoice::Qemu => Driver::Qemu,
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    name: &'a VaName,
    mac: MacAddr,
    template: &'a CompositionName,
    ring: &'a RingName,
    /// It had been left by halves.
    completed: bool,
}

pub fn run(args: &ProvisionArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let machines = machines_beside_declared(&store)?;
    let private = args.private.as_ref().map(std::path::absolute).transpose();
    let private = private.map_err(Failure::new)?;
    let request = ProvisionRequest {
        composition: args.template.clone(),
        ring: args.ring.clone(),
        mac: args.mac,
        name: args.name.clone(),
        count: args.count,
        driver: args.driver.into(),
        private,
    };
    let bar = progress_bar(args.count.unwrap_or(1));
    let made = machines
        .provision(&request, &mut |done, steps| {
            bar.set_length(steps);
            bar.set_position(done);
        })
        .map_err(provision_failure)?;
    bar.finish_and_clear();
    print(&made, args.output.output)?;
    Ok(Outcome::Done)
}

/// Prints VAs that were made.
pub fn print(made: &[Provisioned], output: OutputFormat) -> Result<(), Failure> {
    match output {
        OutputFormat::Json => print_json(&made.iter().map(line).collect::<Vec<_>>()),
        OutputFormat::Text => print_bytes(text(made).as_bytes()),
    }
}

/// Hidden where standard error is no terminal, and for a few.
fn progress_bar(count: u32) -> ProgressBar {
    if count < 1000 {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("provisioning {wide_bar} {percent} % {eta}")
        .expect("the template is well-formed");
    ProgressBar::new(0).with_style(style)
}

fn line(va: &Provisioned) -> Line<'_> {
    Line {
        name: &va.record.name,
        mac: va.record.mac,
        template: &va.record.composition,
        ring: &va.record.ring,
        completed: va.completed,
    }
}

fn text(made: &[Provisioned]) -> String {
    if let ([first, .., last], true) = (made, made.len() > LINES) {
        let count = made.len();
        return format!("{count} VAs, {} to {}\n", first.record.name, last.record.name);
    }
    let lines = made.iter().map(line).map(|va| {
        let completed = if va.completed { " (completed)" } else { "" };
        format!("{} {} {} {}{completed}\n", va.name, va.mac, va.template, va.ring)
    });
    lines.collect()
}
