//! `strata boot serve`: machines boot over the network.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use strata_import::boot;
use strata_store::Store;
use strata_store::durable::Disk;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

use super::super::{
    Failure, Outcome, OutputArgs, OutputFormat, StoreArgs, print_bytes, print_json, print_text,
};
use super::{DIRECTORY, failure};
use crate::network_boot::dnsmasq::{Configuration, DhcpRange, Hosts, InterfaceName};
use crate::network_boot::{self, CommandLine, FIRST_SCRIPT, Options};
use crate::repositories::remote::run as run_async;

/// The file below `--hosts-dir`.
const HOSTS_FILE: &str = "strata";
/// How often to look for VAs that came or went.
const HOSTS_LOOK: Duration = Duration::from_secs(1);

/// Serve what machines need to boot over the network into their VAs, over HTTP
///
/// Each machine gets a script for iPXE that boots the current boot environment, with a kernel
/// command line of its own. DHCP and TFTP are dnsmasq's, for which --dnsmasq prints the
/// configuration. Machines that are no VAs, or run without a hypervisor, get nothing. Runs until it is
/// ended. There is no encryption and no log-in: the network of machines that boot must be trusted.
#[derive(Debug, Args)]
#[command(after_help = "Example, on the host 10.0.0.1, where NFS serves the store read-only:
  apt-get install dnsmasq-base ipxe
  strata boot serve --listen 10.0.0.1:8081 --dnsmasq --interface br0 \\
    --dhcp-range 10.0.0.50-10.0.0.99 --hosts-dir /run/strata-dhcp > /etc/strata-dnsmasq.conf
  strata boot serve --listen 10.0.0.1:8081 --hosts-dir /run/strata-dhcp \\
    --append 'console=ttyS0 quiet panic=30 strata.store=nfs:10.0.0.1:/srv/strata' &
  dnsmasq --conf-file=/etc/strata-dnsmasq.conf

A machine is provisioned as any VA: strata va provision --driver qemu --template web --mac MAC web-03")]
pub struct ServeArgs {
    /// Where to listen; port 0 takes any that is free
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// The kernel command line; at least strata.store=…, see docs/boot.md. {mac} stands for
    /// a machine's address
    #[arg(long, value_name = "WORDS", required_unless_present = "dnsmasq")]
    append: Option<CommandLine>,
    /// Where iPXE is, for firmware without it (Debian's package ipxe)
    #[arg(long, value_name = "DIR", default_value = "/usr/lib/ipxe")]
    ipxe: PathBuf,
    /// Connections at once; more wait
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// How many seconds a connection may last
    #[arg(long, value_name = "S", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    connection_time: u64,
    /// What all machines together are sent in a second, in MiB
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    mib_per_second: u32,
    /// A directory of its own in which to keep the machines' addresses for dnsmasq, which takes up new
    /// ones by itself
    #[arg(long, value_name = "DIR")]
    hosts_dir: Option<PathBuf>,
    /// Print the configuration of dnsmasq, and serve nothing
    #[arg(long, requires_all = ["interface", "dhcp_range"])]
    dnsmasq: bool,
    /// The network interface on which dnsmasq answers
    #[arg(long, value_name = "NAME", requires = "dnsmasq")]
    interface: Option<InterfaceName>,
    /// The addresses that machines get
    #[arg(long, value_name = "FIRST-LAST", requires = "dnsmasq")]
    dhcp_range: Option<DhcpRange>,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Serialize)]
struct Serving {
    address: SocketAddr,
    script: String,
    environment: String,
}

#[derive(Debug, Serialize)]
struct Printed {
    dnsmasq: String,
}

pub fn run(args: &ServeArgs) -> Result<Outcome, Failure> {
    let store = args.store.open()?;
    if let (true, Some(interface), Some(range)) = (args.dnsmasq, &args.interface, args.dhcp_range) {
        return print_configuration(args, &store, interface, range);
    }
    let Some(command_line) = args.append.clone() else {
        return Err(Failure::new("there is no kernel command line")
            .hint("--append 'strata.store=nfs:SERVER:/PATH'"));
    };
    let environments = store.root().join(DIRECTORY);
    let current = boot::list(&environments).map_err(failure)?.into_iter().find(|it| it.current);
    let Some(current) = current else {
        return Err(Failure::new("the store has no boot environment")
            .hint("make it: strata boot build --kernel PACKAGE.deb"));
    };
    let options = Options {
        command_line,
        environments,
        ipxe: args.ipxe.clone(),
        connections: args.connections.into(),
        connection_time: Duration::from_secs(args.connection_time),
        bytes_per_second: u64::from(args.mib_per_second) << 20,
    };
    if let Some(directory) = &args.hosts_dir {
        write_hosts(&store, directory, None)?;
    }
    run_async(serve(args, store, options, current.name))
        .map_err(|error| Failure::new(format!("start: {error}")))??;
    Ok(Outcome::Done)
}

async fn serve(
    args: &ServeArgs,
    store: Store,
    options: Options,
    environment: String,
) -> Result<(), Failure> {
    let at = |error| {
        Failure::new(format!("listen on {}: {error}", args.listen))
            .hint("name a free address of this host: --listen ADDRESS:PORT")
    };
    let listener = TcpListener::bind(args.listen).await.map_err(at)?;
    let address = listener.local_addr().map_err(at)?;
    let script = format!("http://{address}/{FIRST_SCRIPT}");
    match args.output.output {
        OutputFormat::Json => print_json(&Serving { address, script, environment })?,
        OutputFormat::Text => print_text(&format!("serving {environment} on {script}\n"))?,
    }
    let failed = |error| Failure::new(format!("serve: {error}"));
    let mut terminated = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(failed)?;
    let hosts = args
        .hosts_dir
        .clone()
        .map(|directory| tokio::spawn(keep_hosts(args.store.store.clone(), directory)));
    let ended = async move {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
    };
    network_boot::serve(store, listener, options, ended).await;
    if let Some(hosts) = hosts {
        hosts.abort();
    }
    Ok(())
}

/// Writes the machines' addresses whenever they have changed.
async fn keep_hosts(store: PathBuf, directory: PathBuf) {
    let mut ticks = tokio::time::interval(HOSTS_LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut written, mut told) = (None, None);
    loop {
        ticks.tick().await;
        let (store, directory, former) = (store.clone(), directory.clone(), written.clone());
        let wrote = tokio::task::spawn_blocking(move || {
            write_hosts(&Store::open(&store)?, &directory, former.as_deref())
        });
        let problem = match wrote.await {
            Ok(Ok(text)) => {
                written = Some(text);
                None
            }
            Ok(Err(failure)) => Some(failure.message().to_owned()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(problem) = &problem
            && told.as_ref() != Some(problem)
        {
            tracing::error!(%problem, "dnsmasq is not told of new machines");
        }
        told = problem;
    }
}

/// Writes the machines' addresses unless they are what they were. Returns what is written.
fn write_hosts(store: &Store, directory: &Path, former: Option<&str>) -> Result<String, Failure> {
    let vas = network_boot::bootable(store).map_err(Failure::new)?;
    let text = network_boot::dnsmasq::hosts(&vas);
    if former != Some(text.as_str()) {
        let disk = Disk::default();
        disk.create_directory(directory)?;
        // By one rename, of which dnsmasq hears; names with a dot before them it passes over.
        disk.write_file(&directory.join(HOSTS_FILE), text.as_bytes(), 0o644)?;
    }
    Ok(text)
}

fn print_configuration(
    args: &ServeArgs,
    store: &Store,
    interface: &InterfaceName,
    range: DhcpRange,
) -> Result<Outcome, Failure> {
    if args.listen.ip().is_unspecified() || args.listen.port() == 0 {
        return Err(Failure::new(format!("machines cannot reach {}", args.listen))
            .hint("name the address and the port that they see: --listen 10.0.0.1:8081"));
    }
    let hosts = match &args.hosts_dir {
        Some(directory) => Hosts::Directory(std::path::absolute(directory).map_err(Failure::new)?),
        None => Hosts::Listed(network_boot::bootable(store).map_err(Failure::new)?),
    };
    let configuration = Configuration {
        interface: interface.clone(),
        range,
        url: format!("http://{}", args.listen),
        ipxe: std::path::absolute(&args.ipxe).map_err(Failure::new)?,
        hosts,
    };
    let dnsmasq = configuration.print().map_err(Failure::new)?;
    match args.output.output {
        OutputFormat::Json => print_json(&Printed { dnsmasq })?,
        OutputFormat::Text => print_bytes(dnsmasq.as_bytes())?,
    }
    Ok(Outcome::Done)
}
