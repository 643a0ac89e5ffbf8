//! `strata va`: the machines that VAs run on.

mod clone;
mod console;
mod destroy;
mod drift;
mod lifecycle;
mod logs;
mod pin;
mod provision;
mod rename;
mod show;

pub(super) use show::active;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use strata_core::VaName;
use strata_core::links::VaTarget;
use strata_machine::{MachineError, Machines, Programs, ProvisionError};
use strata_store::Store;

use super::{Failure, Outcome, StoreArgs};
use crate::fleet;

/// Provision, clone, start, suspend, resume, stop and look at VAs
#[derive(Debug, Args)]
pub struct VaArgs {
    #[command(subcommand)]
    command: VaCommand,
}

#[derive(Debug, Subcommand)]
enum VaCommand {
    Provision(provision::ProvisionArgs),
    Destroy(destroy::DestroyArgs),
    Clone(clone::CloneArgs),
    Rename(rename::RenameArgs),
    Start(lifecycle::StartArgs),
    Exec(lifecycle::ExecArgs),
    Suspend(lifecycle::SuspendArgs),
    Resume(lifecycle::ResumeArgs),
    Stop(lifecycle::StopArgs),
    Console(console::ConsoleArgs),
    Logs(logs::LogsArgs),
    List(show::ListArgs),
    Status(show::StatusArgs),
    Explain(super::explain::ExplainArgs),
    Drift(drift::DriftArgs),
    Pin(pin::PinArgs),
    Unpin(pin::UnpinArgs),
}

/// # Errors
/// What the command wanted does not hold; `exec` returns only then.
pub fn run(args: &VaArgs) -> Result<Outcome, Failure> {
    match &args.command {
        VaCommand::Provision(args) => provision::run(args),
        VaCommand::Destroy(args) => destroy::run(args),
        VaCommand::Clone(args) => clone::run(args),
        VaCommand::Rename(args) => rename::run(args),
        VaCommand::Start(args) => lifecycle::start(args),
        VaCommand::Exec(args) => lifecycle::exec(args),
        VaCommand::Suspend(args) => lifecycle::suspend(args),
        VaCommand::Resume(args) => lifecycle::resume(args),
        VaCommand::Stop(args) => lifecycle::stop(args),
        VaCommand::Console(args) => console::run(args),
        VaCommand::Logs(args) => logs::run(args),
        VaCommand::List(args) => show::list(args),
        VaCommand::Status(args) => show::status(args),
        VaCommand::Explain(args) => super::explain::run(args),
        VaCommand::Drift(args) => drift::run(args),
        VaCommand::Pin(args) => pin::pin(args),
        VaCommand::Unpin(args) => pin::unpin(args),
    }
}

/// The programs that a VA is made of: `STRATA_VLFS` and `STRATA_INIT`, or those
/// beside this program. Never whichever the search path has.
pub(super) fn programs() -> Result<Programs, Failure> {
    let find = |variable: &str, name: &str| -> Result<PathBuf, Failure> {
        let (path, place) = match std::env::var_os(variable) {
            Some(path) => (PathBuf::from(path), variable),
            None => (
                std::env::current_exe().map_err(Failure::new)?.with_file_name(name),
                "the directory of strata",
            ),
        };
        if path.is_file() {
            return Ok(path);
        }
        let message = format!("there is no program {} ({place})", path.display());
        Err(Failure::new(message)
            .hint(format!("install {name} beside strata, or name it with {variable}")))
    };
    Ok(Programs {
        vlfs: find("STRATA_VLFS", "strata-vlfs")?,
        init: find("STRATA_INIT", "strata-init")?,
        virtiofsd: virtiofsd()?,
    })
}

/// Where distributions have the daemon that shows directories to machines.
const VIRTIOFSD: [&str; 4] = [
    "/usr/libexec/virtiofsd",
    "/usr/lib/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
    "/usr/local/bin/virtiofsd",
];

/// `STRATA_VIRTIOFSD`, which must be there, or that of the distribution.
fn virtiofsd() -> Result<Option<PathBuf>, Failure> {
    match std::env::var_os("STRATA_VIRTIOFSD").map(PathBuf::from) {
        Some(path) if path.is_file() => Ok(Some(path)),
        Some(path) => Err(Failure::new(format!("there is no program {}", path.display()))
            .hint("let STRATA_VIRTIOFSD name a virtiofsd, or unset it")),
        None => Ok(VIRTIOFSD.map(PathBuf::from).into_iter().find(|path| path.is_file())),
    }
}

/// Adds what to do about it.
pub(super) fn machine_failure(error: MachineError) -> Failure {
    let hint = match &error {
        MachineError::NoVa(name) => {
            Some(format!("see `strata va list`, or make it: strata va provision --template T {name}"))
        }
        MachineError::Incomplete(name) => {
            Some(format!("complete it: strata va provision --template T {name}"))
        }
        MachineError::Busy { .. } => Some("wait for the other command, or end it".to_owned()),
        MachineError::Running(name) => Some(format!("stop it first: strata va stop {name}")),
        MachineError::Suspended(name) => Some(format!("resume it first: strata va resume {name}")),
        MachineError::Stopped(name) => Some(format!("start it first: strata va start {name}")),
        MachineError::NoCommand(name) => Some(format!(
            "start it without one: strata va start {name}; what runs in it is its template's"
        )),
        MachineError::NoForwards(_) => {
            Some("it has the host's network: let it listen on the port itself".to_owned())
        }
        MachineError::NoExec(name) => {
            Some(format!("use its network, or see its console: strata va logs {name}"))
        }
        MachineError::NoBootEnvironment(_) => Some(
            "make it: strata boot build --kernel PACKAGE.deb (strata boot build --help)".to_owned(),
        ),
        MachineError::NoDisk { .. } => Some("see whether the disk of the store is full".to_owned()),
        MachineError::NoConsole(name) => Some(format!(
            "run a shell in it: strata va exec {name} sh; what it prints: strata va logs {name}"
        )),
        MachineError::ConsoleTaken(name) => {
            Some(format!("see what it shows without it: strata va logs --follow {name}"))
        }
        MachineError::NoDomain(_) => {
            Some("it needs nothing of libvirt: strata va start".to_owned())
        }
        MachineError::NoVirtiofs(_) => Some(
            "install virtiofsd 1.13 or later (Debian 13: virtiofsd), name it with STRATA_VIRTIOFSD, or choose --transport 9p"
                .to_owned(),
        ),
        MachineError::NotToDisk(name) => Some(format!(
            "stop it and start it with --transport virtiofs, or suspend it in memory: strata va suspend {name}"
        )),
        MachineError::NoState(name) => {
            Some(format!("suspend it in memory: strata va suspend {name}"))
        }
        MachineError::SuspendedToDisk(name) => Some(format!(
            "resume it and stop it then; or give up what it had in memory: strata va stop --timeout 0 {name}"
        )),
        MachineError::Hardware { .. } | MachineError::CutState { .. } => Some(
            "give the saved state up, as with a power failure: strata va stop --timeout 0 NAME".to_owned(),
        ),
        MachineError::Qmp(_) => {
            Some("see qemu.log in the VA's directory; strata va stop --timeout 0 ends it".to_owned())
        }
        MachineError::NoCgroups => Some(
            "mount it (mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified), or boot with systemd.unified_cgroup_hierarchy=1"
                .to_owned(),
        ),
        MachineError::NoMemoryLimits => {
            Some("boot with the memory controller (cgroup_enable=memory)".to_owned())
        }
        MachineError::NotMounted { name, .. } => Some(format!(
            "see mount.log in machines/{name} of the store and the VLFS's log in its private layer"
        )),
        MachineError::NotStarted { name, .. } => {
            Some(format!("see console.log in machines/{name} of the store"))
        }
        MachineError::Deadline { .. } => {
            Some("give it longer with --timeout, or see what its processes wait for".to_owned())
        }
        MachineError::Unkillable { .. } => Some(
            "they wait in the kernel, for a device or a dead file server; the next stop tries again"
                .to_owned(),
        ),
        MachineError::Record { path, .. } => {
            Some(format!("restore {} from a backup, or remove the VA's directory", path.display()))
        }
        MachineError::Io { action: "run", path, source }
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            Some(format!("install {} (Debian: qemu-system-x86, e2fsprogs)", path.display()))
        }
        MachineError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Some("this needs root".to_owned())
        }
        MachineError::Io { source, .. }
            if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem =>
        {
            Some("the cgroup hierarchy or the store is read-only here".to_owned())
        }
        MachineError::Io { .. } | MachineError::Store(_) => None,
    };
    with_hint(error, hint)
}

fn provision_failure(error: ProvisionError) -> Failure {
    let hint = match &error {
        ProvisionError::Machine(_) | ProvisionError::Store(_) | ProvisionError::Record(_) => None,
        ProvisionError::Exists(_) => {
            Some("choose another name, or --count for the next free ones".to_owned())
        }
        ProvisionError::MacTaken { .. } => {
            Some("choose another address, or none for a random one".to_owned())
        }
        ProvisionError::Declared { mac, .. } => Some(format!(
            "choose another name; or, to make that VA here: --mac {mac}, with the template and the ring that it is declared with"
        )),
        ProvisionError::Linked { target: VaTarget::Ring { composition, ring }, .. } => {
            Some(format!("provision it so: --template {composition} --ring {ring}"))
        }
        ProvisionError::Linked { .. } => Some("choose another address".to_owned()),
        ProvisionError::NoRing { .. } => Some("choose one of its rings with --ring".to_owned()),
        ProvisionError::NoTemplate(name) => Some(format!(
            "commit templates/{name}.ldf and let `strata reconcile` take it; see `strata status`"
        )),
        ProvisionError::WhichRing { .. } => Some("choose one with --ring".to_owned()),
        ProvisionError::TooMany(_) => Some("use several commands".to_owned()),
        ProvisionError::Name(..) => Some("choose a shorter name".to_owned()),
        ProvisionError::Busy(_) => Some("wait for the other command, or end it".to_owned()),
        ProvisionError::Cloning(_) => Some("wait for it, or choose another name".to_owned()),
        ProvisionError::Copy { .. } => Some("nothing is left of the copy".to_owned()),
        ProvisionError::InUse(_) => Some("stop the VA on that host first".to_owned()),
    };
    match error {
        ProvisionError::Machine(error) => machine_failure(error),
        error => with_hint(error, hint),
    }
}

fn with_hint(error: impl std::fmt::Display, hint: Option<String>) -> Failure {
    let failure = Failure::new(error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// The machines of a store, none of which gets a name that a commit gives to another address.
fn machines_beside_declared(store: &Store) -> Result<Machines<'_>, Failure> {
    let declared = fleet::declared(store).into_iter().map(|(mac, name)| (name, mac));
    let machines = Machines::open(store).map_err(machine_failure)?;
    Ok(machines.with_declared(declared.collect()))
}

/// Does something to each of several VAs; one that fails does not keep the
/// others from it. What failed before the last failure is told at once.
fn each(
    names: &[VaName],
    store: &StoreArgs,
    mut act: impl FnMut(&Machines<'_>, &VaName) -> Result<(), Failure>,
) -> Result<Outcome, Failure> {
    let store = store.open()?;
    let machines = Machines::open(&store).map_err(machine_failure)?;
    let mut last = None;
    for name in names {
        if let Err(failure) = act(&machines, name)
            && let Some(earlier) = last.replace(failure)
        {
            earlier.print();
        }
    }
    last.map_or(Ok(Outcome::Done), Err)
}
