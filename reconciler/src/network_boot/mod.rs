//! What a machine needs to boot over the network into its VA (§4.3), served over HTTP.
//!
//! ```text
//! /boot.ipxe                                what every iPXE asks for first
//! /va/<mac, with dashes>.ipxe               the script of one machine
//! /boot/<environment>/kernel, initramfs     the boot environment that the script names
//! /ipxe/<program>                           iPXE itself, for firmware that boots over HTTP
//! ```
//!
//! Guarantees: everything is only read, and looked up in lists; of a VA its address, and its
//! name to who knows the address, are told, and nothing else. A script names an
//! environment by its own name, so that a kernel never meets another one's initramfs. DHCP and
//! TFTP are a well-kept server's ([`dnsmasq`]); the store reaches the machine in another way,
//! which is on the kernel command line ([`CommandLine`]).

mod command_line;
pub mod dnsmasq;
mod requests;
mod script;
mod vas;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use strata_store::Store;
use tokio::net::TcpListener;

use crate::http_server::{self, Limits};

pub use command_line::{CommandLine, CommandLineError};
pub use requests::{FIRST_SCRIPT, IPXE_PROGRAMS};
pub use vas::{BootableVa, bootable};

/// What the options do not say.
const LIMITS: Limits = Limits {
    connections: 0,
    connection_time: Duration::ZERO,
    header_time: Duration::from_secs(15),
    header_bytes: 16 << 10,
    headers: 100,
    body_bytes: 4 << 10,
    keep_alive: true,
    grace: Duration::from_secs(5),
};

#[derive(Debug, Clone)]
pub struct Options {
    /// What the kernel is told beside what is each machine's own.
    pub command_line: CommandLine,
    /// Where boot environments are.
    pub environments: PathBuf,
    /// Where iPXE's programs are.
    pub ipxe: PathBuf,
    /// Connections at once; more wait.
    pub connections: usize,
    /// How long a connection may last.
    pub connection_time: Duration,
    /// Of all connections together.
    pub bytes_per_second: u64,
}

/// Serves until `ended` is done.
pub async fn serve(
    store: Store,
    listener: TcpListener,
    options: Options,
    ended: impl Future<Output = ()>,
) {
    let limits = Limits {
        connections: options.connections,
        connection_time: options.connection_time,
        ..LIMITS
    };
    let files = Arc::new(requests::Files::new(store, options));
    http_server::serve(listener, limits, files, ended).await;
}
