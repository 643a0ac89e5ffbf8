//! `strata va list` and `strata va status`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde::Serialize;
use strata_core::{GenerationId, MacAddr, VaName};
use strata_machine::{
    ControlError, Driver, MachineError, Machines, Observation, RunState, VaRecord, without_batch,
};
use strata_store::{Store, VaTarget};

use super::machine_failure;
use crate::cli::{
    Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, known, print_bytes, print_json,
    print_text,
};

/// How long a VLFS may take to say its generation.
const ANSWER: Duration = Duration::from_secs(2);

/// List all VAs of the store
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata va list
  strata va list --output json | jq -r '.[] | select(.state == \"running\") | .name'

What each VA serves and should serve: strata status.")]
pub struct ListArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Row {
    name: VaName,
    mac: MacAddr,
    /// Of its link; `null` where an interrupted `provision` made none.
    template: Option<String>,
    /// `null` where it is pinned to a generation.
    ring: Option<String>,
    driver: Driver,
    state: RunState,
    /// Where what it had in memory is, while it is suspended.
    suspended_to: Option<SuspendedTo>,
}

#[derive(Serialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum SuspendedTo {
    Memory,
    Disk,
}

impl Row {
    fn state(&self) -> String {
        match self.suspended_to {
            Some(SuspendedTo::Disk) => format!("{} (to disk)", self.state),
            Some(SuspendedTo::Memory) | None => self.state.to_string(),
        }
    }
}

fn row(store: &Store, machines: &Machines<'_>, record: VaRecord) -> Result<Row, Failure> {
    let target = match store.va_target(record.mac) {
        Err(error) if error.is_foreign_link() => {
            eprintln!("note: {error}");
            None
        }
        target => target?.map(without_batch),
    };
    let ring = match &target {
        Some(VaTarget::Ring { ring, .. }) => Some(ring.to_string()),
        Some(VaTarget::Pinned { .. }) | None => None,
    };
    let state = machines.run_state(&record).map_err(machine_failure)?;
    let suspended_to = (state == RunState::Suspended).then(|| match machines.is_saved(&record) {
        true => SuspendedTo::Disk,
        false => SuspendedTo::Memory,
    });
    Ok(Row {
        state,
        suspended_to,
        name: record.name,
        mac: record.mac,
        template: target.map(|target| target.composition().to_string()),
        ring,
        driver: record.driver,
    })
}

pub fn list(args: &ListArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let machines = Machines::open(&store).map_err(machine_failure)?;
    let mut rows = Vec::new();
    let mut damaged = None;
    for record in machines.records().map_err(machine_failure)? {
        match record {
            Ok(record) => rows.push(row(&store, &machines, record)?),
            Err(error) => {
                eprintln!("note: {error}");
                damaged = Some(error);
            }
        }
    }
    match args.output.output {
        OutputFormat::Json => print_json(&rows)?,
        OutputFormat::Text => print_text(&table(&rows))?,
    }
    damaged.map_or(Ok(Outcome::Done), |error| Err(machine_failure(error)))
}

fn table(rows: &[Row]) -> String {
    let mut cells = vec![["NAME", "MAC", "TEMPLATE", "RING", "STATE"].map(str::to_owned)];
    cells.extend(rows.iter().map(|row| {
        let incomplete = || "(incomplete)".to_owned();
        [
            row.name.to_string(),
            row.mac.to_string(),
            row.template.clone().unwrap_or_else(incomplete),
            row.ring.clone().unwrap_or_else(|| "-".to_owned()),
            row.state(),
        ]
    }));
    let mut widths = [0; 5];
    for row in &cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    let mut text = String::new();
    for row in &cells {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _infallible = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Show one VA: what it is, what it does and what it serves
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata va status web-03
  strata va status vm-01 --output libvirt-xml --view /run/strata-view | virsh define /dev/stdin

The active generation is asked of the mounted file system itself, with a deadline:
one that is suspended cannot answer, and its last report is shown instead.")]
pub struct StatusArgs {
    /// Its name or its MAC address.
    #[arg(value_name = "NAME")]
    va: String,
    /// With --output libvirt-xml: what the machine sees of the store [default: the whole store]
    #[arg(long, value_name = "DIRECTORY", value_parser = absolute)]
    view: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
    /// How to print; libvirt-xml: the domain that a machine is to libvirt
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: StatusFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StatusFormat {
    #[value(alias = "table")]
    Text,
    Json,
    LibvirtXml,
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("write an absolute path".to_owned()) }
}

#[derive(Serialize)]
struct Status {
    #[serde(flatten)]
    row: Row,
    private: PathBuf,
    /// PID 1 of the VA, as the host numbers it.
    init: Option<u32>,
    processes: Vec<u32>,
    vlfs_processes: Vec<u32>,
    /// The VLFS's mount point on this host.
    mount_point: Option<PathBuf>,
    desired: Option<GenerationId>,
    /// What the mounted VLFS says it serves.
    active: Option<String>,
    /// Why `active` is not known.
    active_unknown: Option<String>,
    /// What the VA's last report said, and how old it is.
    reported: Option<GenerationId>,
    report_age_s: Option<u64>,
}

/// The machine of a VA by the VA's name or address.
fn machine(store: &Store, machines: &Machines<'_>, va: &str) -> Result<VaRecord, Failure> {
    let record = match known::va(store, va)? {
        (Some(name), _) => match machines.record(&name) {
            Err(MachineError::NoVa(_)) => None,
            record => Some(record.map_err(machine_failure)?),
        },
        (None, mac) => {
            let records = machines.records().map_err(machine_failure)?;
            records.into_iter().flatten().find(|record| record.mac == mac)
        }
    };
    record.ok_or_else(|| {
        Failure::new(format!("{va} has no machine in this store: nobody provisioned it"))
            .hint(format!("what it should run, and why: strata va explain {va}"))
    })
}

pub fn status(args: &StatusArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let machines = Machines::open(&store).map_err(machine_failure)?;
    let record = machine(&store, &machines, &args.va)?;
    if args.output == StatusFormat::LibvirtXml {
        let domain = machines.libvirt_domain(&record, args.view.as_deref());
        print_bytes(domain.map_err(machine_failure)?.as_bytes())?;
        if args.view.is_none() {
            eprintln!(
                "note: root of this machine can read the whole store, with the private layers of other VAs\n  \
                 hint: make a view of it, and name it with --view: docs/machines.md, libvirt"
            );
        }
        return Ok(Outcome::Done);
    }
    let observed = machines.observe(&record).map_err(machine_failure)?;
    let (active, active_unknown) = match active(&observed) {
        Ok(generation) => (Some(generation), None),
        Err(reason) => (None, Some(reason)),
    };
    let report = store.report(record.mac).unwrap_or_else(|error| {
        eprintln!("note: {error}");
        None
    });
    let age = |written_at_ms| {
        let written = std::time::UNIX_EPOCH + Duration::from_millis(written_at_ms);
        written.elapsed().unwrap_or_default().as_secs()
    };
    let status = Status {
        private: record.private_in(&machines.directory(&record.name)),
        init: observed.init,
        processes: observed.processes,
        vlfs_processes: observed.daemon,
        mount_point: observed.mount.map(|mount| mount.point),
        desired: store.desired(record.mac)?,
        active,
        active_unknown,
        reported: report.as_ref().and_then(|report| report.generation),
        report_age_s: report.map(|report| age(report.written_at_ms)),
        row: row(&store, &machines, record)?,
    };
    match args.output {
        StatusFormat::Json => print_json(&status)?,
        StatusFormat::Text | StatusFormat::LibvirtXml => print_text(&describe(&status))?,
    }
    Ok(Outcome::Done)
}

/// The generation that the mounted VLFS says it serves, or why that is not known.
pub(in crate::cli) fn active(observed: &Observation) -> Result<String, String> {
    if observed.inside {
        return Err("the VLFS is mounted in the machine, whose report names it".to_owned());
    }
    let mount = observed.mount.as_ref().ok_or("the VLFS is not mounted")?;
    if observed.daemon.is_empty() {
        return Err("the VLFS daemon is dead: stop the VA and start it again".to_owned());
    }
    if observed.daemon_frozen {
        return Err("the VLFS is suspended".to_owned());
    }
    let served = strata_machine::served(mount.device, Instant::now() + ANSWER);
    let served = served.map_err(|error: ControlError| error.to_string())?;
    served.generation.ok_or_else(|| "the VLFS names no generation".to_owned())
}

fn describe(status: &Status) -> String {
    let unknown = "-".to_owned();
    let row = &status.row;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _infallible = writeln!(text, "{name:<10} {value}");
    };
    line("name", row.name.as_str());
    line("mac", &row.mac.to_string());
    line("template", row.template.as_ref().unwrap_or(&unknown));
    line("ring", row.ring.as_ref().unwrap_or(&unknown));
    line("state", &row.state());
    line("private", &status.private.display().to_string());
    let first = status.init.map_or(unknown.clone(), |init| init.to_string());
    line("processes", &format!("{}, PID 1 is {first} on the host", status.processes.len()));
    let daemon: Vec<_> = status.vlfs_processes.iter().map(u32::to_string).collect();
    let daemon = if daemon.is_empty() { unknown.clone() } else { daemon.join(" ") };
    line("vlfs", &daemon);
    line("desired", &status.desired.map_or(unknown.clone(), |id| id.to_string()));
    let active = match (&status.active, &status.active_unknown) {
        (Some(active), _) => active.clone(),
        (None, Some(reason)) => format!("unknown: {reason}"),
        (None, None) => unknown.clone(),
    };
    line("active", &active);
    if let (Some(reported), Some(age)) = (status.reported, status.report_age_s) {
        line("reported", &format!("{reported}, {age} s ago"));
    }
    text
}
