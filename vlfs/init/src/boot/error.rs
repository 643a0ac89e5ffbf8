//! Why a machine does not come up. Each text is what stands on its console.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use strata_core::MacAddr;
use strata_store::StoreError;

use crate::boot::options::OptionsError;
use crate::error::InitError;

#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("the kernel command line: {0}")]
    Options(#[from] OptionsError),
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Init(#[from] InitError),
    #[error("cannot mount {what}: {source}{hint}")]
    Mount { what: String, source: io::Error, hint: &'static str },
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error(
        "this machine has no network interface\n  hint: give it one, or name its VA with strata.mac=MAC"
    )]
    NoInterfaces,
    #[error("there is no network interface {name}; there are: {found}")]
    NoInterface { name: String, found: String },
    #[error(
        "this machine has several network interfaces: {found}\n  hint: name the one to which the file server is reached: ip=ADDRESS::GATEWAY:NETMASK::INTERFACE"
    )]
    SeveralInterfaces { found: String },
    #[error(
        "the network interface {interface} has no address\n  hint: add ip=ADDRESS::GATEWAY:NETMASK, as strata boot serve does by itself"
    )]
    NoAddress { interface: String },
    #[error(
        "the file server {server} does not answer on port {port}: {source}\n  hint: it must serve NFS over TCP to this machine"
    )]
    NoServer { server: Ipv4Addr, port: u16, source: io::Error },
    #[error(
        "the store has no generation for {macs}\n  hint: strata va provision --template T --mac MAC NAME"
    )]
    NotProvisioned { macs: String },
    #[error(
        "several of this machine's addresses are VAs: {found}\n  hint: name one with strata.mac=MAC"
    )]
    SeveralVas { found: String },
    #[error(
        "no disk is the private disk of {mac} (label {label:?}); there are: {found}\n  hint: give the machine its disk; an empty one becomes it by mkfs.ext4 -L {label}"
    )]
    NoDisk { mac: MacAddr, label: String, found: String },
    #[error(
        "the disk {name} is no private disk of {mac}: its label is {found:?}, not {label:?}\n  hint: give each VA its own disk"
    )]
    ForeignDisk { name: String, mac: MacAddr, found: String, label: String },
    #[error("the VLFS cannot be mounted: {0}")]
    Vlfs(String),
    #[error(
        "the appliance's first program {program} does not run: {source}\n  hint: it needs its interpreter and libraries in the template, too"
    )]
    Start { program: PathBuf, source: io::Error },
    #[error("the appliance has no program {0}\n  hint: change strata.init=PATH, or the template")]
    NoInit(PathBuf),
}

impl BootError {
    /// Whether waiting could help.
    pub fn may_pass(&self) -> bool {
        match self {
            BootError::Options(_) | BootError::Start { .. } | BootError::NoInit(_) => false,
            BootError::Read { .. }
            | BootError::Init(_)
            | BootError::Mount { .. }
            | BootError::Store(_)
            | BootError::NoInterfaces
            | BootError::NoInterface { .. }
            | BootError::SeveralInterfaces { .. }
            | BootError::NoAddress { .. }
            | BootError::NoServer { .. }
            | BootError::NotProvisioned { .. }
            | BootError::SeveralVas { .. }
            | BootError::NoDisk { .. }
            | BootError::ForeignDisk { .. }
            | BootError::Vlfs(_) => true,
        }
    }
}
