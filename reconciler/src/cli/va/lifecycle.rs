//! `strata va start`, `exec`, `suspend`, `resume` and `stop`.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, ValueEnum};
use strata_core::VaName;
use strata_machine::{
    AcceleratorChoice, Forward, Machines, Network, StartRequest, TransportChoice,
};

use super::{each, machine_failure, programs};
use crate::cli::{Failure, Outcome, StoreArgs, print_bytes};

/// Start a stopped VA
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata va start web-03                                   # waits for `strata va exec`
  strata va start web-03 -- apachectl -D FOREGROUND        # runs, and ends with, a command
  strata va start --memory-mib 1024 --forward 8080:80 vm-01    # a machine (provision --driver qemu)

What the command prints goes to console.log beside the VA's record (strata va logs).")]
pub struct StartArgs {
    name: VaName,
    /// The appliance's command; the VA ends when it does [default: none]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    /// The host's network (a machine: by address translation), or one of the VA's own and no
    /// way out
    #[arg(long, value_enum, default_value = "host", value_name = "NETWORK")]
    network: NetworkChoice,
    /// Let a port of this host's loopback interface lead to one of the machine's; may be given
    /// again
    #[arg(long = "forward", value_name = "HOST_PORT:PORT", value_parser = forward)]
    forwards: Vec<Forward>,
    /// Memory of the VA's processes, or of its machine [default: no limit; a machine: 512]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(64..=1 << 20))]
    memory_mib: Option<u64>,
    /// What executes a machine's instructions: KVM where a trial shows that it works, KVM, or QEMU
    #[arg(long, value_enum, default_value = "auto", value_name = "ACCELERATOR")]
    accelerator: Acceleration,
    /// How a machine sees the store: virtiofs where virtiofsd is installed and else 9p, or one of
    /// them. Only with virtiofs it can be suspended to disk
    #[arg(long, value_enum, default_value = "auto", value_name = "TRANSPORT")]
    transport: Transport,
    /// How long the VLFS and the first process may each take to come up
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum NetworkChoice {
    Host,
    Private,
}

impl From<NetworkChoice> for Network {
    fn from(choice: NetworkChoice) -> Self {
        match choice {
            NetworkChoice::Host => Network::Host,
            NetworkChoice::Private => Network::Private,
        }
    }
}

fn forward(text: &str) -> Result<Forward, String> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let ports = text.split_once(':').map(|(host, machine)| (port(host), port(machine)));
    match ports {
        Some((Some(host), Some(machine))) => Ok(Forward { host, machine }),
        _ => Err("write HOST_PORT:PORT, as in 8080:80".to_owned()),
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Acceleration {
    Auto,
    Kvm,
    Software,
}

impl From<Acceleration> for AcceleratorChoice {
    fn from(choice: Acceleration) -> Self {
        match choice {
            Acceleration::Auto => AcceleratorChoice::Auto,
            Acceleration::Kvm => AcceleratorChoice::Kvm,
            Acceleration::Software => AcceleratorChoice::Software,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Transport {
    Auto,
    Virtiofs,
    #[value(name = "9p")]
    NinePea,
}

impl From<Transport> for TransportChoice {
    fn from(choice: Transport) -> Self {
        match choice {
            Transport::Auto => TransportChoice::Auto,
            Transport::Virtiofs => TransportChoice::Virtiofs,
            Transport::NinePea => TransportChoice::NinePea,
        }
    }
}

pub fn start(args: &StartArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let machines = Machines::open(&store).map_err(machine_failure)?;
    let request = StartRequest {
        command: args.command.clone(),
        network: args.network.into(),
        forwards: args.forwards.clone(),
        layer_scripts: true,
        memory_bytes: args.memory_mib.map(|mib| mib << 20),
        accelerator: args.accelerator.into(),
        transport: args.transport.into(),
        deadline: Duration::from_secs(args.timeout),
    };
    machines.start(&args.name, &request, &programs()?).map_err(machine_failure)?;
    print_bytes(format!("{} is running\n", args.name).as_bytes())?;
    Ok(Outcome::Done)
}

/// Run a command in a running VA
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata va exec web-03 cat /etc/hostname
  strata va exec web-03 -- sh -c 'echo $0'

Standard input and output are passed through. Exit code: the command's, 128 + signal,
127 not found, 126 not executable, 125 the VA could not be entered, 2 it is not running.")]
pub struct ExecArgs {
    name: VaName,
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<OsString>,
    #[command(flatten)]
    store: StoreArgs,
}

/// Returns only when the command could not be run.
pub fn exec(args: &ExecArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    let machines = Machines::open(&store).map_err(machine_failure)?;
    let command = machines.exec(&args.name, &args.command, &programs()?);
    Err(Failure::new(command.map_err(machine_failure)?.replace_process()))
}

/// Suspend running VAs: nothing in them runs until they are resumed
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata va suspend web-03
  strata va suspend --to-disk vm-01    # a machine (provision --driver qemu)

An update reaches a suspended VA's link at once, and the VA itself when it is resumed. One that is
suspended to disk survives a restart of the host, and can be resumed on another one.")]
pub struct SuspendArgs {
    #[arg(required = true, value_name = "NAME")]
    names: Vec<VaName>,
    /// Save a machine's memory beside its record, and leave nothing of it on the host
    #[arg(long)]
    to_disk: bool,
    /// How long the VA may take to stand still, or be saved; it goes on when it does not
    /// [default: 10; to disk: 120]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    #[command(flatten)]
    store: StoreArgs,
}

pub fn suspend(args: &SuspendArgs) -> Result<Outcome, Failure> {
    each(&args.names, &args.store, |machines, name| {
        let patience = |seconds| Duration::from_secs(args.timeout.unwrap_or(seconds));
        let (suspended, how) = if args.to_disk {
            (machines.suspend_to_disk(name, patience(120)), " to disk")
        } else {
            (machines.suspend(name, patience(10)), "")
        };
        suspended.map_err(machine_failure)?;
        print_bytes(format!("{name} is suspended{how}\n").as_bytes())
    })
}

/// Resume suspended VAs
#[derive(Debug, Args)]
#[command(after_help = "Example: strata va resume web-03

The VA's file system takes what its link names by now before its processes go on.")]
pub struct ResumeArgs {
    #[arg(required = true, value_name = "NAME")]
    names: Vec<VaName>,
    /// How long the VA may take to go on [default: 10; from disk: 120]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    #[command(flatten)]
    store: StoreArgs,
}

pub fn resume(args: &ResumeArgs) -> Result<Outcome, Failure> {
    let programs = programs()?;
    each(&args.names, &args.store, |machines, name| {
        let record = machines.record(name).map_err(machine_failure)?;
        let usual = if machines.is_saved(&record) { 120 } else { 10 };
        let patience = Duration::from_secs(args.timeout.unwrap_or(usual));
        machines.resume(name, patience, &programs).map_err(machine_failure)?;
        print_bytes(format!("{name} is running\n").as_bytes())
    })
}

/// Stop VAs, and remove what is left of one that died
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  strata va stop web-03
  strata va stop --timeout 0 web-03        # kills at once

It is no error that a VA is stopped already. One that is suspended to disk is resumed first, or stopped with
--timeout 0, which gives up what it had in memory.")]
pub struct StopArgs {
    #[arg(required = true, value_name = "NAME")]
    names: Vec<VaName>,
    /// How long the VA may take to end by itself before it is killed
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
    #[command(flatten)]
    store: StoreArgs,
}

pub fn stop(args: &StopArgs) -> Result<Outcome, Failure> {
    each(&args.names, &args.store, |machines, name| {
        machines.stop(name, Duration::from_secs(args.timeout)).map_err(machine_failure)?;
        print_bytes(format!("{name} is stopped\n").as_bytes())
    })
}
